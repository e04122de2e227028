"""The whole sidecar beside Python and Go programs: each in its own way, and only those it was told of."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clair_standin
from quayscope.sidecar import procfs

_BURN = """
import time
def heavy(end):
    while time.process_time() < end:
        sum(range(100))
print(flush=True)
input()
while True:
    heavy(time.process_time() + 0.03)
    time.sleep(0.03)
"""
# An agent's worker, as far as the relay can tell.
_AGENT = (
    """
import json, os, socket
relay = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
relay.connect(input())
hello = {"k": "hello", "v": 1, "pid": os.getpid(), "role": "web", "service": "quay-app", "start": 1}
relay.send(json.dumps({**hello, "labels": {}}).encode())
"""
    + _BURN
)


def _start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _say(process: subprocess.Popen[bytes], text: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n".encode())
    process.stdin.flush()


def _hear(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    process.stdout.readline()


def _operations(receiver: Any) -> set[str]:
    return {about.endpoint for profile in receiver.received.cpu("go") for _, about in profile.samples}


def test_python_and_go_programs(
    checkout: Path,
    make_server: Callable[..., Any],
    run_sidecar: Callable[..., subprocess.Popen[bytes]],
    receiver: Any,
    until: Callable[..., Any],
) -> None:
    """The Go service by its own profiles, a Python by py-spy, but not the worker with an agent."""
    server = make_server("15")
    plain, agent, stranger = _start(_BURN), _start(_AGENT), _start(_BURN)
    try:
        with clair_standin.running(clair_standin.build(checkout), server.dsn) as service:
            _hear(plain)
            _hear(stranger)
            sidecar = run_sidecar(
                *("--postgres", "off", "--label", "namespace=quay", "--component", "clair-app"),
                *(part for pid in (plain.pid, agent.pid, service.pid) for part in ("--target", str(pid))),
                *("--go-every", "2", "--go-cpu", "1"),
            )
            assert isinstance(sidecar.args, list)
            _say(agent, sidecar.args[sidecar.args.index("--socket") + 1])
            _hear(agent)
            for process in (plain, agent, stranger):
                _say(process)
            with clair_standin.Load(service):
                until(lambda: "index report: scan" in _operations(receiver), 40.0, "the service is seen")
                python = until(lambda: receiver.received.cpu("pyspy"), 40.0, "a capture")
                until(lambda: receiver.received.metrics["quayscope.pyspy.captures"], 20.0, "what it did")
            service_pid = service.pid
    finally:
        for process in (plain, agent, stranger):
            process.kill()
            process.communicate()
    go = receiver.received.cpu("go")
    assert go[0].labels == {
        "service_name": "clair-app",
        "role": "clair_standin",
        "namespace": "quay",
        "sampler": "go",
    }
    assert {about.pid for profile in go for _, about in profile.samples} == {service_pid}
    names = {profile.type.name for profile in receiver.received.profiles}
    assert names >= {"process_cpu", "memory", "goroutine"}
    assert {about.pid for profile in python for _, about in profile.samples} == {plain.pid}
    assert any(frame.function == "heavy" for stack, _ in python[0].samples for frame in stack)
    metrics = receiver.received.metrics
    kinds = {attributes["kind"] for attributes, _, _ in metrics["quayscope.targets"]}
    assert kinds >= {"go", "python", "postgres"}
    assert metrics["quayscope.go.scrapes"]
    assert {value for _, value, _ in metrics["quayscope.sidecar.faults"]} == {0}
    assert metrics["quayscope.pyspy.captures"][-1][1] >= 1


def test_outside_of_a_pod_nobody_is_touched(
    run_sidecar: Callable[..., subprocess.Popen[bytes]], receiver: Any, until: Callable[..., Any]
) -> None:
    """Without a pod and without --target, the processes around are counted and left alone."""
    plain = _start(_BURN)
    try:
        _hear(plain)
        _say(plain)
        sidecar = run_sidecar("--postgres", "off")
        until(lambda: receiver.received.metrics["quayscope.targets"], 20.0, "targets are counted")
        # A first capture would begin with the first look around, and take five seconds.
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert procfs.children(sidecar.pid) == []
            time.sleep(0.02)
    finally:
        plain.kill()
        plain.communicate()
    assert not receiver.received.cpu("pyspy")
    assert not receiver.received.cpu("go")
