"""The sidecar: samples what the profiled processes cannot, and holds the one connection out.

The flow, in the order of reading: `targets` finds processes; `native` (ring, maps, elf, symbols, sampler)
takes CPU samples of Postgres; `postgres` (memory, activity, waits, cpu, statistics) says what its backends
run and wait for; `python` attaches py-spy once; `resources` measures containers and node; `windows` gathers
samples into profiles; `database` keeps the watch over one server; `gateway` takes what stock clients of the
pod send; the relay's uplinks carry everything out (`outward`); `program` runs it all. `doctor` tries what is
permitted, and what is not is reported as a missing capability (`capabilities`), never guessed around.
"""

from quayscope.sidecar.errors import BadOption, MalformedElf, SidecarError

__all__ = ["BadOption", "MalformedElf", "SidecarError"]
