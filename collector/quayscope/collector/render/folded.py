"""Folded stacks: a line a stack, as flame graph scripts read it."""

from __future__ import annotations

from quayscope.profile import Profile, folded

__all__ = ["render_folded"]


def render_folded(profile: Profile, column: int, title: str) -> bytes:  # noqa: ARG001 - no place for a title
    """Return one column as folded text."""
    return folded.render(profile, column).encode("utf-8", "replace")
