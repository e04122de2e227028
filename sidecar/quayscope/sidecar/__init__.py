"""The sidecar: samples what the profiled processes cannot, and holds the one connection out.

The flow, in the order of reading: `targets` finds processes and names them; `native` (events, ring, sampler,
unwind, symbols) takes CPU samples of any program; `postgres` says what a server's backends run and wait for,
and `database` keeps the watch over one; `python` has py-spy look at programs without an agent, `golang`
scrapes those in Go, and `programs` follows both; `resources` measures containers and node; `windows` gathers
samples into profiles; `gateway` takes what stock clients of the pod send; the relay's uplinks carry all of it
out (`outward`); `program` runs it all. `doctor` tries what is permitted, and what is not is reported as a
missing capability (`capabilities`), never guessed around.
"""

import os

# numpy's linear algebra, which nobody here calls, would start a thread a CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from quayscope.sidecar.errors import BadOption, CaptureRefused, MalformedElf, ScrapeFailed, SidecarError

__all__ = ["BadOption", "CaptureRefused", "MalformedElf", "ScrapeFailed", "SidecarError"]
