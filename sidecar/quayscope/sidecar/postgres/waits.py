"""Time that statements spend waiting: each poll's wait event, weighted with the time since the poll before.

A statement that is seen waiting is charged the whole interval: one of length d is seen with probability
d / interval, so the sum is right on average without knowing when a wait began. On-CPU backends may still show
a wait event that they have not cleared: what is charged here is what the server says, beside `process_cpu`.

A transaction that is idle (its client does something else, and it holds its locks meanwhile) is shown under
a root frame of its own, `idle in transaction`, as `Client:ClientRead` under its last statement: it is time
that the application keeps others waiting, not time that its statement takes.
"""

from __future__ import annotations

from quayscope.profile import BLOCK, Attributes, Frame
from quayscope.profile.model import Losses
from quayscope.sidecar.postgres.activity import Backend, Poll
from quayscope.sidecar.postgres.transactions import IDLE_IN_TRANSACTION
from quayscope.sidecar.statements import describe
from quayscope.sidecar.windows import SECOND_NS, Windows

__all__ = ["Waits"]

_LONGEST_INTERVAL_NS = SECOND_NS
"""What a poll is charged at most: the rest of a longer gap was seen by nobody."""


class Waits:
    """Turns polls into `block` samples; a listener of `Activity`."""

    def __init__(self, windows: Windows, service: str) -> None:
        self._windows = windows
        self._root = Frame(service, kind="root")

    def seen(self, poll: Poll) -> None:
        """Charge the interval before this poll to what each backend waits for."""
        weight = min(poll.elapsed_ns, _LONGEST_INTERVAL_NS)
        if not weight:
            return
        slot = poll.time_ns - poll.time_ns % SECOND_NS
        for backend in poll.backends:
            if backend.wait and (backend.active or backend.state in IDLE_IN_TRANSACTION):
                self._charge(backend, slot, weight)

    def _charge(self, backend: Backend, slot: int, weight: int) -> None:
        described = describe(backend.query)
        frames = [self._root]
        if not backend.active:
            frames.append(Frame("idle in transaction", kind="root"))
        if described.frame is not None:
            frames.append(described.frame)
        frames.append(Frame(f"{backend.wait_type}:{backend.wait}", kind="wait"))
        attributes = Attributes(
            slot,
            described.endpoint,
            described.run,
            described.phase,
            backend.pid,
            described.span_id,
            described.trace_id,
        )
        # The statement and the wait come from one row that the backend wrote without a lock.
        losses = Losses(
            unproven=int(described.frame is not None), unattributed=int(not described.has_request)
        )
        self._windows.add(BLOCK, backend.kind, tuple(frames), attributes, (1, weight), losses)
