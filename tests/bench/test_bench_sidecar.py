"""The benchmark of the sampler at the smallest size: it measures what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.keeper import resident
from bench.sidecar.report import REPORT


def test_the_sampler_is_measured(checkout: Path, tmp_path: Path) -> None:
    """At 999 Hz on a busy Postgres samples come, few are lost, at a sane price."""
    output = tmp_path / "sidecar.json"
    command = [
        sys.executable,
        "-m",
        "bench.sidecar",
        "--quick",
        "--parts=rate",
        f"--output={output}",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(checkout / "tests")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert REPORT.table(found) in done.stdout
    assert found["samples_999hz"] > 100
    assert 0 <= found["lost_999hz"] < 0.5
    assert 0 < found["core_share_999hz"] < 0.9


def test_the_keeper_finds_all_pages_and_ends_with_its_process(checkout: Path) -> None:
    """What it touches is what the process has in memory; when that has ended, so has it."""
    held = bytearray(b"x" * (4 << 20))
    pages = set(resident(os.getpid()))
    first = id(held)  # of its header; the bytes are in a mapping of their own
    assert len(pages) * os.sysconf("SC_PAGESIZE") > len(held)
    assert first // os.sysconf("SC_PAGESIZE") * os.sysconf("SC_PAGESIZE") in pages
    with subprocess.Popen(["sleep", "60"]) as kept:
        command = [sys.executable, "-m", "bench.keeper", str(kept.pid)]
        keeper = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(checkout / "tests")})
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                keeper.wait(1)
            kept.kill()
            kept.wait()
            assert keeper.wait(20) == 0
        finally:
            kept.kill()
            keeper.kill()
            keeper.wait()


def test_bounds() -> None:
    """A figure beyond its bound is named, whichever side that is on."""
    assert REPORT.missed({"core_share_99hz": 0.009, "reach_root_share": 0.995, "source": "task"}) == []
    assert len(REPORT.missed({"core_share_99hz": 0.011, "reach_root_share": 0.98})) == 2
