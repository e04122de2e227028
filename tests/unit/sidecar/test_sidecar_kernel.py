"""Names of kernel addresses, from the kernel's own list."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from quayscope.sidecar.native.kernel import KernelSymbols
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.stacks import Stacks
from unit.sidecar.grown import stack

BASE = 0xFFFF_FFFF_8100_0000


def listed(chance: random.Random, count: int, first: int, module: str = "") -> list[tuple[int, str]]:
    """Lines of a list, and their addresses: functions, data, aliases."""
    at, lines = first, []
    for number in range(count):
        at += chance.choice((0, 1, 16, 64, 4096))
        name = f"{chance.choice('fgh')}{number}" + "x" * chance.randrange(60)
        lines.append((at, f"{at:016x} {chance.choice('tTtTwWdDrA')} {name}{module}"))
    return lines


def truth(lines: list[tuple[int, str]], address: int) -> str:
    """The last function at or before an address."""
    found = [line for at, line in sorted(lines, key=lambda one: one[0]) if at <= address]
    named = [line for line in found if line.split()[1] in "tTwW"]
    return named[-1].split()[2] if named else "[kernel]"


@pytest.fixture
def symbols(tmp_path: Path) -> tuple[KernelSymbols, list[tuple[int, str]]]:
    chance = random.Random(1)
    core = listed(chance, 3_000, BASE)
    modules = listed(chance, 400, BASE + (1 << 30), "\t[module]")
    chance.shuffle(modules)
    # Of several names at one address the list's order decides, which is lost where it is sorted.
    modules = list({at: (at, line) for at, line in modules}.values())
    (tmp_path / "kallsyms").write_text("\n".join(line for _, line in core + modules) + "\n")
    return KernelSymbols(str(tmp_path / "kallsyms")), core + modules


def test_names_and_how_far_they_reach(symbols: tuple[KernelSymbols, list[tuple[int, str]]]) -> None:
    """Each address has the name of the last function before it, and so have all around it."""
    names, lines = symbols
    chance = random.Random(2)
    for _ in range(400):
        address = chance.choice(lines)[0] + chance.randrange(-20, 5_000)
        frame, start, end = names.around(address)
        assert frame.function == truth(lines, address)
        assert start <= address < end
        for near in (start, end - 1, chance.randrange(start, end)):
            assert truth(lines, near) == frame.function


@pytest.mark.parametrize("text", ["", "garbage\n\nmore", f"{0:016x} T hidden\n" * 500, "\n" * 9_000])
def test_without_names(tmp_path: Path, text: str) -> None:
    """Where there are none, or their addresses are hidden, one frame stands for all."""
    (tmp_path / "kallsyms").write_text(text)
    names = KernelSymbols(str(tmp_path / "kallsyms"))
    frame, start, end = names.around(BASE + 5)
    assert frame is KernelSymbols.UNNAMED
    assert start <= BASE + 5 < end


def test_stacks_of_the_kernel(symbols: tuple[KernelSymbols, list[tuple[int, str]]]) -> None:
    """All at once, and again from what is remembered; the program's own addresses lie beside them."""
    names, lines = symbols
    stacks = Stacks(Objects())
    stacks._kernel = names
    chance = random.Random(3)
    chains = [
        [chance.choice(lines)[0] + chance.randrange(64) for _ in range(chance.randrange(6))]
        for _ in range(200)
    ]
    for _ in range(2):
        found = stacks.kernels([stack(*chain) for chain in chains])
        assert [[frame.function for frame in frames] for frames in found] == [
            [truth(lines, address) for address in reversed(chain)] for chain in chains
        ]
        masked = stack(*[address & (1 << 47) - 1 for address in chains[1] or [5]])
        assert stacks.users([(AddressSpace(1, ()), masked, 1)]) == [((), False)]
