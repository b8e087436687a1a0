"""Charts as Vega-Lite has them, by way of Altair: marks over rows of numbers that are spelled as tables spell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import altair as alt

Row = Mapping[str, Any]
"""A number, what it belongs to, and under `shown` how tables spell it."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Of Okabe and Ito (jfly.uni-koeln.de/color): told apart with every kind of colour blindness, on light and on dark."""
SCHEME = "cividis"
"""From dark to light for all eyes alike (Nunez, Anderton and Renslow 2018)."""
BOTH_WAYS = "redyellowblue"
"""From red over yellow to blue, which is safe for colour-blind eyes (ColorBrewer)."""
ROW_HEIGHT = 17
"""Pixels of a row of a heat map."""
BAR_HEIGHT = 20
SHORT_NAME = 10
"""Characters of a name of which three stand beside each other on a phone."""
HEIGHT = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart, and the rows that it draws: Altair would look at each of them against Vega-Lite's schema."""

    chart: alt.Chart | alt.LayerChart
    rows: Sequence[Row]

    def spec(self, **properties: Any) -> dict[str, Any]:
        """As Vega-Lite reads it, with more properties of the chart."""
        found: dict[str, Any] = self.chart.properties(**properties).to_dict()
        return found | {"data": {"values": list(self.rows)}}


def _chart() -> alt.Chart:
    return alt.Chart(alt.NamedData(name="rows"))


def _tooltip(**titles: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def heat_map(
    rows: Sequence[Row],
    columns: Sequence[str],
    lines: Sequence[str],
    names: tuple[str, str, str],
    most: float,
    number_format: str = "~%",
    *,
    diverging: bool = False,
) -> Picture:
    """A rectangle for each row's `column` and `line`, coloured by `value`; null is no rectangle.

    Args:
        rows: column, line, value and shown.
        columns: all columns in their order.
        lines: likewise.
        names: what columns, lines and values are.
        most: the value of the lightest colour.
        number_format: of the legend.
        diverging: colours for values from -most to most, with 0 between them.
    """
    across, down, what = names
    scale = alt.Scale(scheme=SCHEME, domain=[0, most])
    if diverging:
        scale = alt.Scale(scheme=BOTH_WAYS, reverse=True, domain=[-most, most], domainMid=0)
    chart = (
        _chart()
        .mark_rect(cursor="crosshair")
        .encode(
            x=alt.X("column:O", title=across, scale=alt.Scale(domain=list(columns)), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("line:N", title=None, scale=alt.Scale(domain=list(lines))),
            color=alt.Color(
                "value:Q",
                title=what,
                scale=scale,
                legend=alt.Legend(orient="bottom", format=number_format, gradientLength=180, tickCount=4),
            ),
            tooltip=_tooltip(column=across, line=down, shown=what),
        )
        .properties(height=ROW_HEIGHT * max(2, len(lines)))
    )
    return Picture(chart, [row for row in rows if row["value"] is not None])


def lines_by(rows: Sequence[Row], columns: Sequence[str], names: tuple[str, str], series: Sequence[str]) -> Picture:
    """A line with points for each `series` over ordered columns; rows have column, series, value and shown."""
    across, what = names
    base = _chart().encode(
        x=alt.X("column:O", title=across, scale=alt.Scale(domain=list(columns)), axis=alt.Axis(labelAngle=0)),
        y=alt.Y("value:Q", title=what, axis=alt.Axis(tickCount=5)),
        color=_by_series(series),
        tooltip=_tooltip(column=across, series="which", shown=what),
    )
    which: dict[str, Any] = {"scale": alt.Scale(domain=list(series)), "legend": _legend(series), "title": None}
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=alt.StrokeDash("series:N", **which))
    points = base.mark_point(size=36, filled=True).encode(shape=alt.Shape("series:N", **which))
    both: alt.LayerChart = lines + points
    return Picture(both.properties(height=HEIGHT), [row for row in rows if row["value"] is not None])


WIDE_LABEL = 24
"""Characters of a label's line: longer labels are broken between words."""
LINE_HEIGHT = 15
IN_LINES = "split(datum.label, '\\n')"


def _domain(number_format: str) -> alt.Scale | alt.UndefinedType:
    """Shares are drawn on the whole of [0, 1], so that no bar and a small one look like what they are."""
    return alt.Scale(domain=[0, 1]) if number_format.endswith("%") else alt.Undefined


def bars(
    rows: Sequence[Row], lines: Sequence[str], what: str, number_format: str, series: Sequence[str] = ()
) -> Picture:
    """A lying bar for each row's `line` and `value`, beside each other where there are several `series`."""
    lines = [fill(line, WIDE_LABEL) for line in lines]
    rows = [{**row, "line": fill(row["line"], WIDE_LABEL)} for row in rows]
    encoded: dict[str, Any] = {
        "x": alt.X(
            "value:Q", title=what, axis=alt.Axis(format=number_format, tickCount=5), scale=_domain(number_format)
        ),
        "y": alt.Y(
            "line:N",
            title=None,
            scale=alt.Scale(domain=list(lines), paddingInner=0.25),
            axis=alt.Axis(labelExpr=IN_LINES),
        ),
        "tooltip": _tooltip(line="of", **({"series": "which"} if series else {}), shown=what),
    }
    if series:
        encoded |= {
            "yOffset": alt.YOffset("series:N", scale=alt.Scale(domain=list(series))),
            "color": _by_series(series),
        }
    mark = _chart().mark_bar() if series else _chart().mark_bar(color=COLOURS[0])
    deepest = max((line.count("\n") + 1 for line in lines), default=1)
    height = len(lines) * max(BAR_HEIGHT * max(1, len(series)), LINE_HEIGHT * deepest)
    return Picture(mark.encode(**encoded).properties(height=max(2 * BAR_HEIGHT, height)), rows)


TENTHS = [i / 10 for i in range(11)]


def histogram(rows: Sequence[Row], names: tuple[str, str], number_format: str, series: Sequence[str]) -> alt.Chart:
    """Bars over [0, 1] in equal bins, on top of each other by `series`; rows have begin, end, series, value, shown."""
    across, what = names
    chart = _chart().mark_bar(binSpacing=0)
    encoded = chart.encode(
        x=alt.X(
            "begin:Q",
            title=across,
            bin="binned",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format=number_format, values=TENTHS),
        ),
        x2="end:Q",
        y=alt.Y("value:Q", title=what, axis=alt.Axis(format="~s", tickCount=5)),
        color=_by_series(series),
        tooltip=_tooltip(range=across, series="model", shown=what),
    )
    return Picture(encoded.properties(height=HEIGHT), rows)


