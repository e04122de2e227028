"""Call frame information: each instruction on entries assembled by hand, and what is broken or hostile."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from quayscope.sidecar.errors import MalformedCfi, MalformedElf
from quayscope.sidecar.native.cfi import CfaRule, How, Recovery, Row
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.expressions import RegisterUnknown, evaluate
from quayscope.sidecar.native.frames import FrameTable
from quayscope.sidecar.native.maps import read_maps
from quayscope.sidecar.native.rules import GUESS, ROOT, Kind, ObjectRules
from unit.sidecar.assembled import (
    CODE,
    START,
    TABLES,
    cie,
    image,
    object_of,
    search_table,
    section,
    sleb,
    uleb,
)

_NAMES = ["rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16))]
RA = {16: Recovery(How.OFFSET, -8)}
FIRST = CfaRule(7, 8)


def table_of(elf: Elf) -> FrameTable:
    table = FrameTable.of(elf)
    assert table is not None
    return table


def rows(instructions: bytes, shared: bytes | None = None) -> list[Row]:
    return list(table_of(object_of([(CODE, 0x100, instructions)], shared)).function(0).rows)


def last(instructions: bytes) -> Row:
    return rows(instructions)[-1]


@pytest.mark.parametrize(
    ("instructions", "cfa"),
    [
        (b"", FIRST),
        (b"\x00\x00", FIRST),
        (b"\x0e\x20", CfaRule(7, 32)),  # def_cfa_offset
        (b"\x0e" + uleb(100_000), CfaRule(7, 100_000)),
        (b"\x0d\x06", CfaRule(6, 8)),  # def_cfa_register
        (b"\x0c\x06\x10", CfaRule(6, 16)),  # def_cfa
        (b"\x12\x06" + sleb(-3), CfaRule(6, 24)),  # def_cfa_sf
        (b"\x13" + sleb(-4), CfaRule(7, 32)),  # def_cfa_offset_sf
        (b"\x0f\x02\x76\x78", CfaRule(-1, 0, b"\x76\x78")),  # def_cfa_expression
        (b"\x2e\x10", FIRST),  # GNU_args_size
        (b"\x2d", FIRST),  # AARCH64_negate_ra_state
        (b"\x0a\x0e\x20\x0b", FIRST),  # remember_state, restore_state
    ],
)
def test_where_the_frame_is(instructions: bytes, cfa: CfaRule) -> None:
    """Every instruction that defines the CFA does as DWARF says."""
    assert last(instructions) == Row(CODE, cfa, RA)


@pytest.mark.parametrize(
    ("instructions", "register", "recovery"),
    [
        (b"\x86\x02", 6, Recovery(How.OFFSET, -16)),  # offset
        (b"\x05\x0c\x03", 12, Recovery(How.OFFSET, -24)),  # offset_extended
        (b"\x11\x0c" + sleb(3), 12, Recovery(How.OFFSET, -24)),  # offset_extended_sf
        (b"\x2f\x0c\x03", 12, Recovery(How.OFFSET, 24)),  # GNU_negative_offset_extended
        (b"\x14\x0c\x03", 12, Recovery(How.VALUE_OFFSET, -24)),  # val_offset
        (b"\x15\x0c" + sleb(-3), 12, Recovery(How.VALUE_OFFSET, 24)),  # val_offset_sf
        (b"\x07\x10", 16, Recovery(How.UNDEFINED)),  # undefined
        (b"\x09\x10\x03", 16, Recovery(How.REGISTER, 3)),  # register
        (b"\x10\x03\x02\x76\x00", 3, Recovery(How.EXPRESSION, 0, b"\x76\x00")),  # expression
        (b"\x16\x03\x02\x76\x00", 3, Recovery(How.VALUE_EXPRESSION, 0, b"\x76\x00")),  # val_expression
        (b"\x86\x02\x0a\x86\x05\x0b", 6, Recovery(How.OFFSET, -16)),  # remembered
        (b"\x90\x05\xd0", 16, Recovery(How.OFFSET, -8)),  # restore: what the CIE says
        (b"\x90\x05\x06\x10", 16, Recovery(How.OFFSET, -8)),  # restore_extended
    ],
)
def test_where_a_register_is(instructions: bytes, register: int, recovery: Recovery) -> None:
    """Every instruction that says how a register is recovered does as DWARF says; the others keep theirs."""
    assert last(instructions).registers == {**RA, register: recovery}


@pytest.mark.parametrize("instructions", [b"\x86\x02\xc6", b"\x86\x02\x06\x06", b"\x86\x02\x08\x06"])
def test_registers_that_are_the_callers(instructions: bytes) -> None:
    """After restore, restore_extended and same_value a register has no rule."""
    assert last(instructions).registers == RA


def test_registers_that_nothing_is_unwound_by() -> None:
    """Vector registers are passed over, not kept."""
    assert last(b"\x05" + uleb(90) + b"\x03").registers == RA


@pytest.mark.parametrize(
    ("advance", "distance"),
    [
        (b"\x41", 1),
        (b"\x7f", 63),
        (b"\x02\x80", 128),
        (b"\x03\x00\x01", 256),
        (b"\x04\x00\x00\x01\x00", 65536),
    ],
)
def test_moving_on(advance: bytes, distance: int) -> None:
    """Each way to move on begins a row there; what changes later leaves the rows before as they were."""
    found = rows(b"\x86\x02" + advance + b"\x86\x03\x0e\x18")
    assert found == [
        Row(CODE, FIRST, {**RA, 6: Recovery(How.OFFSET, -16)}),
        Row(CODE + distance, CfaRule(7, 24), {**RA, 6: Recovery(How.OFFSET, -24)}),
    ]


def test_moving_to_an_address() -> None:
    """set_loc moves to an address, encoded as the function's own."""
    elf = object_of([(CODE, 0x100, b"\x01" + bytes(4) + b"\x0e\x18")])
    entry = TABLES + len(cie())
    frames = bytearray(elf.read(0, elf.size))
    at = entry + 4 + 4 + 8 + 1 + 1
    frames[at : at + 4] = struct.pack("<i", CODE + 0x20 - at)
    assert [row.start for row in table_of(Elf(bytes(frames))).function(0).rows] == [CODE, CODE + 0x20]


