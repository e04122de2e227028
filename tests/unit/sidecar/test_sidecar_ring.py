"""What rings hold: records as the kernel writes them, memory shared out of one budget."""

from __future__ import annotations

import os
import random
import struct

import pytest

from quayscope.sidecar.native.events import CHAIN, DUMP, Form
from quayscope.sidecar.native.records import Ended, Executed, Forked, Mapped, parse_sample, parse_task
from quayscope.sidecar.native.ring import BUDGET_BYTES, ENOUGH_BYTES, RingBudget
from quayscope.sidecar.native.sources import needs

KERNEL, USER = (1 << 64) - 128, (1 << 64) - 512
TRAILER = struct.pack("<IIQQ", 7, 8, 1_000, 42)


def header(kind: int, body: bytes, misc: int = 0) -> bytes:
    return struct.pack("<IHH", kind, misc, 8 + len(body)) + body


def packed(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}Q", *words)


def sample(form: Form, chain: tuple[int, ...], stack: bytes = b"", valid: int = 0, abi: int = 2) -> bytes:
    """A sample's record, laid out by hand."""
    body = struct.pack("<QIIQQ", 42, 7, 8, 1_000, 10_101_010)
    if form.counted:
        body += struct.pack("<Q", 123_456)
    body += struct.pack(f"<Q{len(chain)}Q", len(chain), *chain)
    if form.stack_bytes:
        body += struct.pack("<Q", abi)
        if abi:
            body += struct.pack("<17Q", *range(100, 117))
        body += struct.pack("<Q", len(stack)) + stack
        if stack:
            body += struct.pack("<Q", valid)
    return header(9, body)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="registers of x86-64")
def test_sample_with_dump() -> None:
    """Registers come in DWARF's order, of the stack what is valid, the kernel's part apart."""
    form = Form(32, counted=True)
    data = sample(form, (KERNEL, 1 << 63, (1 << 63) + 1), bytes(range(32)), 24)
    parsed = parse_sample(memoryview(data), 0, len(data), form)
    assert parsed is not None
    event, count, raw = parsed
    assert (event, count, raw.pid, raw.tid, raw.time_ns, raw.period_ns) == (
        42,
        123_456,
        7,
        8,
        1_000,
        10_101_010,
    )
    assert raw.kernel == packed(1 << 63, (1 << 63) + 1)
    assert raw.dump is not None
    # perf: ax bx cx dx si di bp sp ip r8...; DWARF: ax dx cx bx si di bp sp r8... ip.
    assert raw.dump.registers == (100, 103, 102, 101, 104, 105, 106, 107, *range(109, 117), 108)
    assert bytes(raw.dump.stack) == bytes(range(24))


def test_sample_with_chain() -> None:
    """The kernel's chain is split at its marks; a sample of nothing has neither part."""
    data = memoryview(sample(CHAIN, (KERNEL, 9, 8, USER, 3, 2, 1)))
    parsed = parse_sample(data, 0, len(data), CHAIN)
    assert parsed is not None
    assert (parsed.sample.kernel, parsed.sample.user) == (packed(9, 8), packed(3, 2, 1))
    data = memoryview(sample(CHAIN, ()))
    parsed = parse_sample(data, 0, len(data), CHAIN)
    assert parsed is not None
    assert (parsed.sample.kernel, parsed.sample.user, parsed.sample.dump) == (b"", b"", None)


def test_sample_of_no_user_memory() -> None:
    """A thread of the kernel has no registers and no stack to dump."""
    data = memoryview(sample(DUMP, (KERNEL, 9), abi=0))
    parsed = parse_sample(data, 0, len(data), DUMP)
    assert parsed is not None
    assert parsed.sample.dump is None


def test_hostile_samples() -> None:
    """Whatever bytes a record holds, it is read as a sample or refused; nothing beyond it is read."""
    form = Form(64, counted=True)
    good = sample(form, (KERNEL, 9, USER, 1), bytes(64), 64)
    chance = random.Random(1)
    outcomes = set()
    for _ in range(3_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(8, len(data))] = chance.choice((0, 1, 255, chance.randrange(256)))
        cut = data[: chance.choice((len(data), chance.randrange(8, len(data))))]
        parsed = parse_sample(memoryview(bytes(cut)), 0, len(cut), form)
        outcomes.add(parsed is None)
        if parsed is not None:
            assert parsed.sample.dump is None or len(parsed.sample.dump.stack) <= 64
            assert len(parsed.sample.kernel) + len(parsed.sample.user) <= len(cut)
    assert outcomes == {True, False}


def test_task_records() -> None:
    """Births, ends, programs and mappings, by the layouts of the kernel."""

    def parse(record: bytes) -> object:
        kind, misc, size = struct.unpack_from("<IHH", record)
        return parse_task(memoryview(record), 0, size, kind, misc)

    fork = struct.pack("<IIIIQ", 20, 10, 21, 11, 1_000) + TRAILER
    assert parse(header(7, fork)) == Forked(1_000, 42, 20, 10, 21, 11)
    assert parse(header(4, fork)) == Ended(1_000, 42, 20, 21)
    name = struct.pack("<II8s", 20, 20, b"new") + TRAILER
    assert parse(header(3, name, misc=1 << 13)) == Executed(1_000, 42, 20)
    assert parse(header(3, name)) is None
    mapping = (
        struct.pack("<IIQQQ24xII", 20, 20, 0x1000, 0x2000, 0x3000, 5, 2)
        + b"/lib/x.so\0\0\0\0\0\0\0"
        + TRAILER
    )
    assert parse(header(10, mapping)) == Mapped(1_000, 42, 20, 0x1000, 0x2000, 0x3000, "/lib/x.so", True)
    for kind in (3, 4, 7, 10):
        for size in range(0, 32, 8):
            assert parse(header(kind, bytes(size))) is None or size >= 24


@pytest.mark.parametrize(
    ("cpus", "size"),
    [
        (1, 8 << 20),
        (2, 8 << 20),
        (16, 2 << 20),
        (64, 512 << 10),
        (96, 512 << 10),
        (512, 128 << 10),
    ],
)
def test_budget(cpus: int, size: int) -> None:
    """A set of rings takes half of what is left, but enough a ring where there is enough."""
    budget = RingBudget()
    assert budget.take(cpus) == size
    assert size * cpus <= BUDGET_BYTES
    assert size >= ENOUGH_BYTES or cpus > 128
    second = budget.take(cpus)
    assert (size + second) * cpus <= BUDGET_BYTES or second == 4 << 10  # the least there is
    budget.give_back(second, cpus)
    budget.give_back(size, cpus)
    assert budget.take(cpus) == size


def test_needs() -> None:
    """The table in the docs."""
    budget = {cpus: RingBudget().take(cpus) for cpus in (2, 16, 64, 96)}
    table = {
        cpus: (needs(cpus, size, cgroups=1).descriptors, needs(cpus, size, tasks=201).descriptors)
        for cpus, size in budget.items()
    }
    assert table == {2: (7, 406), 16: (49, 3248), 64: (193, 12_992), 96: (289, 19_488)}
    locked = {
        cpus: needs(cpus, size).locked_bytes - cpus * os.sysconf("SC_PAGESIZE")
        for cpus, size in budget.items()
    }
    assert {cpus: size >> 20 for cpus, size in locked.items()} == {2: 16, 16: 32, 64: 32, 96: 48}
