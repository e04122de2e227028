"""Walks together: each stack as the walk alone finds it, whatever lies on it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dumps import Laid
from quayscope.sidecar.native import unwind
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.lockstep import FEWEST
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.ranges import LIMIT, Ranges, tag
from quayscope.sidecar.native.unwind import CfiUnwinder
from unit.sidecar.assembled import BASE, CODE, TABLES, Mapped, object_of
from unit.sidecar.grown import (
    BY_RBX,
    FUNCTIONS,
    HALF,
    ROOT,
    SAVES_RBX,
    SPACE,
    STACK,
    frame,
    grow,
    registers,
    stack,
)

_GARBAGE = (0, 1, 7, STACK, STACK + 3, STACK - 64, LIMIT, (1 << 64) - 1, 1 << 63, 0xFFFF_FFFF_8100_0000)

Given = tuple[AddressSpace, Sequence[int], bytes]


@pytest.fixture
def program() -> Elf:
    return object_of(FUNCTIONS)


def spoiled(chance: random.Random, words: list[int], shift: int) -> list[int]:
    """Return a stack with some words changed."""
    for _ in range(chance.randrange(1, 3)):
        spot = chance.randrange(len(words))
        kind = chance.randrange(4)
        if kind == 0:
            words[spot] = chance.choice(_GARBAGE)
        elif kind == 1:
            words[spot] = chance.choice((BY_RBX, SAVES_RBX, HALF)) + 9 + shift
        elif kind == 2:
            del words[spot:]
        else:
            words[spot] = STACK + 8 * chance.randrange(len(words))
        if not words:
            words.append(0)
    return words


def samples(chance: random.Random, count: int, layouts: int, spoil: float) -> list[Given]:
    """Return samples of several layouts of the program, a share of them spoiled."""
    shifts = [0, *(0x10000 * chance.randrange(1, 1 << 20) for _ in range(layouts - 1))]
    trunks = [grow(chance, chance.randrange(2, 40)) for _ in range(20)]
    made: list[Given] = []
    for _ in range(count):
        shift = chance.choice(shifts)
        words, bp, addresses = chance.choice(trunks)
        moved = [word + shift if BASE <= word < BASE + 0x4000 else word for word in words]
        pc, sp = addresses[0] + shift, STACK
        if chance.random() < spoil:
            moved = spoiled(chance, moved, shift)
            bp = chance.choice((bp, bp, 0, *_GARBAGE))
            pc = chance.choice((pc, pc, pc, BY_RBX + shift, *_GARBAGE))
            sp = chance.choice((sp, sp, sp, sp + 4))
        space = (
            AddressSpace(1, [Mapping(BASE + shift, BASE + shift + 0x4000, 0, "/program")]) if shift else SPACE
        )
        made.append((space, registers(pc, sp=sp, bp=bp), stack(*moved) + bytes(chance.choice((0, 0, 3)))))
    return made


def check(program: Elf, together: CfiUnwinder, given: list[Given]) -> int:
    """Compare with walks alone; returns how many were walked together."""
    alone = CfiUnwinder(Mapped(program=program), cache=None)
    walked_alone = 0
    walk = together.unwind

    def counted(*arguments: object) -> object:
        nonlocal walked_alone
        walked_alone += 1
        return walk(*arguments)  # type: ignore[arg-type] # as it is called

    together.unwind = counted  # type: ignore[method-assign, assignment] # counts
    laid = Laid((first, dump) for _, first, dump in given)
    found = together.unwind_all([(one[0], dump) for one, dump in zip(given, laid.dumps, strict=True)])
    together.unwind = walk  # type: ignore[method-assign] # as it was
    assert found == [alone.unwind(*one).packed() for one in given]
    assert together.ends == alone.ends
    together.ends.clear()
    return len(given) - walked_alone


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="walks of x86-64")
@pytest.mark.parametrize("seed", range(3))
def test_true_stacks_are_walked_together(program: Elf, seed: int) -> None:
    """Every stack to its root, of several layouts at once, the second time by what the first has learned."""
    chance = random.Random(seed)
    together = CfiUnwinder(Mapped(program=program), cache=None)
    for _ in range(3):
        given = samples(chance, 400, 5, spoil=0.0)
        assert check(program, together, given) == len(given)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="walks of x86-64")
@pytest.mark.parametrize("seed", range(8))
def test_spoiled_stacks_end_as_they_do_alone(program: Elf, seed: int) -> None:
    """Garbage, cut and looping stacks, odd registers, rules by other registers: all as alone."""
    chance = random.Random(seed)
    together = CfiUnwinder(Mapped(program=program), cache=None)
    for _ in range(3):
        given = samples(chance, 1_300, 3, spoil=0.7)
        assert check(program, together, given) > len(given) // 4


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="walks of x86-64")
@pytest.mark.parametrize("spoil", ["overlapping", "rows behind the end", "segments"])
def test_objects_that_contradict_themselves(tmp_path: Path, spoil: str) -> None:
    """A rule holds for no address together that it does not hold for alone, in a second start either."""
    functions = list(FUNCTIONS)
    if spoil == "overlapping":
        functions[4] = (CODE + 0x100, 0x1000, ROOT)
    elif spoil == "rows behind the end":
        # The second row begins 0x48 bytes on, where the function has but 0x10.
        functions[7] = (CODE + 0x1C0, 0x10, frame(1) + b"\x02\x48" + frame(2))
    found = object_of(functions, build_id=b"contradiction")
    if spoil == "segments":
        (whole,) = found.segments
        found.segments = [
            whole._replace(offset=CODE + 0x60, address=CODE + 0x60, size=0x30),
            whole._replace(size=CODE + 0x120),
            whole._replace(offset=TABLES, address=TABLES),
        ]
    chance = random.Random(5)
    for _ in range(2):
        together = CfiUnwinder(Mapped(program=found), cache=tmp_path)
        for _ in range(3):
            given = samples(chance, 400, 3, spoil=0.1)
            for number, (space, first, dump) in enumerate(given):
                if number % 4 == 0:
                    # Anywhere in its code, and behind it.
                    pc = space.mappings[0].start + CODE + chance.randrange(0x280)
                    given[number] = (space, (*first[:16], pc), dump)
            check(found, together, given)
        together.close()
        assert list(tmp_path.iterdir())


def test_few_are_walked_alone(program: Elf) -> None:
    """Where it is not worth it."""
    chance = random.Random(1)
    given = samples(chance, FEWEST - 1, 1, spoil=0.0)
    assert check(program, CfiUnwinder(Mapped(program=program), cache=None), given) == 0


def test_layouts_without_number(program: Elf, monkeypatch: pytest.MonkeyPatch) -> None:
    """When all numbers of layouts are given, they begin anew, and no rule is another layout's."""
    monkeypatch.setattr(unwind, "MOST_TAGS", 450)
    together = CfiUnwinder(Mapped(program=program), cache=None)
    chance = random.Random(2)
    for _ in range(40):
        check(program, together, samples(chance, 150, 30, spoil=0.3))
    assert together._numbers < 450


