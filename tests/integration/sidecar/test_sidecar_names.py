"""Names of real processes' code: equal to those that an unstripped build of the same program has."""

from __future__ import annotations

import http.server
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quayscope.sidecar.errors import BadOption
from quayscope.sidecar.native.debuginfod import Debuginfod
from quayscope.sidecar.native.demangle import demangle
from quayscope.sidecar.native.maps import AddressSpace, read_maps
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Named, Symbols

HERE = Path(__file__).parent
GO = shutil.which("go") or "/usr/local/go/bin/go"
GO_ENVIRONMENT = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C++ program without frame pointers: `full` with all symbols, `bare` with none, and a library."""
    folder = tmp_path_factory.mktemp("cpp")
    flags = ["-O1", "-g", "-fomit-frame-pointer", "-Wl,--build-id", "-pthread"]
    run("g++", *flags, "-o", folder / "full", HERE / "busy.cpp")
    run("strip", "-o", folder / "bare", folder / "full")
    return folder


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Go program: `full`, and `bare` as Clair is built."""
    folder = tmp_path_factory.mktemp("go")
    shutil.copy(HERE / "busy.go", folder / "main.go")
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


def test_go_inlined_calls(go: Path) -> None:
    """Each instruction of a function is named after the inlined one whose source line it comes from."""
    source = (go / "main.go").read_text().splitlines()
    holders = {}
    holder = ""
    for number, line in enumerate(source, 1):
        if match := re.match(r"func (\w+)(\[)?", line):
            holder = f"main.{match[1]}" + ("[...]" if match[2] else "")
        holders[number] = holder
    listing = run(GO, "tool", "objdump", "-s", "^main.work$", go / "full", env=os.environ | GO_ENVIRONMENT)
    symbols = Symbols(Objects())
    seen = set()
    with running(go / "bare") as process:
        space = space_of(process.pid)
        for match in re.finditer(r"^\s+main\.go:(\d+)\s+(0x[0-9a-f]+)\s", listing, re.MULTILINE):
            names = tuple(f.function for f in symbols.frames(space, int(match[2], 16)).frames)
            assert names[0].startswith(holders[int(match[1])]), match[0]
            assert names[-1] == "main.work"
            seen.add(names)
    assert ("main.small", "main.middle", "main.work") in seen


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
            named = symbols.frames(space, lies + 1)
            assert named.known
            # A weak one is in the dynamic table all the same.
            if named.frames[0].function in (f"bare+{address:#x}", *map(demangle, truth[address])):
                right += 1
            else:
                print(named.frames[0], truth[address])
    assert right >= 0.99 * len(truth)


def test_mini_debuginfo(cpp: Path, tmp_path: Path) -> None:
    """Names packed into the stripped file, as Fedora and Enterprise Linux ship it, are found."""
    small = tmp_path / "small"
    run("objcopy", "--strip-debug", cpp / "full", small)
    (tmp_path / "small.xz").write_bytes(lzma.compress(small.read_bytes()))
    program = tmp_path / "program"
    run("objcopy", f"--add-section=.gnu_debugdata={tmp_path / 'small.xz'}", cpp / "bare", program)
    symbols = Symbols(Objects())
    with running(program) as process:
        shares = compare(symbols, space_of(process.pid), str(program), functions(cpp / "full"), cpp_name)
    assert shares[0] >= 0.99
    assert shares[1] <= 0.01


@pytest.mark.parametrize("checked_by", ["build-id", "checksum"])
def test_debug_file_beside(cpp: Path, tmp_path: Path, checked_by: str) -> None:
    """A separate debug file that the program links to is used when it belongs to it, and only then."""
    full = tmp_path / "full"
    options = ["--remove-section=.note.gnu.build-id"] if checked_by == "checksum" else []
    run("objcopy", *options, cpp / "full", full)
    debug = tmp_path / "program.debug"
    program = tmp_path / "program"
    compress = ["--compress-debug-sections"]
    run("objcopy", "--only-keep-debug", *compress, full, debug)
    run("objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", full, program)
    with running(program) as process:
        space = space_of(process.pid)
        symbols = Symbols(Objects())
        shares = compare(symbols, space, str(program), functions(full), cpp_name)
        assert shares[0] >= 0.99
        assert shares[1] <= 0.01
        # One that belongs to another build.
        other = debug.read_bytes()
        if checked_by == "checksum":
            debug.write_bytes(other + b"\0")
        else:
            at = other.index(b"GNU\0", other.index(b"\x14\0\0\0\x03\0\0\0")) + 4
            debug.write_bytes(other[:at] + bytes(20) + other[at + 20 :])
        shares = compare(Symbols(Objects()), space, str(program), functions(full), cpp_name)
        assert shares[0] < 0.5


