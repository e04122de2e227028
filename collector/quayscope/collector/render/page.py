"""A flame graph as one HTML file that needs nothing else: zoom, search, and each call's figures.

Names of frames are untrusted: they come as JSON, are written as text, and the file's own policy lets no
script but its own run, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path

from quayscope.collector.render.layout import boxes, kind_colour
from quayscope.profile import Profile

__all__ = ["policy", "render_html"]

_TEMPLATE = Path(__file__).with_name("flamegraph.html")
_PLACE = re.compile(r"\{\{(policy|title|script|data)\}\}")
_SCRIPT = Path(__file__).with_name("flamegraph.js")


def render_html(profile: Profile, column: int, title: str) -> bytes:
    """Return the file."""
    rows = [
        [
            box.depth,
            box.start,
            box.value,
            box.own,
            box.frame.function,
            f"{box.frame.file}:{box.frame.line}" if box.frame.file else "",
            box.frame.kind,
            kind_colour(box.frame),
        ]
        for box in boxes(profile, column, "all")
    ]
    losses = {name: count for name, count in vars(profile.losses).items() if count}
    data = json.dumps(
        {"unit": profile.type.values[column].unit, "rows": rows, "losses": losses}, separators=(",", ":")
    )
    values = {
        "policy": escape(policy()),
        "title": escape(title),
        "script": _script(),
        # Inside a script element only `</` and `<!--` could end or change it.
        "data": data.replace("<", "\\u003c"),
    }
    # In one pass: what is filled in is not looked through for more to fill in.
    return _PLACE.sub(lambda place: values[place[1]], _TEMPLATE.read_text("utf-8")).encode("utf-8", "replace")


def policy() -> str:
    """Return the content security policy of the file: its own script, styles, nothing from elsewhere."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def _script() -> str:
    return _SCRIPT.read_text("utf-8")
