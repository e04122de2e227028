"""Names of real processes' code: equal to those that an unstripped build of the same program has."""

from __future__ import annotations

import json
import os
import random
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from named_programs import (
    GO,
    GO_ENVIRONMENT,
    build_cpp,
    build_go,
    compare,
    cpp_name,
    functions,
    go_name,
    place,
    run,
    running,
    space_of,
)
from quayscope.sidecar.native.demangle import demangle
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Named, Symbols


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cpp(tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_go(tmp_path_factory.mktemp("go"))


def test_go_without_symbols(go: Path) -> None:
    """A stripped Go program's functions have the names of the unstripped build's symbol table."""
    truth = functions(go / "full")
    for marker in ("runtime.text", "runtime.etext"):
        for names in truth.values():
            names.discard(marker)
    truth = {address: names for address, names in truth.items() if names}
    symbols = Symbols(Objects())
    with running(go / "bare") as process:
        space = space_of(process.pid)
        equal, unknown = compare(symbols, space, str(go / "bare"), truth, go_name)
        print(f"{len(truth)} functions: {equal:.4f} equal, {unknown:.4f} unknown")
        goexit = next(address for address, names in truth.items() if "runtime.goexit.abi0" in names)
        root = symbols.frames(space, goexit)
    assert equal >= 0.99
    assert unknown <= 0.01
    assert root.is_root
    assert root.frames[-1].kind == "go"
    assert symbols.malformed == 0


def without_sections(program: Path, to: Path) -> None:
    """Copy a program, its section headers cut off the ELF header."""
    data = bytearray(program.read_bytes())
    data[40:48] = bytes(8)  # e_shoff
    data[58:64] = bytes(6)  # e_shentsize, e_shnum, e_shstrndx
    to.write_bytes(data)
    to.chmod(0o755)


@pytest.mark.parametrize("mode", ["exe", "pie"])
@pytest.mark.parametrize("sections", ["sections", "no sections"])
def test_go_however_linked(tmp_path: Path, mode: str, sections: str) -> None:
    """Names are equal where addresses are filled in by relocation, and where there are no sections."""
    # Without the standard library: for position-independent code all of it would be compiled anew.
    (tmp_path / "main.go").write_text(
        'package main\n\nimport "syscall"\n\ntype Pair[T any] struct{ a, b T }\n\n'
        "//go:noinline\nfunc (p Pair[T]) First() T { return p.a }\n\n"
        'func main() {\n\tsyscall.Write(1, []byte("ready\\n"))\n'
        "\tfor i := 0; (Pair[int]{i, 1}).First() >= 0; {\n\t}\n}\n"
    )
    (tmp_path / "go.mod").write_text("module example.com/bare\n\ngo 1.22\n")
    build = [GO, "build", "-trimpath", f"-buildmode={mode}"]
    environment = os.environ | GO_ENVIRONMENT
    run(*build, "-o", "full", ".", cwd=tmp_path, env=environment)
    run(*build, "-ldflags", "-s -w", "-o", "bare", ".", cwd=tmp_path, env=environment)
    if sections == "no sections":
        without_sections(tmp_path / "bare", tmp_path / "bare")
    truth = functions(tmp_path / "full")
    symbols = Symbols(Objects())
    with running(tmp_path / "bare") as process:
        equal, unknown = compare(symbols, space_of(process.pid), str(tmp_path / "bare"), truth, go_name)
    assert equal >= 0.99
    assert unknown <= 0.01
    assert symbols.malformed == 0


def test_cpp_with_symbols(cpp: Path) -> None:
    """Every function of a C++ program has its source's name; those of a library are found beside."""
    truth = functions(cpp / "full")
    symbols = Symbols(Objects())
    with running(cpp / "full") as process:
        space = space_of(process.pid)
        equal, unknown = compare(symbols, space, str(cpp / "full"), truth, cpp_name)
    print(f"{len(truth)} functions: {equal:.4f} equal, {unknown:.4f} unknown")
    assert equal >= 0.99
    assert unknown <= 0.01
    # Against binutils' demangler, but for what the two spell differently.
    names = [n for names in truth.values() for n in names if len(demangle(n)) < 1024]
    filtered = run("c++filt", input="\n".join(names)).splitlines()
    shown = {demangle(name) for name in names}
    alike = [
        {re.sub(r"\s", "", n) for n in spelt if not re.search("lambda|clone|[.]", n)}
        for spelt in (shown, filtered)
    ]
    assert alike[0] == alike[1]
    assert len(alike[0]) > 20
    assert "shop::careful(int)" in shown


def test_stripped_functions_have_stable_names(cpp: Path) -> None:
    """Without symbols a function is named by its start: the one that the unstripped build says."""
    truth = {a: n for a, n in functions(cpp / "full").items() if any(name.startswith("_Z") for name in n)}
    symbols = Symbols(Objects())
    with running(cpp / "bare") as process:
        space = space_of(process.pid)
        right = 0
        for address in truth:
            lies = place(space, str(cpp / "bare"), address)
            assert lies is not None
            named = symbols.frames(space, lies)
            assert named.known
            # A weak one is in the dynamic table all the same.
            if named.frames[0].function in (f"bare+{address:#x}", *map(demangle, truth[address])):
                right += 1
            else:
                print(named.frames[0], truth[address])
        # What has no unwind entry of its own is not called by the one before.
        ends = [a for a, n in functions(cpp / "full").items() if n & {"deregister_tm_clones", "frame_dummy"}]
        assert len(ends) == 2
        for address in ends:
            lies = place(space, str(cpp / "bare"), address)
            assert lies is not None
            named = symbols.frames(space, lies)
            assert not named.known
            assert named.frames[0].function.startswith("bare+0x")
    assert right >= 0.99 * len(truth)


def test_the_vdso(cpp: Path) -> None:
    """Time is read in code that is no file: it has names all the same."""
    with running(cpp / "full") as process:
        space = space_of(process.pid)
        vdso = next(mapping for mapping in space.mappings if mapping.path == "[vdso]")
        elf = Objects().of(process.pid, "[vdso]")
        assert elf is not None
        symbols = Symbols(Objects())
        named = [symbols.frames(space, vdso.start + address) for address in elf.functions.addresses]
    assert any("clock_gettime" in frame.function for found in named for frame in found.frames)


MEASURE = """
import json, os, sys
from quayscope.sidecar.native.kernel import KernelSymbols
from quayscope.sidecar.native.dwarf import InlinedCalls
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.inlines import Inlines
from quayscope.sidecar.native.maps import read_maps
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Symbols


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)

before = resident()
symbols = Symbols(Objects())
KernelSymbols().around(0)
named = 0
for pid in map(int, sys.argv[1:]):
    space = read_maps(pid)
    for mapping in space.mappings:
        for address in range(mapping.start, mapping.end, max(512, (mapping.end - mapping.start) // 3000)):
            named += symbols.frames(space, address).known
print(json.dumps({"before": before, "after": resident(), "named": named}))
"""


def test_memory(cpp: Path, go: Path) -> None:
    """Names all over a C++ program, Go, CPython and their libraries, and the kernel's, fit in 50 MB."""
    python = [sys.executable, "-c", "import sys, ssl; print('ready', flush=True); sys.stdin.read()"]
    with running(cpp / "full") as first, running(go / "full") as second, running(*python) as third:
        pids = [str(process.pid) for process in (first, second, third)]
        figures = json.loads(run(sys.executable, "-c", MEASURE, *pids))
    print(figures)
    assert figures["named"] > 5_000
    assert figures["after"] - figures["before"] <= 50


def test_interpreter_functions() -> None:
    """CPython's own functions, those of the evaluation loop, are named in a running interpreter."""
    name = sysconfig.get_config_var("INSTSONAME")
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / str(name)
    path = library if library.is_file() else Path(sys.executable).resolve()
    space = space_of(os.getpid())
    mapping = next((m for m in space.mappings if Path(m.path).name == path.name), None)
    assert mapping is not None
    elf = Objects().of(os.getpid(), mapping.path)
    assert elf is not None
    bias = elf.bias(mapping.start, mapping.offset)
    assert bias is not None
    symbols = Symbols(Objects())
    found: list[Named] = [symbols.frames(space, address + bias) for address in elf.functions.addresses]
    assert any(frame.function == "_PyEval_EvalFrameDefault" for named in found for frame in named.frames)


def check_stretches(pid: int) -> tuple[int, int]:
    """Name addresses by chance and all that shares their stretch; returns how many, and their bytes."""
    chance = random.Random(1)
    objects = Objects()
    symbols = Symbols(objects)
    space = space_of(pid)
    count = size = 0
    for mapping in space.mappings:
        for _ in range(40):
            address = chance.randrange(mapping.start, mapping.end)
            named = symbols.frames(space, address)
            start, end = symbols.around(space, address)
            assert mapping.start <= start <= address < end <= mapping.end
            # As nobody knows it yet: by tables alone.
            others = Symbols(objects)
            for near in {start, end - 1, *(chance.randrange(start, end) for _ in range(6))}:
                assert others.frames(space, near) == named, (mapping, hex(near), hex(address))
            count += 1
            size += end - start
    return count, size


def test_a_stretch_has_one_name(cpp: Path, go: Path) -> None:
    """What is said to stand for the same does, of programs with and without symbols, of libraries and Go."""
    for program in (cpp / "full", cpp / "bare", go / "bare"):
        with running(program) as process:
            print(program.name, *check_stretches(process.pid))
    count, size = check_stretches(os.getpid())
    assert size > 30 * count
