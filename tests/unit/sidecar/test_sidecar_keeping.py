"""A kept sidecar comes back, and ends when it is told to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from quayscope.sidecar import keeping
keeping._FIRST_WAIT_S = float(sys.argv[2])
keeping.keep_running()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
file = Path(sys.argv[1])
file.with_suffix(".new").write_text(f"{os.getpid()} {os.getppid()}")
file.with_suffix(".new").replace(file)
while True:
    time.sleep(60)
"""


class Kept:
    """The running program."""

    def __init__(self, file: Path, wait_s: float) -> None:
        self.file = file
        command = [sys.executable, "-c", PROGRAM, str(file), str(wait_s)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)

    def close(self) -> None:
        """End whatever runs still: the sidecar is in the first process's session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def child(self) -> int:
        """The sidecar's pid, once it runs; its parent is the first process."""
        deadline = time.monotonic() + 20
        while not self.file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child, parent = map(int, self.file.read_text().split())
        assert parent == self.process.pid
        self.file.unlink()
        return child


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """One that waits 10 ms before it starts again."""
    made = Kept(tmp_path / "pid", 0.01)
    yield made
    made.close()


def test_comes_back_after_each_end(kept: Kept) -> None:
    """Killed twice, it runs a third time, as another process; the first process stays."""
    seen = set()
    for _ in range(3):
        child = kept.child()
        seen.add(child)
        os.kill(child, signal.SIGKILL)
    seen.add(kept.child())
    assert len(seen) == 4
    assert kept.process.poll() is None


def test_told_to_end_it_passes_that_on(kept: Kept) -> None:
    """SIGTERM reaches the sidecar, whose exit code is the container's."""
    kept.child()
    kept.process.send_signal(signal.SIGTERM)
    assert kept.process.wait(20) == 7


def test_told_to_end_while_it_waits(tmp_path: Path) -> None:
    """Between two lives it ends at once, with 0."""
    waiting = Kept(tmp_path / "pid", 3600)
    os.kill(waiting.child(), signal.SIGKILL)
    # Before it noticed, or while it waits: whenever the signal comes, it ends.
    waiting.process.send_signal(signal.SIGTERM)
    try:
        assert waiting.process.wait(20) in (0, 128 + signal.SIGKILL)
    finally:
        waiting.close()
