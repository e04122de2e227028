"""What the sidecar raises, as one tree.

::

    quayscope.profile.Failure
    └── SidecarError             this package
        ├── AlreadySampled       a target whose processes are another target's too
        ├── BadOption            a flag that cannot be honoured (exit code 2)
        ├── MalformedCfi         unwind tables that contradict themselves
        ├── MalformedElf         a file that is not the ELF object it claims to be
        ├── NoCgroup             a target has no cgroup of its own that can be reached
        └── NothingCaptured      a target of a capture that gave nothing

What the system refuses (`perf_event_open`, `process_vm_readv`, a connection) is no exception to the outside:
it is a missing capability, see `capabilities`.
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = [
    "AlreadySampled",
    "BadOption",
    "MalformedCfi",
    "MalformedElf",
    "NoCgroup",
    "NothingCaptured",
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


class NothingCaptured(SidecarError):
    """A target of a capture that gave nothing; the text says why."""
