"""The messages of `quayscope.control.v1.Control/Attach`, one bidirectional stream that a sidecar opens.

The schema is docs/control.proto. What a peer of another version sends beyond it is passed over, and told to
it where it was a command or a whole message: `Unknown` stands for those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Union

from quayscope.profile.errors import MalformedProfile
from quayscope.profile.protowire import (
    VARINT,
    fields,
    packed_varints,
    put_bytes,
    put_packed,
    put_text,
    put_varint,
    signed,
    text,
)

__all__ = [
    "ATTACH_METHOD",
    "KINDS",
    "SERVICE",
    "Answer",
    "CancelCapture",
    "Command",
    "FromCollector",
    "FromSidecar",
    "Heartbeat",
    "HeartbeatAnswer",
    "Part",
    "Register",
    "SetRate",
    "StartCapture",
    "Target",
    "Targets",
    "Unknown",
    "Welcome",
    "decode_from_collector",
    "decode_from_sidecar",
    "encode_from_collector",
    "encode_from_sidecar",
]

SERVICE = "quayscope.control.v1.Control"
ATTACH_METHOD = "Attach"
KINDS = ("python", "native", "postgres", "go", "memory")
"""What a capture can be made of; `all` is not sent: each process is captured by what suits it best."""
MAX_ITEMS = 4_096
"""Elements of one repeated field; a peer that sends more is refused."""
MAX_TEXT = 16_384
"""Bytes of one string."""


class Target(NamedTuple):
    """A process that a sidecar can capture. `kind`: python, postgres, go, other; `labels` are its series'."""

    pid: int = 0
    kind: str = ""
    labels: Mapping[str, str] = {}


class Register(NamedTuple):
    """The first message of a sidecar. `instance` is new with each start of it.

    `labels` are common to its targets (pod, namespace); `permitted` are the names of its capabilities;
    `kinds` are those of `KINDS` that it can capture.
    """

    instance: str = ""
    version: str = ""
    labels: Mapping[str, str] = {}
    targets: tuple[Target, ...] = ()
    permitted: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


class Targets(NamedTuple):
    """What there is to capture now; sent when it changed."""

    targets: tuple[Target, ...] = ()


class Heartbeat(NamedTuple):
    """Unix nanoseconds of the sidecar's clock when it was sent, and its best estimate so far.

    `offset_ns` is the collector's clock less the sidecar's; `round_trip_ns` 0: not estimated yet.
    """

    sent_ns: int = 0
    offset_ns: int = 0
    round_trip_ns: int = 0


class Answer(NamedTuple):
    """What became of a command. `status`: accepted, refused, unknown; `parts` are what will be delivered."""

    command: str = ""
    status: str = ""
    text: str = ""
    parts: tuple[Part, ...] = ()


class Part(NamedTuple):
    """One target's share of a capture: announced in an `Answer`, then delivered once.

    `number` tells the parts of one sidecar apart. `error` is why there is none, or why it is not whole;
    `started_ns` and `ended_ns` (the sidecar's clock, Unix nanoseconds) are when samples were taken;
    `profiles` are pprof messages, `types` their profile types, `samplers` what took them.
    """

    capture: str = ""
    number: int = 0
    target: Target = Target()
    kind: str = ""
    error: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    offset_ns: int = 0
    profiles: tuple[bytes, ...] = ()
    types: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()


class Welcome(NamedTuple):
    """The collector's first message: its version, and how often it wants to hear of the sidecar."""

    version: str = ""
    heartbeat_ms: int = 0


class HeartbeatAnswer(NamedTuple):
    """The heartbeat's own time, and when it came and was answered by the collector's clock."""

    sent_ns: int = 0
    received_ns: int = 0
    answered_ns: int = 0


class StartCapture(NamedTuple):
    """Take samples from `start_ns` (Unix nanoseconds, the collector's clock) for `duration_ns`.

    `labels` must be the target's, `pids` (none: any) its pid; `kinds` in order of preference; samples of
    other endpoints than `endpoint` are left out.
    """

    start_ns: int = 0
    duration_ns: int = 0
    hz: int = 0
    kinds: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    pids: tuple[int, ...] = ()
    endpoint: str = ""