def counts_by(rows: Sequence[Row], columns: Sequence[str], names: tuple[str, str], series: Sequence[str]) -> Picture:
    """A standing bar for each ordered column, on top of each other by `series`; rows as those of `lines_by`."""
    across, what = names
    chart = (
        _chart()
        .mark_bar()
        .encode(
            x=alt.X("column:O", title=across, scale=alt.Scale(domain=list(columns)), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title=what, axis=alt.Axis(format="~s", tickCount=5)),
            color=_by_series(series),
            tooltip=_tooltip(range=across, series="model", shown=what),
        )
        .properties(height=HEIGHT)
    )
    return Picture(chart, rows)


def lanes(rows: Sequence[Row], names: Sequence[str], kinds: Sequence[str]) -> Picture:
    """A stretch of time for each row, on the lane of who worked; rows have lane, begin, end, series and shown."""
    chart = (
        _chart()
        .mark_bar(height={"band": 0.8})
        .encode(
            x=alt.X("begin:Q", title="seconds since the start", axis=alt.Axis(format="~g", tickCount=6)),
            x2="end:Q",
            y=alt.Y("lane:N", title=None, scale=alt.Scale(domain=list(names))),
            color=_by_series(kinds),
            tooltip=_tooltip(lane="who", series="does", what="what", shown="time"),
        )
        .properties(height=BAR_HEIGHT * max(2, len(names)))
    )
    return Picture(chart, rows)


def scatter(rows: Sequence[Row], columns: Sequence[str] | None, names: tuple[str, str]) -> Picture:
    """A point for each row's `column` and `value`; rows have trial, place and shown, too.

    Args:
        rows: as above; `column` is a number where no columns are given.
        columns: all columns in their order.
        names: what columns and values are.
    """
    return Picture(_points(_chart(), columns, names).properties(height=HEIGHT), rows)


def history(rows: Sequence[Row], what: str) -> Picture:
    """The points of `scatter` over numbers of trials, and as a stair the `best` so far; rows have best_shown, too."""
    tooltip = _tooltip(trial="best until trial", best_shown=what)
    base = _chart()  # of both layers, so that the rows are the picture's and not a layer's
    stair = base.mark_line(interpolate="step-after", strokeWidth=2, color=COLOURS[1])
    line = stair.encode(x="column:Q", y="best:Q", tooltip=tooltip)
    both: alt.LayerChart = _points(base, None, ("trial", what)) + line
    return Picture(both.properties(height=HEIGHT), rows)


def _points(base: alt.Chart, columns: Sequence[str] | None, names: tuple[str, str]) -> alt.Chart:
    across, what = names
    x = alt.X("column:Q", title=across, scale=alt.Scale(zero=False), axis=alt.Axis(format="~g", tickCount=6))
    if columns is not None:
        x = alt.X("column:O", title=across, scale=alt.Scale(domain=list(columns)), axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title=what, scale=alt.Scale(zero=False), axis=alt.Axis(format="~g", tickCount=5))
    points = base.mark_point(size=40, filled=True, opacity=0.7, color=COLOURS[0])
    return points.encode(x=x, y=y, tooltip=_tooltip(trial="trial", place=across, shown=what))


def _by_series(series: Sequence[str]) -> alt.Color:
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(series))]
    scale = alt.Scale(domain=list(series), range=colours)
    return alt.Color("series:N", title=None, scale=scale, legend=_legend(series))


def _legend(series: Sequence[str]) -> alt.Legend | None:
    """Below the picture: in rows of three on a phone, of one where names are long."""
    longest = max(map(len, series), default=0)
    columns = 3 if longest <= SHORT_NAME else 1
    return alt.Legend(orient="bottom", columns=columns, labelLimit=280, symbolLimit=24) if len(series) > 1 else None
