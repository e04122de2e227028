"""Captures of Go programs by their own profiles: CPU of the window, and how the other profiles grew in it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from quayscope.profile import MalformedProfile, Profile, UnknownProfileType
from quayscope.profile.control import Target
from quayscope.sidecar.control.capturer import Captured, Window
from quayscope.sidecar.errors import CaptureRefused, ScrapeFailed
from quayscope.sidecar.golang import Address, OperationTable
from quayscope.sidecar.golang.convert import CPU, KINDS, Converter, Kind
from quayscope.sidecar.golang.fetch import Fetcher

__all__ = ["GoCapturer", "GoMemoryCapturer"]

_MAX_BYTES = 16 << 20
_SLACK_S = 5.0
_EARLY_S = 0.3


class GoCapturer:
    """Takes CPU, heap, goroutines, mutexes and blocking of the programs whose pprof endpoints were found.

    `address_of` gives where a process serves them, None where it is not known. A Go program profiles its CPU
    for one caller at a time: another one's is refused by it.
    """

    kind = "go"
    taken: tuple[Kind, ...] = KINDS
    cpu = True

    def __init__(self, address_of: Callable[[int], Address | None], operations: OperationTable) -> None:
        self._address_of = address_of
        self._operations = operations

    def suits(self, target: Target) -> bool:
        """Whether it is a Go program that serves profiles."""
        return target.kind == "go" and self._address_of(target.pid) is not None

    def capture(self, target: Target, window: Window, hz: int, cancelled: threading.Event) -> Captured:  # noqa: ARG002 - Go samples at 100 Hz
        """See `Capturer`."""
        address = self._address_of(target.pid)
        if address is None:
            raise CaptureRefused(f"process {target.pid} serves no profiles")
        converter, fetcher, notes = Converter(target.labels, target.pid), Fetcher(), list[str]()
        window.wait_start(cancelled, _EARLY_S)
        self._snapshots(converter, fetcher, address, notes)  # what there was before
        if not window.wait_start(cancelled):
            raise CaptureRefused("cancelled before it began")
        started_ns = window.clock()
        profiles: list[Profile] = []
        if self.cpu:
            profiles += self._cpu(converter, fetcher, address, window, cancelled, notes)
        else:
            window.wait_end(cancelled)
        ended_ns = min(window.clock(), window.end_ns)
        profiles += self._snapshots(converter, Fetcher(), address, notes)
        if not profiles:
            raise CaptureRefused("; ".join(notes) or "the program gave nothing")
        for profile in profiles:
            self._operations.attribute(profile)
        return Captured(profiles, started_ns, ended_ns, "; ".join(dict.fromkeys(notes)))

    def _cpu(
        self,
        converter: Converter,
        fetcher: Fetcher,
        address: Address,
        window: Window,
        cancelled: threading.Event,
        notes: list[str],
    ) -> list[Profile]:
        seconds = max(1, math.floor(window.left_s() + 0.5))
        bodies: list[bytes] = []

        def fetch() -> None:
            try:
                bodies.append(
                    fetcher.get(
                        address,
                        f"{CPU.name}?seconds={seconds}",
                        timeout_s=seconds + _SLACK_S,
                        max_bytes=_MAX_BYTES,
                    )
                )
            except ScrapeFailed as error:
                notes.append(str(error))

        thread = threading.Thread(target=fetch, name="go-capture", daemon=True)
        thread.start()
        while thread.is_alive():
            if cancelled.is_set():
                # Go writes a CPU profile at its end alone: nothing comes of one that is broken off.
                fetcher.abort()
            thread.join(0.05)
        try:
            found = [converter.read(CPU, body, is_delta=False) for body in bodies]
        except (MalformedProfile, UnknownProfileType) as error:
            notes.append(str(error))
            return []
        return [profile for profile in found if profile is not None]

    def _snapshots(
        self, converter: Converter, fetcher: Fetcher, address: Address, notes: list[str]
    ) -> list[Profile]:
        found = []
        for kind in self.taken:
            try:
                body = fetcher.get(address, kind.name, timeout_s=_SLACK_S, max_bytes=_MAX_BYTES)
                profile = converter.read(kind, body, is_delta=False)
            except (ScrapeFailed, MalformedProfile, UnknownProfileType) as error:
                notes.append(str(error))
                continue
            if profile is not None:
                found.append(profile)
        return found


class GoMemoryCapturer(GoCapturer):
    """Takes the heap alone: what is in use at the window's end, what was allocated in it."""

    kind = "memory"
    taken = tuple(kind for kind in KINDS if kind.name == "heap")
    cpu = False
