"""Injected pods as containers with exactly the rendered users, capabilities, volumes and environment."""

from __future__ import annotations

import functools
import gzip
import os
import signal
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from integration.injector.conftest import Pods, Running, wait_until
from oci.netns import in_network_of
from plain_user import NOBODY
from quayscope.profile import Profile, pprof
from quayscope.profile.push import PUSH_PATH, decode_push
from quayscope.sidecar import procfs


def decoded(running: Running) -> list[Profile]:
    """The profiles that came from a pod's sidecar."""
    found = []
    for received in list(running.receiver.taken):
        if received.path != PUSH_PATH:
            continue
        assert received.headers["authorization"] == "Bearer secret"
        for series in decode_push(_plain(received.body, received.headers)):
            labels = dict(series.labels)
            name = labels.pop("__name__")
            found += [pprof.decode(data, labels, name=name) for _, data in series.samples]
    return found


def capabilities(running: Running) -> dict[str, bool]:
    """What the sidecar said that it may do, by name: the last word."""
    found: dict[str, bool] = {}
    for received in list(running.receiver.taken):
        if received.path != "/v1/metrics":
            continue
        request = ExportMetricsServiceRequest.FromString(_plain(received.body, received.headers))
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "quayscope.capability":
                        for point in metric.gauge.data_points:
                            named = {pair.key: pair.value.string_value for pair in point.attributes}
                            found[named["capability"]] = bool(point.as_int or point.as_double)
    return found


def _plain(body: bytes, headers: dict[str, str]) -> bytes:
    return gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body


def get(running: Running, path: str) -> bytes:
    """Ask the pod's application on its own loopback."""

    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", 8080), timeout=10) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: quay\r\n\r\n".encode())
            answer = b""
            while more := connection.recv(65536):
                answer += more
            return answer

    return in_network_of(running.pod.pause, ask)


def answers(running: Running, path: str) -> bool:
    """Whether the application serves."""
    try:
        return b" 200 " in get(running, path).split(b"\r\n", 1)[0]
    except OSError:
        return False


def test_quay_starts_and_is_profiled(pods: Pods) -> None:
    """gunicorn finds its packages through the image's PYTHONPATH; what its agent saw arrives."""
    running = pods.start(pods.render("quay-app", native=True))
    written = (running.volumes["quayscope-agent"] / "pythonpath").read_text()
    assert written.count(":") == 1
    wait_until(lambda: answers(running, "/v2/a/tags"), 30.0, lambda: pods.log(running, "quay-app"))

    def known() -> bool:
        return "relay worker" in pods.log(running, "quayscope-sidecar")

    wait_until(known, 20.0, lambda: pods.log(running, "quayscope-sidecar"))
    for _ in range(20):
        assert answers(running, "/v2/a/tags")
    # A worker that ends writes what it holds, and so does a sidecar: before the window's end.
    for container in ("quay-app", "quayscope-sidecar"):
        os.kill(running.pids[container], signal.SIGTERM)
        wait_until(functools.partial(gone, running.pids[container]))
    found = decoded(running)
    assert found, pods.log(running, "quayscope-sidecar")
    assert {one.labels["sampler"] for one in found} == {"agent"}
    assert {one.labels["namespace"] for one in found} == {"quay"}
    log = pods.log(running, "quay-app")
    assert "Traceback" not in log, log


class Told(NamedTuple):
    """What a postmaster.pid says: whose, and whether the server takes connections."""

    pid: int
    ready: bool


def told(data: Path) -> Told | None:
    """Read postmaster.pid; None while it is not written whole."""
    try:
        lines = (data / "userdata" / "postmaster.pid").read_text().splitlines()
        return Told(int(lines[0]), lines[7].strip() == "ready")
    except (OSError, ValueError, IndexError):
        return None


