"""The benchmark of the agent at the smallest size: it measures what it says, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.agent.pairs import Pair, summarise, upper_95
from bench.agent.report import REPORT
from bench.refresh import refresh
from integration.agent.serving import until

BENCH = [sys.executable, "-m", "bench.agent", "--quick"]


def run(checkout: Path, output: Path, parts: str) -> dict[str, Any]:
    done = subprocess.run(
        [*BENCH, f"--parts={parts}", f"--output={output}"],
        env={**os.environ, "PYTHONPATH": str(checkout / "tests")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    assert all(not isinstance(value, (dict, list)) for value in found.values())
    assert REPORT.table(found) in done.stdout
    return found


def test_the_agent_is_measured(checkout: Path, tmp_path: Path) -> None:
    """In pairs and alone: requests were served on both sides, at the rate asked for, at a sane price."""
    found = run(checkout, tmp_path / "agent.json", "agent,alone")
    assert found["pairs"] == 1
    assert found["requests"] > 5
    assert found["us_off"] > 20_000
    assert 0.8 < found["cpu_ratio_on_off_median"] < 1.25
    assert 60 < found["agent_samples_per_cpu_second"] < 120
    assert found["agent_faults"] == 0
    assert 0 < found["us_per_sample"] < 1_000
    assert 0 < found["us_per_request"] < 5_000
    assert 0 < found["cost_share_100hz"] < 0.1


def test_the_stock_tools_are_measured(checkout: Path, tmp_path: Path) -> None:
    """pyroscope-io in both implementations and py-spy: each saw a worker's CPU, and none of its requests."""
    found = run(checkout, tmp_path / "agent.json", "pyroscope,py-spy")
    for name in ("pyroscope_", "pyroscope_stack_", "pyspy_"):
        assert found[f"{name}requests"] > 5
        assert 0.7 < found[f"{name}cpu_ratio"] < 1.4
        assert found[f"{name}recorded_share"] > 0.2
        assert found[f"{name}unattributed_share"] > 0.5
    assert 0 < found["pyspy_core_share"] < 1


def test_an_interrupted_run_leaves_nothing_behind(checkout: Path, tmp_path: Path, open_folder: Path) -> None:
    """Ctrl-C under load: the servers, the database and the files are gone, and no figures are written."""
    output = tmp_path / "agent.json"
    process = subprocess.Popen(
        [*BENCH, "--parts=agent", f"--output={output}"],
        env={**os.environ, "PYTHONPATH": str(checkout / "tests"), "TMPDIR": str(open_folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    started: dict[int, bytes] = {}
    try:
        until(lambda: len(servers_of(process.pid)) >= 3, "gunicorn and its two workers run", 90)
        started = descendants_of(process.pid)
        assert any(b"postgres" in command for command in started.values())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        until(lambda: not [pid for pid in started if command_of(pid) == started[pid]], "all have ended")
        assert not list(open_folder.iterdir())
        assert not output.exists()
    finally:
        for pid, command in started.items():
            if command_of(pid) == command:
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def descendants_of(pid: int) -> dict[int, bytes]:
    """Return a process's children and theirs, with their command lines."""
    found: dict[int, bytes] = {}
    with contextlib.suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found[int(child)] = command_of(int(child))
            found.update(descendants_of(int(child)))
    return found


def servers_of(pid: int) -> list[int]:
    return [child for child, command in descendants_of(pid).items() if b"gunicorn" in command]


def command_of(pid: int) -> bytes:
    """Return a process's command line; nothing when it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.mark.parametrize(("count", "rank"), [(5, 5), (8, 7), (10, 9), (20, 15), (30, 20)])
def test_the_bound_of_the_median_is_the_binomial_one(count: int, rank: int) -> None:
    """The order statistic is the one that tables of the sign test give for 95 %, one side."""
    assert upper_95([float(value) for value in range(count, 0, -1)]) == rank


def test_the_spread_of_pairs_is_shown_beside_their_median() -> None:
    """Three pairs: the middle ratio, the quartiles around it, the requests of all."""
    summary = summarise(
        [Pair(110.0, 100.0, 1.1, 10), Pair(99.0, 100.0, 0.99, 20), Pair(102.0, 100.0, 1.02, 30)]
    )
    assert summary.ratio == 1.02
    assert summary.quartile_1 == 0.99
    assert summary.quartile_3 == 1.1
    assert summary.requests == 60


def test_a_missed_bound_is_said() -> None:
    """What is over its bound is named with its figure; what was not measured is passed over."""
    assert REPORT.missed({"cpu_ratio_upper95": 1.03, "cost_share_100hz": 0.004}) == [
        "cpu_ratio_upper95 is 1.0300, more than 1.02"
    ]


def test_a_table_is_replaced_between_its_markers(checkout: Path) -> None:
    """All else of the document stays; one without markers is refused."""
    text = (checkout / "docs" / "benchmarks.md").read_text()
    first = refresh(text, "agent", "| one |")
    assert "\n<!-- bench:agent -->\n| one |\n<!-- /bench:agent -->\n" in first
    assert refresh(first, "agent", "| two |").replace("| two |", "| one |") == first
    assert first.partition("<!-- bench:agent -->")[0] == text.partition("<!-- bench:agent -->")[0]
    with pytest.raises(ValueError, match="bench:agent"):
        refresh("no markers", "agent", "")
