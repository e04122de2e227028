"""ELF objects, address spaces and names, on real files and on broken ones."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import sysconfig
from pathlib import Path

import pytest

from quayscope.profile import Frame
from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.elf import Elf, Segment
from quayscope.sidecar.native.kernel import KernelSymbols
from quayscope.sidecar.native.maps import AddressSpace, Mapping, parse_maps, read_maps
from quayscope.sidecar.native.objects import Objects, open_regular
from quayscope.sidecar.native.symbols import Named, Symbols
from quayscope.sidecar.native.symtab import Function
from unit.sidecar.assembled import CODE, TABLES, Held, object_of


def _load(path: Path) -> Elf:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return Elf(descriptor)
    finally:
        os.close(descriptor)


def _functions(elf: Elf) -> list[Function]:
    found = (elf.functions.at(address, address) for address in elf.functions.addresses)
    return [function for function in found if function is not None]


@pytest.fixture(scope="module")
def libc() -> Path:
    space = read_maps(os.getpid())
    assert space is not None
    return next(
        Path(m.path) for m in space.mappings if Path(m.path).name.startswith(("libc.so", "libc-", "ld-musl"))
    )


def _address_of(function: str) -> int:
    address = ctypes.cast(getattr(ctypes.CDLL(None), function), ctypes.c_void_p).value
    assert address is not None
    return address


@pytest.mark.parametrize("function", ["getpid", "qsort", "fopen", "strtol"])
def test_names_live_addresses(function: str) -> None:
    """The name found for an address in this process is the one the dynamic linker resolved it from."""
    space = read_maps(os.getpid())
    assert space is not None
    address = _address_of(function)
    mapping = space.find(address)
    assert mapping is not None
    named = Symbols(Objects()).frames(space, address)
    (frame,) = named.frames
    # Aliases share an address: __getpid is getpid.
    assert function in frame.function
    assert frame.file == mapping.path
    assert frame.kind == "native"
    assert named.known


def test_static_functions_get_a_stable_name(libc: Path) -> None:
    """An address without a symbol is named by the start of its function, the same for all of it."""
    elf = _load(libc)
    unnamed = [
        start for start in elf.starts.addresses if (found := elf.function_at(start)) and not found.name
    ]
    if not unnamed:
        pytest.fail(f"every function of {libc} has a symbol")
    start = unnamed[len(unnamed) // 2]
    first, inside = elf.function_at(start), elf.function_at(start + 1)
    assert first is not None
    assert inside is not None
    assert first.address == inside.address == start


def test_truncated_objects_are_refused(libc: Path, tmp_path: Path) -> None:
    """A file cut anywhere is either readable in part or refused; nothing else happens."""
    whole = libc.read_bytes()
    chance = random.Random(1)
    cut = tmp_path / "cut"
    for size in [0, 1, 16, 63, 64, 65, *(chance.randrange(len(whole)) for _ in range(40))]:
        cut.write_bytes(whole[:size])
        with pytest.raises(MalformedElf):
            _load(cut)


def test_corrupt_headers_do_no_harm(libc: Path, tmp_path: Path) -> None:
    """Random bytes in headers and tables: refused, or names that are wrong at worst."""
    whole = bytearray(libc.read_bytes())
    sections_at = int.from_bytes(whole[40:48], "little")
    places = [*range(16, 64), *range(64, 64 + 56 * 12), *range(sections_at, len(whole))]
    chance = random.Random(2)
    broken = tmp_path / "broken"
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.choice(places)] = chance.randrange(256)
        broken.write_bytes(data)
        try:
            elf = _load(broken)
        except MalformedElf:
            continue
        for address in (0, 1, 0x1000, elf.entry, 2**63):
            elf.function_at(address)
            elf.address_of(address)
            elf.bias(address, 0)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x01\x01" + b"\0" * 90])
def test_other_files_are_no_objects(content: bytes, tmp_path: Path) -> None:
    """Scripts, empty and 32-bit files are refused with a word."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(MalformedElf, match=r"."):
        _load(path)


def test_objects_are_parsed_once(libc: Path, tmp_path: Path) -> None:
    """The same file under another name is the same object; a malformed one is counted once."""
    objects = Objects()
    link = tmp_path / "link"
    link.symlink_to(libc)
    assert objects.of(os.getpid(), str(libc)) is objects.of(os.getpid(), str(link))
    bad = tmp_path / "bad"
    bad.write_bytes(b"no object")
    assert objects.of(os.getpid(), str(bad)) is None
    assert objects.of(os.getpid(), str(bad)) is None
    assert objects.malformed == 1
    assert objects.of(os.getpid(), "/does/not/exist") is None


