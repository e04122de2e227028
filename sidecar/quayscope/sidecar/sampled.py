"""The pod's programs that perf events sample: Go's and nginx's always, others when they are named.

Python programs are left to the agent and py-spy, Postgres has a watch of its own: no CPU is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quayscope.profile import Stack
from quayscope.sidecar import procfs
from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.errors import SidecarError
from quayscope.sidecar.golang import clair_operations
from quayscope.sidecar.native.sampler import Sampler
from quayscope.sidecar.native.target import SampledTarget
from quayscope.sidecar.native.tracked import Tracked
from quayscope.sidecar.targets.watch import Target

__all__ = ["SampledPrograms"]


GO = "go"
_ALWAYS = (GO, "nginx")
_OTHER = "other"
_MOST = 32
"""Programs sampled at once: each has events on every CPU."""
_CAPABILITY = "perf_programs"
_REMEDY = "see perf_user of `quayscope sidecar doctor`"


class _Key(NamedTuple):
    pid: int
    start_ticks: int


class SampledPrograms:
    """Keeps the sampler's targets in step with the pod's; `update` is to be called each second.

    Of a tree of processes of one program the topmost is the target. `named` says whether the targets were
    asked for by name: only then are programs of no known kind sampled.
    """

    def __init__(self, sampler: Sampler, capabilities: Capabilities) -> None:
        self._sampler = sampler
        self._capabilities = capabilities
        self._held: dict[_Key, Tracked] = {}
        self._refused: dict[_Key, str] = {}
        self._operations = clair_operations()
        self.passed_over = 0

    def update(self, targets: Sequence[Target], *, named: bool) -> None:
        """Sample what came, and let go of what went."""
        kinds = (*_ALWAYS, _OTHER) if named else _ALWAYS
        chosen = [target for target in targets if target.kind in kinds]
        members = {target.pid for target in chosen}
        tops = {_Key(one.pid, one.start_ticks): one for one in chosen if one.parent not in members}
        for key in self._held.keys() - tops.keys():
            self._sampler.remove(self._held.pop(key))
        running = set(self._sampler.targets)
        for key, tracked in list(self._held.items()):
            if tracked not in running:
                del self._held[key]
        self._refused = {key: why for key, why in self._refused.items() if key in tops}
        alone = _alone(targets)
        for key, target in tops.items():
            if key not in self._held and key not in self._refused:
                self._add(key, target, cgroup=target.container.id in alone)
        self._note()

    def _add(self, key: _Key, target: Target, *, cgroup: bool) -> None:
        if len(self._held) >= _MOST:
            self.passed_over += 1
            self._refused[key] = f"more than {_MOST} programs"
            return
        labels = {name: text for name, text in target.labels.items() if name not in ("service_name", "role")}
        sampled = SampledTarget(
            target.labels.get("service_name", target.identity.program),
            target.pid,
            lambda: procfs.descendants(target.pid),
            lambda _pid: target.role,
            target.role,
            labels,
            chain=target.kind == GO,
            cgroup=cgroup,
            operation=self._operation if target.kind == GO else None,
        )
        try:
            self._held[key] = self._sampler.add(sampled)
        except OSError as error:
            self._refused[key] = error.strerror or str(error)
        except SidecarError as error:
            self._refused[key] = str(error)

    def _operation(self, stack: Stack) -> str:
        return self._operations.of(stack)

    def _note(self) -> None:
        if self._refused:
            key, why = next(iter(self._refused.items()))
            detail = f"{len(self._refused)} of {len(self._refused) + len(self._held)} programs: {why}"
            self._capabilities.note(Capability(_CAPABILITY, False, f"{detail} (process {key.pid})", _REMEDY))
        elif self._held:
            self._capabilities.note(Capability(_CAPABILITY, True, "Go programs and nginx are sampled"))

    def close(self) -> None:
        """Let go of everything."""
        for tracked in self._held.values():
            self._sampler.remove(tracked)
        self._held.clear()


def _alone(targets: Sequence[Target]) -> set[str]:
    """Return the containers in which all processes are of one program: its cgroup is that program's."""
    programs: dict[str, set[str]] = {}
    for target in targets:
        programs.setdefault(target.container.id, set()).add(target.identity.program)
    return {container for container, found in programs.items() if container and len(found) == 1}
