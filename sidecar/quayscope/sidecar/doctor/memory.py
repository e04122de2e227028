"""Another process's memory: read by system call, and Postgres' shared segment mapped."""

from __future__ import annotations

import errno
import mmap
import re
from pathlib import Path

from quayscope.sidecar.doctor.attempts import Attempt, Remedy, refused, worked
from quayscope.sidecar.doctor.standing import Standing, filtered, security_context
from quayscope.sidecar.doctor.subjects import Subject
from quayscope.sidecar.postgres.memory import read_memory

__all__ = ["READ_MEMORY", "SHARED_MEMORY", "theirs", "try_read_memory", "try_shared_memory", "why_closed"]

READ_MEMORY = "process_vm_readv"
SHARED_MEMORY = "shared_memory"

_MAPPING = re.compile(r"([0-9a-f]+-[0-9a-f]+) (....) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ \d+ +(/.*)")
_SHM = "/dev/shm/"  # noqa: S108 - the name of a mapping: nothing is written there
_MEMORY = ("/dev/zero", "/anon_hugepage", "/memfd:", "/SYSV", _SHM)
"""What shared memory is named; other files that are mapped may be devices, which opening may disturb."""
_NOWHERE = 4096
_MAX_MAPS = 16 << 20


def theirs(
    subject: Subject, standing: Standing, what: str, *, capabilities: tuple[str, ...] = ("SYS_PTRACE",)
) -> Remedy:
    """Say what opens `what` of a process, which its own user has and others need `capabilities` for."""
    missing = " and ".join(name for name in capabilities if name not in standing.effective)
    if subject.uid == standing.uid and standing.uid != 0:
        why = f"{what} is closed although the user is the same: the process hides itself or has capabilities"
        return standing.needs(*capabilities, why=why)
    why = f"{what} of a process of uid {subject.uid} is closed to uid {standing.uid} without {missing}"
    if subject.uid == 0 or standing.uid == 0:
        return standing.needs(*capabilities, why=why)
    return Remedy(
        why,
        security_context(standing, run_as=subject.uid),
        f"or runAsUser: 0 with {' and '.join(capabilities)} in capabilities.add",
    )


def try_read_memory(subject: Subject, standing: Standing) -> Attempt:
    """Read eight bytes of the process's memory."""
    call = f"process_vm_readv(pid {subject.pid})"
    try:
        read_memory(subject.pid, _first_address(subject.pid), 8)
    except OSError as error:
        if error.errno != errno.EFAULT:
            return refused(READ_MEMORY, call, error, why_closed(subject, standing), subject.pid)
        # The kernel looks for the bytes only after it has permitted the call.
        return worked(READ_MEMORY, call, "permitted, though nothing is mapped there", subject.pid)
    return worked(READ_MEMORY, call, "read", subject.pid)


def why_closed(subject: Subject, standing: Standing) -> Remedy:
    """Say what opens the memory of a process to process_vm_readv."""
    if answer := filtered("process_vm_readv"):
        why = f"a seccomp filter answers {answer} to process_vm_readv before the kernel sees it"
        return standing.needs(
            "SYS_PTRACE",
            why=why,
            otherwise="or a seccompProfile of type Localhost that allows process_vm_readv",
        )
    if standing.yama_ptrace_scope:
        why = f"kernel.yama.ptrace_scope is {standing.yama_ptrace_scope}: the same user is not enough"
        return standing.needs("SYS_PTRACE", why=why, otherwise="or kernel.yama.ptrace_scope 0 on the node")
    return theirs(subject, standing, "the memory")


def try_shared_memory(subject: Subject, standing: Standing) -> Attempt:
    """Map a page of the process's shared memory, where it has none of any of its files."""
    maps = f"/proc/{subject.pid}/maps"
    try:
        place, shared = _mapping(maps)
    except OSError as error:
        return refused(SHARED_MEMORY, f"open({maps})", error, _why_shared(standing), subject.pid)
    if not place:
        return Attempt(
            SHARED_MEMORY, None, subject.pid, f"open({maps})", "it maps no file and shares nothing"
        )
    call = f"mmap(/proc/{subject.pid}/map_files/{place})"
    try:
        with Path(f"/proc/{subject.pid}/map_files/{place}").open("rb") as file:
            mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ).close()
    except ValueError:
        return Attempt(SHARED_MEMORY, None, subject.pid, call, "what is mapped there is shorter than a page")
    except OSError as error:
        return refused(SHARED_MEMORY, call, error, _why_shared(standing), subject.pid)
    what = "a page of its shared memory" if shared else "a page of a file of its"
    return worked(SHARED_MEMORY, call, f"{what} mapped", subject.pid)


def _why_shared(standing: Standing) -> Remedy:
    # The folder is open to the process's own user, who has no capability, and to uid 0 with all of these.
    wanted = ("CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "SYS_PTRACE")
    missing = ", ".join(name for name in wanted if name not in standing.effective)
    return standing.needs(
        *wanted,
        why=f"not in effect: {missing}; memory that is read instead of mapped costs three times the CPU",
        otherwise="before Linux 5.9 SYS_ADMIN stands for CHECKPOINT_RESTORE",
    )


def _first_address(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            return int(file.readline().partition("-")[0], 16)
    except (OSError, ValueError):
        return _NOWHERE


def _mapping(maps: str) -> tuple[str, bool]:
    """Return the place of the largest piece of shared memory, else of some code, and which it is."""
    file_mapping, shared, largest = "", "", 0
    with open(maps, encoding="utf-8", errors="replace") as file:
        for line in file.read(_MAX_MAPS).splitlines():
            match = _MAPPING.match(line)
            if match is None:
                continue
            place, permissions, path = match.groups()
            first, last = (int(part, 16) for part in place.split("-"))
            if path.startswith(_MEMORY) and permissions[3] == "s" and last - first > largest:
                shared, largest = place, last - first
            elif permissions == "r-xp" and not file_mapping:
                file_mapping = place
    return (shared or file_mapping), bool(shared)
