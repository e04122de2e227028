"""The sidecar: samples what the profiled processes cannot, and holds the one connection out.

The flow, in the order of reading: `targets` finds processes and names them; `native` (ring, maps, elf,
symbols, sampler) takes CPU samples of Postgres; `postgres` (memory, activity, waits, cpu, statistics) says
what its backends run and wait for; `python` has py-spy look at programs without an agent, `golang` scrapes
those in Go, and `programs` follows both; `resources` counts the tiers' CPU; `windows` gathers samples into
profiles; `database` keeps the watch over one server; the relay's uplink carries everything to the collector;
`program` runs it all. `doctor` tries what is permitted, and what is not is reported as a missing capability
(`capabilities`), never guessed around.
"""

from quayscope.sidecar.errors import BadOption, CaptureRefused, MalformedElf, ScrapeFailed, SidecarError

__all__ = ["BadOption", "CaptureRefused", "MalformedElf", "ScrapeFailed", "SidecarError"]
