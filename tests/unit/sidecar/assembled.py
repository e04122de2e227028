"""Objects assembled by hand: an ELF image of one segment with code, `.eh_frame` and the like."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.objects import Objects

CODE = 0x1000
"""Where the code of an assembled object begins, in the file and in its addresses."""
TABLES = 0x4000
_EM_X86_64, _EM_AARCH64 = 62, 183


def uleb(value: int) -> bytes:
    found = bytearray()
    while True:
        byte = value & 127
        value >>= 7
        if not value:
            return bytes([*found, byte])
        found.append(byte | 128)


def sleb(value: int) -> bytes:
    found = bytearray()
    while True:
        byte = value & 127
        value >>= 7
        if value in (0, -1) and bool(byte & 64) == (value == -1):
            return bytes([*found, byte])
        found.append(byte | 128)


def _padded(body: bytes, header: int = 4) -> bytes:
    return body + b"\0" * (-(len(body) + header) % 8)


START = b"\x0c\x07\x08\x90\x01"
"""What every x86-64 compiler begins with: the CFA is rsp+8, the return address is right below it."""


def cie(
    instructions: bytes = START,
    *,
    augmentation: bytes = b"zR",
    encoding: int = 0x1B,
    factor: int = -8,
    returns: int = 16,
    version: int = 1,
) -> bytes:
    """Return a CIE."""
    data = bytes([encoding]) if b"R" in augmentation else b""
    body = struct.pack("<IB", 0, version) + augmentation + b"\0" + uleb(1) + sleb(factor) + uleb(returns)
    if augmentation[:1] == b"z":
        body += uleb(len(data)) + data
    body = _padded(body + instructions)
    return struct.pack("<I", len(body)) + body


def section(
    functions: Sequence[tuple[int, int, bytes]], shared: bytes | None = None, at: int = TABLES
) -> tuple[bytes, list[tuple[int, int]]]:
    """Return an `.eh_frame` of functions (start, size, instructions), and where each entry lies."""
    data = bytearray(cie() if shared is None else shared)
    places = []
    for start, size, instructions in functions:
        place = at + len(data)
        places.append((start, place))
        body = struct.pack("<IiI", place + 4 - at, start - (place + 8), size) + b"\0" + instructions
        body = _padded(body)
        data += struct.pack("<I", len(body)) + body
    return bytes(data) + b"\0\0\0\0", places


def search_table(places: Sequence[tuple[int, int]], at: int, frames: int = TABLES) -> bytes:
    """Return the `.eh_frame_hdr` that lies at an address."""
    table = b"".join(struct.pack("<ii", start - at, place - at) for start, place in sorted(places))
    return struct.pack("<4BiI", 1, 0x1B, 0x03, 0x3B, frames - at - 4, len(places)) + table


def image(
    sections: dict[str, tuple[int, bytes]],
    code: bytes = b"",
    *,
    machine: int = _EM_X86_64,
    build_id: bytes = b"",
    header: bool = True,
) -> bytes:
    """Return an object whose sections lie at the given addresses, which are their offsets in the file too."""
    pieces = dict(sections)
    data = bytearray(TABLES)
    data[CODE : CODE + len(code)] = code

    def put(at: int, piece: bytes) -> None:
        if len(data) < at + len(piece):
            data.extend(bytes(at + len(piece) - len(data)))
        data[at : at + len(piece)] = piece

    for at, piece in pieces.values():
        put(at, piece)
    note = struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0") + build_id
    note_at = len(data)
    put(note_at, note)
    names = b"\0" + b"".join(name.encode() + b"\0" for name in pieces) + b".shstrtab\0"
    names_at = len(data)
    put(names_at, names)
    headers = [bytes(64)]
    for name, (at, piece) in pieces.items():
        address = at if name.startswith(".eh") else 0
        where = names.index(name.encode() + b"\0")
        headers.append(struct.pack("<IIQQQQIIQQ", where, 1, 2, address, at, len(piece), 0, 0, 8, 0))
    headers.append(
        struct.pack("<IIQQQQIIQQ", names.index(b".shstrtab"), 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    )
    sections_at = len(data)
    put(sections_at, b"".join(headers))
    programs = [struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, len(data), len(data), 0x1000)]
    if header and ".eh_frame_hdr" in pieces:
        at, piece = pieces[".eh_frame_hdr"]
        programs.append(struct.pack("<IIQQQQQQ", 0x6474E550, 4, at, at, at, len(piece), len(piece), 4))
    if build_id:
        programs.append(struct.pack("<IIQQQQQQ", 4, 4, note_at, note_at, note_at, len(note), len(note), 4))
    start = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        3,
        machine,
        1,
        CODE,
        64,
        sections_at,
        0,
        64,
        56,
        len(programs),
        64,
        len(headers),
        len(headers) - 1,
    )
    data[: len(start)] = start
    table = b"".join(programs)
    data[64 : 64 + len(table)] = table
    return bytes(data)


def object_of(
    functions: Sequence[tuple[int, int, bytes]],
    shared: bytes | None = None,
    *,
    code: bytes = b"",
    aarch64: bool = False,
    build_id: bytes = b"",
) -> Elf:
    """Return an object with these functions (start, size, instructions) and their search table."""
    frames, places = section(functions, shared)
    at = TABLES + len(frames) + -len(frames) % 8
    parts = {".eh_frame": (TABLES, frames), ".eh_frame_hdr": (at, search_table(places, at))}
    machine = _EM_AARCH64 if aarch64 else _EM_X86_64
    return Elf(image(parts, code, machine=machine, build_id=build_id))


class Mapped:
    """Assembled objects by path, for the unwinder."""

    def __init__(self, **objects: Elf) -> None:
        self.objects = {f"/{name}": found for name, found in objects.items()}
        self.asked = 0
        self.gone: set[int] = set()

    def of(self, pid: int, path: str) -> Elf | None:
        self.asked += 1
        return None if pid in self.gone else self.objects.get(path)


class Held(Objects):
    """Objects whose one file is the object at hand."""

    def __init__(self, elf: Elf) -> None:
        super().__init__()
        self.elf = elf

    def of(self, pid: int, path: str) -> Elf | None:
        return self.elf


BASE = 0x55_0000_0000
"""Where `space_of` maps the first object."""


def space_of(*names: str, pid: int = 1) -> AddressSpace:
    """Return a space with these objects mapped, each 16 MB further than the one before."""
    return AddressSpace(
        pid,
        [
            Mapping(BASE + (number << 24), BASE + (number << 24) + 0x4000, 0, f"/{name}")
            for number, name in enumerate(names)
        ],
    )
