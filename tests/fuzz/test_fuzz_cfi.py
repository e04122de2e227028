"""Fuzzers of what reads call frame information and maps: 5 s each in CI, 10 minutes each with `--full`."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from dumps import Laid
from fuzz.driver import Input, fuzz
from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.lockstep import FEWEST
from quayscope.sidecar.native.maps import AddressSpace, Mapping, parse_maps
from quayscope.sidecar.native.stored import StoredRules
from quayscope.sidecar.native.unwind import MAX_FRAMES, CfiUnwinder
from unit.sidecar.assembled import Held

SOURCE = """
#include <alloca.h>
#include <string.h>
typedef double wide __attribute__((vector_size(64)));
int leaf(int n) { return n * 3; }
__attribute__((noinline)) int realigned(int n) {
  wide values[2] = {};
  char *bytes = alloca(n);
  memset(bytes, 1, n);
  return leaf(bytes[0]) + (int)values[1][n & 3];
}
int recurse(int n) { return n > 0 ? recurse(n - 1) + realigned(n) : 0; }
int main(int argc, char **argv) { return recurse(argc); }
"""
START, STACK = 0x55_0000_0000, 0x7FFF_0000_0000


@pytest.fixture
def seconds(full: bool) -> float:
    return 600.0 if full else 5.0


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Input]:
    """Small real objects: with `.eh_frame` and its table, without the table, with `.debug_frame` alone."""
    folder = tmp_path_factory.mktemp("objects")
    (folder / "main.c").write_text(SOURCE)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=folder, capture_output=True)

    run("gcc", "-O2", "-fomit-frame-pointer", "-Wl,--build-id", "-o", "full", "main.c")
    run("objcopy", "--remove-section=.eh_frame_hdr", "full", "bare")
    run("gcc", "-O1", "-g", "-fno-asynchronous-unwind-tables", "-o", "debug", "main.c")
    return [with_hot_places(folder / name) for name in ("full", "bare", "debug")]


def with_hot_places(path: Path) -> Input:
    data = path.read_bytes()
    elf = Elf(data)
    extents = [elf.section(name) for name in (".eh_frame", ".eh_frame_hdr", ".debug_frame")]
    return Input(data, tuple((found.offset, found.offset + found.size) for found in extents if found))


def unwinding(data: bytes) -> None:
    """Ask for the rule at many addresses, and walk stacks that are full of addresses of this object."""
    elf = Elf(data)
    unwinder = CfiUnwinder(Held(elf), cache=None)
    space = AddressSpace(1, [Mapping(START, START + 0x4000, 0, "/object")])
    chance = random.Random(len(data))
    code = [START + 0x1000 + chance.randrange(0x400) for _ in range(64)]
    words = [chance.choice((chance.choice(code), STACK + 8 * chance.randrange(512), 0)) for _ in range(512)]
    stack = struct.pack("<512Q", *words)
    samples = []
    alone = []
    for at in range(0x1000, 0x1400, 8):
        registers = [chance.choice(words) for _ in range(17)]
        registers[7], registers[16] = STACK, START + at
        found = unwinder.unwind(space, registers, stack)
        assert 1 <= len(found.addresses) <= MAX_FRAMES
        assert unwinder.unwind(space, registers, stack) == found
        samples.append((registers, stack))
        alone.append(found.packed())
        unwinder.unwind(space, [*registers, *registers[1:]], stack)
    laid = Laid(samples)
    assert len(samples) >= FEWEST
    for other in (unwinder, CfiUnwinder(Held(elf), cache=None)):
        assert other.unwind_all([(space, dump) for dump in laid.dumps]) == alone


def test_unwinding(objects: list[Input], seconds: float) -> None:
    """No object makes the unwinder crash, hang, or tell two tales of one stack."""
    outcome = fuzz(unwinding, objects, seconds=seconds, seed=11, allowed=(MalformedElf,))
    print(f"unwinding: {outcome.rounds} inputs, {outcome.refused} refused")
    assert outcome.rounds > 20
    assert outcome.refused < outcome.rounds


def test_maps(seconds: float) -> None:
    """No text of maps makes their reader crash or hang; what it finds is in order."""
    inputs = [Input(Path("/proc/self/maps").read_bytes())]

    def read(data: bytes) -> None:
        mappings = AddressSpace(1, parse_maps(data)).mappings
        assert all(mapping.start < mapping.end for mapping in mappings)
        assert sorted(mappings) == list(mappings)

    outcome = fuzz(read, inputs, seconds=seconds / 5, seed=12, allowed=())
    assert outcome.rounds > 20


def test_stored_rules(tmp_path: Path, seconds: float) -> None:
    """No file makes the reader of stored rules crash or hang; what it takes can be asked for."""
    build_id = "ab" * 20
    rules = StoredRules(tmp_path)
    rows = [(0, 0, 1, 0), (4, 1, 3, -2), (20, 5, 0, 0), (21, 8, 1, 11)]
    rules.save(build_id, 7, [(0x1000 + 64 * number, 64, rows) for number in range(20)])
    (path,) = tmp_path.iterdir()

    def load(data: bytes) -> None:
        path.write_bytes(data)
        stored = rules.load(build_id, 7)
        if stored is not None:
            for start in stored.starts:
                assert stored.function(start) is not None
                assert stored.row(start, 20) is not None

    outcome = fuzz(load, [Input(path.read_bytes())], seconds=seconds / 5, seed=13, allowed=())
    assert outcome.rounds > 20
    assert rules.corrupted > 0
