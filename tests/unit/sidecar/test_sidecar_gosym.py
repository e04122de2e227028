"""Go's function table, laid out here as Go 1.18 and 1.20 do; real programs are in test_sidecar_names."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.gosym import GoFunction, GoTable

GO_1_18, GO_1_20 = 0xFFFFFFF0, 0xFFFFFFF1
BASE, TEXT, TABLE, MODULE, GOFUNC = 0x400000, 0x401000, 0x402000, 0x403000, 0x404000
SIZE = 0x5000


@dataclass
class Program:
    """An object with two functions of 64 bytes; in the second, `middle` is inlined, and `leaf` in that."""

    magic: int = GO_1_20
    text_in_header: bool = False
    moduledata: bool = True
    section: bool = True
    note: bool = True
    quantum: int = 1

    def build(self) -> bytes:
        names = b"\0main.first\0main.second\0main.middle\0main.leaf[go.shape.int]\0"
        first, second, middle, leaf = (names.index(n) for n in (b"main.f", b"main.s", b"main.m", b"main.l"))
        # Values by length of code: none for 16 bytes, middle (0) for 16, leaf in it (1) for 16, none for 16.
        step = 16 // self.quantum
        values = b"\0" + b"".join(bytes((change, step)) for change in (0, 2, 2, 3)) + b"\0"
        values_at = 0x200
        functions_at = 0x300
        records = [self._record(0, first, 0, 0), self._record(64, second, 1, 0)]
        index = struct.pack("<5I", 0, 0x40, 64, 0x40 + len(records[0]), 128)
        functions = index.ljust(0x40, b"\0") + b"".join(records)
        header = struct.pack(
            "<IHBB8Q",
            self.magic,
            0,
            self.quantum,
            8,
            2,
            1,
            TEXT if self.text_in_header else 0,
            0x100,
            0x180,
            0x190,
            values_at,
            functions_at,
        )
        table = bytearray(0x600)
        for at, part in ((0, header), (0x100, names), (values_at, values), (functions_at, functions)):
            table[at : at + len(part)] = part
        # Each inlined call: what, and where in its caller; the second is called 20 bytes into the function.
        calls = self._call(middle, 4, -1) + self._call(leaf, 20, 0)
        image = bytearray(SIZE)
        image[TABLE - BASE : TABLE - BASE + len(table)] = table
        image[GOFUNC - BASE : GOFUNC - BASE + len(calls)] = calls
        if self.moduledata:
            module = [0] * 41
            module[0] = TABLE
            for word, offset in ((1, 0x100), (4, 0x180), (7, 0x190), (10, values_at), (13, functions_at)):
                module[word] = TABLE + offset
            module[22] = TEXT
            module[38 if self.magic == GO_1_18 else 40] = GOFUNC
            image[MODULE - BASE : MODULE - BASE + 41 * 8] = struct.pack("<41Q", *module)
        self._headers(image)
        return bytes(image)

    def _record(self, entry: int, name: int, values: int, tree: int) -> bytes:
        fixed = struct.pack("<IiiIIIIII", entry, name, 0, 0, 0, 0, 0, 3, 0)
        if self.magic == GO_1_20:
            fixed += struct.pack("<i", 1)
        fixed += bytes((0, 0, 0, 4))
        return fixed + struct.pack("<3I4I", 0, 0, values, *[0xFFFFFFFF] * 3, tree if values else 0xFFFFFFFF)

    def _call(self, name: int, position: int, parent: int) -> bytes:
        if self.magic == GO_1_18:
            return struct.pack("<hBBiiii", parent, 0, 0, 0, 0, name, position)
        return struct.pack("<B3xiii", 0, name, position, 0)

    def _headers(self, image: bytearray) -> None:
        names = b"\0.shstrtab\0.gopclntab\0.text\0"
        note = struct.pack("<III4s4s", 4, 4, 4, b"Go\0\0", b"abcd")
        image[0x800 : 0x800 + len(names)] = names
        image[0x900 : 0x900 + len(note)] = note
        sections = [(0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (1, 3, 0, 0, 0x800, len(names), 0, 0, 1, 0)]
        if self.section:
            sections.append((11, 1, 2, TABLE, TABLE - BASE, 0x600, 0, 0, 1, 0))
            sections.append((22, 1, 6, TEXT, TEXT - BASE, 0x100, 0, 0, 1, 0))
        for number, section in enumerate(sections):
            struct.pack_into("<IIQQQQIIQQ", image, 0xA00 + 64 * number, *section)
        segments = [(1, 7, 0, BASE, BASE, SIZE, SIZE, 4096)]
        if self.note:
            segments.append((4, 4, 0x900, BASE + 0x900, BASE + 0x900, len(note), len(note), 4))
        for number, segment in enumerate(segments):
            struct.pack_into("<IIQQQQQQ", image, 64 + 56 * number, *segment)
        magic = b"\x7fELF\2\1\1".ljust(16, b"\0")
        struct.pack_into(
            "<16sHHIQQQIHHHHHH",
            image,
            0,
            magic,
            2,
            62,
            1,
            TEXT,
            64,
            0xA00,
            0,
            64,
            56,
            len(segments),
            64,
            len(sections),
            1,
        )


def table_of(program: Program) -> GoTable:
    table = GoTable.find(Elf(program.build()))
    assert table is not None
    return table


def names_at(table: GoTable, position: int) -> tuple[str, ...]:
    found = table.at(TEXT + position)
    return () if found is None else found.names


@pytest.mark.parametrize("quantum", [1, 4])
@pytest.mark.parametrize("magic", [GO_1_18, GO_1_20], ids=["1.18", "1.20"])
def test_names_and_inlined_calls(magic: int, quantum: int) -> None:
    """Each address gives its function and what is inlined there, leaf first, in both layouts."""
    table = table_of(Program(magic, quantum=quantum))
    assert names_at(table, 0) == names_at(table, 63) == ("main.first",)
    assert names_at(table, 64) == names_at(table, 127) == ("main.second",)
    assert names_at(table, 64 + 16) == ("main.middle", "main.second")
    assert (
        names_at(table, 64 + 32)
        == names_at(table, 64 + 47)
        == ("main.leaf[...]", "main.middle", "main.second")
    )
    assert table.at(TEXT + 70) == GoFunction(("main.second",), TEXT + 64, TEXT + 128)
    assert names_at(table, -1) == names_at(table, 128) == ()
    assert list(table.functions()) == [TEXT, TEXT + 64]
    assert table.flaws == 0


def test_found_without_sections() -> None:
    """A table that no section names is found by its first bytes."""
    assert names_at(table_of(Program(section=False)), 70) == ("main.second",)


def test_what_is_no_go_is_not_searched() -> None:
    """An object that does not say it is Go has no table, whatever bytes it holds."""
    assert GoTable.find(Elf(Program(section=False, note=False).build())) is None


def test_without_moduledata() -> None:
    """Where the runtime's own data is not found, names are there still, inlined calls are not."""
    for program in (Program(moduledata=False, text_in_header=True), Program(moduledata=False)):
        table = table_of(program)
        assert names_at(table, 64 + 32) == ("main.second",)


