"""The closed registry of profile types, under the names that Pyroscope registers.

Source of the names: grafana/pyroscope, `/pyroscope/render` knows only registered types
(`process_cpu:cpu:nanoseconds:cpu:nanoseconds` and so on); others it stores and cannot draw.
"""

from __future__ import annotations

from typing import NamedTuple

from quayscope.profile.errors import UnknownProfileType

__all__ = [
    "BLOCK",
    "GOROUTINE",
    "MEMORY",
    "MUTEX",
    "PROCESS_CPU",
    "TYPES",
    "ProfileType",
    "ValueType",
    "profile_type",
    "split_type_id",
]


class ValueType(NamedTuple):
    """One column of a profile: what is counted and in which unit, in pprof's words."""

    type: str
    unit: str


class ProfileType(NamedTuple):
    """A kind of profile: its name, the columns every sample has, and what its period counts."""

    name: str
    values: tuple[ValueType, ...]
    period: ValueType

    def ids(self) -> tuple[str, ...]:
        """Return each column's full identifier, `name:type:unit:period_type:period_unit`."""
        return tuple(
            f"{self.name}:{value.type}:{value.unit}:{self.period.type}:{self.period.unit}"
            for value in self.values
        )


_CPU = ValueType("cpu", "nanoseconds")
_CONTENTIONS = ValueType("contentions", "count")
_DELAY = ValueType("delay", "nanoseconds")

PROCESS_CPU = ProfileType("process_cpu", (ValueType("samples", "count"), _CPU), _CPU)
BLOCK = ProfileType("block", (_CONTENTIONS, _DELAY), _CONTENTIONS)
MUTEX = ProfileType("mutex", (_CONTENTIONS, _DELAY), _CONTENTIONS)
MEMORY = ProfileType(
    "memory",
    (
        ValueType("alloc_objects", "count"),
        ValueType("alloc_space", "bytes"),
        ValueType("inuse_objects", "count"),
        ValueType("inuse_space", "bytes"),
    ),
    ValueType("space", "bytes"),
)
GOROUTINE = ProfileType("goroutine", (ValueType("goroutine", "count"),), ValueType("goroutine", "count"))

TYPES: dict[str, ProfileType] = {kind.name: kind for kind in (PROCESS_CPU, BLOCK, MUTEX, MEMORY, GOROUTINE)}


def profile_type(name: str) -> ProfileType:
    """Return the registered type called `name`; raises `UnknownProfileType`."""
    try:
        return TYPES[name]
    except KeyError:
        raise UnknownProfileType(
            f"profile type {name!r} is not registered", next_step=f"use one of {', '.join(sorted(TYPES))}"
        ) from None


def split_type_id(type_id: str) -> tuple[ProfileType, int]:
    """Split `process_cpu:cpu:nanoseconds:cpu:nanoseconds` into its type and column index.

    A bare name (`process_cpu`) means the last column, the one in time or bytes.
    Raises `UnknownProfileType`.
    """
    kind = profile_type(type_id.split(":", 1)[0])
    if ":" not in type_id:
        return kind, len(kind.values) - 1
    try:
        return kind, kind.ids().index(type_id)
    except ValueError:
        raise UnknownProfileType(
            f"profile type {type_id!r} is not registered", next_step=f"use one of {', '.join(kind.ids())}"
        ) from None
