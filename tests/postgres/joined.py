"""The join of a running server's CPU samples, written down sample by sample and compared with the truth."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from postgres.pgbench import Bracket, serial
from postgres.reading import ROUTES, postmaster_of
from quayscope.profile import Profile
from quayscope.sidecar.interpreter import SWITCH_INTERVAL_S
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.postgres.calibrate import calibrate
from quayscope.sidecar.postgres.join import Clock
from quayscope.sidecar.postgres.memory import BackendMemory
from quayscope.sidecar.postgres.running import Noted, Ran
from quayscope.sidecar.postgres.sampling import PostgresSampling
from quayscope.sidecar.postgres.shared import MemoryGone, SharedReader
from quayscope.sidecar.targets import CLIENT_BACKEND

__all__ = ["Joined", "Outcome", "compare", "joining"]


class Joined(NamedTuple):
    """One sample as it was joined: its process, its time, and the answer.

    The time is Unix nanoseconds by the clocks as they were when the joining began, as pgbench's times are,
    which counts on by the monotonic clock too: when somebody sets the clock meanwhile they still agree.
    """

    pid: int
    time_ns: int
    ran: Ran


class Outcome(NamedTuple):
    """Samples of client backends, by what became of them.

    `between`: certain to be of no statement. `wrong`: proven, of a statement that was surely not running.
    `unchecked`: proven, but of a statement that the client had no answer to.
    """

    right: int
    wrong: int
    unchecked: int
    unproven: int
    between: int

    @property
    def proven_share(self) -> float:
        """The share that got their statement, of those that are not certain to have none."""
        proven = self.right + self.wrong + self.unchecked
        return proven / max(1, proven + self.unproven)

    @property
    def right_share(self) -> float:
        """The share of the proven ones that could be checked that are right."""
        return self.right / max(1, self.right + self.wrong)

    def __str__(self) -> str:
        return (
            f"{self.proven_share:.1%} proven, {self.right_share:.2%} of them right"
            f" (right {self.right}, wrong {self.wrong}, unchecked {self.unchecked},"
            f" unproven {self.unproven}, between statements {self.between})"
        )


class Joining:
    """What a sampler joined so far; `reader` is the one it looks with."""

    def __init__(self, sampling: PostgresSampling, reader: SharedReader) -> None:
        self.samples: list[Joined] = []
        self.profiles: list[Profile] = []
        self.sampling = sampling
        self.reader = reader


@contextlib.contextmanager
def joining(
    server: Any,
    hz: int = 499,
    route: str = "mapped",
    hurry: Callable[[], OSError | None] | None = None,
) -> Iterator[Joining]:
    """Sample a server with the join as the sidecar does, beside its sweeps of all backends.

    `hurry` stands in for what gives the noting thread its priority.
    """
    postmaster = postmaster_of(server)
    layout = calibrate(postmaster)
    reader = SharedReader(postmaster, layout, ROUTES[route](postmaster, layout))
    profiles: list[Profile] = []
    sampler = Sampler(profiles.extend, hz=hz)
    sampler.start()
    module = "quayscope.sidecar.postgres.sampling._may_hurry"
    with contextlib.ExitStack() as stack:
        if hurry is not None:
            stack.enter_context(_replaced(module, hurry))
        sampling = PostgresSampling(
            sampler,
            postmaster,
            BackendMemory(postmaster),
            service="db",
            labels={},
            backends=lambda: reader,
        )
    found = Joining(sampling, reader)
    found.profiles = profiles
    running = sampling._notes._running
    settle = running.settle

    offset_ns = Clock.read().offset_ns

    def recorded(noted: Noted, time_ns: int) -> Ran:
        ran = settle(noted, time_ns)
        found.samples.append(Joined(ran.pid, time_ns + offset_ns, ran))
        return ran

    running.settle = recorded  # type: ignore[method-assign] # what it answers is written down
    stop = threading.Event()

    def sweep() -> None:
        with contextlib.suppress(MemoryGone):
            while not stop.wait(1 / 99):
                reader.sweep()

    sweeps = threading.Thread(target=sweep, daemon=True)
    sweeps.start()
    switched_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield found
    finally:
        sys.setswitchinterval(switched_s)
        stop.set()
        sweeps.join()
        sampling.close(5)
        sampler.close(5)
        reader.close()
        assert sampler.faults == sampling.faults == 0


@contextlib.contextmanager
def _replaced(path: str, value: object) -> Iterator[None]:
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path, value)
        yield


def compare(samples: Sequence[Joined], brackets: Mapping[tuple[int, int], Bracket]) -> Outcome:
    """Hold the answers for client backends against when each statement was sent and answered."""
    counts = dict.fromkeys(Outcome._fields, 0)
    for one in samples:
        if one.ran.role != CLIENT_BACKEND:
            continue
        if one.ran.unproven or one.ran.text is None:
            counts["unproven" if one.ran.unproven else "between"] += 1
            continue
        which = serial(one.ran.text)
        bracket = brackets.get(which) if which is not None else None
        if bracket is None:
            counts["unchecked"] += 1
        else:
            within = bracket.sent_ns <= one.time_ns <= bracket.answered_ns
            counts["right" if within else "wrong"] += 1
    return Outcome(**counts)
