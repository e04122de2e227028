"""I/O by process: the busiest of the second by themselves, the others as one sum.

A series by pid would be a new one for each process that ever wrote, without bound. So each of the busiest has
a slot for as long as it is among them; a series is a slot's, and a gauge says whose pid that is.
"""

from __future__ import annotations

from collections.abc import Iterator

from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.processes import Process, Used

__all__ = ["TOP_PROCESSES", "Busiest"]

TOP_PROCESSES = 20
_MOST_NAMES = 64
_OTHERS = "others"


class Busiest:
    """Tells 20 processes of a container, by bytes of the second; knows 64 names, others are `others`."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._names = {_OTHERS}

    def readings(self, busy: list[tuple[Process, Used]]) -> Iterator[Reading]:
        """Yield what each read and wrote since the last look, and the sums of those beyond the 20."""
        busy.sort(key=lambda one: one[1].read + one[1].written, reverse=True)
        top = busy[:TOP_PROCESSES]
        told = {process.pid for process, _ in top}
        self._slots = {pid: slot for pid, slot in self._slots.items() if pid in told}
        free = iter(sorted(set(range(TOP_PROCESSES)) - set(self._slots.values())))
        for process, used in top:
            if process.pid not in self._slots:
                self._slots[process.pid] = next(free)
            slot = str(self._slots[process.pid])
            name = self._name(process)
            yield names.PROCESS_PID.now(process.pid, {"quayscope.process.slot": slot})
            for direction, value in (("read", used.read), ("write", used.written)):
                attributes = {
                    "quayscope.process.slot": slot,
                    "process.executable.name": name,
                    "disk.io.direction": direction,
                }
                yield names.PROCESS_DISK_IO.now(value, attributes)
        rest = [used for _, used in busy[TOP_PROCESSES:]]
        # Told even when it is nothing: a delta then covers one second, not all the idle ones before it.
        for direction, value in (
            ("read", sum(u.read for u in rest)),
            ("write", sum(u.written for u in rest)),
        ):
            attributes = {"process.executable.name": _OTHERS, "disk.io.direction": direction}
            yield names.PROCESS_DISK_IO.now(value, attributes)

    def _name(self, process: Process) -> str:
        if len(self._names) <= _MOST_NAMES:
            self._names.add(process.name)
        return process.name if process.name in self._names else _OTHERS
