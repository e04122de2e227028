"""A collector in a process of its own, filled with profiles whose figures are known."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Frame, Losses, Profile
from quayscope.profile.push import PushClient, encode_push, series_of

MS = 1_000_000
REPOSITORY = "GET /api/v1/repository/<apirepopath:repository>"
UPLOAD = "POST /v2/<repopath:repository>/blobs/uploads/"
HOSTILE = '<img src=x onerror="document.title=1">'
STATEMENT = "SELECT t1.id, t1.name FROM repository AS t1 WHERE ((t1.name = ?) AND (t1.kind_id = ?))" + (
    " AND t1.visibility_id = ?" * 20
)

RUN = Frame("run", "/app/gunicorn/workers/base.py", 88, "python")
DISPATCH = Frame("dispatch_request", "/app/flask/app.py", 902, "python")
VIEW = Frame("view_repository", "/app/endpoints/api/repository.py", 41, "python")
HASH = Frame("verify_password", "/app/data/users/shared.py", 17, "python")
DIGEST = Frame("SHA256_Update", "libcrypto.so.3", 0, "native")
STORE = Frame("store_chunk", "/app/storage/basestorage.py", 230, "python")
STRANGE = Frame(HOSTILE, "/app/strange.py", 3, "python")
SQL = Frame(STATEMENT, "", 0, "sql")
LOCK = Frame("Lock:transactionid", "", 0, "wait")


class Collector:
    """A running collector in a process of its own."""

    def __init__(self, directory: Path) -> None:
        ready = directory / "ready.json"
        self._log = (directory / "log").open("w")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "quayscope.cli.main", "collector"),
                *("--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"),
                *("--data", str(directory / "data"), "--ready-file", str(ready)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=directory,
        )
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert self.process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.02)
        self.url: str = json.loads(ready.read_text())["http"]

    def end(self) -> None:
        """End it; killed if it does not end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


def cpu(service: str, sampler: str, *samples: tuple[tuple[Frame, ...], str, int]) -> Profile:
    """Return a CPU profile of (stack, endpoint, milliseconds) samples, taken just now."""
    start = (time.time_ns() // 10**10 - 1) * 10**10
    labels = {"service_name": service, "sampler": sampler, "role": "web"}
    profile = Profile(PROCESS_CPU, labels, start, 10**10, 10 * MS)
    for stack, endpoint, milliseconds in samples:
        attributes = Attributes(start, endpoint, "run-1", "steady", 101)
        profile.add(stack, attributes, (milliseconds // 10, milliseconds * MS))
    return profile


def fill(url: str) -> None:
    """Push two services: 440 ms of agent's CPU and 900 of perf's in one, blocked time in both.

    Of the 120 ms that a worker waited for the statement, the database waited 70.
    """
    app = cpu(
        "quay-app",
        "agent",
        ((RUN, DISPATCH, VIEW, HASH, DIGEST), REPOSITORY, 200),
        ((RUN, DISPATCH, VIEW, HASH), REPOSITORY, 50),
        ((RUN, DISPATCH, VIEW), REPOSITORY, 50),
        ((RUN, DISPATCH, STORE), UPLOAD, 100),
        ((RUN, STRANGE), "", 40),
    )
    app.losses = Losses(lost=3, unattributed=4)
    perf = cpu("quay-app", "perf", ((DIGEST,), "", 900))
    database = cpu("quay-database", "activity", ((SQL, LOCK), REPOSITORY, 70))
    blocked = Profile(BLOCK, database.labels, database.start_ns, database.duration_ns)
    for (stack, attributes), (count, nanoseconds) in database.samples.items():
        blocked.add(stack, attributes, (count, nanoseconds))
    waited = cpu("quay-app", "agent", ((RUN, DISPATCH, VIEW, SQL), REPOSITORY, 120))
    stalls = Profile(BLOCK, waited.labels, waited.start_ns, waited.duration_ns)
    for (stack, attributes), (count, nanoseconds) in waited.samples.items():
        stalls.add(stack, attributes, (count, nanoseconds))
    client = PushClient(url)
    client.push(
        encode_push([series_of(one, f"page-{n}") for n, one in enumerate((app, perf, blocked, stalls))])
    )
    client.close()
