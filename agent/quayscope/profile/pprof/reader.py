"""A pprof message as a profile: ours, and everybody else's.

What arrives may be broken or made to harm: sizes, counts and indices are bounded, and everything that
is wrong with it is a `MalformedProfile`.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from quayscope.profile.errors import MalformedProfile, UnknownProfileType
from quayscope.profile.model import KINDS, Attributes, Frame, Losses, Profile, Stack
from quayscope.profile.pprof.words import LOSS_COMMENT, TEXT_ATTRIBUTES
from quayscope.profile.protowire import LENGTH, fields, numbers, packed_varints, signed, text
from quayscope.profile.types import TYPES, ProfileType, ValueType, profile_type

__all__ = ["MAX_BYTES", "MAX_FRAMES", "MAX_PARTS", "decode"]

MAX_BYTES = 64 << 20
"""Default bound of a profile's size when unpacked."""
MAX_PARTS = 1_000_000
"""Samples, locations, functions, mappings and strings a profile may have together."""
MAX_FRAMES = 8_000_000
"""Frames its stacks may have together: a location may stand for many lines, a sample for many locations."""

_KIND_OF_MAPPING = {f"[{kind}]": kind for kind in KINDS}
_NANOSECONDS = {"nanoseconds": 1, "microseconds": 10**3, "milliseconds": 10**6, "seconds": 10**9}
_INT64 = 1 << 63


class _Message(NamedTuple):
    """A pprof message taken apart, its numbers not yet resolved."""

    value_types: list[bytes]
    samples: list[bytes]
    mappings: list[bytes]
    locations: list[bytes]
    functions: list[bytes]
    strings: list[str]
    period_type: list[bytes]
    comments: list[int]
    numbers: dict[int, int]


class _Lookup:
    """Reads the string table; an index outside it is an error, not a crash."""

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings or [""]

    def __call__(self, index: int) -> str:
        if index >= len(self._strings):
            raise MalformedProfile(f"string {index} is outside the table of {len(self._strings)}")
        return self._strings[index]


