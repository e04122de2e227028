"""Around `exec`: a timer outlives it, and its signal kills a program that has no handler."""

from __future__ import annotations

import os
from typing import Any, Callable

from quayscope.agent.faults import guarded

__all__ = ["around_exec"]


def around_exec(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call `before` before this process becomes another program, and `after` where it could not.

    All of `os.exec*` end in these two, found by their names in `os`.
    """
    for name in ("execv", "execve"):
        setattr(os, name, _wrapped(getattr(os, name), before, after))


def _wrapped(plain: Any, before: Callable[[], None], after: Callable[[], None]) -> Any:
    def execute(*arguments: Any, **named: Any) -> Any:
        guarded(before)
        try:
            return plain(*arguments, **named)
        finally:
            guarded(after)

    return execute