@pytest.mark.parametrize(
    "instructions",
    [
        b"\x0b",  # restores what was not remembered
        b"\x0a" * 100,  # remembers without end
        b"\x3f",  # no instruction
        b"\x0f\x7f\x76",  # an expression longer than its entry
        b"\x0e" + b"\xff" * 12,  # a number without end
        b"\x01\x00\xc0\xff\xff",  # goes back
    ],
)
def test_instructions_that_make_no_sense(instructions: bytes) -> None:
    """They are refused with a word, and the address has no rule; that is counted once."""
    elf = object_of([(CODE, 0x100, instructions)])
    with pytest.raises(MalformedCfi, match=r"."):
        table_of(elf).function(0)
    rules = ObjectRules(elf)
    assert rules.rule(CODE + 0x80) == rules.rule(CODE + 0x81) == GUESS
    assert rules.malformed == 1


def value(code: bytes, registers: list[int | None] | None = None, initial: int | None = None) -> int:
    known: list[int | None] = [None] * 17
    known[7] = 0x1000
    return evaluate(code, known if registers is None else registers, lambda at: at + 7, initial)


@pytest.mark.parametrize(
    ("code", "result"),
    [
        (b"\x35", 5),  # lit5
        (b"\x77\x08", 0x1008),  # breg7
        (b"\x77" + sleb(-8), 0xFF8),
        (b"\x92\x07\x08", 0x1008),  # bregx
        (b"\x77\x00\x06", 0x1007),  # deref
        (b"\x77\x00\x94\x01", 7),  # deref_size
        (b"\x08\xff", 255),
        (b"\x09\xff", 2**64 - 1),
        (b"\x0a\xff\xff", 0xFFFF),
        (b"\x0b\xff\xff", 2**64 - 1),
        (b"\x0c\xff\xff\xff\xff", 0xFFFFFFFF),
        (b"\x0d\xff\xff\xff\xff", 2**64 - 1),
        (b"\x0e" + b"\xff" * 8, 2**64 - 1),
        (b"\x10" + uleb(1000), 1000),
        (b"\x11" + sleb(-2), 2**64 - 2),
        (b"\x35\x12\x22", 10),  # dup, plus
        (b"\x35\x36\x13", 5),  # drop
        (b"\x35\x36\x14\x1c", 1),  # over, minus
        (b"\x35\x36\x15\x01\x1e", 30),  # pick, mul
        (b"\x35\x36\x16\x1c", 1),  # swap
        (b"\x31\x32\x33\x17", 2),  # rot: what was second is on top
        (b"\x3f\x3c\x1a", 12),
        (b"\x3f\x3c\x27", 3),
        (b"\x31\x32\x21", 3),
        (b"\x31\x1f", 2**64 - 1),  # neg
        (b"\x31\x1f\x19", 1),  # abs
        (b"\x30\x20", 2**64 - 1),  # not
        (b"\x37\x32\x1b", 3),  # div
        (b"\x37\x1f\x32\x1b", 2**64 - 3),
        (b"\x37\x32\x1d", 1),  # mod
        (b"\x31\x34\x24", 16),
        (b"\x09\xf0\x34\x26", 2**64 - 1),  # shra
        (b"\x09\xff\x3c\x25", 2**52 - 1),  # shr
        (b"\x35\x23\x0a", 15),  # plus_uconst
        (b"\x31\x32\x2d", 1),
        (b"\x31\x1f\x30\x2d", 1),  # -1 < 0
        (b"\x32\x32\x29", 1),
        (b"\x32\x32\x2e", 0),
        (b"\x31\x28\x01\x00\x35\x36", 6),  # bra over lit5
        (b"\x2f\x01\x00\x35\x36\x96", 6),  # skip, nop
    ],
)
def test_expressions(code: bytes, result: int) -> None:
    """Each operation comes to what DWARF says; values are 64 bits wide."""
    assert value(code) == result


