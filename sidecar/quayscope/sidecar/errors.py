"""What the sidecar raises, as one tree.

::

    quayscope.profile.Failure
    └── SidecarError             this package
        ├── BadOption            a flag that cannot be honoured (exit code 2)
        │   └── InsecureCollector    plain http to a collector beyond loopback
        └── MalformedElf         a file that is not the ELF object it claims to be

What the system refuses (`perf_event_open`, `process_vm_readv`, a connection) is no exception to the outside:
it is a missing capability, see `capabilities`.
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = ["BadOption", "InsecureCollector", "MalformedElf", "SidecarError"]


class SidecarError(Failure):
    """Root of what the sidecar raises."""


class BadOption(SidecarError):
    """A flag that cannot be honoured."""

    exit_code = 2


class InsecureCollector(BadOption):
    """Profiles and a token would leave the pod in the clear."""


class MalformedElf(SidecarError):
    """A mapped file that is not the ELF object it claims to be; the text says what was wrong."""
