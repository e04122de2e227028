"""Parts of a capture put together: one profile a type, for everything and for each pod."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from quayscope.profile import Frame, Profile, ProfileError, Stack, pprof
from quayscope.profile.control import Part
from quayscope.profile.model import Losses

__all__ = ["PartProfile", "merge_all", "read_part"]

MOST_SAMPLES = 1_000_000
"""Distinct samples of one merged profile; what comes beyond is counted lost."""


class PartProfile(NamedTuple):
    """One profile of one part, its times by the collector's clock."""

    pod: str
    profile: Profile


def read_part(pod: str, part: Part) -> tuple[list[PartProfile], str]:
    """Decode what a sidecar delivered, move it to our clock; returns also what was wrong, empty: nothing."""
    found = []
    for data, kind, sampler in zip(
        part.profiles, part.types, part.samplers or ("",) * len(part.profiles), strict=False
    ):
        labels = {**part.target.labels, "sampler": sampler}
        try:
            profile = pprof.decode(data, labels, name=kind)
        except ProfileError as error:
            return [], f"a profile of it cannot be read: {error}"
        profile.move(part.offset_ns)
        found.append(PartProfile(pod, profile))
    if len(part.types) != len(part.profiles):
        return found, "its profiles and their types are not as many"
    return found, ""


class _Merged:
    """One profile of several; `add` them, then `profile`. The service is the root frame of each stack."""

    def __init__(self) -> None:
        self._profile: Profile | None = None
        self._ends: list[int] = []

    def add(self, one: Profile) -> None:
        """Add a profile of the same type as the others."""
        held = self._profile
        if held is None:
            held = self._profile = Profile(one.type, dict(one.labels), one.start_ns, 0, one.period)
        for name in list(held.labels):
            if held.labels[name] != one.labels.get(name):
                del held.labels[name]
        held.start_ns = min(held.start_ns, one.start_ns)
        held.period = held.period if held.period == one.period else 0
        self._ends.append(one.start_ns + one.duration_ns)
        held.losses.add(one.losses)
        root = Frame(one.labels.get("service_name", ""), kind="root")
        for (stack, attributes), values in one.samples.items():
            key = (_rooted(stack, root), attributes)
            if len(held.samples) >= MOST_SAMPLES and key not in held.samples:
                held.losses.add(Losses(lost=values[0]))
            else:
                held.add(*key, values)

    def profile(self) -> Profile | None:
        """Return it; None where nothing was added."""
        if self._profile is not None:
            self._profile.duration_ns = max(self._ends) - self._profile.start_ns
        return self._profile


def _rooted(stack: Stack, root: Frame) -> Stack:
    return stack if not root.function or stack[:1] == (root,) else (root, *stack)


def merge_all(profiles: Iterable[Profile]) -> dict[str, Profile]:
    """Return one profile of each type."""
    merged: dict[str, _Merged] = {}
    for one in profiles:
        merged.setdefault(one.type.name, _Merged()).add(one)
    return {name: found for name, one in merged.items() if (found := one.profile()) is not None}