def test_an_expression_over_the_frame() -> None:
    """Rules of registers begin with the CFA on the stack."""
    assert value(b"\x38\x1c", initial=0x2000) == 0x1FF8


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x06",
        b"\x22",
        b"\x31\x22",
        b"\x08",
        b"\xe0",
        b"\x31\x30\x1b",
        b"\x2f\xfd\xff",
        b"\x12" * 3,
        b"\x2f\xff\x7f",
    ],
)
def test_expressions_that_make_no_sense(code: bytes) -> None:
    """An empty stack, an unknown operation, a division by nothing, a loop: refused, none hangs."""
    with pytest.raises(MalformedCfi):
        value(code)


def test_an_expression_over_an_unknown_register() -> None:
    """That is told apart: more registers may help."""
    with pytest.raises(RegisterUnknown):
        value(b"\x73\x00")


def test_the_procedure_linkage_table() -> None:
    """What linkers say of it is resolved per address: 8 bytes more once the index was pushed."""
    expression = b"\x77\x08\x80\x00\x3f\x1a\x3b\x2a\x33\x24\x22"
    rules = ObjectRules(object_of([(CODE, 0x40, b"\x0f" + uleb(len(expression)) + expression)]))
    assert rules.rule(CODE + 0x10) == (Kind.SP, 1, 0, None)
    assert rules.rule(CODE + 0x1A) == (Kind.SP, 1, 0, None)
    assert rules.rule(CODE + 0x1B) == (Kind.SP, 2, 0, None)


@pytest.mark.parametrize(
    ("instructions", "rule"),
    [
        (b"\x0e\x20", (Kind.SP, 4, 0, None)),
        (b"\x0e\x20\x86\x02", (Kind.SP_SAVED, 4, -2, None)),
        (b"\x0c\x06\x10\x86\x02", (Kind.BP, 2, -2, None)),
        (b"\x07\x10", ROOT),
    ],
)
def test_short_rules(instructions: bytes, rule: object) -> None:
    """What compilers do is a rule of small integers."""
    assert ObjectRules(object_of([(CODE, 0x40, instructions)])).rule(CODE) == rule


