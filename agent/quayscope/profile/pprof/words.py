"""The words that our pprof messages add to the format's own (docs/wire.md, "Inside the pprof")."""

from __future__ import annotations

__all__ = ["LOSS_COMMENT", "SLOT_UNIT", "TEXT_ATTRIBUTES"]

LOSS_COMMENT = "quayscope."
"""Comments that count losses begin so: `quayscope.lost=3`."""
TEXT_ATTRIBUTES = ("endpoint", "run", "phase", "span_id", "trace_id")
"""Attributes that are string labels; `pid` and `slot` are numeric ones."""
SLOT_UNIT = "nanoseconds"
