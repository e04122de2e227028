"""A real collector in a process of its own, and profiles to push to it."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Losses, Profile
from quayscope.profile.push import PUSH_PATH, PushClient, encode_push, series_of

SECOND = 10**9


class RunningCollector:
    """`quayscope collector` on free loopback ports with its data under `directory`."""

    def __init__(self, directory: Path, *extra: str, listen: str = "127.0.0.1:0") -> None:
        self.directory = directory
        self.listen = listen
        self.extra = extra
        self.process: subprocess.Popen[bytes]
        self.http = self.grpc = ""

    def start(self) -> RunningCollector:
        """Start it and wait until it serves."""
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "quayscope.cli.main",
            "collector",
            "--data",
            str(self.directory / "data"),
        ]
        command += ["--listen", self.listen, "--grpc-listen", "127.0.0.1:0", "--ready-file", str(ready)]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.extra],
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        try:
            wait_for(lambda: ready.exists() or self.process.poll() is not None, 20)
            assert self.process.poll() is None, (self.directory / "log").read_text()
            content = json.loads(ready.read_text())
        except BaseException:
            # Whoever has no collector cannot stop it.
            self.kill()
            raise
        self.http, self.grpc = content["http"], content["grpc"]
        assert content["pid"] == self.process.pid
        return self

    def stop(self) -> int:
        """End it in order; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        """End it without a chance to write anything more."""
        self.process.kill()
        self.process.wait(20)

    def limit_files(self, size: int) -> None:
        """Let no file of it grow past `size` bytes (-1: any), as a full disk would."""
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        soft = resource.RLIM_INFINITY if size < 0 else size
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        """One request: status, body, headers (names in lower case)."""
        connection = http.client.HTTPConnection(urlsplit(self.http).netloc, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def get(self, path: str, status: int = 200, /, **query: Any) -> Any:
        """A question to the API; lists repeat their parameter, `from_` is `from`."""
        named = {name.rstrip("_"): value for name, value in query.items()}
        text = f"/api/v1/{path}?{urlencode(named, doseq=True)}"
        found, body, _ = self.request("GET", text)
        assert found == status, (text, found, body[:500])
        return json.loads(body)

    def post(self, path: str, body: bytes, content_type: str, **headers: str) -> tuple[int, Any]:
        """A post: status and the answer, read as JSON where it is."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, answer, _ = self.request("POST", path, body, {"Content-Type": content_type, **named})
        return status, json.loads(answer) if answer[:1] == b"{" else answer

    def post_push(
        self, body: bytes, content_type: str = "application/proto", **headers: str
    ) -> tuple[int, Any]:
        """A push over Connect."""
        return self.post(PUSH_PATH, body, content_type, **headers)

    def push(self, profile: Profile, push_id: str) -> None:
        """Push one profile and wait for its acknowledgement."""
        client = PushClient(self.http)
        client.push(encode_push([series_of(profile, push_id)]))
        client.close()


def wait_for(condition: Any, timeout_s: float = 10) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def cpu_profile(seed: int = 0, **labels: str) -> Profile:
    """A small CPU profile of the last seconds, different for each seed."""
    start = (time.time_ns() // (10 * SECOND) - 1) * 10 * SECOND
    series = {"service_name": "quay-app", "role": "web", "sampler": "agent", **labels}
    profile = Profile(PROCESS_CPU, series, start, 10 * SECOND, 10_000_000, losses=Losses(lost=1, late=2))
    main, view = Frame("main", "app.py", 3, "python"), Frame("view", "app.py", 40 + seed % 3, "python")
    sql, wait = Frame("select ? from tag", "", 0, "sql"), Frame("Lock:transactionid", "", 0, "wait")
    one = Attributes(start + SECOND, "GET /api/v1/repository", "r1", "browse", 11, "a" * 16, "b" * 32)
    two = Attributes(start + 2 * SECOND, "GET /v2/_catalog", "r1", "pull", 12)
    profile.add((main, view), one, (2, 20_000_001 + seed))
    profile.add((main, view, sql), one, (3, 30_000_007))
    profile.add((main, view, sql, wait), two, (1, 9_999_999))
    profile.add((main, view, main), two, (1, 10_000_003))
    profile.add((main,), Attributes(), (1, 5))
    return profile