@pytest.mark.parametrize(
    ("instructions", "shared"),
    [
        (b"\x0c\x03\x10", None),  # through rbx
        (b"\x0c\x06\x10", None),  # through rbp, which was not saved
        (b"\x0e\x04", None),  # not in words
        (b"\x0e\x00", None),  # would not move on
        (b"\x90\x02", None),  # the return address elsewhere
        (b"\x0f\x02\x76\x00", None),
        (b"\x86\x02", cie(augmentation=b"zRS")),  # a signal frame
    ],
)
def test_rows_that_are_no_short_rule(instructions: bytes, shared: bytes | None) -> None:
    """All else keeps its row: nothing is bent into a form it has not."""
    rule = ObjectRules(object_of([(CODE, 0x40, instructions)], shared)).rule(CODE)
    assert rule[0] == Kind.GENERAL
    assert rule[3] is not None


def test_between_functions_there_is_no_rule() -> None:
    """Before the first function, in a gap and after the last one nothing is known."""
    rules = ObjectRules(object_of([(CODE + 0x100, 0x40, b""), (CODE + 0x200, 0x40, b"")]))
    known = [rules.rule(CODE + at) for at in (0x100, 0x13F, 0x200, 0x23F)]
    assert known == [(Kind.SP, 1, 0, None)] * 4
    assert [rules.rule(CODE + at) for at in (0x80, 0xFF, 0x140, 0x1FF, 0x240)] == [GUESS] * 5


def test_a_start_without_information() -> None:
    """The first instructions of a program have no caller, whether its tables say so or not."""
    rules = ObjectRules(object_of([(CODE + 0x100, 0x40, b"")]))
    assert [rules.rule(CODE + at) for at in (0, 7, 0x40)] == [ROOT, ROOT, GUESS]


def test_without_a_search_table() -> None:
    """The entries themselves say where functions are, also in `.debug_frame`, with either width of length."""
    frames, _ = section([(CODE + 0x40, 0x40, b"\x0e\x18"), (CODE, 0x40, b"\x0e\x10")])
    table = table_of(Elf(image({".eh_frame": (TABLES, frames)})))
    assert [table.function(table.index_of(CODE + at)).rows[0].cfa.offset for at in (0, 0x3F, 0x40)] == [
        16,
        16,
        24,
    ]

    shared = struct.pack("<IB", 0xFFFFFFFF, 4) + b"\0\x08\x00" + uleb(1) + sleb(-8) + uleb(16) + START
    wide_shared = struct.pack("<QB", (1 << 64) - 1, 4) + b"\0\x08\x00" + uleb(1) + sleb(-8) + uleb(16) + START
    narrow = struct.pack("<IQQ", 0, CODE, 0x40) + b"\x0e\x10"
    wide = struct.pack("<QQQ", 8 + len(shared) - 4 + len(narrow) + 4, CODE + 0x40, 0x40) + b"\x0e\x18"
    debug = b"".join(struct.pack("<I", len(part)) + part for part in (shared, narrow))
    wide = struct.pack("<QQQ", len(debug), CODE + 0x40, 0x40) + b"\x0e\x18"
    debug += b"".join(b"\xff" * 4 + struct.pack("<Q", len(part)) + part for part in (wide_shared, wide))
    table = table_of(Elf(image({".debug_frame": (TABLES, debug)})))
    assert [table.function(table.index_of(CODE + at)).rows[0].cfa.offset for at in (0, 0x3F, 0x40)] == [
        16,
        16,
        24,
    ]


def test_without_section_headers() -> None:
    """A search table is enough."""
    elf = object_of([(CODE, 0x40, b"\x0e\x18")])
    data = bytearray(elf.read(0, elf.size))
    data[40:48], data[60:64] = bytes(8), bytes(4)
    assert table_of(Elf(bytes(data))).function(0).rows[0].cfa == CfaRule(7, 24)


