"""Inlined calls, looked up on a thread of their own: reading a unit of DWARF takes a tenth of a second."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.dwarf import InlinedCalls
from quayscope.sidecar.native.elf import Elf

__all__ = ["Inlined", "Inlines"]

log = logging.getLogger(__name__)

_MAX_WAITING = 4096
_MAX_OBJECTS = 4
_SHARE = 0.05
_FREE_S = 0.002
_MAX_PAUSE_S = 10.0


class Inlined(NamedTuple):
    """An answer: the functions inlined at a virtual address of an object, mangled, **leaf first**."""

    elf: Elf
    address: int
    names: tuple[str, ...]


class Inlines:
    """Answers which functions were inlined at an address; later, and never waited for.

    Takes at most 5 % of a core, holds 4 objects (see `InlinedCalls`) and 4096 requests. `refused` counts
    objects without inlined calls because their debug information is broken or longer than 64 MB, `skipped`
    their units that are too long, `malformed` look-ups that met something broken, `dropped` requests for
    which there was no room.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Elf, Elf, int] | None] = queue.Queue(_MAX_WAITING)
        self._lock = threading.Lock()
        self._answers: list[Inlined] = []
        self._objects: OrderedDict[Elf, InlinedCalls | None] = OrderedDict()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inlines", daemon=True)
        self.generation = 0
        self.refused = self.malformed = self.dropped = self.skipped = 0

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop; what waits is not answered."""
        self._stop.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def ask(self, elf: Elf, debug: Elf, address: int) -> None:
        """Have an address of `elf` looked up in the debug information of `debug` (which may be itself)."""
        try:
            self._waiting.put_nowait((elf, debug, address))
        except queue.Full:
            self.dropped += 1

    def answers(self) -> list[Inlined]:
        """Return the answers since the last call, those with calls only; `generation` grows with each."""
        with self._lock:
            found, self._answers = self._answers, []
        return found

    def _run(self) -> None:
        while not self._stop.is_set():
            request = self._waiting.get()
            if request is None:
                return
            began = time.thread_time()
            elf, debug, address = request
            names = self._look_up(debug, address)
            if names:
                with self._lock:
                    self._answers.append(Inlined(elf, address, names))
                    self.generation += 1
            taken = time.thread_time() - began
            if taken > _FREE_S:
                self._stop.wait(min(taken / _SHARE, _MAX_PAUSE_S))

    def _look_up(self, debug: Elf, address: int) -> tuple[str, ...]:
        calls = self._calls(debug)
        if calls is None:
            return ()
        skipped = calls.skipped
        try:
            return calls.at(address)
        except (MalformedElf, OSError):
            self.malformed += 1
            return ()
        finally:
            self.skipped += calls.skipped - skipped

    def _calls(self, debug: Elf) -> InlinedCalls | None:
        if debug in self._objects:
            self._objects.move_to_end(debug)
            return self._objects[debug]
        calls = None
        try:
            calls = InlinedCalls(debug)
        except (MalformedElf, OSError) as error:
            self.refused += 1
            log.info("no inlined calls", extra={"build_id": debug.build_id, "error": str(error)})
        self._objects[debug] = calls
        if len(self._objects) > _MAX_OBJECTS:
            self._objects.popitem(last=False)
        return calls
