"""One thing tried: what was called, what the system answered, and what in the pod spec would change it."""

from __future__ import annotations

import errno
from typing import NamedTuple

from quayscope.sidecar import procfs

__all__ = ["Attempt", "Remedy", "refused", "system_answer", "worked"]


class Remedy(NamedTuple):
    """Why something is refused, and what gives it.

    `pod_spec` are lines of YAML for the sidecar's container in the pod spec, or for the pod where they begin
    with `spec:`; `otherwise` is another way, often none of the pod spec's: the node's settings.
    """

    why: str = ""
    pod_spec: str = ""
    otherwise: str = ""

    def line(self) -> str:
        """Return it as one line: `securityContext.runAsUser: 0`, another way, and why."""
        parts = [*_dotted(self.pod_spec), *([self.otherwise] if self.otherwise else [])]
        given = ", ".join(parts)
        return f"{given} ({self.why})" if given and self.why else given or self.why


class Attempt(NamedTuple):
    """The outcome of one attempt.

    `permitted` None: there was nothing here to try it on. `pid` 0: it is about no process. `call` is what
    was called, `errno` the name of the error that it answered, empty where it worked.
    """

    name: str
    permitted: bool | None
    pid: int
    call: str
    detail: str
    errno: str = ""
    remedy: Remedy = Remedy()


def _dotted(pod_spec: str) -> list[str]:
    """Return each value of a fragment of nested mappings behind the names that lead to it."""
    names: list[tuple[int, str]] = []
    found = []
    for line in pod_spec.splitlines():
        depth = len(line) - len(line.lstrip())
        name, _, value = line.strip().partition(":")
        names = [*(outer for outer in names if outer[0] < depth), (depth, name)]
        if value:
            found.append(f"{'.'.join(name for _, name in names)}:{value}")
    return found


def system_answer(error: OSError) -> tuple[str, str]:
    """Return the name and the text of a system call's error."""
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return name, error.strerror or str(error)


def worked(name: str, call: str, detail: str, pid: int = 0) -> Attempt:
    """Report that it was done."""
    return Attempt(name, True, pid, call, detail)


def refused(name: str, call: str, error: OSError, remedy: Remedy, pid: int = 0) -> Attempt:
    """Report what the system answered instead; of a process that has ended meanwhile, only that."""
    number, text = system_answer(error)
    if pid:
        facts = procfs.stat(pid)
        if facts is None or facts.state in "ZX":
            return Attempt(name, None, pid, call, text, number, Remedy("the process has ended"))
    return Attempt(name, False, pid, call, text, number, remedy)