def test_another_mount_namespace(cpp: Path, tmp_path: Path) -> None:
    """The process's file and debug file are read, not those that lie under the same paths here."""
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    debug = tmp_path / "debug"
    run("objcopy", "--only-keep-debug", cpp / "full", debug)
    build_id = run("readelf", "-n", cpp / "full").split("Build ID: ")[1].split()[0]
    script = f"""set -e
        cp {cpp}/bare {cpp}/bare.copy; cp {debug} {cpp}/debug.copy
        mount -t tmpfs tmpfs {tmp_path}; cp {cpp}/bare.copy {program}
        mount -t tmpfs tmpfs /usr/lib/debug; mkdir -p /usr/lib/debug/.build-id/{build_id[:2]}
        cp {cpp}/debug.copy /usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug
        exec {program}"""
    options = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    with running("unshare", *options, "sh", "-c", script) as process:
        space = space_of(process.pid)
        shares = compare(Symbols(Objects()), space, str(program), functions(cpp / "full"), cpp_name)
    assert shares[0] >= 0.99
    assert shares[1] <= 0.01


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program and two builds of its library, which differ in one function's name."""
    folder = tmp_path_factory.mktemp("libraries")
    link = ["-Wl,--build-id", "-Wl,-soname,libshop.so"]
    for version, name in (("old", "before_upgrade"), ("new", "after_upgrade")):
        source = (
            f'extern "C" int {name}(int n) {{ return n * 3; }} extern "C" int entry(int n) {{ return n; }}'
        )
        (folder / "lib.cpp").write_text(source)
        run("g++", "-shared", "-fPIC", *link, "-o", folder / f"{version}.so", folder / "lib.cpp")
    (folder / "main.cpp").write_text(
        '#include <cstdio>\nextern "C" int entry(int);\n'
        'int main() { entry(1); std::puts("ready"); std::fflush(stdout); return std::getchar(); }\n'
    )
    shutil.copy(folder / "old.so", folder / "libshop.so")
    run("g++", "-o", folder / "program", folder / "main.cpp", folder / "libshop.so")
    return folder


@pytest.mark.parametrize("what", ["removed", "replaced"])
@pytest.mark.parametrize("maps_read", ["before", "after"])
def test_upgraded_under_the_process(libraries: Path, tmp_path: Path, what: str, maps_read: str) -> None:
    """What a process has mapped keeps its names when the files are removed, or others take their place."""
    library, program = tmp_path / "libshop.so", tmp_path / "program"
    shutil.copy(libraries / "old.so", library)
    shutil.copy(libraries / "program", program)
    address = next(a for a, n in functions(library).items() if "before_upgrade" in n)
    main = next(a for a, n in functions(program).items() if "main" in n)
    command: list[str | Path] = ["env", f"LD_LIBRARY_PATH={tmp_path}", program]
    with running(*command) as process:
        space = space_of(process.pid)
        in_library, in_program = place(space, str(library), address), place(space, str(program), main)
        assert in_library is not None
        assert in_program is not None
        if what == "replaced":
            for path, other in ((library, "new.so"), (program, "old.so")):
                shutil.copy(libraries / other, tmp_path / "other")
                (tmp_path / "other").rename(path)
        else:
            library.unlink()
            program.unlink()
        if maps_read == "after":
            space = space_of(process.pid)
        objects = Objects()
        symbols = Symbols(objects)
        assert symbols.frames(space, in_program).frames[0].function == "main"
        name = symbols.frames(space, in_library).frames[0].function
        # /proc/PID/map_files needs a capability: without it there is no name, and never the other file's.
        assert name == ("before_upgrade" if os.geteuid() == 0 or objects.replaced == 0 else library.name)


def test_ended_processes(libraries: Path, tmp_path: Path) -> None:
    """What was named while a process lived is named after its end; the rest is not guessed from our files."""
    with running("env", f"LD_LIBRARY_PATH={libraries}", libraries / "program") as process:
        space = space_of(process.pid)
        main = next(a for a, n in functions(libraries / "program").items() if "main" in n)
        lies = place(space, str(libraries / "program"), main)
        assert lies is not None
        seen, unseen = Symbols(Objects()), Symbols(Objects())
        assert seen.frames(space, lies + 1).frames[0].function == "main"
    assert seen.frames(space, lies).frames[0].function == "main"
    again = AddressSpace(space.pid, space.mappings)
    assert seen.frames(again, lies).frames[0].function == "main"
    assert not unseen.frames(space, lies).known
    assert unseen.unnamed == 1


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
from quayscope.sidecar.native.maps import read_maps
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Symbols

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)

