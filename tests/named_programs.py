"""Programs built for the tests of names, and what their unstripped builds say is right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quayscope.sidecar.native.demangle import demangle
from quayscope.sidecar.native.maps import AddressSpace, read_maps
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Symbols

SOURCES = Path(__file__).parent / "integration" / "sidecar"
GO = shutil.which("go") or "/usr/local/go/bin/go"
GO_ENVIRONMENT = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def build_cpp(folder: Path) -> Path:
    """A C++ program without frame pointers: `full` with all symbols, `bare` with none."""
    flags = ["-O1", "-g", "-fomit-frame-pointer", "-Wl,--build-id", "-pthread"]
    run("g++", *flags, "-o", folder / "full", SOURCES / "busy.cpp")
    run("strip", "-o", folder / "bare", folder / "full")
    return folder


def build_go(folder: Path) -> Path:
    """A Go program: `full`, and `bare` as Clair is built."""
    shutil.copy(SOURCES / "busy.go", folder / "main.go")
    (folder / "go.mod").write_text("module example.com/busy\n\ngo 1.22\n")
    environment = os.environ | GO_ENVIRONMENT
    run(GO, "build", "-trimpath", "-o", "full", ".", cwd=folder, env=environment)
    run(GO, "build", "-trimpath", "-ldflags", "-s -w", "-o", "bare", ".", cwd=folder, env=environment)
    return folder


@contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said "ready"."""
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def space_of(pid: int) -> AddressSpace:
    space = read_maps(pid)
    assert space is not None
    return space


def functions(path: Path) -> dict[int, set[str]]:
    """Every function that the symbol table of a file has, by virtual address."""
    found = defaultdict(set)
    for line in run("nm", "--defined-only", path).splitlines():
        address, kind, name = line.split(" ", 2)
        if kind in "tTwW":
            found[int(address, 16)].add(name)
    return dict(found)


def place(space: AddressSpace, path: str, address: int) -> int | None:
    """Where a virtual address of the file at `path` lies in the space, None where it is no code."""
    for mapping in space.mappings:
        if mapping.path.removesuffix(" (deleted)") == path:
            elf = Objects().of(space.pid, mapping.path)
            assert elf is not None
            bias = elf.bias(mapping.start, mapping.offset)
            if bias is not None and mapping.start <= address + bias < mapping.end:
                return address + bias
    return None


def compare(
    symbols: Symbols,
    space: AddressSpace,
    path: str,
    truth: dict[int, set[str]],
    shown: Callable[[str], str],
) -> tuple[float, float]:
    """Return the shares of functions named as the truth has it, and of those without a name."""
    equal = unknown = total = 0
    bias = next(p - a for a in truth if (p := place(space, path, a)) is not None)
    for address, names in truth.items():
        if space.find(address + bias) is None:
            continue
        named = symbols.frames(space, address + bias)
        total += 1
        unknown += not named.known
        if shown(named.frames[-1].function) in set(map(shown, names)):
            equal += 1
        elif named.known:
            print(named.frames, names)
    assert total > 20
    return equal / total, unknown / total


def cpp_name(name: str) -> str:
    return demangle(name)


def go_name(name: str) -> str:
    # The linker's symbol table knows generics by shape, calls assembly by its convention, and spells the
    # middle dot of generated functions as a dot.
    return re.sub(r"\[.*\]", "[...]", name).removesuffix(".abi0").replace("·", ".")
