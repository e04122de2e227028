"""Fuzzers of what reads bytes that others wrote: 5 s each in CI, 10 minutes each with `--full`."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fuzz.driver import Input, Outcome, fuzz
from quayscope.profile import (
    PROCESS_CPU,
    Attributes,
    Frame,
    MalformedProfile,
    Profile,
    UnknownProfileType,
    pprof,
)
from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.debugfiles import mini_debuginfo
from quayscope.sidecar.native.dwarf import InlinedCalls
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.gosym import GoTable
from quayscope.sidecar.native.maps import AddressSpace, Mapping
from quayscope.sidecar.native.symbols import Symbols
from unit.sidecar.assembled import Held

SOURCE = """
static int hidden(int n) { return n * 3; }
int shown(int n) { return hidden(n) + 1; }
int held = 3;
int main(int argc, char **argv) { return shown(argc) - held; }
"""
INLINING_SOURCE = """
volatile int held;
static inline int first(int n) { if (n & 1) held += n; return n * held; }
static inline int second(int n) { for (int i = 0; i < n; i++) held += first(i); return first(n + held); }
int third(int n) { if (held > n) held -= second(n); return second(n) + first(n + held); }
void _start(void) { third(held); for (;;) held += second(held); }
"""
GO_SOURCE = """package main

func inner(n int) int { return n * 3 }

//go:noinline
func outer(n int) int { return inner(n) + inner(n+1) }

