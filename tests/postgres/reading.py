"""Reading a test's server from outside: its postmaster, a reader by each route, a backend that runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from quayscope.sidecar.postgres.calibrate import calibrate
from quayscope.sidecar.postgres.layout import Layout
from quayscope.sidecar.postgres.oids import OidNames
from quayscope.sidecar.postgres.routes import MappedMemory, ReadMemory, SharedMemory
from quayscope.sidecar.postgres.shared import SharedReader
from quayscope.sidecar.postgres.slots import Slot
from quayscope.sidecar.targets import Postmaster, postmaster_at

ROUTES: dict[str, Callable[[Postmaster, Layout], SharedMemory]] = {
    "mapped": MappedMemory,
    "read": ReadMemory,
}


def postmaster_of(server: Any) -> Postmaster:
    """Return the running server's postmaster."""
    found = postmaster_at(server.pid)
    assert found is not None
    return found


@contextlib.contextmanager
def reader_of(server: Any, route: str, names: OidNames | None = None) -> Iterator[SharedReader]:
    """Yield a reader of the running server by one route."""
    postmaster = postmaster_of(server)
    layout = calibrate(postmaster)
    reader = SharedReader(postmaster, layout, ROUTES[route](postmaster, layout), names)
    try:
        yield reader
    finally:
        reader.close()


def slot_of(reader: SharedReader, pid: int) -> Slot | None:
    """Return what a sweep now shows of one backend."""
    return next((slot for slot in reader.sweep() if slot.session.server_pid == pid), None)


@contextlib.contextmanager
def running(server: Any, statement: str) -> Iterator[int]:
    """Run one statement on a connection of its own; yields the backend's pid."""
    connection = server.connect()
    pid = connection.info.backend_pid

    def run() -> None:
        with contextlib.suppress(psycopg.Error):
            connection.execute(statement.encode())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield pid
    finally:
        with contextlib.suppress(psycopg.Error):
            connection.cancel()
        thread.join(10)
        connection.close()
