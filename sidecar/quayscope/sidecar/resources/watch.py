"""The resources of the pod and its node, once a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.measurements import Meter, Reading
from quayscope.sidecar.resources import names
from quayscope.sidecar.resources.container import Container, ContainerWatch
from quayscope.sidecar.resources.counters import Counters, boot_ns
from quayscope.sidecar.resources.disks import Disks
from quayscope.sidecar.resources.network import tcp_readings
from quayscope.sidecar.resources.node import node_readings
from quayscope.sidecar.resources.processes import Process, Processes
from quayscope.sidecar.resources.sockets import Address, SocketDiagnosis, queue_readings
from quayscope.sidecar.resources.tried import SOCKETS, Tried

__all__ = ["MOST_CONTAINERS", "Resources"]

MOST_CONTAINERS = 64
"""As many containers and network namespaces are measured; those beyond are counted as left out."""

_Key = tuple[tuple[str, str], ...]


class _Network:
    """One network namespace: its counters, and the socket that lists its listening sockets."""

    def __init__(self) -> None:
        self.counters = Counters(boot_ns())
        self.diagnosis: SocketDiagnosis | None = None

    def close(self) -> None:
        if self.diagnosis is not None:
            self.diagnosis.close()


class Resources:
    """Measures containers and node. `labels` go on every series, and a container's own on its.

    `processes` are to be looked at before each tick. A tick is one message to `send`.
    """

    def __init__(
        self,
        labels: dict[str, str],
        processes: Processes,
        send: Callable[[bytes], None],
        capabilities: Capabilities,
    ) -> None:
        self._labels = labels
        self._parts: list[bytes] = []
        self._node = Meter({**labels, "service_name": "quayscope-sidecar"}, self._parts.append)
        self._processes = processes
        self._send = send
        self._capabilities = capabilities
        self._tried = Tried()
        self._node_counters = Counters(boot_ns())
        self._disks = Disks(self._node_counters)
        self._containers: dict[_Key, tuple[ContainerWatch, Meter]] = {}
        self._networks: dict[int, _Network] = {}
        self._told_sockets: set[Address] = set()
        self._own_namespace = _namespace(os.getpid()) or 0

    def tick(self, containers: Sequence[Container]) -> None:
        """Take and send one second of everything; what cannot be read is a capability that is missing."""
        self._parts.clear()  # of a tick that failed halfway
        node = [*node_readings(self._tried, self._node_counters), *self._disks.readings(self._tried)]
        seen: set[tuple[int, int]] = set()
        spaces: dict[int, tuple[Process | None, Meter]] = {}
        told = list(containers)[:MOST_CONTAINERS]
        for container in told:
            process = self._processes.get(container.pid)
            if process is None:
                continue
            watch, meter = self._watch(container)
            watch.locate(process, self._tried)
            if watch.identity is not None:
                if watch.identity in seen:
                    continue  # another program of the same container
                seen.add(watch.identity)
            meter.emit(watch.readings(process, self._processes, self._tried, self._disks.names))
            namespace = self._namespace_of(process)
            if namespace == self._own_namespace:
                spaces[namespace] = (None, self._node)
            else:
                spaces.setdefault(namespace, (process, meter))
        if not spaces:
            spaces[self._own_namespace] = (None, self._node)
        sockets_left_out = self._network(spaces, node)
        node += [
            names.LEFT_OUT.now(count, {"quayscope.kind": kind})
            for kind, count in (
                ("containers", len(containers) - len(told)),
                ("processes", self._processes.left_out),
                ("disks", self._disks.left_out),
                ("sockets", sockets_left_out),
            )
        ]
        self._node.emit(node)
        # Messages of protocol buffers, one after the other, are one message with what is in all of them.
        self._send(b"".join(self._parts))
        self._tried.report(self._capabilities)

    def close(self) -> None:
        """Leave the network namespaces that were entered."""
        for network in self._networks.values():
            network.close()
        self._networks.clear()

    def _watch(self, container: Container) -> tuple[ContainerWatch, Meter]:
        key = tuple(sorted(container.labels.items()))
        held = self._containers.pop(key, None)
        if held is None:
            name = container.labels.get("container") or container.labels.get("service_name", "container")
            held = (ContainerWatch(name), Meter({**self._labels, **container.labels}, self._parts.append))
            while len(self._containers) >= MOST_CONTAINERS:
                del self._containers[next(iter(self._containers))]  # the one not seen for longest
        self._containers[key] = held
        return held

    def _namespace_of(self, process: Process) -> int:
        namespace = _namespace(process.pid)
        if namespace is None:
            self._tried.refused(SOCKETS, "/proc/PID/ns/net", "not readable; our own namespace is told")
            return self._own_namespace
        return namespace

    def _network(self, spaces: dict[int, tuple[Process | None, Meter]], node: list[Reading]) -> int:
        """Read each namespace; our own goes with the node's, as all containers of a pod share it."""
        left_out = 0
        for namespace, (process, _) in list(spaces.items()):
            if not self._enter(namespace, process):
                spaces.setdefault(self._own_namespace, (None, self._node))
                self._enter(self._own_namespace, None)
        for gone in self._networks.keys() - spaces.keys():
            self._networks.pop(gone).close()
        for namespace, (process, meter) in spaces.items():
            network = self._networks[namespace]
            pid = os.getpid() if process is None else process.pid
            readings = list(tcp_readings(pid, self._tried, network.counters))
            if network.diagnosis is not None:
                queues, more = queue_readings(network.diagnosis, self._told_sockets, self._tried)
                readings += queues
                left_out += more
            if process is None:
                node += readings
            else:
                meter.emit(readings)
        return left_out

    def _enter(self, namespace: int, process: Process | None) -> bool:
        """Make sure that a namespace's sockets can be listed; where that is refused it is noted."""
        network = self._networks.setdefault(namespace, _Network())
        if network.diagnosis is None:
            try:
                network.diagnosis = SocketDiagnosis(None if process is None else process.pid)
            except OSError as error:
                what = "sock_diag" if process is None else "the target's network namespace (ours is told)"
                self._tried.refused(SOCKETS, what, error)
                return False
        return True


def _namespace(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116 - a link that must be followed
    except OSError:
        return None
