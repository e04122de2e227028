"""Which targets are watched: `--target NAME|PID|KIND`, else everything in the pod."""

from __future__ import annotations

from collections.abc import Sequence

from quayscope.sidecar.targets.identify import KINDS
from quayscope.sidecar.targets.watch import Target

__all__ = ["select"]


def select(targets: Sequence[Target], wanted: Sequence[str], *, default: bool) -> list[Target]:
    """Return the targets that one of `wanted` names; with none, all of them or none as `default` says.

    A pid names a process and its descendants; a kind all of a kind; another word is a role, a service_name, a
    container or an executable's name.
    """
    if not wanted:
        return list(targets) if default else []
    parents = {target.pid: target.parent for target in targets}
    pids = {int(word) for word in wanted if word.isdecimal()}
    words = {word for word in wanted if not word.isdecimal()}
    kinds = words.intersection(KINDS)
    return [
        target
        for target in targets
        if target.kind in kinds or words & _names(target) or _descends(target.pid, pids, parents)
    ]


def _names(target: Target) -> set[str]:
    labels = target.labels
    return {
        target.role,
        target.identity.program,
        labels.get("service_name", ""),
        labels.get("container", ""),
    } - {""}


def _descends(pid: int, roots: set[int], parents: dict[int, int]) -> bool:
    seen: set[int] = set()
    while roots and pid and pid not in seen:
        if pid in roots:
            return True
        seen.add(pid)
        pid = parents.get(pid, 0)
    return False
