"""The application served by two workers, and a closed loop of clients that keeps both busy."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from integration.agent.serving import Gunicorn, at_once, until

CLIENTS = 3
"""For each worker."""
_WORKERS = 2
_TRIES = 400
_TIMEOUT_S = 30.0


class Used(NamedTuple):
    """What one worker did in a round: CPU by its clock, and the requests that began and ended in it."""

    cpu_ns: int
    requests: int

    @property
    def us_a_request(self) -> float:
        """CPU of a request, in microseconds."""
        return self.cpu_ns / max(1, self.requests) / 1e3


def process_clock_ns(pid: int) -> int:
    """Return another process's CPU to the nanosecond, ended threads included.

    The number of its clock is made of the pid's (linux, posix-timers.h), as clock_getcpuclockid(3) does.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


class _Client:
    """A kept connection, and with it one worker."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        self.pid = int(json.loads(self.ask("/agent")[0])["pid"])
        self.agent = ""

    def ask(self, path: str) -> tuple[bytes, http.client.HTTPMessage]:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} was answered with {answer.status}: {body[:300]!r}")
        return body, answer.headers

    def close(self) -> None:
        self._connection.close()


class Site:
    """Two workers in `folder`, with the agent unless `environment` turns it off; a context manager."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        self._stopping = threading.Event()
        self._clients: list[_Client] = []
        self.gunicorn = Gunicorn(
            folder,
            "--preload",
            f"--workers={_WORKERS}",
            "-c",
            "python:bench.agent.hooks",
            application="bench.agent.app:app",
            environment=environment,
        )
        try:
            until(lambda: len(self.gunicorn.workers()) == _WORKERS, "both workers run")
            self.pids = tuple(sorted(self.gunicorn.workers()))
            self._connect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Site:
        """Return itself: it serves already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the clients and the server."""
        self.close()

    def close(self) -> None:
        """End the clients and the server."""
        self._stopping.set()
        for client in self._clients:
            client.close()
        self.gunicorn.kill()

    def _connect(self) -> None:
        # The kernel says which worker gets a connection: those too many for one are closed again.
        spare: list[_Client] = []
        wanted = dict.fromkeys(self.pids, CLIENTS)
        for _ in range(_TRIES):
            client = _Client(self.gunicorn.port)
            if wanted.get(client.pid, 0):
                wanted[client.pid] -= 1
                self._clients.append(client)
            else:
                spare.append(client)
            if not any(wanted.values()):
                break
        for client in spare:
            client.close()
        if any(wanted.values()):
            raise RuntimeError(f"not all workers take connections: {wanted}; {self.gunicorn.log()}")

    def load(self, seconds: float) -> dict[int, Used]:
        """Keep all clients asking for so long, wait for the last answers, and return what each worker used.

        Nothing is under way before and after, so that CPU and requests are of the same work.
        """
        before = {pid: process_clock_ns(pid) for pid in self.pids}
        counts = dict.fromkeys(self.pids, 0)
        lock = threading.Lock()
        end = time.monotonic() + seconds

        def keep_asking(client: _Client, number: int) -> None:
            count = 0
            while time.monotonic() < end and not self._stopping.is_set():
                _, headers = client.ask(f"/api/v1/repository/{(number + count) % 50}")
                if int(headers["X-Worker"]) != client.pid:
                    raise RuntimeError("a connection changed its worker")
                client.agent = headers["X-Agent"]
                count += 1
            with lock:
                counts[client.pid] += count

        try:
            at_once(
                *[
                    lambda client=client, number=number: keep_asking(client, number)
                    for number, client in enumerate(self._clients)
                ]
            )
        except BaseException:
            self._stopping.set()
            raise
        return {pid: Used(process_clock_ns(pid) - before[pid], counts[pid]) for pid in self.pids}

    def ask(self, pid: int, path: str) -> dict[str, object]:
        """Ask one worker for a path that answers with JSON."""
        client = next(client for client in self._clients if client.pid == pid)
        answer: dict[str, object] = json.loads(client.ask(path)[0])
        return answer

    def agents(self) -> dict[int, str]:
        """Return what each worker said last of its agent: `on` or `off`."""
        return {client.pid: client.agent for client in self._clients}
