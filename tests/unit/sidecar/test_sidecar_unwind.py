"""The unwinder on stacks made by hand: what ends them, what must not be believed, what is remembered."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from quayscope.sidecar.native import unwind
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.samples import Unwound
from quayscope.sidecar.native.stored import StoredRules
from quayscope.sidecar.native.unwind import MAX_FRAMES, CfiUnwinder
from unit.sidecar.assembled import BASE, CODE, Mapped, cie, object_of, sleb, space_of, uleb
from unit.sidecar.grown import (
    BASED,
    BY_RBX,
    FUNCTIONS,
    HALF,
    LEAF,
    OUTERMOST,
    PLAIN,
    SAVES,
    SAVES_RBX,
    SPACE,
    STACK,
    frame,
    grow,
    registers,
    stack,
)


@pytest.fixture(scope="module")
def program() -> Elf:
    return object_of(FUNCTIONS)


@pytest.fixture
def unwinder(program: Elf) -> CfiUnwinder:
    return CfiUnwinder(Mapped(program=program), cache=None)


def test_to_the_root(unwinder: CfiUnwinder) -> None:
    """Frames by the stack pointer and by a frame pointer that was saved before, to the outermost one."""
    words = [PLAIN + 9]  # of the leaf
    words += [1, 2, 3, SAVES + 9]  # of plain
    words += [5, STACK + 0x48, BASED + 9]  # of saves: what it saved is where based's frame is
    words += [0, 0, OUTERMOST + 9]
    words[9:] = [77, OUTERMOST + 9]
    found = unwinder.unwind(SPACE, registers(LEAF + 4), stack(*words))
    assert found == Unwound((LEAF + 4, PLAIN + 8, SAVES + 8, BASED + 8, OUTERMOST + 8), "root")
    assert unwinder.ends == {"root": 1}


def test_again_and_with_another_word(unwinder: CfiUnwinder) -> None:
    """A stack seen before is the same; with one return address changed it is not."""
    words = [PLAIN + 9, 1, 2, 3, PLAIN + 17, 4, 5, 6, OUTERMOST + 9]
    first = unwinder.unwind(SPACE, registers(LEAF), stack(*words))
    assert unwinder.unwind(SPACE, registers(LEAF), stack(*words)) == first
    words[4] = PLAIN + 25
    other = unwinder.unwind(SPACE, registers(LEAF), stack(*words))
    assert other.addresses == (*first.addresses[:2], PLAIN + 24, *first.addresses[3:])


@pytest.mark.parametrize("seed", range(4))
def test_what_is_remembered_is_true(program: Elf, seed: int) -> None:
    """On thousands of random stacks that share their parts an unwinder that remembers is right each time."""
    chance = random.Random(seed)
    unwinder = CfiUnwinder(Mapped(program=program), cache=None)
    trunks = [grow(chance, chance.randrange(2, 30)) for _ in range(30)]
    for _ in range(2000):
        words, bp, addresses = chance.choice(trunks)
        words = list(words)
        expected = list(addresses)
        if chance.randrange(2):
            # The same but for one return address, to another place of the same function.
            number = chance.randrange(1, len(expected))
            spot = next(i for i, word in enumerate(words) if word == expected[number] + 1)
            if words.count(expected[number] + 1) == 1:
                words[spot] ^= 1
                expected[number] = words[spot] - 1
        for spot, word in enumerate(words):
            if word < 1 << 36:
                words[spot] = chance.randrange(1 << 36)
        found = unwinder.unwind(
            SPACE, registers(addresses[0], bp=bp), stack(*words, *([9] * chance.randrange(4)))
        )
        assert found == Unwound(tuple(expected), "root")


@pytest.mark.parametrize("size", range(9))
def test_a_dump_that_is_too_short(unwinder: CfiUnwinder, size: int) -> None:
    """The stack ends where the dump does, with what was found, also when the whole was seen before."""
    words = [PLAIN + 9, 1, 2, 3, PLAIN + 17, 4, 5, 6, OUTERMOST + 9]
    for _ in range(2):
        found = unwinder.unwind(SPACE, registers(LEAF), stack(*words[:size]))
        assert found.end == "dump"
        assert len(found.addresses) == 1 + (size > 0) + (size > 4)
        assert unwinder.unwind(SPACE, registers(LEAF), stack(*words)).end == "root"


@pytest.mark.parametrize("length", [0, 1, 7, 9, 71])
def test_a_dump_of_odd_length(unwinder: CfiUnwinder, length: int) -> None:
    """Bytes that are no whole word are passed over; a memoryview does as well as bytes."""
    words = stack(PLAIN + 9, 1, 2, 3, PLAIN + 17, 4, 5, 6, OUTERMOST + 9)[:length]
    found = unwinder.unwind(SPACE, registers(LEAF), memoryview(words))
    assert found == unwinder.unwind(SPACE, registers(LEAF), words)
    assert found.end == "dump"


def test_an_address_in_no_mapping(unwinder: CfiUnwinder) -> None:
    """It is no frame, unless the program is there itself."""
    assert unwinder.unwind(SPACE, registers(LEAF), stack(0x1234, 0)) == Unwound((LEAF,), "unmapped")
    assert unwinder.unwind(SPACE, registers(0x1234), stack(0, 0)) == Unwound((0x1234,), "unmapped")


def test_a_return_address_of_nothing_is_a_root(unwinder: CfiUnwinder) -> None:
    """Threads of libraries that say nothing of their start have a zero there."""
    assert unwinder.unwind(SPACE, registers(LEAF), stack(0, 1)) == Unwound((LEAF,), "root")


@pytest.mark.parametrize("bp", [STACK - 64, STACK, STACK + 1, STACK + 0x2003, 8, (1 << 64) - 8, 0])
def test_a_frame_pointer_that_cannot_be(unwinder: CfiUnwinder, bp: int) -> None:
    """One that points below, nowhere, or not to a word ends the stack; it does not go round."""
    found = unwinder.unwind(SPACE, registers(BASED + 4, bp=bp), stack(*[BASED + 9, STACK] * 100))
    assert found.end in ("memory", "dump", "unmapped")
    assert len(found.addresses) < MAX_FRAMES


def test_a_loop_of_frame_pointers(unwinder: CfiUnwinder) -> None:
    """A saved frame pointer that points to itself is a word that cannot be."""
    found = unwinder.unwind(SPACE, registers(BASED, bp=STACK + 16), stack(0, 0, STACK + 16, BASED + 9, 0, 0))
    assert found == Unwound((BASED, BASED + 8), "memory")


def test_the_most_frames(unwinder: CfiUnwinder) -> None:
    """A recursion without end is cut off, the same when it was seen before."""
    words = stack(*[PLAIN + 9, 1, 2, 3] * 400)
    for _ in range(3):
        found = unwinder.unwind(SPACE, registers(LEAF), words)
        assert found.end == "limit"
        assert len(found.addresses) == MAX_FRAMES


def test_registers_by_name(unwinder: CfiUnwinder) -> None:
    """A frame found through a register that a caller of its caller saved is found as well."""
    words = [BY_RBX + 9]  # of the leaf
    words += [0] * 3 + [STACK + 0x50, OUTERMOST + 9]
    found = unwinder.unwind(SPACE, registers(LEAF, rbx=STACK + 0x20), stack(*words))
    assert found == Unwound((LEAF, BY_RBX + 8, OUTERMOST + 8), "root")
    words = [0, 0, 0, STACK + 0x60, 0, BY_RBX + 9]  # saves rbx
    words += [0] * 6 + [0, OUTERMOST + 17]
    found = unwinder.unwind(SPACE, registers(SAVES_RBX, rbx=3), stack(*words))
    assert found == Unwound((SAVES_RBX, BY_RBX + 8, OUTERMOST + 16), "root")


def test_a_stack_pointer_that_is_not_aligned(unwinder: CfiUnwinder) -> None:
    """Assembly may have pushed half a word: the words are read where they are."""
    words = bytes(4) + stack(PLAIN + 9, 1, 2, 3, OUTERMOST + 9) + bytes(4)
    found = unwinder.unwind(SPACE, registers(HALF, sp=STACK + 4), words)
    assert found == Unwound((HALF, PLAIN + 8, OUTERMOST + 8), "root")


def test_a_signal_frame() -> None:
    """What a signal interrupted made no call: its address stays as it is; so does one on another stack."""
    where = [
        b"\x10" + uleb(number) + b"\x02\x77" + sleb(place * 8) for number, place in ((6, 2), (16, 3), (7, 4))
    ]
    trampoline = b"\x0f\x03\x77" + sleb(32) + b"\x06" + b"".join(where)
    program = object_of(FUNCTIONS)
    unwinder = CfiUnwinder(
        Mapped(program=program, signals=object_of([(CODE, 0x40, trampoline)], cie(augmentation=b"zRS"))),
        cache=None,
    )
    space = space_of("program", "signals")
    returns = BASE + (1 << 24) + CODE
    words = [returns + 1, 7, 7, 0, PLAIN, STACK + 8 * 8, 0, 0]
    words += [1, 2, 3, OUTERMOST + 9]
    found = unwinder.unwind(space, registers(LEAF), stack(*words))
    assert found == Unwound((LEAF, returns, PLAIN, OUTERMOST + 8), "root")
    words[5] = STACK + (1 << 30)
    assert unwinder.unwind(space, registers(LEAF), stack(*words)) == Unwound((LEAF, returns, PLAIN), "dump")


def anonymous(pid: int = 1) -> AddressSpace:
    return AddressSpace(pid, [*space_of("program").mappings, Mapping(0x10000, 0x20000, 0, "")])


def test_generated_code_with_frame_pointers() -> None:
    """It is walked by them, into code with rules and on to the root; not to where nothing was called."""
    code = bytearray(b"\x90" * 0x400)
    code[0x44:0x49] = b"\xe8\0\0\0\0"  # call, in plain
    unwinder = CfiUnwinder(Mapped(program=object_of(FUNCTIONS, code=bytes(code))), cache=None)
    words = [7, 7, STACK + 0x38, 0x11008, 5, 6, 7, 0, PLAIN + 9, 1, 2, 3, OUTERMOST + 9]
    found = unwinder.unwind(anonymous(), registers(0x10800, bp=STACK + 16), stack(*words))
    assert found == Unwound((0x10800, 0x11007, PLAIN + 8, OUTERMOST + 8), "root")
    assert unwinder.guesses == {"frame pointer": 2}
    words[8] += 1
    found = unwinder.unwind(anonymous(), registers(0x10800, bp=STACK + 16), stack(*words))
    assert found == Unwound((0x10800, 0x11007), "rules")


def test_generated_code_without() -> None:
    """Only the return address of an indirect call from which the stack goes on to its root is believed."""
    code = bytearray(b"\x90" * 0x400)
    code[0x45:0x47] = b"\xff\xd0"  # call *%rax, in plain
    code[0x4C:0x51] = b"\xe8\0\0\0\0"
    unwinder = CfiUnwinder(Mapped(program=object_of(FUNCTIONS, code=bytes(code))), cache=None)
    indirect, direct = PLAIN + 7, PLAIN + 0x11
    lies = [7, direct, 8, indirect, 1, 2, 3, 9]
    words = [*lies, indirect, 1, 2, 3, OUTERMOST + 9]
    found = unwinder.unwind(anonymous(), registers(0x10800, bp=0x77), stack(*words))
    assert found == Unwound((0x10800, indirect - 1, OUTERMOST + 8), "root")
    assert unwinder.guesses == {"search": 1}
    found = unwinder.unwind(anonymous(), registers(0x10800, bp=0x77), stack(*lies, 0, 0))
    assert found == Unwound((0x10800,), "rules")


def test_memory_is_bounded(program: Elf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts, addresses and stacks that never come again do not pile up."""
    monkeypatch.setattr(unwind, "_MAX_RULES", 1024)
    monkeypatch.setattr(unwind, "_MAX_STRETCHES", 500)
    unwinder = CfiUnwinder(Mapped(program=program), cache=None)
    chance = random.Random(5)
    most = [0, 0, 0]
    for _ in range(200):
        start = BASE + chance.randrange(1 << 20) * 0x10000
        space = AddressSpace(1, [Mapping(start, start + 0x4000, 0, "/program")])
        for _ in range(5):
            words, bp, addresses = grow(chance, 12)
            moved = [word + start - BASE if BASE <= word < BASE + 0x4000 else word for word in words]
            first = registers(addresses[0] + start - BASE, bp=bp)
            assert unwinder.unwind(space, first, stack(*moved)).end == "root"
        views = list(unwinder._views.values())
        held = [view.memo.young for view in views] + [view.memo.old for view in views]
        now = [
            len(views),
            sum(len(view.rules) for view in views),
            sum(len(stretches) for generation in held for stretches in generation.values()),
        ]
        most = list(map(max, most, now))
    assert most[0] == 64
    assert 500 < most[1] <= 1024
    assert 500 < most[2] <= 1000


