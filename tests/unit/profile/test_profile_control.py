"""The control messages: what is said arrives, what is unknown is named, what is broken is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.profile import MalformedProfile
from quayscope.profile.control import (
    Answer,
    CancelCapture,
    Command,
    FromCollector,
    FromSidecar,
    Heartbeat,
    HeartbeatAnswer,
    Part,
    Register,
    SetRate,
    StartCapture,
    Target,
    Targets,
    Unknown,
    Welcome,
    decode_from_collector,
    decode_from_sidecar,
    encode_from_collector,
    encode_from_sidecar,
)
from quayscope.profile.protowire import put_bytes, put_text, put_varint

TARGET = Target(7, "python", {"service_name": "quay-app", "role": "web", "empty": ""})
PART = Part("c1", 3, TARGET, "python", "gone", 5, 9, -3_000_000_000, (b"\x1f\x8b", b""), ("block",), ("go",))


@pytest.mark.parametrize(
    "message",
    [
        Register("i", "0.1", {"pod": "p"}, (TARGET, Target(8)), ("perf_user",), ("python", "go")),
        Heartbeat(1_767_225_600_000_000_000, -3_000_000_000, 250_000),
        Answer("c1", "accepted", "é", (PART, Part())),
        PART,
        Targets((TARGET,)),
        Targets(),
    ],
)
def test_what_a_sidecar_says_arrives(message: FromSidecar) -> None:
    """Every field, negative offsets and empty ones too."""
    assert decode_from_sidecar(encode_from_sidecar(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Welcome("0.2", 1000),
        HeartbeatAnswer(1, 2, 3),
        Command(
            "c1", StartCapture(1 << 60, 10**10, 99, ("python",), {"pod": "p"}, (1, 300, 70_000), "GET /x")
        ),
        Command("c2", CancelCapture("c1")),
        Command("c3", SetRate(0, True, 60)),
        Answer("", "unknown", "message 9"),
    ],
)
def test_what_the_collector_says_arrives(message: FromCollector) -> None:
    """Commands with their id, whatever their body."""
    assert decode_from_collector(encode_from_collector(message)) == message


def test_a_newer_peer_is_understood_as_far_as_possible() -> None:
    """Unknown fields are passed over, an unknown message or command is named by its number."""
    body = bytearray()
    put_text(body, 1, "0.9")
    put_varint(body, 2, 500)
    put_varint(body, 77, 1)
    put_text(body, 78, "new")
    message = bytearray()
    put_bytes(message, 1, body)
    assert decode_from_collector(bytes(message)) == Welcome("0.9", 500)
    command = bytearray()
    put_bytes(command, 9, b"whatever")
    put_text(command, 1, "c7")
    message = bytearray()
    put_bytes(message, 3, command)
    assert decode_from_collector(bytes(message)) == Command("c7", Unknown(9))
    message = bytearray()
    put_bytes(message, 12, b"")
    assert decode_from_sidecar(bytes(message)) == Unknown(12)
    assert decode_from_sidecar(b"") == Unknown(0)


def test_too_much_is_refused() -> None:
    """Lists and strings have bounds, whatever the size of a message."""
    with pytest.raises(MalformedProfile, match="elements"):
        decode_from_sidecar(encode_from_sidecar(Register(kinds=("",) * 5000)))
    with pytest.raises(MalformedProfile, match="elements"):
        decode_from_sidecar(encode_from_sidecar(Register(labels={str(n): "" for n in range(5000)})))
    with pytest.raises(MalformedProfile, match="string"):
        decode_from_sidecar(encode_from_sidecar(Register("x" * 20_000)))
    with pytest.raises(TypeError):
        encode_from_sidecar(Unknown(3))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    """Nothing else is ever raised."""
    for decode in (decode_from_sidecar, decode_from_collector):
        try:
            said: Any = decode(data)
        except MalformedProfile:
            continue
        assert isinstance(said, tuple)


@given(st.sampled_from([1, 2, 3, 4, 5]), st.binary(max_size=60))
def test_any_body_is_a_message_or_malformed(number: int, body: bytes) -> None:
    """Nor behind a known number."""
    message = bytearray()
    put_bytes(message, number, body)
    for decode in (decode_from_sidecar, decode_from_collector):
        try:
            decode(bytes(message))
        except MalformedProfile:
            continue
