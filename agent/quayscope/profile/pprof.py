"""Profiles as pprof: `encode` and `decode`.

Source of the format: google/pprof `proto/profile.proto`. How frame kinds, attributes and losses are
put into it is in docs/wire.md.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from quayscope.profile.errors import MalformedProfile, UnknownProfileType
from quayscope.profile.model import KINDS, Attributes, Frame, Losses, Profile, Stack
from quayscope.profile.protowire import (
    LENGTH,
    fields,
    packed_varints,
    put_bytes,
    put_packed,
    put_varint,
    signed,
    text,
)
from quayscope.profile.types import TYPES, ProfileType, ValueType, profile_type

__all__ = ["MAX_BYTES", "decode", "encode"]

MAX_BYTES = 64 << 20
"""Default bound of a profile's size when unpacked."""
COMPRESSION = 3
"""gzip level: 1 is hardly faster on these repetitive messages, 6 hardly smaller."""

_LOSS_COMMENT = "quayscope."
_TEXT_ATTRIBUTES = ("endpoint", "run", "phase", "span_id", "trace_id")
_KIND_OF_MAPPING = {f"[{kind}]": kind for kind in KINDS}


class _Strings:
    """The string table: index 0 is the empty string."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {"": 0}

    def __call__(self, value: str) -> int:
        return self.index.setdefault(value, len(self.index))


def encode(profile: Profile) -> bytes:
    """Return `profile` as a gzipped pprof message; the same profile gives the same bytes."""
    string = _Strings()
    out = bytearray()
    for column in profile.type.values:
        put_bytes(out, 1, _value_type(string, column))
    locations: dict[Frame, int] = {}
    pids: dict[int, bytes] = {}
    for (stack, attributes), values in profile.samples.items():
        sample = bytearray()
        ids = [locations.setdefault(frame, len(locations) + 1) for frame in reversed(stack)]
        put_packed(sample, 1, ids)
        put_packed(sample, 2, values)
        for label in _labels(string, attributes, pids):
            put_bytes(sample, 3, label)
        put_bytes(out, 2, sample)
    _put_frames(out, string, locations)
    put_varint(out, 9, profile.start_ns)
    put_varint(out, 10, profile.duration_ns)
    put_bytes(out, 11, _value_type(string, profile.type.period))
    put_varint(out, 12, profile.period)
    put_packed(
        out,
        13,
        [string(f"{_LOSS_COMMENT}{name}={count}") for name, count in vars(profile.losses).items() if count],
    )
    for value in string.index:
        put_bytes(out, 6, value.encode("utf-8", "replace"))
    return gzip.compress(bytes(out), COMPRESSION, mtime=0)


def _value_type(string: _Strings, value: ValueType) -> bytearray:
    out = bytearray()
    put_varint(out, 1, string(value.type))
    put_varint(out, 2, string(value.unit))
    return out


def _labels(string: _Strings, attributes: Attributes, memo: dict[int, bytes]) -> list[bytes]:
    labels: list[bytes] = []
    for name in _TEXT_ATTRIBUTES:
        value = getattr(attributes, name)
        if value:
            out = bytearray()
            put_varint(out, 1, string(name))
            put_varint(out, 2, string(value))
            labels.append(bytes(out))
    if attributes.pid:
        known = memo.get(attributes.pid)
        if known is None:
            known = memo[attributes.pid] = _number_label(string, "pid", attributes.pid, "")
        labels.append(known)
    if attributes.slot_ns:
        labels.append(_number_label(string, "slot", attributes.slot_ns, "nanoseconds"))
    return labels


def _number_label(string: _Strings, name: str, number: int, unit: str) -> bytes:
    out = bytearray()
    put_varint(out, 1, string(name))
    put_varint(out, 3, number)
    put_varint(out, 4, string(unit))
    return bytes(out)


def _put_frames(out: bytearray, string: _Strings, locations: Mapping[Frame, int]) -> None:
    mappings: dict[str, int] = {}
    functions: dict[tuple[str, str], int] = {}
    for frame, location_id in locations.items():
        mapping_id = mappings.setdefault(frame.kind, len(mappings) + 1)
        function_id = functions.setdefault((frame.function, frame.file), len(functions) + 1)
        line = bytearray()
        put_varint(line, 1, function_id)
        put_varint(line, 2, frame.line)
        location = bytearray()
        put_varint(location, 1, location_id)
        put_varint(location, 2, mapping_id)
        put_bytes(location, 4, line)
        put_bytes(out, 4, location)
    for kind, mapping_id in mappings.items():
        mapping = bytearray()
        put_varint(mapping, 1, mapping_id)
        put_varint(mapping, 5, string(f"[{kind}]"))
        put_varint(mapping, 7, 1)  # has_functions: nothing is left to symbolise
        put_bytes(out, 3, mapping)
    for (name, file), function_id in functions.items():
        function = bytearray()
        put_varint(function, 1, function_id)
        put_varint(function, 2, string(name))
        put_varint(function, 3, string(name))
        put_varint(function, 4, string(file))
        put_bytes(out, 5, function)


class _Message(NamedTuple):
    """A pprof message taken apart, its numbers not yet resolved."""

    value_types: list[memoryview]
    samples: list[memoryview]
    mappings: list[memoryview]
    locations: list[memoryview]
    functions: list[memoryview]
    strings: list[str]
    comments: list[int]
    numbers: dict[int, int]
    period_type: memoryview | None


def decode(
    data: bytes,
    labels: Mapping[str, str] | None = None,
    *,
    name: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Profile:
    """Read a pprof message, gzipped or not, as a profile with these series labels.

    `name` is the profile type's name (the push label `__name__`); without it the type is told from
    the sample types. Columns are matched by name; those the message lacks are 0, except that a CPU
    profile of sample counts alone gets cpu = samples x period, the only measure it has.
    Raises `MalformedProfile` and `UnknownProfileType`.
    """
    message = _take_apart(_unpack(data, max_bytes))
    string = _Lookup(message.strings)
    columns = [_read_value_type(string, view) for view in message.value_types]
    kind = profile_type(name) if name else _guess_type(columns)
    sources = _match_columns(kind, columns)
    period = signed(message.numbers.get(12, 0))
    profile = Profile(
        kind,
        dict(labels or {}),
        signed(message.numbers.get(9, 0)),
        signed(message.numbers.get(10, 0)),
        period,
        losses=_losses(string(index) for index in message.comments),
    )
    frames = _frames(message, string)
    counted_only = kind.name == "process_cpu" and sources[0] is not None and sources[1] is None
    memo: dict[tuple[int, ...], Stack] = {}
    for view in message.samples:
        ids, raw, attributes = _sample(view, string)
        if len(raw) != len(columns):
            raise MalformedProfile(
                f"a sample has {len(raw)} values where the profile has {len(columns)} types"
            )
        stack = memo.get(ids)
        if stack is None:
            stack = memo[ids] = _stack(ids, frames)
        values = [0 if source is None else raw[source] for source in sources]
        if counted_only:
            values[1] = values[0] * period
        profile.add(stack, attributes, tuple(values))
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
    message = _Message([], [], [], [], [], [], [], {}, None)
    parts = {1: message.value_types, 2: message.samples, 3: message.mappings, 4: message.locations}
    parts[5] = message.functions
    period_type: memoryview | None = None
    for number, wire, value in fields(data):
        if number in parts or number in (6, 11):
            if wire != LENGTH or isinstance(value, int):
                raise MalformedProfile(f"field {number} is not a message")
            if number == 6:
                message.strings.append(text(value))
            elif number == 11:
                period_type = value
            else:
                parts[number].append(value)
        elif number == 13:
            message.comments.extend(packed_varints(value))
        elif isinstance(value, int):
            message.numbers[number] = value
    if message.strings and message.strings[0] != "":
        raise MalformedProfile("the string table does not begin with the empty string")
    return message._replace(period_type=period_type)


class _Lookup:
    """Reads the string table; an index outside it is an error, not a crash."""

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings or [""]

    def __call__(self, index: int) -> str:
        if index >= len(self._strings):
            raise MalformedProfile(f"string {index} is outside the table of {len(self._strings)}")
        return self._strings[index]


def _numbers(view: memoryview) -> dict[int, int]:
    return {number: value for number, _, value in fields(view) if isinstance(value, int)}


def _read_value_type(string: _Lookup, view: memoryview) -> ValueType:
    found = _numbers(view)
    return ValueType(string(found.get(1, 0)), string(found.get(2, 0)))


def _guess_type(columns: list[ValueType]) -> ProfileType:
    for kind in TYPES.values():
        if any(column in kind.values for column in columns):
            return kind
    shown = ", ".join(f"{column.type}/{column.unit}" for column in columns) or "no sample types"
    raise UnknownProfileType(f"no registered profile type has {shown}")


def _match_columns(kind: ProfileType, columns: list[ValueType]) -> list[int | None]:
    sources = [columns.index(wanted) if wanted in columns else None for wanted in kind.values]
    if all(source is None for source in sources):
        shown = ", ".join(f"{column.type}/{column.unit}" for column in columns) or "none"
        raise UnknownProfileType(f"a {kind.name} profile with sample types {shown}")
    return sources


def _losses(comments: Iterable[str]) -> Losses:
    losses = Losses()
    for comment in comments:
        name, _, count = comment[len(_LOSS_COMMENT) :].partition("=")
        if comment.startswith(_LOSS_COMMENT) and hasattr(losses, name) and count.isdecimal():
            setattr(losses, name, int(count))
    return losses


def _frames(message: _Message, string: _Lookup) -> dict[int, Stack]:
    """Return each location's frames, root first: inlined calls make several of one location."""
    functions: dict[int, tuple[str, str]] = {}
    for view in message.functions:
        found = _numbers(view)
        functions[found.get(1, 0)] = (
            string(found.get(2, 0)) or string(found.get(3, 0)),
            string(found.get(4, 0)),
        )
    mappings: dict[int, str] = {}
    starts: dict[int, int] = {}
    for view in message.mappings:
        found = _numbers(view)
        mappings[found.get(1, 0)] = string(found.get(5, 0))
        starts[found.get(1, 0)] = found.get(2, 0) - found.get(4, 0)
    frames: dict[int, Stack] = {}
    for view in message.locations:
        location_id = mapping_id = address = 0
        lines: list[tuple[int, int]] = []
        for number, _, value in fields(view):
            if number == 4 and not isinstance(value, int):
                line = _numbers(value)
                lines.append((line.get(1, 0), line.get(2, 0)))
            elif isinstance(value, int):
                if number == 1:
                    location_id = value
                elif number == 2:
                    mapping_id = value
                elif number == 3:
                    address = value
        mapping = mappings.get(mapping_id, "")
        if lines:
            named = [(functions.get(function, ("", "")), signed(line)) for function, line in lines]
            frames[location_id] = tuple(
                Frame(name or "[unknown]", file, line, _kind(mapping, file))
                for (name, file), line in reversed(named)
            )
        else:
            frames[location_id] = (_unnamed(mapping, address, starts.get(mapping_id, 0)),)
    return frames


