"""What the sidecar raises, as one tree.

::

    quayscope.profile.Failure
    └── SidecarError             this package
        ├── AlreadySampled       a target whose processes are another target's too
        ├── BadOption            a flag that cannot be honoured (exit code 2)
        ├── CaptureRefused       a Python process that py-spy could not or may not read
        ├── MalformedCfi         unwind tables that contradict themselves
        ├── MalformedElf         a file that is not the ELF object it claims to be
        ├── NoCgroup             a target has no cgroup of its own that can be reached
        └── ScrapeFailed         a pprof endpoint that gave no profile

What the system refuses (`perf_event_open`, `process_vm_readv`, a connection) is no exception to the outside:
it is a missing capability, see `capabilities`.
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = [
    "AlreadySampled",
    "BadOption",
    "CaptureRefused",
    "MalformedCfi",
    "MalformedElf",
    "NoCgroup",
    "ScrapeFailed",
    "SidecarError",
]


class SidecarError(Failure):
    """Root of what the sidecar raises."""


class AlreadySampled(SidecarError):
    """A target whose processes are another target's too: its CPU would be counted twice."""


class BadOption(SidecarError):
    """A flag that cannot be honoured."""

    exit_code = 2


class MalformedCfi(SidecarError):
    """Call frame information that contradicts itself or is cut short; the text says what was wrong."""


class MalformedElf(SidecarError):
    """A mapped file that is not the ELF object it claims to be; the text says what was wrong."""


class NoCgroup(SidecarError):
    """A target has no cgroup of its own that can be reached; the text says why."""


class CaptureRefused(SidecarError):
    """A Python process that could not be captured; the text is the reason that py-spy or the system gave.

    `cost_ns` is the CPU that trying took, in nanoseconds.
    """

    def __init__(self, message: str, *, cost_ns: int = 0) -> None:
        super().__init__(message)
        self.cost_ns = cost_ns


class ScrapeFailed(SidecarError):
    """An address that gave no profile; the text says what it answered."""