def test_a_system_call_that_does_not_return() -> None:
    """Its return address lies behind its function, whose rule holds all the same."""
    code = bytearray(b"\x90" * 0x400)
    code[0x1FE:0x200] = b"\x0f\x05"
    functions = [*FUNCTIONS[:5], (CODE + 0x1C0, 0x40, frame(2)), (CODE + 0x280, 0x40, frame(2))]
    unwinder = CfiUnwinder(Mapped(program=object_of(functions, code=bytes(code))), cache=None)
    words = stack(0, OUTERMOST + 9)
    for pc, end in ((CODE + 0x200, "root"), (CODE + 0x2C0, "rules")):
        assert unwinder.unwind(SPACE, registers(BASE + pc), words).end == end


@pytest.mark.parametrize("pushed", [0, 1])
def test_small_functions_without_information(pushed: int) -> None:
    """The call that led to them is believed when it leads there; not one that leads elsewhere."""
    code = bytearray(b"\x90" * 0x400)
    call = PLAIN - BASE - CODE + 4
    code[call : call + 5] = b"\xe8" + struct.pack("<i", 0x300 - (call + 5))
    code[call + 8 : call + 13] = b"\xe8" + struct.pack("<i", 0x380 - (call + 13))
    unwinder = CfiUnwinder(Mapped(program=object_of(FUNCTIONS, code=bytes(code))), cache=None)
    here, elsewhere = PLAIN + 9, PLAIN + 17
    pc = BASE + CODE + 0x310
    words = [*[0x77] * pushed, here, 1, 2, 3, OUTERMOST + 9]
    assert unwinder.unwind(SPACE, registers(pc), stack(*words)) == Unwound(
        (pc, here - 1, OUTERMOST + 8), "root"
    )
    assert unwinder.guesses == {"call": 1}
    words[pushed] = elsewhere
    assert unwinder.unwind(SPACE, registers(pc), stack(*words)) == Unwound((pc,), "rules")