class CancelCapture(NamedTuple):
    """End a capture now; its parts are delivered as far as they got."""

    capture: str = ""


class SetRate(NamedTuple):
    """Sample workers with an agent at `hz` (0: their own), or not; `seconds` 0: until told otherwise."""

    hz: int = 0
    off: bool = False
    seconds: int = 0


class Unknown(NamedTuple):
    """A message or command that this version does not know: the number of its field, 0 where it had none."""

    number: int = 0


class Command(NamedTuple):
    """Something to do; `id` comes back in the answer, and names a capture."""

    id: str = ""
    body: StartCapture | CancelCapture | SetRate | Unknown = Unknown()


FromSidecar = Union[Register, Heartbeat, Answer, Part, Targets, Unknown]
FromCollector = Union[Welcome, HeartbeatAnswer, Command, Answer, Unknown]

_TEXT, _INT, _SIGNED, _BOOL, _MAP, _TEXTS, _INTS, _BLOBS = range(8)
_Form = Union[int, type, "list[type]"]
"""One of the above; or a message class: one message; or it in a list: any number of them."""

_FIELDS: dict[type, dict[int, tuple[str, _Form]]] = {
    Target: {1: ("pid", _INT), 2: ("kind", _TEXT), 3: ("labels", _MAP)},
    Register: {
        1: ("instance", _TEXT),
        2: ("version", _TEXT),
        3: ("labels", _MAP),
        4: ("targets", [Target]),
        5: ("permitted", _TEXTS),
        6: ("kinds", _TEXTS),
    },
    Targets: {1: ("targets", [Target])},
    Heartbeat: {1: ("sent_ns", _INT), 2: ("offset_ns", _SIGNED), 3: ("round_trip_ns", _INT)},
    Part: {
        1: ("capture", _TEXT),
        2: ("number", _INT),
        3: ("target", Target),
        4: ("kind", _TEXT),
        5: ("error", _TEXT),
        6: ("started_ns", _INT),
        7: ("ended_ns", _INT),
        8: ("offset_ns", _SIGNED),
        9: ("profiles", _BLOBS),
        10: ("types", _TEXTS),
        11: ("samplers", _TEXTS),
    },
    Answer: {1: ("command", _TEXT), 2: ("status", _TEXT), 3: ("text", _TEXT), 4: ("parts", [Part])},
    Welcome: {1: ("version", _TEXT), 2: ("heartbeat_ms", _INT)},
    HeartbeatAnswer: {1: ("sent_ns", _INT), 2: ("received_ns", _INT), 3: ("answered_ns", _INT)},
    StartCapture: {
        1: ("start_ns", _INT),
        2: ("duration_ns", _INT),
        3: ("hz", _INT),
        4: ("kinds", _TEXTS),
        5: ("labels", _MAP),
        6: ("pids", _INTS),
        7: ("endpoint", _TEXT),
    },
    CancelCapture: {1: ("capture", _TEXT)},
    SetRate: {1: ("hz", _INT), 2: ("off", _BOOL), 3: ("seconds", _INT)},
}
_SIDECAR_SAYS: dict[int, type] = {1: Register, 2: Heartbeat, 3: Answer, 4: Part, 5: Targets}
_COLLECTOR_SAYS: dict[int, type] = {1: Welcome, 2: HeartbeatAnswer, 3: Command, 4: Answer}
_COMMANDS: dict[int, type] = {2: StartCapture, 3: CancelCapture, 4: SetRate}
_NUMBERS = (_INT, _SIGNED, _BOOL)


def encode_from_sidecar(message: FromSidecar) -> bytes:
    """Return what a sidecar says; raises TypeError for what it does not say."""
    return bytes(_wrapped(message, _SIDECAR_SAYS))


def encode_from_collector(message: FromCollector) -> bytes:
    """Return what the collector says; raises TypeError for what it does not say."""
    return bytes(_wrapped(message, _COLLECTOR_SAYS))


def decode_from_sidecar(data: bytes) -> FromSidecar:
    """Read what a sidecar said; raises `MalformedProfile`."""
    said: FromSidecar = _unwrapped(data, _SIDECAR_SAYS)
    return said


