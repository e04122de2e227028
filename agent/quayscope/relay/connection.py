"""What the relay knows of one connection: whose it is, and the frames that were defined on it."""

from __future__ import annotations

from collections.abc import Mapping

from quayscope.profile import Frame, Stack
from quayscope.relay.backchannel import OWN
from quayscope.relay.parsing import resolve
from quayscope.relay.records import Frames, Hello
from quayscope.relay.windows import Series

__all__ = ["Connection", "Room"]

MAX_FRAME_BYTES = 24_000_000
"""Memory for the frames of one connection; a service of 10,000 functions takes about 3 MB."""
MAX_ALL_FRAME_BYTES = 192_000_000
FRAME_BYTES = 200
"""What a frame takes beside its text."""
MAX_MEMO_CELLS = 64_000
"""Frames of the stacks remembered on one connection, 8 bytes each: five seconds of a busy worker."""


class Room:
    """Memory that all connections' frames share."""

    def __init__(self) -> None:
        self.used = 0


class Connection:
    """One worker's connection. `refused` counts frames that were not kept, for want of room.

    `told` are the settings that the worker heard last.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.pid = 0
        self.labels: dict[str, str] = {}
        self.series: Series = ()
        self.malformed = 0
        self.refused = 0
        self.told = OWN
        self._frames: dict[int, Frame] = {}
        self._bytes = 0
        self._stacks: dict[tuple[int, ...], Stack] = {}
        self._cells = 0

    def hello(self, record: Hello, labels: Mapping[str, str]) -> None:
        """Note who this is: `labels` are the pod's; frames are defined anew."""
        self.pid = record.pid
        self.labels = {**record.labels, **labels, "service_name": record.service, "role": record.role}
        self.series = tuple(sorted({**self.labels, "sampler": "agent"}.items()))
        self.told = OWN
        self.release()

    def release(self) -> None:
        """Forget all frames."""
        self._frames.clear()
        self._room.used -= self._bytes
        self._bytes = 0
        self._forget_stacks()

    def define(self, record: Frames) -> None:
        """Take definitions; one that changes what an id means makes the stacks so far unknown."""
        for frame_id, frame in record.frames:
            held = self._frames.get(frame_id)
            if held is not None:
                del self._frames[frame_id]
                self._take(-_size(held))
                self._forget_stacks()
            size = _size(frame)
            if self._bytes + size > MAX_FRAME_BYTES or self._room.used + size > MAX_ALL_FRAME_BYTES:
                self.refused += 1
                continue
            self._frames[frame_id] = frame
            self._take(size)

    def _take(self, size: int) -> None:
        self._bytes += size
        self._room.used += size

    def stack(self, ids: tuple[int, ...]) -> Stack:
        """Return the frames behind ids; raises `MalformedProfile`."""
        found = self._stacks.get(ids)
        if found is None:
            found = resolve(ids, self._frames)
            if self._cells + len(ids) > MAX_MEMO_CELLS:
                self._forget_stacks()
            self._stacks[ids] = found
            self._cells += len(ids)
        return found

    def _forget_stacks(self) -> None:
        self._stacks.clear()
        self._cells = 0


def _size(frame: Frame) -> int:
    return FRAME_BYTES + len(frame.function) + len(frame.file)