@pytest.mark.parametrize("version", [0, 2, 5])
def test_versions_that_are_not_known(version: int) -> None:
    """They are refused, not read as if they were."""
    with pytest.raises(MalformedCfi, match="version"):
        table_of(object_of([(CODE, 0x40, b"")], cie(version=version))).function(0)


def test_a_search_table_that_lies() -> None:
    """One that names another start than the entry, or points elsewhere, has no rules and is counted."""
    frames, places = section([(CODE, 0x40, b""), (CODE + 0x40, 0x40, b"")])
    at = TABLES + len(frames) + -len(frames) % 8
    lies = [(CODE + 0x30, places[1][1]), (CODE + 0x40, TABLES), (CODE + 0x80, 1 << 29)]
    rules = ObjectRules(
        Elf(image({".eh_frame": (TABLES, frames), ".eh_frame_hdr": (at, search_table(lies, at))}))
    )
    assert [rules.rule(CODE + place) for place in (0x30, 0x40, 0x80)] == [GUESS] * 3
    assert rules.malformed == 3


def test_go_keeps_frame_pointers() -> None:
    """An object of Go's is not looked up in `.debug_frame`."""
    parts = {".debug_frame": (TABLES, b"\1" * 64), ".gopclntab": (TABLES + 64, b"\0" * 8)}
    rules = ObjectRules(Elf(image(parts)))
    assert rules.is_go
    assert rules.rule(CODE)[0] == Kind.CHAIN
    assert rules.malformed == 0


@pytest.fixture(scope="module")
def libc() -> Path:
    space = read_maps(os.getpid())
    assert space is not None
    return next(Path(m.path) for m in space.mappings if Path(m.path).name.startswith(("libc.so", "libc-")))


def test_agrees_with_readelf(libc: Path) -> None:
    """Every function of libc has the rows that readelf prints for it."""
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    text = subprocess.run(
        ["readelf", "--debug-dump=frames-interp", str(libc)], capture_output=True, text=True
    ).stdout
    table = table_of(Elf(libc.read_bytes()))
    checked = 0
    for block in re.split(r"\n\n", text):
        head = re.search(r" FDE .* pc=([0-9a-f]+)\.\.([0-9a-f]+)\n(.*)", block, re.DOTALL)
        if head is None:
            continue
        start, end = int(head[1], 16), int(head[2], 16)
        function = table.function(table.index_of(start))
        assert (function.start, function.end) == (start, end)
        lines = [line.split() for line in head[3].splitlines() if re.match(r"[0-9a-f]{16} ", line)]
        # readelf repeats rows that a move by nothing makes; the last one counts.
        printed = {int(line[0], 16): line[1] for line in lines}
        for row in function.rows:
            cfa = printed[row.start]
            match = re.fullmatch(r"(r\w+)\+(\d+)", cfa)
            if match is None:
                assert cfa == "exp"
                assert row.cfa.expression
            else:
                assert row.cfa == CfaRule(_NAMES.index(match[1]), int(match[2])), hex(row.start)
            checked += 1
    assert checked > 10_000


def test_truncated_objects(libc: Path) -> None:
    """An object cut after its headers, or overwritten in its tables, has fewer rules; that is all."""
    whole = libc.read_bytes()
    extent = Elf(whole).frame_header
    assert extent is not None
    chance = random.Random(3)
    for _ in range(30):
        data = bytearray(whole)
        at = extent.offset + chance.randrange(extent.size + (1 << 16))
        data[at : at + 64] = chance.randbytes(64)
        if chance.randrange(2):
            # As a file that is cut after it was opened: what is read later is not there.
            data = data[:at]
        try:
            elf = Elf(bytes(data))
        except MalformedElf:
            continue
        rules = ObjectRules(elf)
        for _ in range(300):
            rules.rule(chance.randrange(0x20000, 0x1A0000))
