"""A small fuzzer: real inputs, mutated by a seeded generator, against one reader.

`fuzz(target, inputs, seconds, seed, allowed)` calls the target until the time is up. It fails for any
exception but the allowed ones, for an input that takes more than 2 s of CPU, and for one that takes 256 MB of
memory (or as much as is said) more than there was before it. The failure names the seed and round, and where
the input was written.
"""

from __future__ import annotations

import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = ["FuzzFailure", "Input", "Outcome", "fuzz"]

HANG_S = 2.0
"""CPU seconds, so that a busy machine is no hang."""
MEMORY_MB = 256
_RESET_PEAK = "5"
"""What `/proc/self/clear_refs` takes for it: proc(5)."""
_NUMBERS = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
_LARGE = (*_NUMBERS, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 16)


class FuzzFailure(AssertionError):
    """A crash, a hang or a memory bomb; its text says how to see it again."""


class _Hang(BaseException):
    """Raised by the timer inside the target: a BaseException, so that no handler there takes it."""


@dataclass(frozen=True)
class Input:
    """Something to mutate; `hot` are (start, end) stretches that get nine mutations in ten."""

    data: bytes
    hot: tuple[tuple[int, int], ...] = ()


@dataclass
class Outcome:
    """What came of it: inputs tried, and how many of them were refused with an allowed error."""

    rounds: int = 0
    refused: int = 0


def fuzz(
    target: Callable[[bytes], object],
    inputs: Sequence[Input],
    *,
    seconds: float,
    seed: int,
    allowed: tuple[type[Exception], ...],
    memory_mb: int = MEMORY_MB,
) -> Outcome:
    """Run until `seconds` are over; the same seed gives the same inputs in the same order."""
    chance = random.Random(seed)
    outcome = Outcome()
    for start in inputs:
        # As they are, the inputs are good ones.
        target(start.data)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutate(chance, inputs)
        # What was used and given back before would hide as much.
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with _time_limit():
                target(data)
        except allowed:
            outcome.refused += 1
        except _Hang:
            raise _failure(f"more than {HANG_S:g} s of CPU", seed, outcome.rounds, data) from None
        except Exception as error:
            raise _failure(repr(error), seed, outcome.rounds, data) from error
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > before_kb + (memory_mb << 10):
            raise _failure(f"more than {memory_mb} MB of memory", seed, outcome.rounds, data)
        outcome.rounds += 1
    return outcome


@contextmanager
def _time_limit() -> Iterator[None]:
    def over(_signal: int, _frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _failure(what: str, seed: int, number: int, data: bytes) -> FuzzFailure:
    with tempfile.NamedTemporaryFile(prefix="quayscope-fuzz-", delete=False) as file:
        file.write(data)
    return FuzzFailure(f"{what}; seed {seed}, round {number}, input in {Path(file.name)}")


def mutate(chance: random.Random, inputs: Sequence[Input]) -> bytes:
    """Return one of the inputs with one to eight changes."""
    chosen = chance.choice(inputs)
    data = bytearray(chosen.data)
    for _ in range(1 << chance.randrange(4)):
        _change(chance, data, chosen, inputs)
    return bytes(data)


def _change(chance: random.Random, data: bytearray, chosen: Input, inputs: Sequence[Input]) -> None:
    at = _position(chance, data, chosen)
    what = chance.randrange(20)
    if what < 5:
        data[at : at + 1] = bytes([chance.randrange(256)])
    elif what < 7 and data:
        at = min(at, len(data) - 1)
        data[at] ^= 1 << chance.randrange(8)
    elif what < 15:
        width = chance.choice((1, 2, 4, 8))
        at -= at % width
        value = chance.choice(_LARGE) if chance.randrange(2) else _near(chance, data, at, width)
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    elif what < 16:
        del data[at : at + chance.randrange(1, 64)]
    elif what < 17:
        data[at:at] = data[at : at + chance.randrange(1, 64)]
    elif what < 18:
        other = chance.choice(inputs).data
        start = chance.randrange(len(other)) if other else 0
        piece = other[start : start + chance.randrange(1, 256)]
        data[at : at + len(piece)] = piece
    elif what < 19:
        data[at : at + 16] = chance.randbytes(16)
    else:
        del data[at:]


def _near(chance: random.Random, data: bytearray, at: int, width: int) -> int:
    """Return a number a little beside what is there: offsets and counts that are nearly right."""
    return int.from_bytes(data[at : at + width], "little") + chance.choice((-16, -8, -1, 1, 8, 16, len(data)))


def _position(chance: random.Random, data: bytearray, chosen: Input) -> int:
    if chosen.hot and chance.randrange(10):
        start, end = chance.choice(chosen.hot)
        return min(chance.randrange(start, max(end, start + 1)), len(data))
    return chance.randrange(len(data) + 1)
