"""Profiles as files that other programs show: a renderer per module, `render` by name.

Each is a function from a profile and one of its columns to bytes; none knows where the profile came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from quayscope.collector.render.folded import render_folded
from quayscope.collector.render.page import render_html
from quayscope.collector.render.pprof import render_pprof
from quayscope.collector.render.speedscope import render_speedscope
from quayscope.collector.render.svg import render_svg
from quayscope.profile import Profile

__all__ = ["FORMATS", "Format"]


class Format(NamedTuple):
    """How a format is made (from a profile, a column and a title) and named on the wire and on disk."""

    render: Callable[[Profile, int, str], bytes]
    media: str
    suffix: str


FORMATS = {
    "pprof": Format(render_pprof, "application/octet-stream", "pprof"),
    "folded": Format(render_folded, "text/plain; charset=utf-8", "folded"),
    "speedscope": Format(render_speedscope, "application/json", "speedscope.json"),
    "svg": Format(render_svg, "image/svg+xml", "svg"),
    "html": Format(render_html, "text/html; charset=utf-8", "html"),
}
"""Every format by name."""
