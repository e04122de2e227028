"""py-spy on a Python process: one dump of its stacks, attached as a capture would."""

from __future__ import annotations

import subprocess

from quayscope.sidecar.doctor.attempts import Attempt, Remedy
from quayscope.sidecar.doctor.memory import theirs
from quayscope.sidecar.doctor.standing import Standing, filtered
from quayscope.sidecar.doctor.subjects import Subject
from quayscope.sidecar.python import py_spy_program

__all__ = ["PY_SPY", "try_py_spy"]

PY_SPY = "py_spy"

_PATIENCE_S = 15.0
_SAID = 300


def try_py_spy(subject: Subject, standing: Standing) -> Attempt:
    """Dump the stacks of a Python process; it stands still for the few milliseconds that this takes."""
    call = f"py-spy dump --pid {subject.pid}"
    program = py_spy_program()
    if program is None:
        why = "py-spy is not installed beside this interpreter, nor on PATH"
        return Attempt(PY_SPY, False, subject.pid, call, "no py-spy", "ENOENT", Remedy(why))
    command = [program, "dump", "--pid", str(subject.pid)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        return Attempt(PY_SPY, False, subject.pid, call, f"no answer within {_PATIENCE_S:.0f} s")
    except OSError as error:
        why = f"{program} cannot be run"
        return Attempt(PY_SPY, False, subject.pid, call, error.strerror or str(error), "", Remedy(why))
    threads = done.stdout.count(b"Thread ")
    if done.returncode == 0 and threads:
        return Attempt(PY_SPY, True, subject.pid, call, f"{threads} threads' stacks")
    # What it advises (sudo) is no advice in a container.
    said = " ".join(done.stderr.decode(errors="replace").split()).partition(": Try running again")[0]
    return Attempt(PY_SPY, False, subject.pid, call, said[-_SAID:] or "no stack", "", _why(subject, standing))


def _why(subject: Subject, standing: Standing) -> Remedy:
    for call in ("ptrace", "process_vm_readv"):
        if answer := filtered(call):
            why = f"a seccomp filter answers {answer} to {call} before the kernel sees it"
            return standing.needs("SYS_PTRACE", why=why)
    if standing.yama_ptrace_scope:
        why = f"kernel.yama.ptrace_scope is {standing.yama_ptrace_scope}: the same user is not enough"
        return standing.needs("SYS_PTRACE", why=why, otherwise="or kernel.yama.ptrace_scope 0 on the node")
    return theirs(subject, standing, "the memory")
