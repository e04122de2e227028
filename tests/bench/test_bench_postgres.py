"""The benchmark of reading Postgres at the smallest size: it measures what it says, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.postgres.report import REPORT


def test_the_join_is_measured(checkout: Path, tmp_path: Path) -> None:
    """On a busy Postgres samples come, most get their statement, and hardly one a wrong one."""
    output = tmp_path / "postgres.json"
    command = [sys.executable, "-m", "bench.postgres", "--quick", "--parts=join", f"--output={output}"]
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
    assert found["proven_checked"] > 20
    assert found["proven_right_share"] > 0.98
    assert 0 < found["core_share_join_notes"] < found["core_share_join"] < 0.9


def test_bounds() -> None:
    """A figure beyond its bound is named, whichever side that is on."""
    assert REPORT.missed({"core_share_200_mmap": 0.009, "proven_share_oltp": 0.9, "realtime": True}) == []
    assert len(REPORT.missed({"core_share_200_readv": 0.021, "proven_right_share": 0.98})) == 2