def inner_ids(pid: int) -> list[int]:
    """The ids of a process and its threads in the innermost namespace: the process's own first."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                found.append((task.name != str(pid), int(line.split()[-1])))
    return [number for _, number in sorted(found)]


def start_database(pods: Pods, data: Path, rendered: dict[str, Any]) -> Running:
    """Start a pod and wait until its server, a new one, takes connections."""
    running = pods.start(rendered, data)
    own = inner_ids(running.pids["postgres"])[0]
    wait_until(lambda: told(data) == Told(own, True), 30.0, lambda: pods.log(running, "postgres"))
    return running


BUYS = {
    "restricted": {"process_vm_readv": True, "perf_user": False, "perf_kernel": False},
    "perfmon": {"process_vm_readv": True, "perf_user": True, "perf_kernel": False},
    "full": {"process_vm_readv": True, "perf_user": True, "perf_kernel": True},
}


@pytest.mark.parametrize("mode", ["perfmon", "full"])
def test_sidecar_attaches_to_postgres(pods: Pods, fresh_data: Path, mode: str) -> None:
    """With privileges Postgres starts, and the sidecar finds it and may do what the mode buys."""
    running = start_database(pods, fresh_data, pods.render("postgres", mode=mode, native=mode != "perfmon"))
    see_what_it_buys(pods, running, mode)
    pods.kill(running)


def test_database_starts_whatever_pid_is_stale(pods: Pods, fresh_data: Path, full: bool) -> None:
    """Killed with -9 and made anew, Postgres starts, whichever pid or thread of the sidecar is in its file.

    In the end the proof that the file matters: beside a live sidecar the same server refuses to start.
    """
    rendered = pods.render("postgres", native=True)
    running = start_database(pods, fresh_data, rendered)
    see_what_it_buys(pods, running, "restricted")
    ids = settled_ids(running.pids["quayscope-sidecar"])
    assert len(ids) > 3
    drilled = [1, *(ids if full else ids[-1:])]
    for stale in drilled:
        pods.kill(running)
        name_in_file(fresh_data, stale)
        running = start_database(pods, fresh_data, rendered)
        assert min(settled_ids(running.pids["quayscope-sidecar"])) > stale
    print(f"{len(drilled)} stale pids, Postgres started each time: {drilled}")

    os.kill(running.pids["postgres"], signal.SIGKILL)
    wait_until(lambda: gone(running.pids["postgres"]))
    name_in_file(fresh_data, settled_ids(running.pids["quayscope-sidecar"])[-1])
    code, _ = pods.run_again(running, "postgres")
    assert code == 1
    assert "lock file" in pods.log(running, "postgres-again")
    pods.kill(running)


def test_pause_container_of_the_same_user_would_stop_it(pods: Pods, fresh_data: Path) -> None:
    """With the user of the whole pod, which the injector moves, a file that names pid 1 stops Postgres."""
    rendered = pods.render("postgres", native=True)
    rendered["spec"]["securityContext"] = {"runAsUser": NOBODY}
    name_in_file(fresh_data, 1)
    running = pods.start(rendered, fresh_data)
    wait_until(lambda: "lock file" in pods.log(running, "postgres"), 20.0, "Postgres refuses")
    pods.kill(running)
    name_in_file(fresh_data, 2**30)


def test_nothing_is_left_behind(pods: Pods, fresh_data: Path) -> None:
    """After pods of each mode one that is not injected starts, and the volume holds Postgres' own alone."""
    plain = pods.plain("postgres")
    running = start_database(pods, fresh_data, plain)
    assert pods.log(running, "postgres").count("FATAL") == 0
    assert [path.name for path in fresh_data.iterdir()] == ["userdata"]
    names = {path.name for path in fresh_data.rglob("*")}
    assert [name for name in names if "quayscope" in name or "podinfo" in name] == []
    owners = {path.stat().st_uid for path in fresh_data.rglob("*") if not path.name.startswith("pgsql_tmp")}
    assert owners == {NOBODY}


def see_what_it_buys(pods: Pods, running: Running, mode: str) -> None:
    """Wait until the sidecar said what it may do, and compare."""

    def attached() -> bool:
        return {*BUYS[mode], "postgres_shared_memory"} <= capabilities(running).keys()

    wait_until(attached, 30.0, lambda: pods.log(running, "quayscope-sidecar"))
    found = capabilities(running)
    assert {name: found[name] for name in BUYS[mode]} == BUYS[mode]
    assert found["postgres_shared_memory"] is True


def name_in_file(data: Path, pid: int) -> None:
    """Leave a postmaster.pid behind that names `pid`, the rest as the last server wrote it."""
    file = data / "userdata" / "postmaster.pid"
    assert file.exists(), "the last server was not killed"
    _, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([f"{pid}\n", *rest]))


def settled_ids(sidecar: int) -> list[int]:
    """The ids of a sidecar's processes and their threads once it serves: the container's own first."""
    ready = Path(f"/proc/{sidecar}/root/run/quayscope/ready.json")
    wait_until(ready.exists, 20.0, "the sidecar serves")
    return [one for pid in (sidecar, *procfs.children(sidecar)) for one in inner_ids(pid)]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    facts = procfs.stat(pid)
    return facts is None or facts.state in "ZX"
