"""One backend as its slot in shared memory shows it, and how its bytes are read."""

from __future__ import annotations

import re
import socket
import struct
from typing import NamedTuple

from quayscope.sidecar import procfs
from quayscope.sidecar.postgres.enums import Names, Wait
from quayscope.sidecar.postgres.layout import CLIENT_ADDRESS, ENTRY_HEAD, EPOCH_US, Entry, Layout
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.routes import Look, Parts, cut_text
from quayscope.sidecar.postgres.transactions import left_over
from quayscope.sidecar.targets import CLIENT_BACKEND

__all__ = [
    "BACKGROUND_WORKER",
    "Decoder",
    "Glance",
    "Session",
    "Slot",
    "Statement",
    "started_ns",
    "worker_type",
]

BACKGROUND_WORKER = "background worker"
# A worker's title is its name, which for Postgres's own begins with what `pg_stat_activity` calls its type.
_WORKER = re.compile(
    r"postgres: +(?:[^ :]+: )?(parallel worker|logical replication (?:launcher|(?:[a-z]+ ){0,2}worker))"
)
_MAX_TEXTS = 4096
_LONGEST_HELD = 2048


class Session(NamedTuple):
    """What stays while a backend lives, nearly: `pid` is ours, `server_pid` the one the server knows.

    `database` and `user` are names where those are known, else the oid; `client` is the address, empty for a
    Unix socket; `started_ns` is Unix nanoseconds. `pid` is 0 where the process is not one that we see.
    """

    pid: int
    server_pid: int
    backend_type: str
    database: str
    user: str
    application: str
    client: str
    started_ns: int


class Statement(NamedTuple):
    """The activity's text; `truncated` where it fills the server's `track_activity_query_size`."""

    text: str
    truncated: bool


class Slot(NamedTuple):
    """One backend at the moment of a sweep. Times are Unix nanoseconds of the server's clock, 0: none.

    `statement` is what it runs, or ran last where `state` is an idle one. `query_id` is Postgres's own, 0
    where it computes none (and in 13). `leader` is the server's pid of the backend that a parallel worker
    works for, else 0. `rest` is the comment of the statement before, in what ends a transaction.
    """

    session: Session
    state: str
    wait: Wait
    statement: Statement
    query_id: int
    transaction_start_ns: int
    query_start_ns: int
    state_start_ns: int
    leader: int
    rest: str = ""

    @property
    def active(self) -> bool:
        """Whether it executes its statement now."""
        return self.state in ("active", "fastpath function call")


class Glance(NamedTuple):
    """What a backend does at this moment; times are Unix nanoseconds of the server's clock, 0: none.

    `text` is as the server keeps it, `truncated` where it fills the place. `activity_start_ns` is when the
    message came that brought it; in a parallel worker, its leader's. The text and its start stay when the
    backend goes idle, and `state_start_ns` is when it did. `rest` is the comment of the statement before, in
    what ends a transaction.
    """

    backend_type: str
    state: str
    activity_start_ns: int
    state_start_ns: int
    text: bytes
    truncated: bool
    transaction_start_ns: int = 0
    rest: str = ""

    @property
    def decoded(self) -> str:
        """The text in characters: half a character at its cut end is none."""
        return self.text.decode(errors="ignore" if self.truncated else "replace")


