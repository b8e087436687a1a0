"""A report as one HTML file that loads nothing: words, pictures drawn by the script that it carries, and tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from .figures import Figure, Table

MAX_PAGE_BYTES = 3_000_000
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may do: nothing over a network, whatever a name in an input says. Vega compiles its expressions."""
INK = {"light": ("#1b1f24", "#57606a", "#d8dee4"), "dark": ("#e8eaed", "#a3abb5", "#363c45")}
"""Text, softer text, and lines."""
FONT = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_NUMBER = re.compile(r"-|-?[\d,.]+(e[-+]\d+)?%?( ([kMGTP]B|bytes?|s))?")
"""What stands on the right of its column."""
LABEL_PIXELS = 190
"""Longer labels of axes would leave a phone no room for the picture."""


@dataclass(frozen=True, slots=True)
class Section:
    """Words before the pictures."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    """What a reader wants to know, and the answer."""
    text: str = ""
    """Shown as it is, in a fixed font, when it is asked for by its `summary`."""
    summary: str = ""
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that a report says."""

    title: str
    about: str
    numbers: Sequence[tuple[str, str]]
    """What it is, and how it is spelled: the first thing to see."""
    warnings: Sequence[str]
    notes: Sequence[str]
    sections: Sequence[Section]
    figures: Sequence[Figure]


def theme(scheme: str) -> dict[str, Any]:
    """How Vega draws in a reader's scheme of colours, "light" or "dark"."""
    ink, soft, line = INK[scheme]
    return {
        "background": None,
        "font": FONT,
        "view": {"stroke": line},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "gridColor": line,
            "domainColor": line,
            "tickColor": line,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelLimit": LABEL_PIXELS,
            "labelOverlap": "greedy",
        },
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleLimit": 260},
        "title": {"color": ink, "subtitleColor": soft, "anchor": "start"},
        "text": {"color": ink},
    }


def render(page: Page) -> bytes:
    """The file, in UTF-8."""
    import vl_convert

    charts = {
        f"{figure.name}-{i}": panel.picture.spec(width="container", autosize={"type": "fit-x", "contains": "padding"})
        for figure in page.figures
        for i, panel in enumerate(figure.panels)
    }
    assets = files(__package__ or "")
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its types forget the defaults
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">',
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(page.title)}</title><style>{assets.joinpath('page.css').read_text()}</style></head>",
        "<body data-drawn=0><a class=skip href=#main>To the report</a>",
        *_body(page),
        _data("charts", charts),
        _data("themes", {scheme: theme(scheme) for scheme in INK}),
        f"<script>{_script(bundle)}</script>",
        f"<script>{assets.joinpath('page.js').read_text()}</script></body></html>\n",
    ]
    return "".join(parts).encode()


def _script(code: str) -> str:
    """Code that may stand in a page: only there does the end of a script mean something."""
    return code.replace("</script", "<\\/script")


def _data(name: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"<script type=application/json id={name}>{text}</script>"


def _body(page: Page) -> Iterator[str]:
    yield f"<header><h1>{escape(page.title)}</h1><p class=soft>{escape(page.about)}</p></header><main id=main>"
    for title, lines, kind in (("Warnings", page.warnings, "warnings"), ("Notes", page.notes, "notes")):
        if lines:
            items = "".join(f"<li>{escape(line)}</li>" for line in lines)
            yield f"<div class='box {kind}'><h2>{title}</h2><ul>{items}</ul></div>"
    yield "<div class=numbers>"
    yield "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in page.numbers)
    yield "</div><nav aria-label='Figures'><ul>"
    yield "".join(f"<li><a href=#{figure.name}>{escape(figure.title)}</a></li>" for figure in page.figures)
    yield "</ul></nav>"
    for section in page.sections:
        yield from _section(section)
    for figure in page.figures:
        yield from _figure(figure)
    yield f"</main><footer>Made by anabranch {version('anabranch')}; this file loads nothing from a network.</footer>"


def _section(section: Section) -> Iterator[str]:
    yield f"<section><h2>{escape(section.title)}</h2>"
    if section.facts:
        yield "<dl>"
        yield "".join(f"<dt>{escape(what)}</dt><dd>{escape(answer)}</dd>" for what, answer in section.facts)
        yield "</dl>"
    if section.text:
        yield f"<details><summary>{escape(section.summary)}</summary><pre>{escape(section.text)}</pre></details>"
    if section.table is not None:
        yield _table(section.table, section.title)
    yield "</section>"


def _figure(figure: Figure) -> Iterator[str]:
    yield f"<section id={figure.name}><h2>{escape(figure.title)}</h2><p class=soft>{escape(figure.text)}</p>"
    yield "<div class=panels>"
    for i, panel in enumerate(figure.panels):
        label = escape(f"{figure.title}: {panel.title}. Arrow keys go from value to value.", quote=True)
        yield f"<div class=panel><h3>{escape(panel.title)}</h3>"
        yield f'<div class=chart id={figure.name}-{i} tabindex=0 role=group aria-label="{label}"></div>'
        yield "<output></output></div>"
    yield "</div>"
    if isinstance(figure.table, str):
        yield f"<p><a href=#{figure.table}>These numbers are in the table behind another figure</a></p>"
    else:
        yield f"<details><summary>Table of {len(figure.table.rows):,} rows</summary>"
        yield _table(figure.table, figure.title) + "</details>"
    yield "</section>"


def _table(table: Table, label: str) -> str:
    numeric = [all(_NUMBER.fullmatch(row[i]) for row in table.rows) for i in range(len(table.columns))]
    kinds = [" class=n" if each and table.rows else "" for each in numeric]
    head = "".join(f"<th scope=col{kind}>{escape(name)}" for name, kind in zip(table.columns, kinds, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}" for cell, kind in zip(row, kinds, strict=True))
        for row in table.rows
    )
    where = escape(label, quote=True)
    region = f'<div class=scroll tabindex=0 role=region aria-label="Table: {where}">'
    return f"{region}<table><thead><tr>{head}<tbody>{rows}</table></div>"