def test_sections_are_found_and_read_after_closing(libc: Path) -> None:
    """A section's place and bytes are those of the file, the descriptor it was opened from closed or not."""
    elf = _load(libc)
    extent = elf.section(".eh_frame_hdr")
    assert extent is not None
    address, offset, size = extent
    assert elf.read(offset, size) == elf.content(".eh_frame_hdr") == libc.read_bytes()[offset : offset + size]
    assert elf.address_of(offset) == address
    assert elf.offset_of(address) == offset
    assert elf.section(".no_such_section") is None
    assert elf.section(".bss") is None, "it has no bytes in the file"
    assert elf.machine in (62, 183)
    assert len(elf.build_id) == 40
    with pytest.raises(MalformedElf):
        elf.read(elf.size - 1, 2)


def test_descriptors_are_bounded(libc: Path, tmp_path: Path) -> None:
    """Past 128 objects the least lately used is let go, and its descriptor with it."""
    objects = Objects()
    whole = libc.read_bytes()
    at = whole.index(bytes.fromhex(_load(libc).build_id))
    gc.collect()  # what other tests have left to be collected is not this one's
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for number in range(140):
        path = tmp_path / str(number)
        path.write_bytes(whole[:at] + number.to_bytes(20, "big") + whole[at + 20 :])
        assert objects.of(os.getpid(), str(path)) is not None
        path.unlink()
    assert len(objects.held()) == 128
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before + 128


def test_the_vdso_is_an_object() -> None:
    """The kernel's own code in each process has names, though it is no file."""
    elf = Objects().of(os.getpid(), "[vdso]")
    assert elf is not None
    assert any(f.name == "__vdso_gettimeofday" for f in _functions(elf)) or elf.machine == 183


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A mapped path that turns out to be a fifo is passed over at once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert Objects().of(os.getpid(), str(fifo)) is None
    assert Objects().of(os.getpid(), "/dev/null") is None
    with pytest.raises(OSError, match="Exec format"):
        open_regular(str(fifo))


def test_maps_of_this_process() -> None:
    """The interpreter's code is found in its own address space, the stack is not code."""
    space = read_maps(os.getpid())
    assert space is not None
    assert space.find(_address_of("getpid")) is not None
    assert space.find(0) is None
    assert space.find(2**64 - 1) is None
    assert read_maps(2**22 + 7) is None


def test_maps_text() -> None:
    """Only executable stretches count; odd paths and broken lines do not matter."""
    text = (
        b"00400000-00500000 r-xp 00001000 fd:01 123   /usr/lib/with space (deleted)\n"
        b"00500000-00600000 rw-p 00000000 fd:01 123   /usr/lib/data\n"
        b"nonsense\n"
        b"7fff00000000-7fff00001000 r-xp 00000000 00:00 0 [vdso]\n"
        b"00700000-00600000 r-xp 00000000 00:00 0\n"
    )
    assert parse_maps(text) == [
        Mapping(0x400000, 0x500000, 0x1000, "/usr/lib/with space (deleted)"),
        Mapping(0x7FFF00000000, 0x7FFF00001000, 0, "[vdso]"),
    ]


@pytest.fixture
def anonymous() -> AddressSpace:
    return AddressSpace(os.getpid(), [Mapping(0x1000, 0x2000, 0, ""), Mapping(0x3000, 0x4000, 0, "[vdso]")])


def test_code_without_a_file(anonymous: AddressSpace) -> None:
    """Generated code is one frame, not one a call."""
    symbols = Symbols(Objects())
    assert symbols.frames(anonymous, 0x1234) == Named((Frame("[anonymous]"),), False, False)
    assert symbols.frames(anonymous, 0x1235) == symbols.frames(anonymous, 0x1234)
    assert symbols.frames(anonymous, 0x5000) == Named((Frame("[unmapped]"),), False, False)
    assert symbols.unnamed == 4


@pytest.mark.parametrize("seed", range(20))
def test_what_is_loaded_in_one_piece(libc: Path, seed: int) -> None:
    """Segments overlap and lie anywhere: a piece is all of one segment, and as long as it can be."""
    chance = random.Random(seed)
    elf = _load(libc)
    elf.segments = [
        Segment(
            chance.randrange(60), chance.choice((0, 1 << 40, (1 << 64) - 1)), chance.choice((1, 8, 30)), True
        )
        for _ in range(chance.randrange(6))
    ]
    # The number of the segment that each byte belongs to.
    holders = [
        next((n for n, s in enumerate(elf.segments) if s.offset <= byte < s.offset + s.size), None)
        for byte in range(100)
    ]
    for byte, holder in enumerate(holders):
        start, end = elf.loaded_around(byte)
        assert start <= byte < end
        if holder is None:
            assert (start, end) == (byte, byte + 1)
        else:
            assert set(holders[start:end]) == {holder}
            assert start == 0 or holders[start - 1] != holder
            assert holders[end] != holder


