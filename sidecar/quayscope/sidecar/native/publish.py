"""From gathered samples to profiles: names looked up, losses counted, finished windows sent."""

from __future__ import annotations

from quayscope.profile import PROCESS_CPU, Attributes, Frame
from quayscope.profile.model import Losses
from quayscope.sidecar.native.gather import Gathered, Key, Weight
from quayscope.sidecar.native.stacks import Stacks
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.statements import INHERITED
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["Publisher"]

_GRACE_NS = 2 * SECOND_NS
"""How long after a window's end its last samples may still be on their way through rings and batches."""
_MANY = 5_000
"""So many samples do not wait for their window's end to be named."""


class Publisher:
    """Names what was gathered and hands it to its target's windows. Not thread-safe.

    Losses go with them: `truncated` stacks do not reach their root, of `unproven` ones it is
    not certain what their process ran, `unattributed` samples belong to no request.
    """

    def __init__(self, gathered: Gathered, stacks: Stacks, window_s: int) -> None:
        self._gathered = gathered
        self._stacks = stacks
        self._window_ns = window_s * SECOND_NS

    def publish(self, now_ns: int | None) -> None:
        """Name the samples of windows that are over at `now_ns` (Unix nanoseconds; None: all)."""
        before = None
        if now_ns is not None:
            over = now_ns - _GRACE_NS
            before = over - over % self._window_ns
            if len(self._gathered) >= _MANY:
                before = over - SECOND_NS + 1
        for key, weight in self._gathered.take(before):
            self._add(key, weight)
        for (tracked, slot_ns), count in self._gathered.take_dropped().items():
            tracked.lose(slot_ns, count)

    @staticmethod
    def send(tracked: Tracked, now_ns: int | None) -> None:
        """Send the windows that ended, and whose samples are all named."""
        tracked.windows.flush(None if now_ns is None else now_ns - _GRACE_NS)

    def _add(self, key: Key, weight: Weight) -> None:
        tracked, described = key.tracked, key.described
        stack: tuple[Frame, ...] = (tracked.root,)
        # A parallel worker's work stands under the statement that it is part of.
        if described.frame is not None:
            stack += (described.frame,)
        if described.inherited:
            stack += (INHERITED,)
        if key.role != tracked.target.main_role:
            stack += (Frame(key.role, kind="root"),)
        complete = key.complete
        if key.space is not None and key.user:
            native, is_root = self._stacks.user(key.space, key.user, tracked.target.root_pid)
            stack += native
            complete = complete or is_root
        if key.kernel:
            stack += self._stacks.kernel(key.kernel)
        endpoint = described.endpoint
        if not endpoint and tracked.target.operation is not None:
            endpoint = tracked.target.operation(stack)
        count = weight.count
        truncated = 0 if complete else count
        unattributed = 0 if endpoint or described.has_request else count
        losses = Losses(0, 0, truncated, count if key.unproven else 0, unattributed)
        attributes = Attributes(
            key.slot_ns,
            endpoint,
            described.run,
            described.phase,
            key.pid,
            described.span_id,
            described.trace_id,
        )
        tracked.truncated += truncated
        tracked.windows.add(PROCESS_CPU, key.role, stack, attributes, (count, weight.cpu_ns), losses)