def test_files_that_cannot_be_read(unwinder: CfiUnwinder) -> None:
    """Code of theirs has no rules; another process of the same layout may be able to read them."""
    known: dict[str, Elf] = {}
    files = Mapped()
    files.objects = known
    unwinder = CfiUnwinder(files, cache=None)
    for _ in range(3):
        assert (
            unwinder.unwind(space_of("program", pid=1), registers(LEAF), stack(OUTERMOST + 9)).end == "rules"
        )
    assert files.asked == 1
    known["/program"] = object_of(FUNCTIONS)
    assert unwinder.unwind(space_of("program", pid=2), registers(LEAF), stack(OUTERMOST + 9)).end == "root"


def test_a_process_that_has_ended(program: Elf) -> None:
    """Its files are read through the one it descends from, if what lies there can be what was mapped."""
    files = Mapped(program=program)
    files.gone.add(2)
    unwinder = CfiUnwinder(files, cache=None)
    (segment,) = program.segments
    size = -(-segment.size // 4096) * 4096
    for length, ancestor, end in ((size, 0, "rules"), (size + 4096, 1, "rules"), (size, 1, "root")):
        space = AddressSpace(2, [Mapping(BASE, BASE + length, 0, "/program")], ancestor)
        unwinder = CfiUnwinder(files, cache=None)
        assert unwinder.unwind(space, registers(LEAF), stack(OUTERMOST + 9)).end == end


def test_registers_of_no_known_machine(unwinder: CfiUnwinder) -> None:
    """There are no rules for them."""
    assert unwinder.unwind(SPACE, (1, 2, 3), b"").end == "rules"


LINK = cie(b"\x0c\x1f\x00", returns=30)
ARM = [
    (CODE + 0x00, 0x40, b""),  # a leaf: the return address is in x30
    (CODE + 0x40, 0x40, b"\x2d\x0e\x20\x9d\x04\x9e\x03"),  # signed; x29 and x30 saved below
    (CODE + 0x80, 0x40, b"\x0c\x1d\x10\x9d\x02\x9e\x01"),  # by the frame pointer
    (CODE + 0xC0, 0x40, b"\x07\x1e"),
]


def test_aarch64() -> None:
    """Link register, frame pointer, and return addresses whose signature is stripped."""
    unwinder = CfiUnwinder(Mapped(program=object_of(ARM, LINK, aarch64=True)), cache=None)
    leaf, signed, based, outermost = (BASE + start for start, _, _ in ARM)
    found = [0] * 33
    found[29], found[30], found[31], found[32] = 5, signed + 0x10 | 0x3A << 56, STACK, leaf + 8
    words = [STACK + 0x28, based + 0x10 | 0x5B << 56, 1, 2, 3, 0, outermost + 0x10, 4]
    result = unwinder.unwind(SPACE, tuple(found), stack(*words))
    assert result == Unwound((leaf + 8, signed + 0xF, based + 0xF, outermost + 0xF), "root")
    found[30] = leaf + 8
    assert unwinder.unwind(SPACE, tuple(found), stack(*words)).end == "memory"


IDENTITY = bytes(range(20))


def used(cache: Path, program: Elf) -> CfiUnwinder:
    unwinder = CfiUnwinder(Mapped(program=program), cache=cache)
    words = [PLAIN + 9, 1, 2, 3, SAVES + 9, 5, STACK + 0x48, BASED + 9, 0, 77, OUTERMOST + 9]
    assert unwinder.unwind(SPACE, registers(LEAF), stack(*words)).end == "root"
    unwinder.close()
    return unwinder


def test_rules_are_kept(tmp_path: Path) -> None:
    """The second run takes them from the cache: it decodes nothing, so broken entries do not matter."""
    cache = tmp_path / "cache"
    used(cache, object_of(FUNCTIONS, build_id=IDENTITY))
    (path,) = cache.iterdir()
    assert path.name == IDENTITY.hex() + ".rules"
    before = path.read_bytes()
    broken = [(start, size, b"\x3f") for start, size, _ in FUNCTIONS]
    again = used(cache, object_of(broken, build_id=IDENTITY))
    assert (again.malformed, again.corrupted) == (0, 0)
    assert path.read_bytes() == before


def test_rules_that_this_run_did_not_need(tmp_path: Path) -> None:
    """They stay for the next one."""
    program = object_of(FUNCTIONS, build_id=IDENTITY)
    used(tmp_path, program)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_size
    other = CfiUnwinder(Mapped(program=program), cache=tmp_path)
    other.unwind(SPACE, registers(SAVES_RBX, rbx=3), b"")
    other.close()
    assert path.stat().st_size > before
    broken = [(start, size, b"\x3f") for start, size, _ in FUNCTIONS]
    assert used(tmp_path, object_of(broken, build_id=IDENTITY)).malformed == 0


def test_the_size_of_the_cache(tmp_path: Path) -> None:
    """The least lately used files go when there is no room for all."""
    rules = StoredRules(tmp_path, most=2000)
    functions = [(64 * number, 64, [(0, 0, 1, 0)]) for number in range(20)]
    for number in range(10):
        rules.save(f"{number:02}" * 20, 1, functions)
        os.utime(tmp_path / (f"{number:02}" * 20 + ".rules"), (number, number))
    left = sorted(path.name[:2] for path in tmp_path.iterdir())
    assert left == ["08", "09"]


def test_one_row_is_what_all_rows_say(tmp_path: Path) -> None:
    """What holds at an address is found without unpacking the rest of its function."""
    rows = [(0, 0, 1, 0), (4, 1, 3, -2), (20, 5, 0, 0), (21, 8, 1, 11)]
    functions = [(0x1000 + 64 * number, 64, rows[: number % 4 + 1]) for number in range(20)]
    stored = StoredRules(tmp_path).save("ab" * 20, 7, functions)
    assert stored is not None
    for start, size, kept in functions:
        for distance in range(70):
            expected = [row for row in kept if row[0] <= distance][-1]
            end = min([row[0] for row in kept if row[0] > distance], default=size)
            assert stored.row(start, distance) == (size, expected, end)
    assert stored.row(0x1001, 0) is None
    assert stored.row(0x9000, 0) is None


def test_a_corrupted_cache(tmp_path: Path) -> None:
    """A file that was cut, changed or made for another object is counted, passed over and replaced."""
    program = object_of(FUNCTIONS, build_id=IDENTITY)
    used(tmp_path, program)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    chance = random.Random(4)
    for data in [b"", good[:20], good[:-1], good + b"\0", *(spoil(good, chance) for _ in range(50))]:
        path.write_bytes(data)
        again = used(tmp_path, program)
        assert (again.malformed, again.corrupted) == (0, 1)
        assert path.read_bytes() == good


def spoil(data: bytes, chance: random.Random) -> bytes:
    spoiled = bytearray(data)
    spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
    return bytes(spoiled)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """It costs the rules of the next run, nothing else."""
    (tmp_path / "file").write_bytes(b"")
    used(tmp_path / "file" / "cache", object_of(FUNCTIONS, build_id=IDENTITY))
