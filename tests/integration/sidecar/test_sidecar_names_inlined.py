"""Inlined calls of real programs: those that Go's and GNU's own tools find."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from named_programs import (
    GO,
    GO_ENVIRONMENT,
    SOURCES,
    build_cpp,
    build_go,
    functions,
    place,
    run,
    running,
    space_of,
)
from quayscope.sidecar.errors import MalformedElf
from quayscope.sidecar.native.demangle import demangle
from quayscope.sidecar.native.dwarf import InlinedCalls
from quayscope.sidecar.native.elf import Elf
from quayscope.sidecar.native.inlines import Inlines
from quayscope.sidecar.native.objects import Objects
from quayscope.sidecar.native.symbols import Symbols


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cpp(tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_go(tmp_path_factory.mktemp("go"))


def inlined_truth(program: Path, addresses: list[int]) -> dict[int, list[str]]:
    """What binutils say is inlined at each address, leaf first, the holding function last."""
    text = run("addr2line", "-e", program, "-f", "-i", "-a", input="\n".join(map(hex, addresses)))
    found: dict[int, list[str]] = {}
    current: list[str] = []
    for number, line in enumerate(text.splitlines()):
        if line.startswith("0x"):
            current, begins = found.setdefault(int(line, 16), []), number
        elif (number - begins) % 2:
            current.append(line)
    return found


@pytest.mark.parametrize("flags", [["-gdwarf-5"], ["-gdwarf-4"], ["-gdwarf-5", "-gz"]], ids=" ".join)
def test_inlined_calls(cpp: Path, tmp_path: Path, flags: list[str]) -> None:
    """The calls inlined at an address are those that binutils find there."""
    program = tmp_path / "program"
    run("g++", "-O2", *flags, "-pthread", "-o", program, SOURCES / "busy.cpp")
    elf = Elf(program.read_bytes())
    calls = InlinedCalls(elf)
    addresses: list[int] = []
    for start in elf.functions.addresses:
        function = elf.functions.at(start, start)
        assert function is not None
        addresses += range(start, start + function.size, 7)
    truth = inlined_truth(program, addresses)
    equal = deep = 0
    for address in addresses:
        names, wanted = calls.at(address), truth[address][:-1]
        assert len(names) == len(wanted), hex(address)
        # For a leaf without a linkage name binutils show the function of the symbol table instead.
        equal += list(names) == wanted or (list(names[1:]) == wanted[1:] and not names[0].startswith("_Z"))
        deep += bool(names)
    assert deep > 500
    assert equal >= 0.99 * len(addresses)
    assert calls.skipped == 0


def test_an_origin_of_sixteen_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose function lies at what no offset can be is refused."""
    program = tmp_path / "program"
    run("g++", "-O2", "-gdwarf-5", "-pthread", "-o", program, SOURCES / "busy.cpp")
    elf = Elf(program.read_bytes())
    calls = InlinedCalls(elf)
    address = next(address for address in elf.functions.addresses if calls.at(address))
    read = InlinedCalls(elf)
    values_of = read._reader.values

    def values(*given: Any) -> Any:
        found, at = values_of(*given)
        # DW_FORM_data16 where a reference should be.
        return {
            name: one._replace(number=1 << 100) if name == 0x31 else one for name, one in found.items()
        }, at

    monkeypatch.setattr(read._reader, "values", values)
    with pytest.raises(MalformedElf, match="no place"):
        read.at(address)


def test_inlined_calls_come_later(cpp: Path, until: Callable[..., Any]) -> None:
    """An address has its function's name at once, and its inlined calls when a thread has looked them up."""
    inlines = Inlines()
    inlines.start()
    try:
        symbols = Symbols(Objects(), None, inlines)
        calls = InlinedCalls(Elf((cpp / "full").read_bytes()))
        with running(cpp / "full") as process:
            space = space_of(process.pid)
            start = next(a for a, names in functions(cpp / "full").items() if "_ZL4worki" in names)
            address = next(a for a in range(start, start + 400) if len(calls.at(a)) > 1)
            lies = place(space, str(cpp / "full"), address)
            assert lies is not None
            assert [frame.function for frame in symbols.frames(space, lies).frames] == ["work(int)"]
            until(symbols.refresh, 10.0, "the calls are known")
            assert not symbols.refresh()
            shown = [frame.function for frame in symbols.frames(space, lies).frames]
            # Forgotten and asked again, it is answered again, once.
            symbols.forget()
            symbols.frames(space, lies)
            until(lambda: len(symbols.frames(space, lies).frames) > 1, 10.0, "the calls are known again")
            assert [frame.function for frame in symbols.frames(space, lies).frames] == shown
    finally:
        inlines.close()
    assert shown == [*map(demangle, calls.at(address)), "work(int)"]
    assert (inlines.refused, inlines.malformed, inlines.dropped) == (0, 0, 0)


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
