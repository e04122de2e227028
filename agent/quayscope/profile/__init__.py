"""What a profile is, and how it looks on the wire. Standard library only, CPython 3.9 to 3.13.

Here is the value type. What reads and writes it are modules of their own, imported by those who need
them: `pprof`, `folded`, `push` (a client too), `pyroscope` (what one can hold), `statement` (the
normaliser) and `protowire`. A worker imports this package before gevent patches the standard library, so
nothing here may bring in `threading`, `socket` or `ssl`; only `push` and `pyroscope` do.
"""

from quayscope.profile.errors import Failure, MalformedProfile, ProfileError, PushFailed, UnknownProfileType
from quayscope.profile.model import KINDS, Attributes, Frame, Losses, Profile, Stack
from quayscope.profile.types import (
    BLOCK,
    GOROUTINE,
    MEMORY,
    MUTEX,
    PROCESS_CPU,
    TYPES,
    ProfileType,
    ValueType,
    profile_type,
    split_type_id,
)

__all__ = [
    "BLOCK",
    "GOROUTINE",
    "KINDS",
    "MEMORY",
    "MUTEX",
    "PROCESS_CPU",
    "TYPES",
    "Attributes",
    "Failure",
    "Frame",
    "Losses",
    "MalformedProfile",
    "Profile",
    "ProfileError",
    "ProfileType",
    "PushFailed",
    "Stack",
    "UnknownProfileType",
    "ValueType",
    "profile_type",
    "split_type_id",
]
