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
        panel.picture.spec(width=WIDTH, title={"text": figure.title, "subtitle": panel.title})
        for figure in figures
        for panel in figure.panels
    ]
    for chart in charts:
        del chart["$schema"], chart["config"]  # of the whole picture
    spec: dict[str, Any] = {
        "$schema": alt.SCHEMA_URL,
        "title": {"text": title, "fontSize": 18},
        "vconcat": charts,
        "spacing": 28,
        "resolve": {"scale": {"color": "independent", "shape": "independent", "strokeDash": "independent"}},
        "config": theme("light") | {"background": "white", "font": "sans-serif"},
    }
    if kind == "svg":
        return str(vl_convert.vegalite_to_svg(spec)).encode()
    return bytes(vl_convert.vegalite_to_png(spec, scale=SCALE))
