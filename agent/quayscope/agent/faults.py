"""The agent's one border: what goes wrong inside is counted, said once, and never reaches the application."""

from __future__ import annotations

__all__ = ["add", "fault", "first_fault", "take"]

_COUNTS: dict[str, list[int]] = {}
_first: list[str] = []


def add(name: str, count: int = 1) -> None:
    """Increment a counter since the last record of kind `counts`.

    Safe in a signal handler that interrupts itself: between reading and writing an element of a list
    there is no call, and only at calls does the interpreter run handlers or change threads.
    """
    held = _COUNTS.get(name)
    if held is None:
        held = _COUNTS.setdefault(name, [0])
    held[0] += count


def fault(error: BaseException) -> None:
    """Count a fault of ours; the first one is kept for the record that reports it."""
    add("faults")
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
    taken: dict[str, int] = {}
    for name, held in list(_COUNTS.items()):
        count = held[0]
        held[0] -= count
        if count:
            taken[name] = count
    return taken