before = resident()
symbols = Symbols(Objects())
KernelSymbols().frame(0)
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


class DebugServer:
    """A debuginfod on loopback that has what `files` holds, by build-id; `statuses` are what it answered."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirect = ""
        self.statuses: list[int] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                build_id = self.path.removeprefix("/buildid/").removesuffix("/debuginfo")
                data = server.files.get(build_id)
                status = 302 if server.redirect else 404 if data is None else 200
                self.send_response(status)
                if server.redirect:
                    self.send_header("Location", server.redirect)
                self.end_headers()
                server.statuses.append(status)
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def debug_server() -> Iterator[DebugServer]:
    server = DebugServer()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def fetcher(debug_server: DebugServer, tmp_path: Path) -> Iterator[Debuginfod]:
    fetching = Debuginfod(debug_server.url, tmp_path / "cache", max_bytes=4 << 20)
    fetching.start()
    yield fetching
    fetching.close()


def test_fetched_debug_file(
    cpp: Path, debug_server: DebugServer, fetcher: Debuginfod, until: Callable[..., Any]
) -> None:
    """Names come from a debuginfod server: at first there are none and nobody waits, then they are there."""
    build_id = run("readelf", "-n", cpp / "full").split("Build ID: ")[1].split()[0]
    debug_server.files[build_id] = (cpp / "full").read_bytes()
    truth = functions(cpp / "full")
    symbols = Symbols(Objects(), fetcher)
    with running(cpp / "bare") as process:
        space = space_of(process.pid)
        main = next(address for address, names in truth.items() if "main" in names)
        lies = place(space, str(cpp / "bare"), main)
        assert lies is not None
        assert symbols.frames(space, lies).frames[0].function == f"bare+{main:#x}"
        until(lambda: fetcher.fetched, 10.0, "the file is fetched")
        shares = compare(symbols, space, str(cpp / "bare"), truth, cpp_name)
    assert shares[0] >= 0.99
    assert shares[1] <= 0.01
    assert debug_server.statuses == [200]


def test_what_a_debug_server_may_answer(
    cpp: Path, debug_server: DebugServer, fetcher: Debuginfod, until: Callable[..., Any]
) -> None:
    """A missing file is asked for once; one of another build, no object, too long, elsewhere: counted."""
    full = (cpp / "full").read_bytes()
    debug_server.files |= {"aa" * 20: full, "bb" * 20: b"no object", "cc" * 20: full + bytes(5 << 20)}
    for build_id in ("aa" * 20, "bb" * 20, "cc" * 20, "dd" * 20):
        assert fetcher.find(build_id) is None
        assert fetcher.find(build_id) is None
    until(lambda: fetcher.missing + fetcher.failed == 4, 10.0, "all are asked for")
    assert (fetcher.fetched, fetcher.missing, fetcher.failed) == (0, 1, 3)
    assert debug_server.statuses == [200, 200, 200, 404]
    debug_server.redirect = "http://192.0.2.1/"
    assert fetcher.find("ee" * 20) is None
    until(lambda: fetcher.failed == 4, 10.0, "the redirect is refused")
    assert fetcher.find("../../etc/passwd") is None


def test_fetched_files_are_bounded(
    cpp: Path, tmp_path: Path, debug_server: DebugServer, fetcher: Debuginfod, until: Callable[..., Any]
) -> None:
    """What was fetched first makes room for what comes."""
    full = (cpp / "full").read_bytes()
    at = full.index(bytes.fromhex(run("readelf", "-n", cpp / "full").split("Build ID: ")[1].split()[0]))
    for number in range(1, 12):
        build_id = bytes([number] * 20)
        debug_server.files[build_id.hex()] = full[:at] + build_id + full[at + 20 :]
        fetcher.find(build_id.hex())
        until(lambda wanted=number: fetcher.fetched == wanted, 10.0, "the file is fetched")
    held = sorted((tmp_path / "cache").iterdir())
    assert sum(path.stat().st_size for path in held) <= 4 << 20
    assert held[-1].name == f"{'0b' * 20}.debug"
    assert not any(path.name.startswith(("01", ".part")) for path in held)


@pytest.mark.parametrize("url", ["http://debug.example/", "ftp://127.0.0.1/", "file:///tmp", "http://[", ""])
def test_where_debug_files_come_from(tmp_path: Path, url: str) -> None:
    """Plain http leaves the machine never."""
    with pytest.raises(BadOption, match="https"):
        Debuginfod(url, tmp_path / "cache")
