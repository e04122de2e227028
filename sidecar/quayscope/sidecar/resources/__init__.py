"""What the pod and its node use, each second, as OTLP metrics: docs/resources.md lists them all.

The flow, in the order of reading: `processes` knows who runs; `mounts` finds a container's `cgroup`;
`container` joins both; `node`, `disks`, `network` and `sockets` are the rest; `pressure` reads one file
for two of them. `names` holds every metric's name, `counters` what it means when a sum goes back, `tried`
what was missing. `watch` takes one second of everything; `tiers` counts the CPU of the demo's tiers.
"""

from quayscope.sidecar.resources.container import Container
from quayscope.sidecar.resources.processes import Processes
from quayscope.sidecar.resources.tiers import TierCpu
from quayscope.sidecar.resources.watch import Resources

__all__ = ["Container", "Processes", "Resources", "TierCpu"]
