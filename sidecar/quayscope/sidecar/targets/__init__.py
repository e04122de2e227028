"""What runs in the pod: each process as a target with its labels, and Postgres servers with their backends.

In the order of reading: `postgres` finds servers and names their processes; `golang` reads the build
information of Go executables; `python` tells gunicorn's roles and background workers by their command lines;
`identify` puts these together for one process; `pod` and `labels` say whose it is; `watch` keeps all of it
current; `selection` picks from it.
"""

from quayscope.sidecar.targets.pod import Pod, read_pod
from quayscope.sidecar.targets.postgres import (
    CLIENT_BACKEND,
    UNKNOWN_BACKEND,
    BackendPids,
    Postmaster,
    backend_type,
    find_postmasters,
    postmaster_at,
)
from quayscope.sidecar.targets.selection import select
from quayscope.sidecar.targets.watch import Changes, Target, TargetWatch

__all__ = [
    "CLIENT_BACKEND",
    "UNKNOWN_BACKEND",
    "BackendPids",
    "Changes",
    "Pod",
    "Postmaster",
    "Target",
    "TargetWatch",
    "backend_type",
    "find_postmasters",
    "postmaster_at",
    "read_pod",
    "select",
]
