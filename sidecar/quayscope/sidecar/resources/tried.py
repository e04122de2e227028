"""Reading small files of the kernel that may not be there: what is missing is a capability, said once."""

from __future__ import annotations

import errno
import os
from collections import defaultdict

from quayscope.sidecar.capabilities import Capabilities, Capability

__all__ = [
    "CONTAINER",
    "DISKS",
    "NETWORK",
    "NODE",
    "PRESSURE",
    "PROCESS_IO",
    "RUN_DELAY",
    "SOCKETS",
    "Tried",
    "number",
    "read_text",
]

CONTAINER = "container_resources"
PRESSURE = "container_pressure"
PROCESS_IO = "process_io"
NODE = "node_resources"
RUN_DELAY = "node_run_delay"
DISKS = "disk_statistics"
NETWORK = "tcp_statistics"
SOCKETS = "accept_queues"

_REMEDIES = {
    CONTAINER: "shareProcessNamespace: true, and the target's own user or the capability SYS_PTRACE, so that "
    "/proc/PID/root/sys/fs/cgroup can be read",
    PRESSURE: "cgroup v2 and a kernel started with psi=1; the node's pressure is sent",
    PROCESS_IO: "run as the target's own user, or add the capability SYS_PTRACE to the container's "
    "securityContext",
    NODE: "a /proc that is the node's, and a kernel started with psi=1",
    RUN_DELAY: "a kernel with CONFIG_SCHEDSTATS; the containers' run-queue delay is sent",
    DISKS: "a /proc with diskstats",
    NETWORK: "a /proc of the target with net/snmp and net/netstat",
    SOCKETS: "the target's network namespace as our own (one pod), or the capability SYS_ADMIN; a kernel "
    "with unix_diag and inet_diag, and a seccomp profile that allows socket(AF_NETLINK)",
}
_MOST_DETAILS = 3
_MOST = (1 << 63) - 1
_PIECE = 1 << 14
_MOST_PIECES = 64


def read_text(path: str) -> str:
    """Return a file's text, at most 1 MiB. Raises OSError.

    Some of the files lie where the profiled container may have put something else: a link is not followed,
    and a pipe is not waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        parts = [os.read(descriptor, _PIECE)]
        # Files of the kernel may come in pieces that are shorter than asked for.
        while parts[-1] and len(parts) < _MOST_PIECES:
            parts.append(os.read(descriptor, _PIECE))
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("ascii", "replace")


def number(text: str) -> int | None:
    """Return a count as a file has it, None for what is none: negative, too large for OTLP, or no number."""
    try:
        value = int(text)
    except ValueError:
        return None
    return value if 0 <= value <= _MOST else None


class Tried:
    """What one tick tried to read, and what of it the system refused.

    Details name no pid: the same refusal must read the same a second later.
    """

    def __init__(self) -> None:
        self._refused: dict[str, dict[str, None]] = defaultdict(dict)
        self._worked: set[str] = set()

    def read(self, capability: str, path: str, called: str = "") -> str | None:
        """Return a file's text, None when it cannot be read; `called` is how to name it, its path else."""
        try:
            text = read_text(path)
        except OSError as error:
            self.refused(capability, called or path, error)
            return None
        self._worked.add(capability)
        return text

    def refused(self, capability: str, what: str, error: OSError | str) -> None:
        """Note what the system answered."""
        if isinstance(error, OSError):
            error = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, str(error.errno))})"
        self._refused[capability][f"{what}: {error}"] = None

    def worked(self, capability: str) -> None:
        """Note that a thing was done."""
        self._worked.add(capability)

    def permitted(self, capability: str) -> bool:
        """Whether it worked at least once since the last report."""
        return capability in self._worked

    def report(self, capabilities: Capabilities) -> None:
        """Say what is missing and what works, to whom only changes matter; then begin anew."""
        for name in self._worked | set(self._refused):
            details = sorted(self._refused.get(name, ()))
            if details:
                more = len(details) - _MOST_DETAILS
                text = "; ".join(details[:_MOST_DETAILS]) + (f"; {more} more" if more > 0 else "")
                capabilities.note(Capability(name, False, text, _REMEDIES[name]))
            else:
                capabilities.note(Capability(name, True, "read"))
        self._refused.clear()
        self._worked.clear()
