"""A peer on the socket that is stopped, slow, restarting or hostile changes nothing in the worker."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.agent.serving import Gunicorn, until

Serve = Callable[..., Gunicorn]

PATHS = ["/small/x", "/statements/3", "/pool/burn/3", "/hog/60", "/nap/5"]
SLICE_NS = 5_000_000


class Peer:
    """Listens where the sidecar would, and behaves as badly as it is told: each way for a while, in turn."""

    WAYS = ("reads", "stops", "is slow", "restarts", "is hostile")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packets = 0
        self.levels: dict[str, int] = {}
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._turn_s = 1.0

    def start(self, turn_s: float) -> None:
        self._turn_s = turn_s
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        turn = 0
        while not self._stop.is_set():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                self.path.unlink(missing_ok=True)
                listener.bind(str(self.path))
                listener.listen()
                listener.settimeout(0.2)
                connection = self._accept(listener)
                while connection is not None and not self._stop.is_set():
                    way = self.WAYS[turn % len(self.WAYS)]
                    turn += 1
                    if not self._behave(connection, way):
                        break
                if connection is not None:
                    connection.close()

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        while not self._stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(0.05)
            return connection
        return None

    def _behave(self, connection: socket.socket, way: str) -> bool:
        """Behave so for a turn; returns whether the connection goes on."""
        end = time.monotonic() + self._turn_s
        while time.monotonic() < end and not self._stop.is_set():
            if way == "stops":
                self._stop.wait(0.05)
                continue
            if way == "is hostile":
                with contextlib.suppress(TimeoutError, OSError):
                    connection.send(hostile_packet())
            try:
                packet = connection.recv(65_536)
            except TimeoutError:
                continue
            except OSError:
                return False
            if not packet:
                return False
            self._note(packet)
            if way == "is slow":
                self._stop.wait(0.1)
        return way != "restarts"

    def _note(self, packet: bytes) -> None:
        self.packets += 1
        record = json.loads(packet)
        if record["k"] == "counts":
            self.faults += [record["fault"]] if "fault" in record else []
            for name, level in record.get("m", {}).items():
                self.levels[name] = max(self.levels.get(name, 0), level)


def hostile_packet() -> bytes:
    """Return what a broken or a malicious peer might send."""
    return random.choice(
        [
            os.urandom(random.randrange(1, 900)),
            b'{"k":"settings","hz":1000000}',
            b'{"k":"settings","hz":-1,"on":"yes"}',
            b'{"k":"settings","slot_ms":1}',
            b'{"k":"settings","until":"soon"}',
            b'{"k":"exec","code":"import os"}',
            b"[" * 900,
            b'{"k":"settings",' + b" " * 5_000 + b'"hz":5}',
            json.dumps({"k": "settings", "hz": random.randrange(1, 1000)}).encode(),
        ]
    )


@pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
def test_the_worker_goes_on_whatever_the_peer_does(
    serve: Serve, tmp_path: Path, full: bool, worker_class: str
) -> None:
    """Stopped, slow, restarting, hostile: no request fails, and no slice of ours takes 5 ms of CPU."""
    peer = Peer(tmp_path / "agent.sock")
    threads = ["--threads=4"] if worker_class == "gthread" else []
    gunicorn = serve(
        "--preload", *threads, application="integration.agent.accuracy_app:app", worker_class=worker_class
    )
    (pid,) = gunicorn.workers()
    peer.start(10.0 if full else 1.5)
    delayed = run_delay_ns(pid)
    seconds = {"gevent": 600, "gthread": 60}[worker_class] if full else 12
    end = time.monotonic() + seconds
    answers: list[int] = []
    try:
        while time.monotonic() < end:
            answers += [gunicorn.get(path)[0] for path in PATHS]
    finally:
        delayed = run_delay_ns(pid) - delayed
        stopped = gunicorn.stop()
        peer.stop()
    cpu, wall, sample = (
        peer.levels[f"{name}_max_ns"] / 1e6 for name in ("slice_cpu", "slice_wall", "sample_cpu")
    )
    print(
        f"{worker_class}: {len(answers)} requests, {peer.packets} packets read; longest slice {cpu:.2f} ms "
        f"of CPU, {wall:.2f} ms of wall time, longest sample {sample:.2f} ms of CPU; the worker waited "
        f"{delayed / 1e9:.2f} s for a core"
    )
    assert set(answers) == {200}
    assert stopped == 0
    assert gunicorn.log().count("Booting worker") == 1
    assert "Traceback" not in gunicorn.log()
    assert peer.packets > 20
    assert 0 < peer.levels["slice_cpu_max_ns"] < SLICE_NS
    assert 0 < peer.levels["sample_cpu_max_ns"] < SLICE_NS
    assert peer.levels["hz"] <= 999
    assert peer.faults == []


def run_delay_ns(pid: int) -> int:
    """Return how long the main thread was ready to run and did not (linux, sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


@pytest.mark.parametrize("worker_class", ["gevent", "sync"])
def test_no_system_call_of_ours_blocks(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    """Traced by the kernel: every call on the agent's socket comes after it was made non-blocking."""
    peer = Peer(tmp_path / "agent.sock")
    gunicorn = serve("--preload", application="integration.agent.accuracy_app:app", worker_class=worker_class)
    (pid,) = gunicorn.workers()
    traced = tmp_path / "strace"
    calls = "socket,connect,sendto,sendmsg,recvfrom,recvmsg,read,write,ioctl,fcntl,flock,close"
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-e", f"trace={calls}", "-o", str(traced)],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(traced.exists, "strace is attached")
        peer.start(1.0)
        for _ in range(12):
            assert gunicorn.get("/small/x")[0] == 200
            time.sleep(0.3)
        assert gunicorn.stop() == 0
        tracer.wait(10)
    finally:
        tracer.kill()
        tracer.wait()
        peer.stop()
    made = checked = 0
    blocking: set[str] = set()
    open_now: set[str] = set()
    for line in traced.read_text().splitlines():
        if found := re.search(r"socket\(AF_UNIX, SOCK_SEQPACKET\S*, 0\)\s+= (\d+)", line):
            made += 1
            open_now.add(found[1])
            if "SOCK_NONBLOCK" not in line:
                blocking.add(found[1])
        elif found := re.search(r" (?:ioctl|fcntl)\((\d+), (?:FIONBIO, \[1\]|F_SETFL, \S*O_NONBLOCK)", line):
            blocking.discard(found[1])
        elif found := re.search(r" close\((\d+)", line):
            open_now.discard(found[1])
        elif found := re.search(r" (connect|sendto|sendmsg|recvfrom|recvmsg|read|write)\((\d+),", line):
            if found[2] in open_now:
                checked += 1
                assert found[2] not in blocking, line
        elif " flock(" in line:
            assert "LOCK_NB" in line or "LOCK_UN" in line, line
    print(f"{worker_class}: {made} sockets of ours, {checked} calls on them, none blocking")
    assert made >= 1
    assert checked > 10
