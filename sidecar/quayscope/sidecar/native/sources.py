"""Where a target's samples come from: its cgroup's events on each CPU, or events of each of its tasks.

The cgroup's way catches every process and thread however short its life. The tasks' way needs no privilege
over one's own processes; an inherited event starts a full period, so what lives shorter is hardly seen.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

from quayscope.sidecar.errors import NoCgroup
from quayscope.sidecar.native import cgroups
from quayscope.sidecar.native.events import DUMP_BYTES, Form, open_event, set_period
from quayscope.sidecar.native.records import Ended, Forked, Record
from quayscope.sidecar.native.ring import Rings

__all__ = [
    "RESERVED_DESCRIPTORS",
    "CgroupSource",
    "Demand",
    "Needs",
    "Plan",
    "Source",
    "TaskSource",
    "needs",
    "open_source",
]

log = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 128
"""Left to the rest of the program: sampling everybody is no use to one that can open nothing else."""
_SECOND_NS = 1_000_000_000
_VERIFY_S = 10.0
_MAX_TASKS = 65_536

Key = TypeVar("Key", bound=Hashable)


class Plan(NamedTuple):
    """How a target is sampled: `chain` asks for the kernel's frame-pointer chains instead of stack dumps."""

    hz: int
    kernel: bool
    chain: bool = False
    cycles: bool = False


class Demand(NamedTuple, Generic[Key]):
    """A target as a source sees it: its root, who belongs to it, and the key its samples carry."""

    key: Key
    root_pid: int
    pids: Callable[[], Collection[int]]


class Source(Protocol):
    """Feeds a target's samples into rings."""

    kind: str
    refused: dict[int, str]
    """Tasks that are not sampled, and why."""

    def rescan(self) -> None:
        """Cover what is not covered yet; to be called about once a second. Raises `NoCgroup`."""

    def seen(self, record: Record) -> None:
        """Learn from a record of the target's."""

    def accepts(self, event: int, cpu: int, tid: int) -> bool:
        """Whether a sample of a task is to be counted, by the event and CPU that it was taken on."""

    def set_rate(self, hz: int) -> None:
        """Sample `hz` times a second of CPU from now on. Raises OSError."""

    def close(self) -> None:
        """Close all events."""


class Needs(NamedTuple):
    """What sampling takes of the machine's limits: descriptors, and bytes of locked memory."""

    descriptors: int
    locked_bytes: int


def needs(cpus: int, ring_bytes: int, *, cgroups: int = 0, tasks: int = 0) -> Needs:
    """Return what one set of rings takes, with events on so many cgroups and existing tasks.

    Processes and threads that begin later inherit their events and take nothing.
    """
    # A ring and its page of control; an owner a ring, and Python's copy of that for the mapping; an event a
    # cgroup or task and CPU, and the cgroup's directory.
    page = resource.getpagesize()
    return Needs(cpus * (2 + cgroups + tasks) + cgroups, cpus * (ring_bytes + page))


def _form(rings: Rings[Key], plan: Plan, *, per_task: bool = False) -> Form:
    dumped = 0 if plan.chain or not rings.holds_dumps else DUMP_BYTES
    # The count goes on in the kernel: where that part is not sampled, it is not what samples stand for.
    return Form(dumped, counted=plan.kernel and not plan.cycles, per_task=per_task)


