"""The fuzzer itself: it finds what is broken on purpose."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from fuzz.driver import FuzzFailure, Input, fuzz


@pytest.fixture(autouse=True)
def _failures_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fuzzer finds here is of no interest afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


START = [Input(b"0123456789abcdef", ((4, 8),))]


def test_finds_a_crash() -> None:
    """An exception that the reader does not declare fails, with what is needed to see it again."""

    def target(data: bytes) -> None:
        if data[4:5] != b"4":
            raise IndexError(data)

    with pytest.raises(FuzzFailure, match=r"IndexError.* seed 1, round 0, input in /"):
        fuzz(target, START, seconds=5, seed=1, allowed=(ValueError,))


def test_finds_a_hang() -> None:
    """A reader that does not come back is stopped."""

    def target(data: bytes) -> None:
        while data[4:8] != b"4567":
            pass

    with pytest.raises(FuzzFailure, match="2 s of CPU"):
        fuzz(target, START, seconds=5, seed=1, allowed=(ValueError,))


def test_finds_a_bomb() -> None:
    """A reader that takes what a broken length says is found, also where as much was in use before."""

    def target(data: bytes) -> None:
        if data[4:8] != b"4567":
            assert bytearray(b"\1") * (48 << 20)

    assert bytearray(b"\1") * (64 << 20)
    with pytest.raises(FuzzFailure, match="32 MB"):
        fuzz(target, START, seconds=5, seed=1, allowed=(ValueError,), memory_mb=32)


def test_counts_what_is_refused() -> None:
    """Declared errors are what a reader is to raise; the same seed gives the same inputs."""

    def run(seed: int) -> list[bytes]:
        seen: list[bytes] = []

        def target(data: bytes) -> None:
            seen.append(data)
            if not data.startswith(b"01234"):
                raise ValueError

        outcome = fuzz(target, START, seconds=0.05, seed=seed, allowed=(ValueError,))
        assert 0 < outcome.refused < outcome.rounds == len(seen) - 1
        return seen[:50]

    first, again, other = run(7), run(7), run(8)
    shared = min(len(first), len(again), len(other))
    assert first[:shared] == again[:shared] != other[:shared]
