"""The Go service that stands for Clair in tests: built once, started on free ports, put under load."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

GO = shutil.which("go") or "/usr/local/go/bin/go"
_PACKAGES = 400


def build(checkout: Path) -> Path:
    """Build the service, stripped as Clair is, and return its path; a second time costs a second."""
    if not os.access(GO, os.X_OK):
        pytest.skip("no Go toolchain")
    folder = checkout / "build" / "clair_standin"
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / "clair_standin"
    with (folder / "lock").open("w") as lock:
        # Tests run side by side: one builds, the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [GO, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", str(binary), "."],
            cwd=checkout / "tests" / "targets" / "clair_standin",
            env={**os.environ, "GOFLAGS": "-mod=readonly"},
            check=True,
            timeout=570,
        )
    return binary


def _layer(number: int) -> bytes:
    """A layer with the status file of a package manager, and another's list."""
    status = "".join(
        f"Package: package-{number * 7 + index}\nStatus: install ok installed\nArchitecture: amd64\n"
        f"Version: {index % 9}.{number % 5}\nDescription: the package number {index} of layer {number}\n\n"
        for index in range(_PACKAGES)
    )
    found = [{"name": f"module-{number}-{index}", "version": "1.0"} for index in range(_PACKAGES // 4)]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
        for name, text in (("var/lib/dpkg/status", status), ("srv/packages.json", json.dumps(found))):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        filler = bytes(range(256)) * 4096
        entry = tarfile.TarInfo("usr/lib/filler")
        entry.size = len(filler)
        archive.addfile(entry, io.BytesIO(filler))
    return content.getvalue()


class StandIn:
    """A running service: `api` and `introspection` are its ports."""

    def __init__(self, process: subprocess.Popen[bytes], ports: Mapping[str, int]) -> None:
        self.process = process
        self.pid = process.pid
        self.api = ports["http"]
        self.introspection = ports["introspection"]


@contextmanager
def running(binary: Path, dsn: str, environment: Mapping[str, str] | None = None) -> Iterator[StandIn]:
    """Start the service on a database and wait until it serves."""
    process = subprocess.Popen(
        [str(binary), "-dsn", dsn],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        assert process.stdout is not None
        ports = process.stdout.readline()
        assert ports, f"ended with {process.wait(10)}"
        yield StandIn(process, json.loads(ports))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Load:
    """Index reports, vulnerability reports and deletions, one after the other, while entered."""

    def __init__(self, service: StandIn) -> None:
        self.rounds = 0
        self.error: Exception | None = None
        self._service = service
        self._stop = threading.Event()
        self._layers = [_layer(number) for number in range(6)]
        layers = self._layers

        class Registry(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = layers[int(self.path.rpartition("/")[2])]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._registry = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
        self._registry.daemon_threads = True
        self._threads = [
            threading.Thread(target=self._registry.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self._run, daemon=True),
        ]

    def _run(self) -> None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._service.api, timeout=20)
            while not self._stop.is_set():
                self._round(connection)
                self.rounds += 1
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.error = error

    def _round(self, connection: http.client.HTTPConnection) -> None:
        layers = [
            {
                "hash": f"sha256:{hashlib.sha256(layer).hexdigest()}",
                "uri": f"http://127.0.0.1:{self._registry.server_address[1]}/{number}",
            }
            for number, layer in enumerate(self._layers)
        ]
        manifest = json.dumps({"hash": f"sha256:{self.rounds:064x}", "layers": layers})
        path = f"/sha256:{self.rounds:064x}"
        for method, target, body, expected in (
            ("POST", "/indexer/api/v1/index_report", manifest, 201),
            ("GET", "/indexer/api/v1/index_report" + path, None, 200),
            ("GET", "/matcher/api/v1/vulnerability_report" + path, None, 200),
            ("DELETE", "/indexer/api/v1/index_report" + path, None, 204),
            ("GET", "/indexer/api/v1/index_report" + path, None, 404),
        ):
            connection.request(method, target, body)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == expected, (method, target, response.status, answer[:200])

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads[1].join(20)
        self._registry.shutdown()
        self._registry.server_close()
        assert self.error is None, self.error