def test_rules_forgotten_on_the_way(program: Elf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where so many are learned that all are dropped in the middle of a walk, it goes on with its own."""
    monkeypatch.setattr(unwind, "_MAX_RULES", 256)
    together = CfiUnwinder(Mapped(program=program), cache=None)
    chance = random.Random(3)
    for _ in range(20):
        check(program, together, samples(chance, 200, 20, spoil=0.3))


def test_stretches() -> None:
    """The number of the stretch that an address lies in; none between them, before, behind; tags apart."""
    chance = random.Random(4)
    ranges = Ranges()
    truth: dict[int, int] = {}
    for number in range(1, 300):
        start = tag(chance.randrange(3)) + 16 * chance.randrange(400)
        size = chance.randrange(1, 16)
        if start not in truth:
            truth.update((start + step, number) for step in range(size))
        ranges.add(start, start + size, number)
        if chance.randrange(3) == 0:
            asked = [tag(chance.randrange(3)) + chance.randrange(7_000) for _ in range(50)]
            found = ranges.find(np.array(asked, np.int64)).tolist()
            assert found == [truth.get(address, 0) for address in asked]


def test_stretches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the most, what was added last is kept."""
    monkeypatch.setattr("quayscope.sidecar.native.ranges._MOST", 100)
    ranges = Ranges()
    for number in range(1, 1_000):
        ranges.add(number * 16, number * 16 + 4, number)
        assert ranges.find(np.array([number * 16 + 3], np.int64)).tolist() == [number]
        assert len(ranges) <= 101
