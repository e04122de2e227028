"""How a workload's variables get their values: a pure function of seed, arrival and variable.

Values do not depend on the order in which answers come back, so a seed repeats a run's choices exactly.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from quayscope.load.template import Scalar, Template

__all__ = ["Content", "Draw", "Moment", "Variable"]

_MASK = (1 << 64) - 1
_UNIQUE = 64
"""Bytes at the front of a content that make it its own; the rest is shared, which is cheap to build."""


@dataclass(frozen=True)
class Moment:
    """For whom values are drawn: the `index`-th arrival of a run, or of a setup entry's repeats."""

    seed: int
    index: int
    in_setup: bool = False


@dataclass(frozen=True)
class Content:
    """Bytes to upload. They do not compress."""

    data: bytes
    digest: str
    """`sha256:` and 64 hex digits, as registries name contents."""


@dataclass
class Variable:
    """One entry of `vars`. Exactly one of `choices`, `values`, `sequence`, `size` is set, or none: derived.

    `format` may name other variables and, where a number is drawn, `{n}`.
    """

    name: str
    number: int
    """Which variable of the workload it is: makes its draws independent of the others'."""
    format: Template | None = None
    choices: int | None = None
    first: int = 0
    values: tuple[Scalar, ...] = ()
    sequence: int | None = None
    size: int | None = None
    """A content of so many bytes; one of `choices`, or where that is None a new one each arrival."""
    content_seed: int = 0
    _contents: dict[int, Content] = field(default_factory=dict, repr=False)

    def draw(self, moment: Moment, others: MutableMapping[str, Scalar]) -> Scalar:
        """Return the variable's value for an arrival (a content's digest, where it is one)."""
        if self.size is not None:
            return self.content(moment).digest
        if self.values:
            return self.values[self._pick(moment, len(self.values))]
        number = None
        if self.sequence is not None:
            number = self.sequence + moment.index
        elif self.choices is not None:
            number = self.first + self._pick(moment, self.choices)
        if self.format is None:
            assert number is not None
            return number
        return self.format.render(others if number is None else ChainMap({"n": number}, others))

    def content(self, moment: Moment) -> Content:
        """Return the bytes that an arrival uploads; the same choice has the same bytes in every run."""
        assert self.size is not None
        if self.choices is None:
            return _content(f"{self.name} {self.content_seed} {moment}", self.content_seed, self.size)
        choice = self._pick(moment, self.choices)
        held = self._contents.get(choice)
        if held is None:
            held = self._contents[choice] = _content(
                f"{self.name} {self.content_seed} {choice}", self.content_seed, self.size
            )
        return held

    def _pick(self, moment: Moment, count: int) -> int:
        if moment.in_setup:
            # In order, so that `repeat: 20` in setup covers each of `choices: 20` once.
            return moment.index % count
        return _scatter(moment.seed, moment.index, self.number) % count


class Draw(dict[str, Scalar]):
    """The values of one arrival: each variable drawn when first asked for, then kept for its whole flow."""

    def __init__(
        self, variables: Mapping[str, Variable], moment: Moment, given: Mapping[str, Scalar]
    ) -> None:
        super().__init__(given)
        self._variables = variables
        self._moment = moment

    def __missing__(self, name: str) -> Scalar:
        base, _, attribute = name.partition(".")
        variable = self._variables[base]
        if attribute == "size":
            assert variable.size is not None
            value: Scalar = variable.size
        else:
            value = variable.draw(self._moment, self)
        self[name] = value
        return value

    def content(self, name: str) -> bytes:
        """Return the bytes of the content variable `name`."""
        return self._variables[name].content(self._moment).data


def _content(identity: str, seed: int, size: int) -> Content:
    unique = hashlib.blake2b(identity.encode(), digest_size=_UNIQUE).digest()
    data = (unique + _filling(seed, size))[:size]
    return Content(data, f"sha256:{hashlib.sha256(data).hexdigest()}")


@functools.cache
def _filling(seed: int, size: int) -> bytes:
    generator = random.Random(seed)  # noqa: S311 - repeatable on purpose, nothing secret
    return generator.randbytes(max(0, size - _UNIQUE))


def _scatter(seed: int, index: int, variable: int) -> int:
    """Return 64 well-mixed bits (the finaliser of splitmix64; Steele, Lea, Flood 2014)."""
    bits = (
        seed * 0xD1342543DE82EF95 + index * 0x9E3779B97F4A7C15 + (variable + 1) * 0xBF58476D1CE4E5B9
    ) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)
