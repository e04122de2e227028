"""Where a server keeps the state of its backends: addresses in its shared memory, and the form of an entry.

Two arrays hold it. `BackendStatusArray` (backend_status.h; 13: pgstat.h) has an entry a backend with what
`pg_stat_activity` shows, guarded by a counter that is odd while the backend writes; `ProcGlobal->allProcs`
(proc.h) has a PGPROC a backend with what it waits for. Which belongs to which is told by the pid in both.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "ACTIVITY_POINTER",
    "APPLICATION_POINTER",
    "APPLICATION_SIZE",
    "CLIENT_ADDRESS",
    "ENTRIES_BEYOND",
    "ENTRY_HEAD",
    "ENTRY_SIZES",
    "EPOCH_US",
    "LEADER_OFFSETS",
    "MAX_TEXT",
    "PROCS_BEYOND",
    "SEMAPHORE_POINTER",
    "TIMES_SIZE",
    "WAIT_OFFSET_13",
    "Entry",
    "Layout",
]

# PgBackendStatus of 64-bit builds, alike in 13 to 18 up to st_query_id (14 and later).
APPLICATION_POINTER = 240
ACTIVITY_POINTER = 248
TIMES_SIZE = 48
"""The head of an entry, up to and with st_state_start_timestamp."""
CLIENT_ADDRESS = 56
"""Offset of a struct sockaddr_storage of 128 bytes."""
ENTRY_SIZES = {13: 424, 14: 432, 15: 432, 16: 432, 17: 432, 18: 440}
ENTRIES_BEYOND = {13: 7, 14: 8, 15: 6, 16: 6, 17: 6, 18: 38}
"""Entries beyond MaxBackends: NUM_AUXPROCTYPES, from 17 on NUM_AUXILIARY_PROCS."""
APPLICATION_SIZE = 64
"""NAMEDATALEN."""

# PGPROC. What 14 and later say of themselves is measured; this cannot be.
SEMAPHORE_POINTER = 24
WAIT_OFFSET_13 = 684
PROCS_BEYOND = {13: 4, 14: 5, 15: 5, 16: 5, 17: 6, 18: 38}
"""PGPROCs with a semaphore beyond MaxBackends: NUM_AUXILIARY_PROCS."""
LEADER_OFFSETS = {13: 816, 14: 840, 15: 840, 16: 840, 17: 848, 18: 792}
"""Offset of lockGroupLeader; checked in use: a pointer to a PGPROC or none."""

MAX_TEXT = 16_384
"""Longest text that is read of an entry; `track_activity_query_size` may be 1 MiB."""
EPOCH_US = 946_684_800_000_000
"""Microseconds from 1970 to 2000, where Postgres's time begins."""

_APART_SINCE_17 = 160


class Entry(NamedTuple):
    """A backend's entry; times in microseconds since 2000, 0: none. `query_id` is 0 in 13."""

    counter: int
    pid: int
    backend_type: int
    proc_start: int
    transaction_start: int
    activity_start: int
    state_start: int
    database: int
    user: int
    state: int
    application: int
    activity: int
    query_id: int = 0


ENTRY_HEAD = struct.Struct("<iii4xqqqqII176xi4xQQ")
"""The form of an entry up to its pointers; all of it that is read in 13."""
_ENTRY_14 = struct.Struct("<iii4xqqqqII176xi4xQQ168xq")


@dataclass(frozen=True)
class Layout:
    """Where one server's arrays lie; addresses are the postmaster's, which all its children share.

    `segment` is the mapping that holds them: its first and last address and the inode behind it.
    """

    major: int
    segment: tuple[int, int]
    inode: int
    entries: int
    entry_size: int
    slots: int
    applications: int
    activities: int
    activity_size: int
    procs: int
    proc_size: int
    proc_count: int
    proc_pid: int
    proc_wait: int
    proc_leader: int

    @property
    def text_size(self) -> int:
        """How much of an activity's text is read, its terminating zero included."""
        return min(self.activity_size, MAX_TEXT)

    @property
    def apart(self) -> int:
        """How many slots at the end are not given out from the front, first the lowest that is free.

        Up to 16 those of auxiliary processes (sinvaladt.c, SInvalBackendInit); from 17 on autovacuum, workers
        and WAL senders have theirs there too, 22 to 32 where the settings are the usual ones.
        """
        return ENTRIES_BEYOND[self.major] if self.major <= 16 else _APART_SINCE_17

    @property
    def entry(self) -> struct.Struct:
        """The form of an entry, up to the last field that is read; see `Entry`."""
        return ENTRY_HEAD if self.major == 13 else _ENTRY_14

    def texts_of(self, slot: int) -> list[int]:
        """Return where a slot's application and activity lie: its entry points there all the time."""
        return [self.applications + slot * APPLICATION_SIZE, self.activities + slot * self.activity_size]

    def fits(self, slot: int, entry: Entry) -> bool:
        """Whether an entry points at its own texts."""
        return [entry.application, entry.activity] == self.texts_of(slot)
