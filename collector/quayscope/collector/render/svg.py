"""A flame graph as one SVG without a script: what a call is stands in its tooltip."""

from __future__ import annotations

from xml.sax.saxutils import escape

from quayscope.collector.render.layout import boxes, in_words, kind_colour
from quayscope.profile import Profile

__all__ = ["render_svg"]

_WIDTH, _ROW, _TEXT_WIDTH, _MARGIN = 1200.0, 17, 6.6, 24


def render_svg(profile: Profile, column: int, title: str) -> bytes:
    """Return the picture, the root at its bottom."""
    unit = profile.type.values[column].unit
    found = boxes(profile, column, "all")
    total = max(1, found[0].value)
    height = (max(box.depth for box in found) + 1) * _ROW + 2 * _MARGIN
    parts = [
        (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height}" width="{_WIDTH:g}" '
            f'height="{height}" font-family="monospace" font-size="11">\n'
            f'<rect width="100%" height="100%" fill="white"/>'
            f'<text x="{_WIDTH / 2:g}" y="16" text-anchor="middle" font-size="14">{_text(title)}</text>\n'
        )
    ]
    for box in found:
        x, width = box.start / total * _WIDTH, box.value / total * _WIDTH
        y = height - _MARGIN - (box.depth + 1) * _ROW
        frame = box.frame
        where = f" ({frame.file}:{frame.line})" if frame.file else ""
        said = (
            f"{frame.function}{where} - {in_words(box.value, unit)}, {box.value / total:.2%}, "
            f"self {in_words(box.own, unit)}"
        )
        name = frame.function
        room = int(width / _TEXT_WIDTH) - 1
        label = name if len(name) <= room else name[: max(0, room - 2)] + ".." if room > 3 else ""
        parts.append(
            f'<g><title>{_text(said)}</title><rect x="{x:.2f}" y="{y}" width="{max(width - 0.3, 0.1):.2f}" '
            f'height="{_ROW - 1}" rx="1" fill="{kind_colour(frame)}"/>'
            + (f'<text x="{x + 3:.2f}" y="{y + 12}">{_text(label)}</text>' if label else "")
            + "</g>\n"
        )
    parts.append("</svg>\n")
    return "".join(parts).encode("utf-8", "replace")


def _text(text: str) -> str:
    # XML has no place for most control characters, not even escaped.
    return escape("".join(one if one.isprintable() else " " for one in text))
