"""What one process is: its kind, its role, and what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from quayscope.sidecar import procfs
from quayscope.sidecar.targets.golang import BuildInfos
from quayscope.sidecar.targets.postgres import UNKNOWN_BACKEND, backend_type
from quayscope.sidecar.targets.python import PythonProgram, is_interpreter, python_program

__all__ = ["CLAIR_MODULE", "KINDS", "MASTER", "POSTMASTER", "Identity", "identify"]

KINDS = ("postgres", "go", "python", "nginx", "other")
CLAIR_MODULE = "github.com/quay/clair"
POSTMASTER = "postmaster"
MASTER = " master"
"""What follows the role of a gunicorn's master, which serves nobody itself."""
_POSTGRES = ("postgres", "postmaster")
_LIBRARY = b"/libpython"
_MAX_MAPS = 1 << 20


class Identity(NamedTuple):
    """What a process is.

    `kind` is one of `KINDS`, `program` the executable's name, `role` what it does there; `detail` is for
    people: a Go module and its version. `service` is the service_name that the program itself stands for,
    empty where only the pod can say.
    """

    kind: str
    program: str
    role: str
    detail: str = ""
    service: str = ""


def identify(pid: int, facts: procfs.Stat, build_infos: BuildInfos) -> Identity | None:
    """Return what a process is; None for a kernel thread, or one that is gone."""
    try:
        program = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
        readable = True
    except FileNotFoundError:
        return None
    except OSError:
        # Another user's executable is not ours to read; its name, cut at 15 letters, and its arguments are.
        program, readable = facts.name, False
    if program in _POSTGRES:
        return _postgres(pid, facts, program)
    arguments = procfs.arguments(pid)
    if not arguments:
        return None
    if program.startswith("nginx"):
        # `nginx: master process nginx -c ...`
        word = arguments[0].partition(": ")[2].split(" ", 1)[0]
        return Identity(
            "nginx", program, f"nginx {word}" if word in ("master", "worker", "cache") else "nginx"
        )
    if is_interpreter(program) or (not readable and is_interpreter(Path(arguments[0]).name)):
        return _python(program, facts, python_program(arguments))
    build = build_infos.of(pid) if readable else None
    if build is not None:
        clair = build.module == CLAIR_MODULE or build.module.startswith(f"{CLAIR_MODULE}/")
        detail = f"{build.module or build.path} {build.version}".strip() or build.go_version
        return Identity("go", program, program, detail, "clair-app" if clair else "")
    if readable and _embeds_python(pid):
        return _python(program, facts, python_program(arguments))
    return Identity("other", program, program)


def _postgres(pid: int, facts: procfs.Stat, program: str) -> Identity:
    role = backend_type(pid)
    if role is None:
        parent = procfs.stat(facts.parent)
        role = UNKNOWN_BACKEND if parent is not None and parent.name in _POSTGRES else POSTMASTER
    return Identity("postgres", program, role)


def _python(program: str, facts: procfs.Stat, found: PythonProgram) -> Identity:
    role = found.role
    if found.gunicorn:
        worker = found.worker
        if worker is None:
            # A worker is its master's fork: the same arguments, one generation down.
            worker = python_program(procfs.arguments(facts.parent)).gunicorn
        role = role if worker else role + MASTER
    return Identity("python", program, role, "gunicorn" if found.gunicorn else "", "quay-app" * found.quay)


def _embeds_python(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return _LIBRARY in file.read(_MAX_MAPS)
    except OSError:
        return False