class Decoder:
    """Makes slots of one server's bytes; remembers up to 4,096 texts, of 2 kB at most."""

    def __init__(self, layout: Layout, enums: Names, names: OidNames) -> None:
        self._layout = layout
        self._enums = enums
        self._client = enums.backend_types.index(CLIENT_BACKEND)
        self._names = names
        self._texts: dict[bytes, Statement] = {}

    def entry(self, number: int, seen: Look) -> Entry | None:
        """Return a slot's entry, None where it points elsewhere or holds numbers without meaning."""
        entry = Entry(*self._layout.entry.unpack(seen.entry))
        valid = (
            self._layout.fits(number, entry)
            and 0 <= entry.state < len(self._enums.states)
            and 0 <= entry.backend_type < len(self._enums.backend_types)
        )
        return entry if valid else None

    def backend_type(self, entry: Entry) -> str:
        """Return what the process is; parallel workers are background workers, as those of extensions."""
        return self._enums.backend_types[entry.backend_type]

    def session(self, entry: Entry, seen: Look, pid: int, kind: str) -> Session:
        """Return a backend's session; `pid` and `kind` are what its process shows."""
        return Session(
            pid,
            entry.pid,
            kind,
            self._names.database(entry.database),
            self._names.user(entry.user),
            _application(seen),
            _client(seen.entry[CLIENT_ADDRESS : CLIENT_ADDRESS + 28]),
            started_ns(entry),
        )

    def renewed(self, session: Session, entry: Entry, seen: Look) -> Session:
        """Return the session of the same backend now, the same object where nothing in it changed."""
        application = _application(seen)
        database, user = self._names.database(entry.database), self._names.user(entry.user)
        if (session.application, session.database, session.user) == (application, database, user):
            return session
        return session._replace(application=application, database=database, user=user)

    def slot(self, session: Session, entry: Entry, seen: Look, leader: int) -> Slot:
        """Return the whole slot."""
        return Slot(
            session,
            self._enums.states[entry.state],
            self._enums.wait(seen.wait),
            self._statement(seen.activity),
            entry.query_id,
            _unix_ns(entry.transaction_start),
            _unix_ns(entry.activity_start),
            _unix_ns(entry.state_start),
            leader,
            left_over(seen.activity, seen.rest),
        )

    def glance(self, entry: Entry, seen: Look) -> Glance:
        """Return the activity alone."""
        return Glance(
            self._enums.backend_types[entry.backend_type],
            self._enums.states[entry.state],
            _unix_ns(entry.activity_start),
            _unix_ns(entry.state_start),
            seen.activity,
            len(seen.activity) >= self._layout.text_size - 1,
            _unix_ns(entry.transaction_start),
            left_over(seen.activity, seen.rest),
        )

    def copied(self, number: int, server_pid: int, parts: Parts) -> Glance | None:
        """Return what a copy of a client backend's slot shows.

        None where it is another's by now, or was written meanwhile.
        """
        _, before, raw, text, after, _ = parts
        (_, pid, kind, _, transaction, activity, since, _, _, state, *pointers) = ENTRY_HEAD.unpack(raw)
        if (
            before != after
            or before[0] & 1
            or pid != server_pid
            or kind != self._client
            or not 0 <= state < len(self._enums.states)
            or pointers != self._layout.texts_of(number)
        ):
            return None
        shown, rest = cut_text(text)
        return Glance(
            CLIENT_BACKEND,
            self._enums.states[state],
            _unix_ns(activity),
            _unix_ns(since),
            shown,
            False,
            _unix_ns(transaction),
            left_over(shown, rest),
        )

    def _statement(self, raw: bytes) -> Statement:
        found = self._texts.get(raw)
        if found is None:
            truncated = len(raw) >= self._layout.text_size - 1
            # A text is cut at a byte: half a character at its end is none.
            found = Statement(raw.decode(errors="ignore" if truncated else "replace"), truncated)
            if len(raw) <= _LONGEST_HELD:
                if len(self._texts) >= _MAX_TEXTS:
                    self._texts.clear()
                self._texts[raw] = found
        return found


def worker_type(pid: int) -> str:
    """Return what a background worker is, from its title; what an extension starts is just that."""
    match = _WORKER.match(procfs.command_line(pid))
    return match.group(1) if match is not None else BACKGROUND_WORKER


def started_ns(entry: Entry) -> int:
    """Return when the backend started, in Unix nanoseconds: with its pid it tells it from any other."""
    return _unix_ns(entry.proc_start)


def _application(seen: Look) -> str:
    return seen.application.partition(b"\0")[0].decode(errors="replace")


def _unix_ns(microseconds: int) -> int:
    return (microseconds + EPOCH_US) * 1000 if microseconds else 0


def _client(address: bytes) -> str:
    """Return the address in a struct sockaddr_storage as text, empty for what has none."""
    (family,) = struct.unpack_from("<H", address)
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, address[4:8])
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, address[8:24])
    return ""