def test_nowhere_to_begin() -> None:
    """A table of which it is not known where the code begins is refused."""
    with pytest.raises(MalformedElf):
        GoTable.find(Elf(Program(moduledata=False, section=False).build()))


@pytest.mark.parametrize(
    ("offset", "value", "names"),
    [
        (0x300 + 0x40, 1, ()),  # the first record begins elsewhere than the index says
        (0x300 + 0x44, 0xFFFFFFFF, ()),  # its name lies before the names
        (0x300 + 4, 0x7FFFFFFF, ()),  # it lies outside the file
    ],
)
def test_broken_records(offset: int, value: int, names: tuple[str, ...]) -> None:
    """A function whose record is broken has no name, and is counted."""
    data = bytearray(Program().build())
    struct.pack_into("<I", data, TABLE - BASE + offset, value)
    table = GoTable.find(Elf(bytes(data)))
    assert table is not None
    assert names_at(table, 5) == names
    assert table.flaws == 1
    assert names_at(table, 70) == ("main.second",)


def test_inlined_calls_without_end() -> None:
    """Calls inlined in each other in a circle give the function alone, counted."""
    data = bytearray(Program().build())
    struct.pack_into("<i", data, GOFUNC - BASE + 16 + 8, 40)  # the leaf is called from within itself
    table = GoTable.find(Elf(bytes(data)))
    assert table is not None
    assert names_at(table, 64 + 36) == ("main.second",)
    assert table.flaws == 1


@pytest.mark.parametrize("at", [0, 4, 6, 7, 8])
def test_broken_headers(at: int) -> None:
    """A table of another form is refused."""
    data = bytearray(Program().build())
    data[TABLE - BASE + at : TABLE - BASE + at + 8] = b"\xff" * 8
    with pytest.raises(MalformedElf):
        GoTable.find(Elf(bytes(data)))
