"""Names from debug files of every kind, and of files that are gone, replaced, or elsewhere."""

from __future__ import annotations

import lzma
import os
import shutil
import sys
from pathlib import Path

import pytest

from named_programs import (
    build_cpp,
    compare,
    cpp_name,
    functions,
    place,
    run,
    running,
    space_of,
)
from quayscope.sidecar.native.maps import AddressSpace
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Symbols


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cpp(tmp_path_factory.mktemp("cpp"))


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


def test_upgraded_library_in_pieces(libraries: Path, tmp_path: Path) -> None:
    """A library whose code lies in two mappings that continue one another is found after its removal too."""
    library = tmp_path / "libshop.so"
    shutil.copy(libraries / "old.so", library)
    address = next(a for a, n in functions(library).items() if "before_upgrade" in n)
    script = (
        "import ctypes, mmap, os, sys\n"
        "file = os.open(sys.argv[1], os.O_RDONLY)\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]\n"
        "base = libc.mmap(None, 8192, 5, 2, file, 0)\n"
        "libc.mprotect(ctypes.c_void_p(base), 4096, 7)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with running(sys.executable, "-c", script, library) as process:
        library.unlink()
        space = space_of(process.pid)
        mapping = next(m for m in space.mappings if m.path.startswith(str(library)))
        lines = Path(f"/proc/{process.pid}/maps").read_text().count(str(library))
        assert (lines, mapping.end - mapping.start) == (2, 8192)
        named = Symbols(Objects()).frames(space, mapping.start + address)
    assert named.frames[0].function == ("before_upgrade" if os.geteuid() == 0 else library.name)
