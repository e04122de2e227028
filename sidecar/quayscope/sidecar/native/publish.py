"""From gathered samples to profiles: names looked up, losses counted, finished windows sent."""

from __future__ import annotations

from quayscope.profile import PROCESS_CPU, Attributes, Frame
from quayscope.profile.model import Losses
from quayscope.sidecar.native.gather import Gathered, Held, Known
from quayscope.sidecar.native.stacks import Stacks
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.statements import INHERITED
from quayscope.sidecar.windows import SECOND_NS

__all__ = ["Publisher"]

_MANY = 5_000
"""So many samples do not wait for their window's end to be named."""
_AT_ONCE = 256
"""Samples named together: what is made for them on the way stays small."""


class _Alike:
    """Frames of samples that are alike, held so that nothing else has their identity; how many, their CPU."""

    __slots__ = ("count", "cpu_ns", "kernel", "user")

    def __init__(self, user: tuple[Frame, ...], kernel: tuple[Frame, ...]) -> None:
        self.user = user
        self.kernel = kernel
        self.count = self.cpu_ns = 0


class Publisher:
    """Names what was gathered and hands it to its target's windows. Not thread-safe.

    `late_s` seconds after a window's end its last samples have come. Losses go with the samples: `truncated`
    stacks do not reach their root, of `unproven` ones it is not certain what their process ran,
    `unattributed` samples belong to no request.
    """

    def __init__(self, gathered: Gathered, stacks: Stacks, window_s: int, late_s: float) -> None:
        self._gathered = gathered
        self._stacks = stacks
        self._window_ns = window_s * SECOND_NS
        self._late_ns = round(late_s * SECOND_NS)

    def publish(self, now_ns: int | None) -> None:
        """Name the samples of windows that are over at `now_ns` (Unix nanoseconds; None: all)."""
        before = None
        if now_ns is not None:
            over = now_ns - self._late_ns
            before = over - over % self._window_ns
            if len(self._gathered) >= _MANY:
                before = over - SECOND_NS + 1
        self._name(self._gathered.take(before))
        for (tracked, slot_ns), count in self._gathered.take_dropped().items():
            tracked.lose(slot_ns, count)

    def _name(self, samples: list[Held]) -> None:
        """Name samples, and add them to their windows: once for all that are alike by name."""
        alike: dict[tuple[Known, int, int, bool], _Alike] = {}
        for first in range(0, len(samples), _AT_ONCE):
            some = samples[first : first + _AT_ONCE]
            walked = [
                (one.space, one.user, one.known.tracked.target.root_pid)
                for one in some
                if one.space and one.user
            ]
            named = iter(self._stacks.users(walked))
            kernels = self._stacks.kernels([one.kernel for one in some])
            for one, kernel in zip(some, kernels, strict=True):
                user, complete = next(named) if one.space and one.user else ((), False)
                key = (one.known, id(user), id(kernel), one.complete or complete)
                held = alike.get(key)
                if held is None:
                    held = alike[key] = _Alike(user, kernel)
                held.count += 1
                held.cpu_ns += one.cpu_ns
        for (known, _, _, complete), held in alike.items():
            truncated = 0 if complete else held.count
            self._add(known, held.user + held.kernel, truncated, (held.count, held.cpu_ns))

    def send(self, tracked: Tracked, now_ns: int | None) -> None:
        """Send the windows that ended, and whose samples are all named."""
        tracked.windows.flush(None if now_ns is None else now_ns - self._late_ns)

    def _add(
        self,
        known: Known,
        frames: tuple[Frame, ...],
        truncated: int,
        values: tuple[int, int],
    ) -> None:
        tracked, described = known.tracked, known.described
        stack: tuple[Frame, ...] = (tracked.root,)
        # A parallel worker's work stands under the statement that it is part of.
        if described.frame is not None:
            stack += (described.frame,)
        if described.inherited:
            stack += (INHERITED,)
        if known.role != tracked.target.main_role:
            stack += (Frame(known.role, kind="root"),)
        stack += frames
        endpoint = described.endpoint
        if not endpoint and tracked.target.operation is not None:
            endpoint = tracked.target.operation(stack)
        count = values[0]
        unattributed = 0 if endpoint or described.has_request else count
        losses = Losses(0, 0, truncated, count if known.unproven else 0, unattributed)
        attributes = Attributes(
            known.slot_ns,
            endpoint,
            described.run,
            described.phase,
            known.pid,
            described.span_id,
            described.trace_id,
        )
        tracked.truncated += truncated
        tracked.windows.add(PROCESS_CPU, known.role, stack, attributes, values, losses)