def _kind(mapping: str, file: str) -> str:
    return _KIND_OF_MAPPING.get(mapping) or ("python" if file.endswith(".py") else "native")


def _unnamed(mapping: str, address: int, start: int) -> Frame:
    base = mapping.rpartition("/")[2]
    name = f"{base}+{address - start:#x}" if base and address >= start else f"[{address:#x}]"
    return Frame(name, mapping, 0, "native")


def _stack(ids: tuple[int, ...], frames: Mapping[int, Stack]) -> Stack:
    stack: list[Frame] = []
    for location_id in reversed(ids):
        found = frames.get(location_id)
        if found is None:
            raise MalformedProfile(f"a sample names location {location_id}, which is not defined")
        stack += found
    return tuple(stack)


def _sample(view: memoryview, string: _Lookup) -> tuple[tuple[int, ...], list[int], Attributes]:
    ids: list[int] = []
    values: list[int] = []
    held: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for number, _, value in fields(view):
        if number == 1:
            ids += packed_varints(value)
        elif number == 2:
            values += [signed(item) for item in packed_varints(value)]
        elif number == 3 and not isinstance(value, int):
            label = _numbers(value)
            key = string(label.get(1, 0))
            if key in _TEXT_ATTRIBUTES:
                held[key] = string(label.get(2, 0))
            elif key in ("pid", "slot"):
                # Stock clients send a pid as text.
                shown = string(label.get(2, 0))
                numbers[key] = int(shown) if shown.isdecimal() else signed(label.get(3, 0))
    return tuple(ids), values, Attributes(numbers.get("slot", 0), pid=numbers.get("pid", 0), **held)
