"""CPU samples of real servers and their statements, held against when each was sent and answered."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plain_user import NOBODY
from postgres.installs import MAJORS
from postgres.joined import compare, joining
from postgres.pgbench import LOADS, Bracket, Pgbench, early_ns, fill
from quayscope.sidecar import procfs

_RIGHT = 0.995
_FIRST = 100
_AT_LEAST = {"oltp": 0.80, "mixed": 0.95, "slow": 0.95}
_MAJORS = {"oltp": ("15", "18"), "mixed": ("15",), "slow": ("15",)}
_CASES = [
    pytest.param(load, major, marks=[] if major in _MAJORS[load] else pytest.mark.full_size)
    for load in LOADS
    for major in MAJORS
]


@pytest.fixture(scope="module")
def filled(make_server: Callable[..., Any]) -> Callable[[str], Any]:
    """A server of a major with the loads' tables."""
    servers: dict[str, Any] = {}

    def of(major: str) -> Any:
        if major not in servers:
            servers[major] = make_server(major)
            fill(servers[major])
        return servers[major]

    return of


def test_times_that_are_too_early_are_found_out() -> None:
    """Moments at which statements ran tell by how much their brackets are off, and when that cannot be."""
    right = [(1_000, Bracket(900, 1_200, 0)), (2_000, Bracket(1_950, 2_020, 0))]
    assert early_ns(right) == early_ns([]) == (0, 0)
    assert early_ns([(at + 500, bracket) for at, bracket in right]) == (480, 550)
    with pytest.raises(AssertionError, match="clock was set"):
        early_ns([*right, (9_000, Bracket(1_000, 1_100, 0))])


@pytest.mark.alone
@pytest.mark.parametrize(("load", "major"), _CASES)
def test_proven_statements_are_right(
    filled: Callable[[str], Any],
    load: str,
    major: str,
    tmp_path: Path,
    until: Callable[..., Any],
    full: bool,
) -> None:
    """Of what is called proven hardly anything is wrong, and most is proven, at real-time priority."""
    wanted = 20_000 if full else 400
    server = filled(major)
    with joining(server, hz=199) as found, Pgbench(server, tmp_path, LOADS[load], 2) as client:
        # Reading the unwind tables of a program that is new to it keeps the interpreter busy at first.
        until(lambda: len(found.samples) >= _FIRST, 30.0)
        until(lambda: len(found.samples) >= _FIRST + wanted, wanted / 10)
    outcome = compare(found.samples[_FIRST:], client.brackets)
    print(f"{major}, {load}: {outcome}, pgbench's own times early by {client.early_ns} ns")
    assert found.sampling.realtime is None
    assert outcome.right > 100
    assert outcome.right_share >= _RIGHT
    # How much is proven depends on who else wants the machine; that it is right does not.
    assert outcome.proven_share >= (_AT_LEAST[load] if full else 0.5)


def test_at_normal_priority_less_is_proven_and_as_right(
    filled: Callable[[str], Any], tmp_path: Path, until: Callable[..., Any], full: bool
) -> None:
    """Where the kernel grants no priority fewer samples get their statement; none gets another's."""
    server = filled("15")
    wanted = 20_000 if full else 300
    refused = PermissionError(1, "Operation not permitted")
    with (
        joining(server, hurry=lambda: refused) as found,
        Pgbench(server, tmp_path, LOADS["oltp"], 2) as client,
    ):
        until(lambda: len(found.samples) >= wanted, wanted / 20)
    outcome = compare(found.samples, client.brackets)
    print(f"normal priority: {outcome}")
    assert found.sampling.realtime is refused
    assert outcome.right > 20
    assert outcome.right_share >= _RIGHT


class _Nested:
    """A server in a pid namespace of its own, as in a pod: it knows its processes by other pids."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def __enter__(self) -> Any:
        server = self._server
        command = [server.binaries / "bin" / "postgres", "-D", server.data, "-p", str(server.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        with (server.directory / "log").open("ab") as log:
            self._unshare = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", *user, *command],
                cwd=server.directory,
                stdout=log,
                stderr=log,
            )
        return server

    def postmaster(self) -> int:
        """Our pid of it."""
        (pid,) = procfs.children(self._unshare.pid)
        return pid

    def __exit__(self, *_: object) -> None:
        os.kill(self.postmaster(), signal.SIGINT)
        self._unshare.wait(20)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a pid namespace")
def test_pids_of_another_namespace(
    make_server: Callable[..., Any], tmp_path: Path, until: Callable[..., Any]
) -> None:
    """A server that knows its processes by other pids than we do: its samples get their statements too."""
    server = make_server("15")
    fill(server)
    server.stop()
    nested = _Nested(server)
    with nested:
        until(server._answers, 20.0)
        seen = SimpleNamespace(pid=nested.postmaster())
        with joining(seen) as found, Pgbench(server, tmp_path, LOADS["mixed"], 2) as client:
            until(lambda: len(found.samples) >= 200, 30.0)
    outcome = compare(found.samples, client.brackets)
    print(outcome)
    assert outcome.right > 50
    assert outcome.right_share >= _RIGHT
    assert outcome.proven_share > 0.5
