"""nginx's 502 on a full gunicorn socket: the second that the users see it, the series show why."""

from __future__ import annotations

import http.client
import itertools
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from own_cgroup import OwnCgroup

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
BACKLOG = 8
CPUS = 0.2
CLIENTS = 24
_APPLICATION = """
import time

def application(environ, start_response):
    end = time.process_time() + (0.02 if environ["PATH_INFO"] == "/busy" else 0)
    while time.process_time() < end:
        pass
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
_NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format seconds '$msec $status';
  access_log {folder}/access.log seconds;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://unix:{folder}/gunicorn_web.sock; }}
  }}
}}
"""


class Site(NamedTuple):
    """nginx before gunicorn, whose only worker may use a fifth of a CPU."""

    folder: Path
    port: int
    gunicorn: int

    @property
    def socket(self) -> str:
        return str(self.folder / "gunicorn_web.sock")

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def failures(self) -> list[float]:
        """When nginx answered 502, in Unix seconds, from its access log."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [float(at) for at, status in map(str.split, lines) if status == "502"]


@pytest.fixture
def site(cgroup: OwnCgroup, open_folder: Path, until: Any) -> Iterator[Site]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    (open_folder / "application.py").write_text(_APPLICATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (open_folder / "nginx.conf").write_text(_NGINX.format(folder=open_folder, port=port))
    gunicorn = [sys.executable, "-m", "gunicorn", "--workers", "1", "--worker-class", "sync"]
    gunicorn += [
        "--backlog",
        str(BACKLOG),
        "--timeout",
        "60",
        "--bind",
        f"unix:{open_folder}/gunicorn_web.sock",
    ]
    commands = (
        cgroup.entering(*gunicorn, "application:application"),
        [NGINX, "-p", str(open_folder), "-c", str(open_folder / "nginx.conf")],
    )
    log = (open_folder / "log").open("wb")
    started = [
        subprocess.Popen(command, cwd=open_folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        for command in commands
    ]
    log.close()
    made = Site(open_folder, port, started[0].pid)

    def serves() -> bool:
        assert all(process.poll() is None for process in started), (open_folder / "log").read_text()
        try:
            return made.get("/") == 200
        except OSError:
            return False

    try:
        until(serves, 20.0, "nginx and gunicorn serve")
        cgroup.limit_cpu(CPUS)
        # So that it is its limit that stops it, and not whoever else runs on this machine.
        cgroup.set("cpu", "cpu.shares", 1 << 18)
        yield made
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        # gunicorn would finish the queue at a fifth of a CPU first.
        cgroup.set("cpu", "cpu.cfs_quota_us", -1)
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _overload(site: Site, seconds: float) -> tuple[float, float]:
    """Ask for more than can be served, from more clients than the queue holds. Return from when to when."""
    end = time.monotonic() + seconds

    def ask() -> None:
        while time.monotonic() < end:
            if site.get("/busy") != 200:
                time.sleep(0.1)

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    began = time.time()
    for client in clients:
        client.start()
    ended = began + seconds
    for client in clients:
        client.join()
    return began, ended


def _calm(site: Site, seconds: float) -> tuple[float, float]:
    began = time.time()
    while time.time() < began + seconds:
        assert site.get("/") == 200
        time.sleep(0.2)
    return began, time.time()


class Second(NamedTuple):
    """What the series say about the time between two ticks."""

    began: float
    ended: float
    throttled_s: float
    throttled_periods: float
    queue: float
    backlog: float


def _seconds(metrics: Any, address: str) -> list[Second]:
    def of(name: str, **wanted: str) -> list[tuple[float, float]]:
        points = [
            (at / 1e9, value)
            for attributes, value, at in list(metrics[name])
            if wanted.items() <= attributes.items()
        ]
        return sorted(points)

    times, periods = (
        of(f"quayscope.container.cpu.{name}") for name in ("throttled_time", "throttled_periods")
    )
    queues, backlogs = (
        of(f"quayscope.socket.{name}", **{"server.address": address})
        for name in ("accept_queue", "accept_backlog")
    )
    # All come in one message a second; the last may be on its way in.
    told = min(map(len, (times, periods, queues, backlogs)))
    return [
        Second(a[0], b[0], b[1] - a[1], q[1] - p[1], queue[1], backlog[1])
        for (a, b), (p, q), queue, backlog in zip(
            itertools.pairwise(times[:told]),
            itertools.pairwise(periods[:told]),
            queues[1:told],
            backlogs[1:told],
            strict=True,
        )
    ]


def test_throttling_a_full_queue_and_502s_are_seen_in_the_same_second(
    site: Site, run_sidecar: Any, receiver: Any, until: Any, full: bool
) -> None:
    """While clients overload the site all three are there, second by second; before and after it none is."""
    run_sidecar("--postgres", "off", "--quay-pid", str(site.gunicorn))
    until(lambda: receiver.received.metrics["quayscope.socket.accept_queue"], 10.0, "the first second")
    calm = [_calm(site, 2.1)]
    began, ended = _overload(site, 15.0 if full else 4.0)
    calm.append(_calm(site, 2.1))
    last = calm[-1][1]

    def told() -> bool:
        return any(
            at / 1e9 > last for _, _, at in list(receiver.received.metrics["quayscope.socket.accept_queue"])
        )

    until(told, 5.0, "the last second")
    seconds = _seconds(receiver.received.metrics, site.socket)
    # Before gunicorn listened nginx could not but fail: that is not meant.
    failures = [at for at in site.failures() if at >= calm[0][0]]
    for second in seconds:
        count = sum(second.began < at <= second.ended for at in failures)
        print(f"{second.ended - began:+6.2f} s: {count:4} x 502, {second}")
    assert all(began <= at <= ended + 1 for at in failures)
    # The first clients fill the queue, the last ones empty it: the seconds wholly between are full.
    within = [second for second in seconds if began + 0.3 <= second.began and second.ended <= ended]
    assert len(within) >= 2
    for second in within:
        assert any(second.began < at <= second.ended for at in failures)
        assert second.queue >= second.backlog == BACKLOG
        assert second.throttled_s > 0
        assert second.throttled_periods > 0
    without = [second for second in seconds if any(a <= second.began and second.ended <= b for a, b in calm)]
    assert len(without) >= 2
    for second in without:
        assert second.queue < second.backlog
        assert second.throttled_s < 0.1
    limits = {value for _, value, _ in receiver.received.metrics["quayscope.container.cpu.limit"]}
    assert limits == {CPUS}
    assert {value for _, value, _ in receiver.received.metrics["quayscope.sidecar.faults"]} == {0}