def decode(
    data: bytes,
    labels: Mapping[str, str] | None = None,
    *,
    name: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Profile:
    """Read a pprof message, gzipped or not, as a profile with these series labels.

    `name` is the profile type's name (the push label `__name__`); without it the type is told from
    the sample types. Columns are matched by type and unit; those the message lacks are 0, except that
    a CPU profile of sample counts alone gets cpu = samples x period, the only measure it has. Labels
    that are no attribute of ours are left out. Raises `MalformedProfile` and `UnknownProfileType`.
    """
    message = _take_apart(_unpack(data, max_bytes))
    string = _Lookup(message.strings)
    columns = [_value_type(string, body) for body in message.value_types]
    kind = profile_type(name) if name else _guess_type(columns)
    sources = _match_columns(kind, columns)
    period = signed(message.numbers.get(12, 0))
    nominal = 0
    if kind.name == "process_cpu" and sources[0] is not None and sources[1] is None:
        nominal = period * _period_unit(message, string)
    profile = Profile(
        kind,
        dict(labels or {}),
        signed(message.numbers.get(9, 0)),
        signed(message.numbers.get(10, 0)),
        period,
        losses=_losses(string(index) for index in message.comments),
    )
    samples = _Samples(string, _frames(message, string), len(columns))
    for body in message.samples:
        stack, attributes, raw = samples.read(body)
        values = tuple(0 if source is None else raw[source] for source in sources)
        if nominal:
            values = (values[0], values[0] * nominal)
        profile.add(stack, attributes, values)
    for values in profile.samples.values():
        if max(values) >= _INT64 or min(values) < -_INT64:
            raise MalformedProfile("a value or a sum of values does not fit 64 bits")
    return profile


def _unpack(data: bytes, max_bytes: int) -> bytes:
    if data[:2] != b"\x1f\x8b":
        if len(data) > max_bytes:
            raise MalformedProfile(f"the profile has {len(data)} bytes, more than {max_bytes}")
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            raw = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise MalformedProfile(f"the gzip stream is broken: {error}") from error
    if len(raw) > max_bytes:
        raise MalformedProfile(f"the profile unpacks to more than {max_bytes} bytes")
    return raw


def _take_apart(data: bytes) -> _Message:
    message = _Message([], [], [], [], [], [], [], [], {})
    parts = {1: message.value_types, 2: message.samples, 3: message.mappings, 4: message.locations}
    parts[5], parts[11] = message.functions, message.period_type
    for count, (number, wire, value) in enumerate(fields(data), 1):
        if count > MAX_PARTS:
            raise MalformedProfile(f"the profile has more than {MAX_PARTS} parts")
        if number in parts or number == 6:
            if wire != LENGTH or isinstance(value, int):
                raise MalformedProfile(f"field {number} is not a message")
            if number == 6:
                message.strings.append(text(value))
            else:
                parts[number].append(bytes(value))
        elif number == 13:
            message.comments.extend(packed_varints(value))
        elif isinstance(value, int):
            message.numbers[number] = value
    if message.strings and message.strings[0] != "":
        raise MalformedProfile("the string table does not begin with the empty string")
    return message


def _value_type(string: _Lookup, body: bytes) -> ValueType:
    found = numbers(body)
    return ValueType(string(found.get(1, 0)), string(found.get(2, 0)))


def _guess_type(columns: list[ValueType]) -> ProfileType:
    for kind in TYPES.values():
        if any(column in kind.values for column in columns):
            return kind
    raise UnknownProfileType(f"no registered profile type has {_shown(columns)}")


def _match_columns(kind: ProfileType, columns: list[ValueType]) -> list[int | None]:
    sources = [columns.index(wanted) if wanted in columns else None for wanted in kind.values]
    if all(source is None for source in sources):
        raise UnknownProfileType(f"a {kind.name} profile has {_shown(columns)}")
    return sources


def _shown(columns: list[ValueType]) -> str:
    """Return the sample types for a message: the first few, cut, as they come from anybody."""
    shown = [f"{column.type}/{column.unit}"[:60] for column in columns[:6]]
    return f"the sample types {', '.join(shown)}" if shown else "no sample types"


def _period_unit(message: _Message, string: _Lookup) -> int:
    """Return how many nanoseconds the period's unit has: 1 if it names none, 0 if it is no time."""
    if not message.period_type:
        return 1
    return _NANOSECONDS.get(_value_type(string, message.period_type[-1]).unit or "nanoseconds", 0)


def _losses(comments: Iterable[str]) -> Losses:
    losses = Losses()
    known = vars(losses)
    for comment in comments:
        name, _, count = comment[len(LOSS_COMMENT) :].partition("=")
        if comment.startswith(LOSS_COMMENT) and name in known and _is_number(count):
            setattr(losses, name, int(count))
    return losses


def _is_number(shown: str) -> bool:
    return len(shown) <= 18 and shown.isascii() and shown.isdigit()


def _frames(message: _Message, string: _Lookup) -> dict[int, Stack]:
    """Return each location's frames, leaf first: inlined calls make several of one location."""
    functions: dict[int, tuple[str, str]] = {}
    for body in message.functions:
        found = numbers(body)
        name = string(found.get(2, 0)) or string(found.get(3, 0)) or "[unknown]"
        functions[found.get(1, 0)] = (name, string(found.get(4, 0)))
    mappings: dict[int, tuple[str, int]] = {0: ("", 0)}
    for body in message.mappings:
        found = numbers(body)
        start = found.get(2, 0) - found.get(4, 0)  # memory_start - file_offset
        mappings[found.get(1, 0)] = (string(found.get(5, 0)), start)
    frames: dict[int, Stack] = {}
    for body in message.locations:
        found = numbers(body)
        mapping, start = mappings.get(found.get(2, 0), mappings[0])
        lines: list[Frame] = []
        for number, _, value in fields(body):
            if number == 4 and not isinstance(value, int):
                line = numbers(value)
                name, file = functions.get(line.get(1, 0), ("[unknown]", ""))
                lines.append(Frame(name, file, signed(line.get(2, 0)), _kind(mapping, file)))
        frames[found.get(1, 0)] = tuple(lines) or (_unnamed(mapping, found.get(3, 0), start),)
    return frames


def _kind(mapping: str, file: str) -> str:
    return _KIND_OF_MAPPING.get(mapping) or ("python" if file.endswith(".py") else "native")


def _unnamed(mapping: str, address: int, start: int) -> Frame:
    base = mapping.rpartition("/")[2]
    name = f"{base}+{address - start:#x}" if base and address >= start else f"[{address:#x}]"
    return Frame(name, mapping, 0, _kind(mapping, ""))


class _Samples:
    """Reads samples; equal stacks become one tuple, and labels are read once each."""

    def __init__(self, string: _Lookup, frames: Mapping[int, Stack], columns: int) -> None:
        self._string = string
        self._frames = frames
        self._columns = columns
        self._stacks: dict[bytes, Stack] = {}
        self._labels: dict[bytes, tuple[str, str | int] | None] = {}
        self._longest = max(map(len, frames.values()), default=0)
        self._size = 0

    def read(self, body: bytes) -> tuple[Stack, Attributes, list[int]]:
        """Return one sample's stack, attributes, and values as the message has them."""
        packed: list[bytes] = []
        ids: list[int] = []
        values: list[int] = []
        held: dict[str, str | int] = {}
        for number, _, value in fields(body):
            if number == 3 and not isinstance(value, int):
                label = self._label(bytes(value))
                if label is not None:
                    held[label[0]] = label[1]
            elif number == 1:
                if isinstance(value, int):
                    ids.append(value)
                else:
                    packed.append(bytes(value))
            elif number == 2:
                values += [signed(item) for item in packed_varints(value)]
        if len(values) != self._columns:
            raise MalformedProfile(f"a sample has {len(values)} values, the profile {self._columns} types")
        key = packed[0] if len(packed) == 1 and not ids else None
        stack = None if key is None else self._stacks.get(key)
        if stack is None:
            for part in packed:
                ids += packed_varints(memoryview(part))
            stack = self._stack(ids)
            if key is not None:
                self._stacks[key] = stack
        return stack, Attributes(**held) if held else _NO_ATTRIBUTES, values  # type: ignore[arg-type]

    def _stack(self, ids: list[int]) -> Stack:
        if self._size + len(ids) * self._longest > MAX_FRAMES:
            raise MalformedProfile(f"the profile's stacks may have more than {MAX_FRAMES} frames")
        try:
            found = [self._frames[location_id] for location_id in ids]
        except KeyError as error:
            raise MalformedProfile(f"a sample names location {error}, which is not defined") from None
        stack = list(chain.from_iterable(found))
        self._size += len(stack)
        stack.reverse()
        return tuple(stack)

    def _label(self, body: bytes) -> tuple[str, str | int] | None:
        """Return a label's attribute and value; None for a label that is none of ours."""
        if body in self._labels:
            return self._labels[body]
        found = numbers(body)
        key = self._string(found.get(1, 0))
        shown = self._string(found.get(2, 0))
        label: tuple[str, str | int] | None = None
        if key in TEXT_ATTRIBUTES:
            label = (key, shown)
        elif key in ("pid", "slot"):
            # Stock clients send a pid as text.
            number = int(shown) if _is_number(shown) else signed(found.get(3, 0))
            label = ("pid" if key == "pid" else "slot_ns", number)
        self._labels[body] = label
        return label


_NO_ATTRIBUTES = Attributes()
