"""The main job: start every part, fire the workload, read back what was seen."""

from __future__ import annotations

import json
import math
import shutil
import socket as socket_module
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from quayscope.load.demo.collector import CollectorClient
from quayscope.load.demo.errors import DemoError
from quayscope.load.demo.parts import Part, Parts, quayscope_command
from quayscope.load.demo.postgres import DemoPostgres
from quayscope.load.demo.processes import children, cpu_seconds
from quayscope.load.demo.registry.database import APPLICATION
from quayscope.load.demo.registry.ledger import ledger_cpu
from quayscope.load.demo.report import Observed, build

__all__ = ["Options", "Running", "run"]

DATABASE_SERVICE = "quay-database"
WORKERS = 2
WINDOW_SECONDS = 10
"""Profiles are cut on these Unix boundaries; the last window is complete a little after its end."""
WINDOW_GRACE_SECONDS = 4.5
AGENT_SECONDS = 2.0
"""How long an agent that came up before the sidecar may wait until it looks for it again."""
LEDGER_SECONDS = 2.2
"""How long after its last request a worker may take to write its account."""


@dataclass(frozen=True)
class Options:
    """What a person may choose about a demo. `duration_s` is that of the workload, in seconds."""

    duration_s: float = 60.0
    port: int = 4040
    pyroscope: str | None = None
    rate_scale: float = 1.0
    seed: int = 1
    weak: str | None = None


@dataclass
class Running:
    """A demo whose workload has ended and whose parts still run."""

    report: dict[str, Any]
    page: str | None
    parts: Parts


Say = Callable[[str], None]


@contextmanager
def run(options: Options, say: Say) -> Iterator[Running]:
    """Run the demo and yield its report; everything it started has ended when the context ends.

    Raises `DemoError` when a part without which there is nothing to measure could not run.
    """
    with ExitStack() as stack:
        directory = _directory(stack)
        database = stack.enter_context(_postgres(directory, say))
        parts = stack.enter_context(Parts(directory))
        demo = _Demo(options, say, directory, database, parts)
        demo.start()
        observed = demo.fire()
        collector = demo.settle(observed)
        yield Running(build(collector, observed), demo.page if collector else None, parts)


def _directory(stack: ExitStack) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="quayscope-demo-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    # The database runs as another user when we are root and must pass through to its own folder.
    directory.chmod(0o711)
    return directory


def _postgres(directory: Path, say: Say) -> DemoPostgres:
    say("starting Postgres")
    return DemoPostgres(directory / "postgres")