class CgroupSource(Generic[Key]):
    """One event a CPU on the target's cgroup.

    Raises `NoCgroup` when it has none of its own, OSError with what the kernel answered.
    """

    kind = "cgroup"

    def __init__(self, rings: Rings[Key], demand: Demand[Key], plan: Plan) -> None:
        self.refused: dict[int, str] = {}
        self._rings = rings
        self._demand = demand
        self._plan = plan
        self._events: dict[int, int] = {}
        self._form = _form(rings, plan)
        self.cgroup = cgroups.find(demand.root_pid)
        self._directory = os.open(self.cgroup.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._verify()
            self._open()
        except BaseException:
            self.close()
            raise

    def _verify(self) -> None:
        cgroups.refuse_foreign(self.cgroup.directory, self._demand.root_pid, self._demand.pids)
        self._verify_at = time.monotonic() + _VERIFY_S

    def _open(self) -> None:
        for cpu in self._rings.cpus:
            descriptor = open_event(
                self._directory,
                cpu,
                self._plan.hz,
                kernel=self._plan.kernel,
                cgroup=True,
                form=self._form,
                watermark=self._rings.watermark,
                cycles=self._plan.cycles,
            )
            try:
                number = self._rings.lead(descriptor, cpu, self._form, self._demand.key)
            except BaseException:
                os.close(descriptor)
                raise
            self._events[number] = descriptor

    def rescan(self) -> None:
        """See that nobody else has moved into the cgroup. Raises `NoCgroup` when somebody has."""
        if time.monotonic() >= self._verify_at:
            with contextlib.suppress(OSError):  # gone with its last process
                self._verify()

    def seen(self, record: Record) -> None:
        """Nothing to learn: the kernel keeps the cgroup's members."""

    def accepts(self, event: int, cpu: int, tid: int) -> bool:  # noqa: ARG002 the interface's
        """All are the target's."""
        return True

    def set_rate(self, hz: int) -> None:
        """Sample `hz` times a second of CPU from now on."""
        self._plan = self._plan._replace(hz=hz)
        for descriptor in self._events.values():
            set_period(descriptor, hz if self._plan.cycles else _SECOND_NS // hz)

    def close(self) -> None:
        """Close all events."""
        for number, descriptor in self._events.items():
            os.close(descriptor)
            self._rings.forget(number)
        self._events.clear()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


class _Attached:
    """The events of one task, by number and CPU, and the tasks that are sampled through it."""

    def __init__(self, pid: int, tid: int) -> None:
        self.pid = pid
        self.tid = tid
        self.events: dict[int, tuple[int, int]] = {}  # number -> (cpu, descriptor)
        self.members: set[int] = {tid}
        self.complete_ns = 0
        """When the last of its events was open: what it forks from then on is covered on all CPUs."""
        self.threads_checked = False


class TaskSource(Generic[Key]):
    """An event a CPU on each task that already runs; what those fork inherits them.

    Whether a task inherited events is known from its birth's record, or from its samples. One that was born
    while its parent was being attached may have inherited some CPUs' events: it gets its own, and where a
    sample then shows that it was covered, its own event of that CPU is closed. At most one sample a CPU is
    counted twice so.

    Raises OSError with the kernel's answer for the root; of others it stands in `refused`.
    """

    kind = "task"

    def __init__(self, rings: Rings[Key], demand: Demand[Key], plan: Plan) -> None:
        self.refused: dict[int, str] = {}
        self.closed_doubles = 0
        self._rings = rings
        self._demand = demand
        self._plan = plan
        self._form = _form(rings, plan, per_task=True)
        self._attached: dict[int, _Attached] = {}  # by task
        self._through: dict[int, _Attached] = {}  # task -> the one whose events it inherited
        self._owners: dict[int, _Attached] = {}  # by event
        try:
            self._attach_root()
            self.rescan()
        except BaseException:
            self.close()
            raise

    def _attach_root(self) -> None:
        root = self._demand.root_pid
        try:
            self._attach(root, root)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._form.counted:
                raise
            # An older kernel cannot tell an heir's count.
            self._form = self._form._replace(counted=False)
            self._attach(root, root)

    def _attach(self, pid: int, tid: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if (len(self._owners) + len(self._rings.cpus) * 2) > limit - RESERVED_DESCRIPTORS:
            raise OSError(errno.EMFILE, f"Too many open files ({limit})")
        attached = _Attached(pid, tid)
        try:
            for cpu in self._rings.cpus:
                descriptor = open_event(
                    tid,
                    cpu,
                    self._plan.hz,
                    kernel=self._plan.kernel,
                    form=self._form,
                    watermark=self._rings.watermark,
                    cycles=self._plan.cycles,
                )
                try:
                    number = self._rings.lead(descriptor, cpu, self._form, self._demand.key)
                except BaseException:
                    os.close(descriptor)
                    raise
                attached.events[number] = (cpu, descriptor)
                self._owners[number] = attached
        except OSError:
            self._close(attached)
            raise
        attached.complete_ns = time.monotonic_ns()
        self._attached[tid] = self._through[tid] = attached

    def rescan(self) -> None:
        """Attach what nobody's events cover, and let go of what ended."""
        alive = {self._demand.root_pid, *self._demand.pids()}
        self._forget_dead(alive)
        for pid in alive:
            attached = self._attached.get(pid)
            if attached is not None:
                # Twice: a thread may have begun while the list was read.
                if not attached.threads_checked:
                    attached.threads_checked = True
                    self._cover_threads(pid)
            elif pid not in self._through and self._cover(pid, pid):
                self._cover_threads(pid)
        self.refused = {tid: why for tid, why in self.refused.items() if os.path.exists(f"/proc/{tid}")}  # noqa: PTH110 cheap

    def _cover_threads(self, pid: int) -> None:
        try:
            tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 hundreds of processes
        except OSError:
            return
        for task in tasks:
            tid = int(task)
            if tid not in self._through:
                self._cover(pid, tid)

    def _cover(self, pid: int, tid: int) -> bool:
        try:
            self._attach(pid, tid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                self.refused[tid] = error.strerror or str(error)
            return False
        self.refused.pop(tid, None)
        return True

    def _forget_dead(self, alive: set[int]) -> None:
        # Births and ends whose records were lost.
        for attached in list(self._attached.values()):
            gone = {tid for tid in attached.members if tid not in alive and not _runs(tid)}
            for tid in gone:
                self._leave(tid)

    def seen(self, record: Record) -> None:
        """Learn who inherited events, and who ended."""
        if isinstance(record, Forked):
            attached = self._through.get(record.parent_tid)
            if (
                attached is not None
                and record.time_ns > attached.complete_ns
                and record.tid not in self._through
                and len(self._through) < _MAX_TASKS
            ):
                attached.members.add(record.tid)
                self._through[record.tid] = attached
        elif isinstance(record, Ended):
            self._leave(record.tid)

    def _leave(self, tid: int) -> None:
        attached = self._through.pop(tid, None)
        self._attached.pop(tid, None)
        if attached is None:
            return
        attached.members.discard(tid)
        # Closing an event closes what was inherited from it: it stays for its last heir.
        if not attached.members and attached.tid != self._demand.root_pid:
            self._close(attached)

    def accepts(self, event: int, cpu: int, tid: int) -> bool:
        """Whether it is no double: of two events on one task and CPU, the inherited one counts."""
        owner = self._owners.get(event)
        if owner is None:
            return False
        if tid == owner.tid:
            return True
        own = self._attached.get(tid)
        if own is not None and own is not owner:
            for number, (its_cpu, descriptor) in list(own.events.items()):
                if its_cpu == cpu:
                    self._close_event(own, number, descriptor)
                    self.closed_doubles += 1
            owner.members.add(tid)
        elif tid not in self._through and len(self._through) < _MAX_TASKS:
            owner.members.add(tid)
            self._through[tid] = owner
        return True

    def set_rate(self, hz: int) -> None:
        """Sample `hz` times a second of CPU from now on: by new events, as heirs keep the old period."""
        self._plan = self._plan._replace(hz=hz)
        for attached in {id(held): held for held in self._owners.values()}.values():
            self._close(attached)
        self._attached.clear()
        self._through.clear()
        self._attach_root()
        self.rescan()

    def _close(self, attached: _Attached) -> None:
        for number, (_, descriptor) in list(attached.events.items()):
            self._close_event(attached, number, descriptor)
        if self._attached.get(attached.tid) is attached:
            del self._attached[attached.tid]

    def _close_event(self, attached: _Attached, number: int, descriptor: int) -> None:
        os.close(descriptor)
        del attached.events[number]
        self._owners.pop(number, None)
        self._rings.forget(number)

    def close(self) -> None:
        """Close all events."""
        for attached in {id(held): held for held in self._owners.values()}.values():
            self._close(attached)
        self._attached.clear()
        self._through.clear()

    def counts(self) -> Counter[str]:
        """Return how many tasks have events of their own, and how many inherited theirs."""
        return Counter(attached=len(self._attached), inherited=len(self._through) - len(self._attached))


def _runs(tid: int) -> bool:
    return os.path.exists(f"/proc/{tid}")  # noqa: PTH110 many of them, each second


def open_source(
    rings: Rings[Key], demand: Demand[Key], plan: Plan, *, cgroup: bool = True
) -> tuple[CgroupSource[Key] | TaskSource[Key], str]:
    """Open the best source that is permitted; returns it and why it is not the cgroup (empty: it is).

    The kernel's part is left out where it is refused. Raises OSError with the last answer when nothing works.
    """
    why = "its cgroup is not to be used"
    if cgroup:
        try:
            return CgroupSource(rings, demand, plan), ""
        except NoCgroup as error:
            why = str(error)
        except OSError as error:
            why = f"perf events on its cgroup: {error.strerror}"
    if plan.kernel:
        try:
            return TaskSource(rings, demand, plan), why
        except PermissionError as error:
            log.debug("no kernel part", extra={"pid": demand.root_pid, "error": error.strerror})
    return TaskSource(rings, demand, plan._replace(kernel=False)), why