def decode_from_collector(data: bytes) -> FromCollector:
    """Read what the collector said; raises `MalformedProfile`."""
    said: FromCollector = _unwrapped(data, _COLLECTOR_SAYS)
    return said


def _wrapped(message: Any, table: Mapping[int, type]) -> bytearray:
    out = bytearray()
    for number, kind in table.items():
        if isinstance(message, kind):
            put_bytes(out, number, _command(message) if kind is Command else _body(message))
            return out
    raise TypeError(f"{type(message).__name__} is not said here")


def _unwrapped(data: bytes | memoryview, table: Mapping[int, type]) -> Any:
    unknown = 0
    for number, _, value in fields(data):
        kind = table.get(number)
        if kind is not None and isinstance(value, memoryview):
            return _read_command(value) if kind is Command else _read(kind, value)
        unknown = unknown or number
    return Unknown(unknown)


def _command(message: Any) -> bytearray:
    out = bytearray()
    put_text(out, 1, message.id)
    out += _wrapped(message.body, _COMMANDS)
    return out


def _read_command(data: memoryview) -> Command:
    name = ""
    body: Any = Unknown()
    for number, _, value in fields(data):
        if number == 1:
            name = _text(value)
        elif number in _COMMANDS and isinstance(value, memoryview):
            body = _read(_COMMANDS[number], value)
        elif body == Unknown():
            body = Unknown(number)
    return Command(name, body)


def _body(message: Any) -> bytearray:
    out = bytearray()
    for number, (name, form) in _FIELDS[type(message)].items():
        value = getattr(message, name)
        if form == _TEXT:
            put_text(out, number, value)
        elif form in _NUMBERS:
            put_varint(out, number, int(value))
        elif form == _MAP:
            for pair in value.items():
                entry = bytearray()
                put_text(entry, 1, pair[0])
                put_text(entry, 2, pair[1])
                put_bytes(out, number, entry)
        elif form == _INTS:
            put_packed(out, number, value)
        elif isinstance(form, type):
            put_bytes(out, number, _body(value))
        else:
            for one in value:
                if form == _TEXTS:
                    put_bytes(out, number, one.encode("utf-8", "replace"))
                else:
                    put_bytes(out, number, one if form == _BLOBS else _body(one))
    return out


def _read(kind: type, data: memoryview) -> Any:
    known = _FIELDS[kind]
    found: dict[str, Any] = {}
    for number, wire, value in fields(data):
        if number not in known:
            continue
        name, form = known[number]
        if form != _INTS and (wire == VARINT) != (form in _NUMBERS):
            raise MalformedProfile(f"field {number} of {kind.__name__} has wire type {wire}")
        if form == _INTS:
            _more(found, name, packed_varints(value))
        elif isinstance(value, int):
            found[name] = signed(value) if form == _SIGNED else bool(value) if form == _BOOL else value
        elif form == _TEXT:
            found[name] = _text(value)
        elif form == _MAP:
            pair = {part: _text(content) for part, _, content in fields(value)}
            labels = found.setdefault(name, {})
            labels[pair.get(1, "")] = pair.get(2, "")
            _check_size(labels)
        elif isinstance(form, type):
            found[name] = _read(form, value)
        elif isinstance(form, list):
            _more(found, name, [_read(form[0], value)])
        else:
            _more(found, name, [_text(value) if form == _TEXTS else bytes(value)])
    return kind(**{name: tuple(held) if isinstance(held, list) else held for name, held in found.items()})


def _more(found: dict[str, Any], name: str, items: list[Any]) -> None:
    held = found.setdefault(name, [])
    held += items
    _check_size(held)


def _check_size(held: list[Any] | dict[str, str]) -> None:
    if len(held) > MAX_ITEMS:
        raise MalformedProfile(f"more than {MAX_ITEMS} elements")


def _text(value: int | memoryview) -> str:
    if isinstance(value, memoryview) and len(value) > MAX_TEXT:
        raise MalformedProfile(f"a string of {len(value)} bytes")
    return text(value)