def test_a_name_holds_where_the_file_is_loaded() -> None:
    """A stretch of one name ends with its segment, and is where it was asked for."""
    elf = object_of([(CODE, 0x100, b""), (CODE + 0x100, 0x100, b"")])
    (whole,) = elf.segments
    elf.segments = [
        # The same addresses, for what is no part of the file.
        Segment(1 << 32, CODE - 0x10, 0x40, False),
        whole._replace(size=CODE + 0x180),
        whole._replace(offset=TABLES, address=TABLES),
    ]
    symbols = Symbols(Held(elf))
    space = AddressSpace(os.getpid(), [Mapping(0x10000, 0x18000, 0, "/program")])
    for offset, end in ((0x20, 0x100), (0xFF, 0x100), (0x100, 0x180)):
        symbols.frames(space, 0x10000 + CODE + offset)
        assert symbols.around(space, 0x10000 + CODE + offset) == (
            0x10000 + CODE + offset // 0x100 * 0x100,
            0x10000 + CODE + end,
        )


def test_kernel_names(tmp_path: Path) -> None:
    """Kernel addresses are named where the kernel shows them, and are one frame where it does not."""
    table = tmp_path / "kallsyms"
    table.write_text(
        "ffffffff81000000 T _stext\nffffffff81000100 t do_read\t[ext4]\nffffffff82000000 D data\n"
    )
    symbols = KernelSymbols(str(table))
    assert symbols.around(0xFFFFFFFF81000105)[0].function == "do_read"
    assert symbols.around(0xFFFFFFFF81000105)[0].kind == "kernel"
    assert symbols.around(0x10)[0] == KernelSymbols.UNNAMED
    table.write_text("0000000000000000 T _stext\n0000000000000000 t do_read\n")
    assert KernelSymbols(str(table)).around(0xFFFFFFFF81000105)[0] == KernelSymbols.UNNAMED
    assert KernelSymbols(str(tmp_path / "none")).around(1)[0] == KernelSymbols.UNNAMED


def test_kernel_names_are_found_among_modules_and_data(tmp_path: Path) -> None:
    """The last function at or before an address: modules come in any order, data between is no function."""
    table = tmp_path / "kallsyms"
    lines = ["0000000000001000 A per_cpu"]
    lines += [f"ffffffff8{number:03x}0000 {'td'[number % 3 == 2]} core_{number}" for number in range(600)]
    lines += [
        f"ffffffffc{999 - number:03d}0000 {'tb'[number % 2]} module_{number}\t[m]" for number in range(1000)
    ]
    table.write_text("\n".join(lines) + "\n")
    symbols = KernelSymbols(str(table))
    for number in range(600):
        known = number - (number % 3 == 2)
        assert symbols.around(0xFFFFFFFF80000000 + (number << 16))[0].function == f"core_{known}"
        assert symbols.around(0xFFFFFFFF80000000 + (number << 16) + 0xFFFF)[0].function == f"core_{known}"
    for number in range(0, 998, 2):
        address = int(f"ffffffffc{999 - number:03d}0000", 16)
        assert symbols.around(address + 1)[0].function == f"module_{number}"
        assert symbols.around(address - 1)[0].function == f"module_{number + 2}"
    assert symbols.around(0xFFFFFFFF7FFFFFFF)[0] == KernelSymbols.UNNAMED
    assert symbols.around((1 << 64) - 1)[0].function == "module_0"


@pytest.mark.parametrize(
    "text", ["\n", "\n\n\n", "ffffffff81000000", "zz T x\n", "ffffffff81000000 T \n", "\t[m]\n"]
)
def test_kernel_names_of_another_form(tmp_path: Path, text: str) -> None:
    """What is no table of symbols has no names."""
    (tmp_path / "kallsyms").write_text(text)
    symbols = KernelSymbols(str(tmp_path / "kallsyms"))
    assert [symbols.around(address)[0] for address in (0, 1 << 63, (1 << 64) - 1)] == [
        KernelSymbols.UNNAMED
    ] * 3


def test_interpreter_itself() -> None:
    """An executable with a full symbol table gives its variables and functions."""
    library = Path(sysconfig.get_config_var("LIBDIR")) / str(sysconfig.get_config_var("INSTSONAME"))
    elf = _load(library if library.is_file() else Path(sys.executable).resolve())
    assert elf.data_symbol("PyType_Type") is not None
    assert elf.data_symbol("no_such_symbol") is None
