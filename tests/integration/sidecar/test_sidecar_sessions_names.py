"""The tables of names against what the servers themselves call their waits, backends and states."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postgres.installs import MAJORS, install
from quayscope.sidecar.postgres.enums import Names, names_of

# Class numbers, and numbers in them to ask for: more than there are. Extension and InjectionPoint have none.
_CLASSES = {1: 100, 3: 12, 4: 1, 5: 40, 6: 20, 8: 100, 9: 30, 10: 120}
_NONE = ("unknown wait event", "unknown process type", "not initialized", "???", "(null)", "extension")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """The library that asks a server's program for its names."""
    made = tmp_path_factory.mktemp("names") / "ask_names.so"
    source = checkout / "tests" / "postgres" / "ask_names.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


def _answers(program: Path, library: Path, codes: list[int]) -> list[list[str]]:
    done = subprocess.run(
        [program],
        input="\n".join(map(str, codes)),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("major", MAJORS)
def test_names_are_the_servers_own(major: str, asked: Path, checkout: Path, open_folder: Path) -> None:
    """Every number that a program has a name for has the same one in the major's table, and no other has."""
    names = Names(int(major))
    codes = [kind << 24 | number for kind, count in _CLASSES.items() for number in range(count)]
    program = install(major, checkout, open_folder) / "bin" / "postgres"
    waits, backends = 0, 0
    for first, second, third in _answers(program, asked, codes):
        named = third not in _NONE and not third.startswith("<unassigned")
        if first == "backend":
            if named:
                backends += 1
                assert names.backend_types[int(second)] == third
            else:
                assert int(second) == 0 or int(second) >= len(names.backend_types)
        elif named:
            waits += 1
            assert names.wait(int(first)) == (second, third)
            assert names.known_wait(int(first))
        else:
            # A later minor release may have appended what this one does not know yet.
            assert not names.known_wait(int(first)) or third == "unknown wait event"
    assert waits > 200
    assert backends == len(names.backend_types) - 1


def test_unknown_numbers_are_shown_as_such() -> None:
    """An event that no table has keeps its class and its number; garbage has no class."""
    names = names_of(15)
    assert names.wait(0) == ("", "")
    assert names.wait(0x07000003) == ("Extension", "0x07000003")
    assert names.wait(0x08000099) == ("IPC", "0x08000099")
    assert names.wait(0xFE000001) == ("unknown", "0xfe000001")
    assert not names.known_wait(0x08000099)
    for code in range(0x0C000000, 0x0C000000 + 5000):
        assert names.wait(code).event == f"{code:#010x}"


def test_states_move_between_majors() -> None:
    """18 inserts a state; a table of another major would show idle backends as active."""
    assert names_of(17).states.index("active") == 2
    assert names_of(18).states.index("active") == 3
    assert names_of(18).states[1] == "starting"


def test_events_of_the_view(make_server: Callable[..., Any]) -> None:
    """Where a server lists its wait events (17 and later), the table has the same, by class and name."""
    for major in ("17", "18"):
        server = make_server(major)
        with server.connect() as connection:
            listed = set(connection.execute("SELECT type, name FROM pg_wait_events").fetchall())
        server.stop()
        names = Names(int(major))
        known = {tuple(wait) for code, wait in names._waits.items() if code}
        assert {row for row in listed if row[0] not in ("Extension", "InjectionPoint")} <= known
