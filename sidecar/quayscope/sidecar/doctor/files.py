"""Files: a process's programs through its own root, its environment and clocks, kernel symbols, folders."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from quayscope.sidecar.doctor.attempts import Attempt, Remedy, refused, system_answer, worked
from quayscope.sidecar.doctor.memory import theirs
from quayscope.sidecar.doctor.standing import Standing
from quayscope.sidecar.doctor.subjects import Subject

__all__ = [
    "ENVIRON",
    "KERNEL_SYMBOLS",
    "SCHEDSTAT",
    "SYMBOLS_EXE",
    "SYMBOLS_ROOT",
    "directory_name",
    "try_directories",
    "try_kernel_symbols",
    "try_process_files",
]

SYMBOLS_EXE = "symbols_exe"
SYMBOLS_ROOT = "symbols_root"
SCHEDSTAT = "schedstat"
ENVIRON = "environ"
KERNEL_SYMBOLS = "kernel_symbols"

_MAGIC = b"\x7fELF"
_MAX_MAPS = 1 << 20
_VOLUME = """\
containers:
- volumeMounts:
  - name: quayscope-{name}
    mountPath: {path}"""
_EMPTY = """\
spec:
  volumes:
  - name: quayscope-{name}
    emptyDir: {{}}
"""


def try_process_files(subject: Subject, standing: Standing) -> list[Attempt]:
    """Read what names and clocks are taken from."""
    process = Path(f"/proc/{subject.pid}")
    return [
        _program(subject, standing, process / "exe"),
        _library(subject, standing, process),
        _schedstat(subject, process / "schedstat"),
        _environment(subject, standing, process / "environ"),
    ]


def _program(subject: Subject, standing: Standing, path: Path) -> Attempt:
    call = f"open({path})"
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        return refused(SYMBOLS_EXE, call, error, _why(subject, standing, error, "the program"), subject.pid)
    if head != _MAGIC:
        return Attempt(SYMBOLS_EXE, False, subject.pid, call, "no ELF file")
    return worked(SYMBOLS_EXE, call, "its program is readable", subject.pid)


def _library(subject: Subject, standing: Standing, process: Path) -> Attempt:
    """Read a file as the process's own mount namespace has it, the last one that it maps as code."""
    call = f"open({process}/maps)"
    try:
        with (process / "maps").open("rb") as file:
            lines = file.read(_MAX_MAPS).split(b"\n")[:-1]  # whole ones
        paths = [line.split(maxsplit=5)[5] for line in lines if b" r-xp " in line and b" /" in line]
        if not paths:
            return Attempt(SYMBOLS_ROOT, None, subject.pid, call, "it maps no file as code")
        path = process / "root" / os.fsdecode(paths[-1]).lstrip("/")
        call = f"open({path})"
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Attempt(
                *(
                    SYMBOLS_ROOT,
                    None,
                    subject.pid,
                    call,
                    "the file is gone; map_files has it where permitted",
                ),
                "ENOENT",
            )
        return refused(SYMBOLS_ROOT, call, error, _why(subject, standing, error, "the root"), subject.pid)
    if head != _MAGIC:
        return Attempt(SYMBOLS_ROOT, False, subject.pid, call, "no ELF file")
    return worked(SYMBOLS_ROOT, call, "files are readable through its root", subject.pid)


def _why(subject: Subject, standing: Standing, error: OSError, what: str) -> Remedy:
    if error.errno == errno.EACCES and "SYS_PTRACE" in standing.effective:
        why = f"the file is not readable for uid {standing.uid}: only for its owner"
        return standing.needs("DAC_READ_SEARCH", why=why)
    return theirs(subject, standing, what)


def _schedstat(subject: Subject, path: Path) -> Attempt:
    call = f"open({path})"
    try:
        run, delay, _ = (int(value) for value in path.read_text(encoding="ascii").split())
    except OSError as error:
        why = "the kernel was built without CONFIG_SCHED_INFO, or /proc is mounted with hidepid"
        return refused(SCHEDSTAT, call, error, Remedy(why), subject.pid)
    except ValueError:
        return Attempt(SCHEDSTAT, False, subject.pid, call, "not three numbers")
    return worked(
        SCHEDSTAT, call, f"ran {run / 1e9:.3f} s, waited {delay / 1e9:.3f} s for a CPU", subject.pid
    )


def _environment(subject: Subject, standing: Standing, path: Path) -> Attempt:
    call = f"open({path})"
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return refused(ENVIRON, call, error, _why_environment(subject, standing), subject.pid)
    return worked(ENVIRON, call, "readable", subject.pid)


def _why_environment(subject: Subject, standing: Standing) -> Remedy:
    # The file is its owner's alone, for uid 0 without DAC_READ_SEARCH too.
    return theirs(subject, standing, "the environment", capabilities=("DAC_READ_SEARCH", "SYS_PTRACE"))


def try_kernel_symbols(standing: Standing) -> Attempt:
    """Read a kernel function's address; where that is not permitted the kernel shows zero."""
    path = Path("/proc/kallsyms")
    call = f"open({path})"
    try:
        with path.open("rb") as file:
            address = int(file.readline().split()[0], 16)
    except OSError as error:
        why = "the kernel has no symbol table, or the runtime hides it"
        return refused(KERNEL_SYMBOLS, call, error, Remedy(why))
    except (ValueError, IndexError):
        return Attempt(KERNEL_SYMBOLS, False, 0, call, "not in the form of a symbol table")
    if address:
        return worked(KERNEL_SYMBOLS, call, "addresses are shown: kernel frames have names")
    remedy = standing.needs(
        "SYSLOG",
        why=f"kernel.kptr_restrict is {standing.kptr_restrict} and kernel.perf_event_paranoid "
        f"{standing.perf_event_paranoid}: addresses are shown as zero; kernel frames stay one [kernel]",
        otherwise="or kernel.kptr_restrict 0 and kernel.perf_event_paranoid <= 1 on the node",
    )
    return Attempt(KERNEL_SYMBOLS, False, 0, call, "addresses are shown as zero", "", remedy)


def directory_name(name: str) -> str:
    """Return the name of the attempt to write to the folder for `name`."""
    return f"{name}_directory"


def try_directories(directories: Mapping[str, Path]) -> list[Attempt]:
    """Write a file into each folder, and remove it."""
    return [_directory(name, path) for name, path in sorted(directories.items())]


def _directory(name: str, path: Path) -> Attempt:
    call = f"open({path}, O_CREAT)"
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".quayscope-doctor-") as file:
            file.write(b"quayscope")
            file.flush()
    except OSError as error:
        number, text = system_answer(error)
        fragment = (
            _EMPTY.format(name=name) + "  " + _VOLUME.format(name=name, path=path).replace("\n", "\n  ")
        )
        why = "a folder that this user may write to is needed; emptyDir is writable for every user"
        return Attempt(directory_name(name), False, 0, call, text, number, Remedy(why, fragment))
    return worked(directory_name(name), call, "a file was written and removed")
