"""The agent's one border: what goes wrong inside is counted, said once, and never reaches the application."""

from __future__ import annotations

__all__ = ["COUNTS", "add", "fault", "first_fault"]

COUNTS: dict[str, int] = {}
"""Increments since the last record of kind `counts`."""

_first: list[str] = []


def add(name: str, count: int = 1) -> None:
    """Increment a counter. Safe in a signal handler of the same thread: one dictionary operation."""
    COUNTS[name] = COUNTS.get(name, 0) + count


def fault(error: BaseException) -> None:
    """Count a fault of ours; the first one is kept for the record that reports it."""
    COUNTS["faults"] = COUNTS.get("faults", 0) + 1
    if not _first:
        # The type and place only: a message could hold the application's data.
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace is not None else "?"
        _first.append(f"{type(error).__name__} in {where}")


def first_fault() -> str:
    """Return the first fault, or "" while there was none."""
    return _first[0] if _first else ""


def take() -> dict[str, int]:
    """Return the increments and start anew."""
    taken = dict(COUNTS)
    for name, count in taken.items():
        left = COUNTS[name] - count
        if left:
            COUNTS[name] = left
        else:
            del COUNTS[name]
    return taken