class _Demo:
    """The steps of one demo, in order: start, fire, settle."""

    def __init__(
        self, options: Options, say: Say, directory: Path, database: DemoPostgres, parts: Parts
    ) -> None:
        self._options = options
        self._say = say
        self._directory = directory
        self._database = database
        self._parts = parts
        self._registry: Part
        self._url = ""
        self.page: str | None = None
        self._control = ""
        self._collector_part: Part
        self._failures: list[dict[str, Any]] = []
        self._noticed: set[str] = set()

    def start(self) -> None:
        """Start collector, registry, background worker and sidecar, and wait until they serve."""
        say, parts = self._say, self._parts
        say("filling the registry's tables")
        self._run_once("seed", ["-m", "quayscope.load.demo.registry.seed"])
        say("starting the collector")
        self._collector_part = self._start_collector()
        socket = self._directory / "agent.sock"
        say(f"starting the registry: gunicorn, {WORKERS} gevent workers, with the agent inside")
        self._start_registry(socket)
        background = parts.start(
            "background",
            [*python(), "-m", "quayscope.load.demo.registry.background"],
            environment=self._application_environment(),
        )
        say("starting the sidecar")
        # While the registry is still importing: its agents then find the relay at the first or second try.
        self._start_sidecar(socket, background)
        self._wait_answering()
        say(f"flame graphs: {self.page}/; a capture of this moment: quayscope now --collector {self.page}")

    def _run_once(self, name: str, arguments: list[str]) -> None:
        part = self._parts.start(name, [*python(), *arguments], environment=self._application_environment())
        while part.poll() is None:
            time.sleep(0.05)
        part.stopping = True
        if part.process.returncode != 0:
            raise DemoError(f"{name} {part.how_it_ended()}", log=part.tail())

    def _application_environment(self) -> dict[str, str]:
        environment = {
            "QUAYSCOPE_DEMO_DSN": self._database.dsn,
            "QUAYSCOPE_DEMO_DIR": str(self._directory),
        }
        if self._options.weak is not None:
            environment["QUAYSCOPE_DEMO_WEAK"] = self._options.weak
        return environment

    def _start_collector(self) -> Part:
        ready = self._directory / "collector.ready"
        port = self._options.port if port_is_free(self._options.port) else 0
        command = quayscope_command(
            "collector",
            f"--listen=127.0.0.1:{port}",
            "--grpc-listen=127.0.0.1:0",
            f"--data={self._directory / 'store'}",
            f"--ready-file={ready}",
        )
        if self._options.pyroscope:
            command.append(f"--pyroscope={self._options.pyroscope}")
        part = self._parts.start("collector", command)
        serves = self._parts.wait_ready(part, ready)
        self.page = str(serves["http"])
        self._control = f"http://{serves['grpc']}"
        return part

    def _start_registry(self, socket: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._registry = self._parts.start(
            "registry",
            quayscope_command(
                "agent",
                "run",
                "--",
                *python(),
                "-m",
                "gunicorn",
                "--config=python:quayscope.load.demo.registry.gunicorn_conf",
                f"--bind=127.0.0.1:{port}",
                f"--workers={WORKERS}",
                "quayscope.load.demo.registry.app:app",
            ),
            environment={
                **self._application_environment(),
                "QUAYSCOPE_SOCKET": str(socket),
                "QUAYSCOPE_SERVICE_NAME": "quay-app",
                "QUAYSCOPE_ROLE": "web",
            },
            essential=True,
        )

    def _wait_answering(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._parts.check()
            if answers(f"{self._url}/v2/") and len(children(self._registry.process.pid)) >= WORKERS:
                return
            time.sleep(0.1)
        raise DemoError(f"the registry did not answer within {seconds:.0f} s", log=self._registry.tail())

    def _start_sidecar(self, socket: Path, background: Part) -> None:
        ready = self._directory / "sidecar.ready"
        assert self.page is not None
        part = self._parts.start(
            "sidecar",
            quayscope_command(
                "sidecar",
                f"--socket={socket}",
                f"--collector={self.page}",
                f"--control={self._control}",
                f"--postgres={self._database.pid}",
                f"--quay-pid={self._registry.process.pid}",
                f"--python={background.process.pid}=housekeeping",
                f"--ready-file={ready}",
                # Nobody sends there, and the ports may be somebody else's.
                "--otlp-listen=off",
                "--push-listen=off",
            ),
            # Not a flag: other processes may read a command line.
            environment={"QUAYSCOPE_POSTGRES_DSN": self._database.dsn},
        )
        self._parts.wait_ready(part, ready)

    def fire(self) -> Observed:
        """Run the workload while watching every part; returns what was seen from outside."""
        options = self._options
        time.sleep(AGENT_SECONDS)
        start = self._wait_for_whole_second()
        workers = children(self._registry.process.pid)
        cpu = {pid: cpu_seconds(pid) for pid in workers}
        truth = ledger_cpu(self._directory)
        result = self._directory / "load.json"
        self._say(f"firing {options.duration_s:g} s of load at {self._url}")
        driver = self._parts.start(
            "load",
            quayscope_command(
                "--log-level=warning",
                "load",
                "run",
                "demo",
                f"--url={self._url}",
                f"--duration={options.duration_s:g}s",
                f"--rate-scale={options.rate_scale:g}",
                f"--seed={options.seed}",
                f"--json={result}",
            ),
            show_progress=True,
        )
        while driver.poll() is None:
            self._parts.check()
            self._notice_failures()
            time.sleep(0.2)
        driver.stopping = True
        if not result.exists():
            raise DemoError(f"the load driver {driver.how_it_ended()}", log=driver.tail())
        load = json.loads(result.read_text())
        time.sleep(LEDGER_SECONDS)
        end = self._wait_for_whole_second()
        after = ledger_cpu(self._directory)
        return Observed(
            start=start,
            end=end,
            load=load,
            worker_cpu_s={pid: cpu_seconds(pid) - cpu[pid] for pid in workers},
            truth_cpu_s={name: seconds - truth.get(name, 0.0) for name, seconds in after.items()},
            other_backends=self._other_backends(),
            application=str(Path(__file__).parent / "registry"),
            database_service=DATABASE_SERVICE,
            failures=self._failures,
        )

    def _other_backends(self) -> set[int]:
        """Return the backends that serve others than the registry; none where the database is gone."""
        others = "SELECT pid FROM pg_stat_activity WHERE application_name <> %s"
        try:
            connection = psycopg2.connect(self._database.dsn, connect_timeout=5)
            try:
                with connection, connection.cursor() as cursor:
                    cursor.execute(others, (APPLICATION,))
                    return {int(pid) for (pid,) in cursor.fetchall()}
            finally:
                connection.close()
        except psycopg2.Error:
            return set()

    def settle(self, observed: Observed) -> CollectorClient | None:
        """Wait until the last profile window has arrived; returns a client, or None without a collector."""
        assert self.page is not None
        complete = math.ceil(observed.end / WINDOW_SECONDS) * WINDOW_SECONDS + WINDOW_GRACE_SECONDS
        self._say(f"waiting {max(0.0, complete - time.time()):.0f} s for the last profile window")
        while time.time() < complete and self._collector_part.poll() is None:
            self._notice_failures()
            time.sleep(0.1)
        self._notice_failures()
        if self._collector_part.failed:
            return None
        return CollectorClient(self.page, observed.start, observed.end)

    def _notice_failures(self) -> None:
        """Remember a part that ended on its own, once, with the tail of its log."""
        for part in self._parts.failed():
            if part.name not in self._noticed:
                self._noticed.add(part.name)
                self._failures.append(
                    {
                        "part": part.name,
                        "what": f"{part.how_it_ended()}; {CONSEQUENCE[part.name]}",
                        "log": part.tail(),
                    }
                )
        if not self._database.running() and "postgres" not in self._noticed:
            self._noticed.add("postgres")
            self._failures.append(
                {
                    "part": "postgres",
                    "what": f"ended; {CONSEQUENCE['postgres']}",
                    "log": self._database.tail(),
                }
            )

    @staticmethod
    def _wait_for_whole_second() -> float:
        """Sleep to the next whole Unix second, where profile slots are cut; returns it."""
        second = math.floor(time.time()) + 1
        time.sleep(max(0.0, second - time.time()))
        return float(second)


CONSEQUENCE = {
    "collector": "profiles, spans and metrics are missing from the report",
    "sidecar": "profiles, spans, statements and resource counters end there",
    "postgres": "requests that need it fail from there on, and its samples end",
    "background": "its profile is missing",
    "seed": "the tables are not filled",
}
"""What the report lacks when a part is gone."""


def python() -> list[str]:
    """Return this interpreter."""
    return [sys.executable]


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on now."""
    with socket_module.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port now."""
    with socket_module.socket() as probe:
        probe.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def answers(url: str) -> bool:
    """Whether a server answers at all, with whatever status."""
    try:
        urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own server on loopback
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
