"""What is sampled: one container's processes, or one tree of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from quayscope.profile import Stack

__all__ = ["UNKNOWN_ROLE", "SampledTarget"]

UNKNOWN_ROLE = "unknown"
"""A process that ended before it could be asked what it was."""


@dataclass(frozen=True, eq=False)
class SampledTarget:
    """The processes whose samples go into the series of one service.

    `root_pid` is the first process of the tree or container, `pids` lists the others that run now: asked each
    second, and only where the target's cgroup may not be used. `role` says what a process is, None while that
    cannot be told. `main_role` is the role of ordinary samples: it is not shown as a frame, and is charged
    with losses. `chain`: everything in it keeps frame pointers (Go), so no stacks need be copied. `cgroup`:
    whether its cgroup may be used; all that is in there then counts as the target's. `operation` names what a
    stack was for, empty where it cannot tell: it is the endpoint of samples that no request is known for.
    """

    service: str
    root_pid: int
    pids: Callable[[], Collection[int]]
    role: Callable[[int], str | None]
    main_role: str
    labels: Mapping[str, str] = field(default_factory=dict)
    chain: bool = False
    cgroup: bool = True
    operation: Callable[[Stack], str] | None = None
