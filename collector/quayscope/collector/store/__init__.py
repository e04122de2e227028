"""What is kept, and how it gets to disk: one DuckDB file, one writer thread, dictionaries in memory.

A request becomes `Work` (`entries`), waits in a bounded queue, is turned into rows of dense integers
(`staging`, with `dictionaries` and `tries`), and is acknowledged after its transaction is on disk
(`writer`). Readers use a cursor of their own (`database`).
"""

from __future__ import annotations

from quayscope.collector.store.entries import (
    Exemplar,
    MetricPoint,
    MetricsEntry,
    ProfileEntry,
    SpansEntry,
    Ticket,
    Work,
)
from quayscope.collector.store.store import Store

__all__ = [
    "Exemplar",
    "MetricPoint",
    "MetricsEntry",
    "ProfileEntry",
    "SpansEntry",
    "Store",
    "Ticket",
    "Work",
]
