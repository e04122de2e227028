"""pprof, gzipped: all columns, kinds, attributes and losses."""

from __future__ import annotations

from quayscope.profile import Profile, pprof

__all__ = ["render_pprof"]


def render_pprof(profile: Profile, column: int, title: str) -> bytes:  # noqa: ARG001 - pprof holds all columns
    """Return the profile as a pprof message."""
    return pprof.encode(profile)
