"""CPU samples of real servers and their statements, held against when each was sent and answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postgres.joined import compare, joining
from postgres.pgbench import LOADS, Pgbench, fill

_RIGHT = 0.995
_AT_LEAST = {"oltp": 0.80, "mixed": 0.95, "slow": 0.95}
_MAJORS = {"oltp": ("15", "18"), "mixed": ("15",), "slow": ("15",)}
_ALL = ("13", "15", "18")


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


@pytest.mark.alone
@pytest.mark.parametrize(("load", "major"), [(load, major) for load in LOADS for major in _ALL])
def test_proven_statements_are_right(
    filled: Callable[[str], Any],
    load: str,
    major: str,
    tmp_path: Path,
    until: Callable[..., Any],
    full: bool,
) -> None:
    """Of what is called proven hardly anything is wrong, and most is proven, at real-time priority."""
    if not full and major not in _MAJORS[load]:
        pytest.skip("every load on every major: at full size")
    wanted = 20_000 if full else 500
    server = filled(major)
    with joining(server) as found, Pgbench(server, tmp_path, LOADS[load], 2) as client:
        until(lambda: len(found.samples) >= wanted, wanted / 20)
    outcome = compare(found.samples, client.brackets)
    print(f"{major}, {load}: {outcome}")
    assert found.sampling.realtime is None
    assert outcome.right > 100
    assert outcome.right_share >= _RIGHT
    assert outcome.proven_share >= _AT_LEAST[load]


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
