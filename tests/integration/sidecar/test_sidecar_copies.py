"""Copies of a backend's slot, which are all that is taken at most samples, on real servers by both routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from postgres.reading import ROUTES, postmaster_of, reader_of, running
from quayscope.sidecar.postgres.routes import Parts
from quayscope.sidecar.postgres.running import Ran, Running
from quayscope.sidecar.postgres.shared import SharedReader
from quayscope.sidecar.targets import CLIENT_BACKEND


@pytest.fixture(scope="module", params=["13", "14", "16", "18"])
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Any:
    """A server of each form of an entry."""
    return server_of(request.param)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("length", [30, 447, 448, 1000])
def test_a_copy_shows_what_a_look_does(
    server: Any, route: str, length: int, until: Callable[..., Any]
) -> None:
    """The same statement, times and state, whatever the text's length; once the backend has gone, nothing."""
    statement = f"SELECT pg_sleep(60) /*{'x' * (length - 24)}*/"
    with reader_of(server, route) as reader:
        look_at = Running(postmaster_of(server), None, lambda: reader)
        with running(server, statement) as pid:
            until(lambda: (seen := look_at.note(pid).seen) is not None and b"pg_sleep" in seen.text)
            noted = look_at.note(pid)
            backend = look_at.known[pid]
            parts = backend.copy()
            low, counter, _, text, after, again = parts
            assert counter == after
            assert low == again == counter[0]
            assert not low & 1
            assert 0 in text
            assert length < len(text) == backend.text < backend.size
            copied = look_at.noted(noted.looked_ns, backend, parts)
            assert noted.seen is not None
            assert copied == noted
            look_at.forget(pid)
            assert pid not in look_at.known
            look_at.note(pid)
        until(lambda: look_at.noted(1, backend, backend.copy()).seen is None)
        backend = look_at.known[pid]
        gone = look_at.noted(1, backend, backend.copy())
        assert gone.ran == Ran(None, CLIENT_BACKEND, True, pid)
        assert pid not in look_at.known


@pytest.mark.parametrize("route", ROUTES)
def test_copies_end_with_their_reader(server: Any, route: str, until: Callable[..., Any]) -> None:
    """Once it was closed nothing is read any more, wherever the memory lies by then; another reader's is."""
    with running(server, "SELECT pg_sleep(60)") as pid:
        readers: list[SharedReader] = []
        look_at = Running(postmaster_of(server), None, lambda: readers[-1] if readers else None)
        with reader_of(server, route) as reader:
            readers.append(reader)
            until(lambda: (seen := look_at.note(pid).seen) is not None and b"pg_sleep" in seen.text)
            old = look_at.known[pid]
            old.copy()
        with pytest.raises((OSError, ValueError)):
            old.copy()
        with reader_of(server, route) as reader:
            readers.append(reader)
            assert look_at.note(pid).seen is not None
            new = look_at.known[pid]
            assert new.reader is reader
            readers.clear()
            assert look_at.note(pid).seen is None
            assert pid not in look_at.known
            parts: Parts = new.copy()
            seen = reader.copied(new.number, new.server_pid, parts)
            assert seen is not None
            assert seen.text == b"SELECT pg_sleep(60)"


@pytest.mark.parametrize("route", ROUTES)
def test_a_text_that_is_cut_is_not_copied(server: Any, route: str, until: Callable[..., Any]) -> None:
    """It has to be completed while it runs: its backend is looked at each time, and a copy says so."""
    with reader_of(server, route) as reader:
        look_at = Running(postmaster_of(server), None, lambda: reader)
        with running(server, f"SELECT pg_sleep(60) /* {'x' * 1100} */") as pid:
            until(lambda: (seen := look_at.note(pid).seen) is not None and seen.truncated)
            assert pid not in look_at.known or 0 not in look_at.known[pid].copy()[3]
