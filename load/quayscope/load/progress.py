"""Shows how a run stands: a live line on a terminal, else a plain line each 5 s; JSON lines for a program."""

from __future__ import annotations

import json
import logging
import os
import select
from dataclasses import asdict
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from quayscope.load.engine import Tick

__all__ = ["Feed", "Progress"]

log = logging.getLogger(__name__)

PLAIN_SECONDS = 5.0


class Progress:
    """Draws ticks on stderr. Has no thread of its own, which would take the GIL from the engine."""

    def __init__(self, console: Console, total_s: float) -> None:
        self._console = console
        self._total_s = total_s
        self._next_plain_s = PLAIN_SECONDS
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, tick: Tick) -> None:
        """Draw a tick, when it is time to."""
        if self._live is not None:
            self._live.update(Text(self._line(tick), no_wrap=True, overflow="ellipsis"), refresh=True)
        elif tick.elapsed_s >= self._next_plain_s - 0.5:
            self._console.print(self._line(tick), highlight=False, markup=False, soft_wrap=True)
            self._next_plain_s = tick.elapsed_s + PLAIN_SECONDS

    def _line(self, tick: Tick) -> str:
        p99 = "-" if tick.p99_ms is None else f"{tick.p99_ms:.0f}"
        return (
            f"{tick.phase}: {tick.elapsed_s:.0f} of {self._total_s:g} s, sent {tick.sent}, "
            f"in flight {tick.in_flight}, ok {tick.ok}, errors {tick.errors}, p99 {p99} ms"
        )


class Feed:
    """Writes a tick as one JSON line to a descriptor that a parent program reads.

    A parent that does not read loses lines; the run never waits for it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLOUT)

    def __call__(self, tick: Tick) -> None:
        """Write a tick, where there is room for it."""
        if self._descriptor is None:
            return
        fields = asdict(tick)
        fields["elapsed_s"] = round(tick.elapsed_s, 3)
        line = json.dumps(fields, separators=(",", ":")) + "\n"
        # poll(2) says "writable" when a pipe takes PIPE_BUF (4096) bytes, more than a line has.
        if not self._ready.poll(0):
            return
        try:
            os.write(self._descriptor, line.encode())
        except OSError as error:
            log.warning("nobody reads the progress any more", extra={"error": str(error)})
            self._descriptor = None
