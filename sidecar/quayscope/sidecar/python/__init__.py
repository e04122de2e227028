"""Python processes in which no agent lives, seen by py-spy from outside.

In the order of reading: `raw` reads its output; `record` takes one capture and measures what it cost;
`captures` takes those that the command line names; `rotation` goes round all others at a bounded cost.
"""

from quayscope.sidecar.python.captures import PythonCaptures, PythonTarget
from quayscope.sidecar.python.raw import parse_raw, spread
from quayscope.sidecar.python.record import (
    Capture,
    Cost,
    profile_of,
    py_spy_program,
    record,
)
from quayscope.sidecar.python.rotation import PythonProcess, PythonRotation

__all__ = [
    "Capture",
    "Cost",
    "PythonCaptures",
    "PythonProcess",
    "PythonRotation",
    "PythonTarget",
    "parse_raw",
    "profile_of",
    "py_spy_program",
    "record",
    "spread",
]
