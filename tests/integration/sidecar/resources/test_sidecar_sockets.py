"""Accept queues of real sockets, in our own network namespace and in another one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from measured_resources import Measured, Told, descriptors, one
from quayscope.sidecar.resources import Container
from quayscope.sidecar.resources.sockets import SocketDiagnosis


def _fill(listener: socket.socket) -> list[socket.socket]:
    """Connect until the queue is full."""
    clients = []
    for _ in range(64):
        client = socket.socket(listener.family)
        client.setblocking(False)
        clients.append(client)
        try:
            client.connect(listener.getsockname())
        except BlockingIOError:
            if listener.family == socket.AF_UNIX:
                break  # what nginx logs: Resource temporarily unavailable
    return clients


def test_accept_queues_of_unix_and_tcp(measured: Measured, open_folder: Path, until: Any) -> None:
    """A full queue is longer than its backlog; one that nobody waits in is empty."""
    path = str(open_folder / "gunicorn_web.sock")
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as abstract:
        unix.bind(path)
        unix.listen(5)
        abstract.bind(f"\0{path}")
        abstract.listen(7)
        with socket.create_server(("127.0.0.1", 0), backlog=3) as tcp:
            clients = _fill(unix) + _fill(tcp)
            port = str(tcp.getsockname()[1])

            def queues(**wanted: str) -> list[float]:
                points = measured.tick()
                wanted = {name.replace("_", "."): value for name, value in wanted.items()}
                names = ("quayscope.socket.accept_queue", "quayscope.socket.accept_backlog")
                return [one(points, name, **wanted).value for name in names]

            assert queues(server_address=path, network_transport="unix") == [6, 5]
            assert queues(server_address=f"@{path}", network_transport="unix") == [0, 7]
            # The last part of a handshake on loopback is asynchronous.
            until(
                lambda: queues(server_port=port, network_transport="tcp") == [4, 3], 5.0, "the queue is full"
            )
            overflows = one(measured.tick(), "quayscope.network.tcp.listen_overflows").value
            assert overflows > 0
            for client in clients:
                client.close()
    assert measured.capabilities.permitted("accept_queues")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may enter a network namespace")
def test_sockets_of_another_network_namespace_are_told_as_its_containers(
    measured: Measured, open_folder: Path, start: Callable[..., Told]
) -> None:
    """It is entered on a thread of its own, so ours stays where it is; and left with its container."""
    mine = Path("/proc/thread-self/ns/net").readlink()
    told = start(lambda *command: ["unshare", "--net", *command])
    path = str(open_folder / "inside.sock")
    told.do(f"s = socket.socket(socket.AF_UNIX); s.bind({path!r}); s.listen(11)")
    target = Container({"service_name": "quay-app"}, told.pid)
    opened = descriptors("socket:")
    points = measured.tick(target)
    backlog = one(points, "quayscope.socket.accept_backlog")
    assert (backlog.value, backlog.attributes["server.address"]) == (11, path)
    assert backlog.labels["service_name"] == "quay-app"
    assert one(points, "quayscope.network.tcp.segments_sent").value == 0
    assert Path("/proc/thread-self/ns/net").readlink() == mine
    told.end()
    measured.tick(target)
    assert not [point for point in measured.tick(target) if point.attributes.get("server.address") == path]
    assert descriptors("socket:") <= opened + 1  # the one of our own namespace


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a network namespace")
def test_where_a_namespace_may_not_be_entered_ours_is_told_and_that_said(
    run_sidecar: Any, receiver: Any, until: Any, open_folder: Path, start: Callable[..., Told]
) -> None:
    """setns is refused, as for any sidecar without SYS_ADMIN; the target's TCP counters need no entering."""
    told = start(lambda *command: ["unshare", "--net", *command])
    path = str(open_folder / "ours.sock")
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(path)
        ours.listen(13)
        run_sidecar("--postgres", "off", "--quay-pid", str(told.pid), refuse=("setns",))
        received = receiver.received
        until(lambda: "accept_queues" in received.capabilities(), 15.0, "the first report")
    permitted, held = received.capabilities()["accept_queues"]
    assert not permitted
    assert "setns: Operation not permitted (EPERM)" in held["detail"]
    assert "ours is told" in held["detail"]
    backlogs = {
        a["server.address"]: value for a, value, _ in received.metrics["quayscope.socket.accept_backlog"]
    }
    assert backlogs[path] == 13
    assert 0 in {value for _, value, _ in received.metrics["quayscope.network.tcp.segments_sent"]}
    assert {value for _, value, _ in received.metrics["quayscope.sidecar.faults"]} == {0}


def test_a_namespace_that_cannot_be_entered_is_an_error() -> None:
    """The process is gone, say."""
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    with pytest.raises(OSError, match="No such file"):
        SocketDiagnosis(pid_max + 1)
