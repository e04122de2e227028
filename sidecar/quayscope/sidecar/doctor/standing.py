"""What this process is to the kernel: its user, capabilities and filters, and the node's own limits.

Nothing is concluded from these alone; they name the reason once an attempt was refused. Formats:
proc_pid_status(5), capabilities(7), Documentation/admin-guide/sysctl/kernel.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar.doctor.attempts import Remedy

__all__ = ["Standing", "filtered", "read_standing"]

# include/uapi/linux/capability.h: those that the sidecar can use, and those often listed beside them.
_CAPABILITIES = {
    1: "DAC_OVERRIDE",
    2: "DAC_READ_SEARCH",
    14: "IPC_LOCK",
    19: "SYS_PTRACE",
    21: "SYS_ADMIN",
    23: "SYS_NICE",
    24: "SYS_RESOURCE",
    34: "SYSLOG",
    38: "PERFMON",
    39: "BPF",
    40: "CHECKPOINT_RESTORE",
}
_KEPT = frozenset(_CAPABILITIES.values()) - {"DAC_OVERRIDE", "SYS_ADMIN", "SYS_RESOURCE"}
"""What a list that replaces the present one keeps of it."""
_SECCOMP = {"0": "none", "1": "strict", "2": "filter"}

_libc = ctypes.CDLL(None, use_errno=True)
# Each with arguments that the kernel answers with EINVAL or EBADF before it looks at any permission: another
# answer comes from a filter in front of the kernel. Numbers: asm/unistd.h.
_INVALID: dict[str, dict[str, tuple[int, ...]]] = {
    "x86_64": {
        "perf_event_open": (298, 0, 0, -1, -1, -1),
        "process_vm_readv": (310, 0, 0, 0, 0, 0, -1),
        "ptrace": (101, -1, 0, 0, 0),
        "sched_setscheduler": (144, -1, -1, 0),
        "setns": (308, -1, 0),
    },
    "aarch64": {
        "perf_event_open": (241, 0, 0, -1, -1, -1),
        "process_vm_readv": (270, 0, 0, 0, 0, 0, -1),
        "ptrace": (117, -1, 0, 0, 0),
        "sched_setscheduler": (119, -1, -1, 0),
        "setns": (268, -1, 0),
    },
}
_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)


class Standing(NamedTuple):
    """The process and the node. Settings of the node that do not exist or may not be read are None."""

    uid: int
    gid: int
    effective: frozenset[str]
    bounding: frozenset[str]
    no_new_privileges: bool
    seccomp: str
    kernel: str
    perf_event_paranoid: int | None
    perf_event_mlock_kb: int | None
    kptr_restrict: int | None
    yama_ptrace_scope: int | None

    def needs(self, *capabilities: str, why: str, otherwise: str = "") -> Remedy:
        """Return what gives these capabilities: they are in effect for uid 0 alone.

        Container runtimes set no ambient capabilities: an exec by another user drops what was added.
        """
        missing = [name for name in capabilities if name not in self.effective]
        listed = [name for name in missing if name in self.bounding]
        if listed and self.uid != 0:
            names = ", ".join(listed)
            why += (
                f"; {names} is listed, but what is added is in effect for uid 0 alone, and this is {self.uid}"
            )
        return Remedy(why, security_context(self, run_as=0, add=capabilities), otherwise)


def security_context(standing: Standing, *, run_as: int | None = None, add: Iterable[str] = ()) -> str:
    """Return the lines of a container's `securityContext` that set these, as they stand in a pod spec."""
    lines = ["securityContext:"]
    if run_as is not None and run_as != standing.uid:
        if run_as == 0:
            lines.append("  runAsNonRoot: false")
        lines.append(f"  runAsUser: {run_as}")
    if wanted := set(add):
        if (
            "SYS_ADMIN" not in standing.bounding
        ):  # else everything is listed: a privileged one, or no container
            wanted |= standing.bounding & _KEPT
        names = ", ".join(sorted(wanted))
        lines += ["  capabilities:", f"    add: [{names}]"]
    return "\n".join(lines) if len(lines) > 1 else ""


def filtered(call: str) -> str:
    """Return the error that a seccomp filter answers to a system call, empty when it reaches the kernel.

    Tried with arguments that the kernel itself refuses for what they are, whoever asks.
    """
    invalid = _INVALID.get(os.uname().machine, {}).get(call)
    if invalid is None:
        return ""
    if _libc.syscall(*(ctypes.c_long(value) for value in invalid)) >= 0:
        return ""
    number = ctypes.get_errno()
    return errno.errorcode.get(number, str(number)) if number in _REFUSALS else ""


def read_standing() -> Standing:
    """Read it of this process."""
    status = _status()
    return Standing(
        uid=os.geteuid(),
        gid=os.getegid(),
        effective=_names(status.get("CapEff", "0")),
        bounding=_names(status.get("CapBnd", "0")),
        no_new_privileges=status.get("NoNewPrivs") == "1",
        seccomp=_SECCOMP.get(status.get("Seccomp", ""), "unknown"),
        kernel=os.uname().release,
        perf_event_paranoid=_setting("kernel/perf_event_paranoid"),
        perf_event_mlock_kb=_setting("kernel/perf_event_mlock_kb"),
        kptr_restrict=_setting("kernel/kptr_restrict"),
        yama_ptrace_scope=_setting("kernel/yama/ptrace_scope"),
    )


def _status() -> dict[str, str]:
    try:
        text = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _names(mask: str) -> frozenset[str]:
    bits = int(mask, 16)
    return frozenset(name for bit, name in _CAPABILITIES.items() if bits >> bit & 1)


def _setting(path: str) -> int | None:
    try:
        return int(Path("/proc/sys", path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