func main() { println(outer(1)) }
"""


@pytest.fixture
def seconds(full: bool) -> float:
    return 600.0 if full else 5.0


def report(name: str, outcome: Outcome) -> None:
    print(f"{name}: {outcome.rounds} inputs, {outcome.refused} refused")
    assert outcome.rounds > 50
    assert outcome.refused < outcome.rounds


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Input]:
    """Small real objects: with symbols and debug information, compressed, stripped, with mini-debuginfo."""
    folder = tmp_path_factory.mktemp("objects")
    (folder / "main.c").write_text(SOURCE)
    flags = ["-g", "-O1", "-fno-inline", "-Wl,--build-id"]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=folder, capture_output=True)

    run("gcc", *flags, "-o", "full", "main.c")
    run("gcc", *flags, "-gz", "-o", "packed", "main.c")
    run("strip", "-o", "bare", "full")
    run("objcopy", "--only-keep-debug", "full", "debug")
    run("strip", "-g", "-o", "small", "full")
    (folder / "small.xz").write_bytes(lzma.compress((folder / "small").read_bytes()))
    run("objcopy", "--add-section=.gnu_debugdata=small.xz", "--add-gnu-debuglink=debug", "bare", "mini")
    return [elf_input(folder / name) for name in ("full", "packed", "bare", "mini")]


def elf_input(path: Path) -> Input:
    """Headers and tables are hit most: of the rest nothing is understood."""
    data = path.read_bytes()
    elf = Elf(data)
    hot = [(16, 64), (64, 64 + 56 * 13), (len(data) - 64 * len(elf.sections), len(data))]
    for section in elf.sections:
        if section.name in (".symtab", ".dynsym", ".eh_frame_hdr", ".gnu_debuglink", ".gnu_debugdata"):
            hot.append((section.offset, section.offset + section.size))
        elif section.flags & 0x800 or section.name.startswith(".note"):
            hot.append((section.offset, section.offset + 32))
    return Input(data, tuple(hot))


def test_elf(objects: list[Input], seconds: float) -> None:
    """A broken object is refused by MalformedElf, and a namer never raises for one that is not."""

    def target(data: bytes) -> None:
        elf = Elf(data)
        addresses = [0, elf.entry, 1 << 63, *elf.functions.addresses[:20], *elf.starts.addresses[:20]]
        for address in addresses:
            elf.function_at(address)
            elf.offset_of(address)
        elf.bias(0x1000, 0x1000)
        elf.data_symbol("held")
        symbols = Symbols(Held(elf))
        space = AddressSpace(os.getpid(), [Mapping(0x10000, 0x10000 + len(data), 0, "/no/such/file")])
        for offset in (0, len(data) // 2, *(elf.offset_of(address) or 0 for address in addresses)):
            named = symbols.frames(space, 0x10000 + offset)
            start, end = symbols.around(space, 0x10000 + offset)
            assert start <= 0x10000 + offset < end
            for near in (start, end - 1):
                assert symbols.frames(space, near) == named
        for section in elf.sections:
            elf.section(section.name)
        mini_debuginfo(elf)
        elf.content(".debug_info")

    outcome = fuzz(target, objects, seconds=seconds, seed=5, allowed=(MalformedElf,))
    report("elf", outcome)


def test_dwarf(tmp_path: Path, seconds: float) -> None:
    """Broken debug information is refused, as a whole or where it is broken."""
    (tmp_path / "main.c").write_text(INLINING_SOURCE)
    inputs = []
    for flags in (["-gdwarf-5"], ["-gdwarf-4"], ["-gdwarf-5", "-gz"]):
        command = ["gcc", "-O2", *flags, "-nostdlib", "-static", "-o", "main", "main.c"]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
        data = (tmp_path / "main").read_bytes()
        elf = Elf(data)
        extents = [elf.section(f".debug_{n}") for n in ("info", "abbrev", "rnglists", "ranges", "aranges")]
        inputs.append(Input(data, tuple((e.offset, e.offset + e.size) for e in extents if e)))
    addresses = [a + step for a in elf.functions.addresses for step in range(0, 40, 3)]
    assert any(len(InlinedCalls(elf).at(address)) > 1 for address in addresses)

    def target(mutated: bytes) -> None:
        calls = InlinedCalls(Elf(mutated))
        for address in addresses:
            with contextlib.suppress(MalformedElf):
                calls.at(address)

    outcome = fuzz(target, inputs, seconds=seconds, seed=8, allowed=(MalformedElf,))
    report("dwarf", outcome)


def test_pclntab(tmp_path: Path, seconds: float) -> None:
    """A broken table of Go's functions is refused or has no names where it is broken."""
    (tmp_path / "main.go").write_text(GO_SOURCE)
    (tmp_path / "go.mod").write_text("module example.com/fuzz\n\ngo 1.22\n")
    settings = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    go = shutil.which("go") or "/usr/local/go/bin/go"
    command = [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", "bare", "."]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | settings, capture_output=True)
    data = (tmp_path / "bare").read_bytes()
    elf = Elf(data)
    table = GoTable.find(elf)
    assert table is not None
    extent = elf.section(".gopclntab")
    assert extent is not None
    main = next(entry for entry in table.functions() if "main.outer" in str(table.at(entry)))
    starts = [main, *list(table.functions())[:100]]
    # The header, the index, and the records of the first hundred functions.
    functions = int.from_bytes(elf.read(extent.offset + 64, 8), "little") + extent.offset
    record = functions + int.from_bytes(elf.read(functions + 4, 4), "little")
    inlined = table._inlined_at
    hot = (
        (extent.offset, extent.offset + 72),
        (functions, functions + 800),
        (record, record + 6000),
        (inlined, inlined + 4000),
    )

    def target(mutated: bytes) -> None:
        found = GoTable.find(Elf(mutated))
        if found is None:
            return
        for start in starts:
            for address in (start, start + 9, start + 40):
                found.at(address)

    outcome = fuzz(target, [Input(data, hot)], seconds=seconds, seed=6, allowed=(MalformedElf,))
    report("pclntab", outcome)


def test_pprof(seconds: float) -> None:
    """A broken profile is refused by the two errors that the reader declares."""
    profile = Profile(PROCESS_CPU, {"service_name": "quay-app"}, 1_700_000_000_000_000_000, 10**10, 10**7)
    for number in range(40):
        stack = tuple(Frame(f"f{depth % (number + 2)}", f"file{depth % 5}", depth) for depth in range(number))
        attributes = Attributes(10**9 * number, "GET web /", "run", "phase", number, "0" * 16, "1" * 32)
        profile.add((Frame("root", kind="root"), *stack), attributes, (number, number * 10**7))
    packed = pprof.encode(profile)
    plain = gzip.decompress(packed)

    def target(data: bytes) -> None:
        pprof.decode(data, {"service_name": "quay-app"}, name="process_cpu")

    inputs = [Input(plain), Input(plain, ((0, 64),)), Input(packed)]
    outcome = fuzz(target, inputs, seconds=seconds, seed=7, allowed=(MalformedProfile, UnknownProfileType))
    report("pprof", outcome)
