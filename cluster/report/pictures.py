"""All pictures of a report in one PNG or SVG file, drawn without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import vl_convert

from .figures import Figure
from .page import theme

WIDTH = 640
"""Pixels of a picture, without its axes; a PNG has twice as many for sharp print."""
SCALE = 2


def draw(figures: Sequence[Figure], title: str, kind: Literal["png", "svg"]) -> bytes:
    """The file; colours are those of a light page."""
    charts = [
        panel.chart.properties(width=WIDTH, title=alt.TitleParams(figure.title, subtitle=panel.title))
        for figure in figures
        for panel in figure.panels
    ]
    whole = alt.vconcat(*charts, title=alt.TitleParams(title, anchor="start", fontSize=18), spacing=28)
    spec: dict[str, Any] = whole.resolve_scale(color="independent", y="independent", strokeDash="independent").to_dict()
    spec["config"] = theme("light") | {"background": "white", "font": "sans-serif"}
    if kind == "svg":
        return str(vl_convert.vegalite_to_svg(spec)).encode()
    return bytes(vl_convert.vegalite_to_png(spec, scale=SCALE))
