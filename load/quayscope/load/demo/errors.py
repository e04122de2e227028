"""What can go wrong in the demo.

::

    quayscope.load.errors.LoadError
    └── DemoError             a part of the demo could not run; carries the tail of its log
"""

from __future__ import annotations

from collections.abc import Sequence

from quayscope.load.errors import LoadError

__all__ = ["DemoError"]


class DemoError(LoadError):
    """A part of the demo could not run. `log` holds the last lines that it wrote."""

    def __init__(self, message: str, *, log: Sequence[str] = (), next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.log = tuple(log)
