"""The agent's one border: what goes wrong inside is counted, said once, and never reaches the application."""

from __future__ import annotations

from typing import Callable, TypeVar

__all__ = ["add", "fault", "first_fault", "guarded", "own", "own_ns", "take"]

T = TypeVar("T")

_COUNTS: dict[str, list[int]] = {}
_first: list[str] = []
_own: list[int] = [0]


def guarded(step: Callable[..., T], *arguments: object) -> T | None:
    """Return `step(*arguments)`, or None when it raised: then it is counted.

    What the application's runtime calls (a signal handler, a class of ours under one of its own, a hook)
    does nothing itself but call through here. What is no `Exception` passes: it is a stop the application
    asked for, which came while we ran.
    """
    try:
        return step(*arguments)
    except Exception as error:  # noqa: BLE001 - the border to somebody else's process
        try:  # noqa: SIM105 - contextlib is not imported this early
            fault(error)
        except Exception:  # noqa: BLE001, S110 - nothing is left to tell
            pass
        return None


def add(name: str, count: int = 1) -> None:
    """Increment a counter since the last record of kind `counts`.

    Between reading and writing an element of a list there is no call, and from CPython 3.10 on the
    interpreter runs handlers and changes threads at calls alone. In 3.9 an increment may get lost.
    """
    held = _COUNTS.get(name)
    if held is None:
        held = _COUNTS.setdefault(name, [0])
    held[0] += count


def own(nanoseconds: int) -> None:
    """Count CPU of our own."""
    _own[0] += nanoseconds


def own_ns() -> int:
    """Return the CPU that the agent used in this process so far, in nanoseconds."""
    return _own[0]


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
