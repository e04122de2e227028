"""Parts of the demo die, or a person presses Ctrl-C: requests go on, nothing stays behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.demo_process import DemoProcess, alive

pytestmark = pytest.mark.e2e

FIRING = "firing"


@pytest.mark.parametrize("part", ["collector", "sidecar", "postgres"])
def test_a_killed_part_fails_no_request(part: str, open_directory: Callable[[], Path], full: bool) -> None:
    """Killing one part makes no request fail because of us; the report says what is missing."""
    demo = DemoProcess(open_directory(), f"--duration={20 if full else 10}s", "--exit")
    words = {
        "collector": ("quayscope.cli.main", " collector "),
        "sidecar": ("quayscope.cli.main", " sidecar "),
        "postgres": ("bin/postgres", "-D"),
    }[part]
    demo.wait_for(FIRING)
    os.kill(demo.find(*words), signal.SIGKILL)
    result = demo.wait(120)
    assert result.code == 3, result.stderr
    failures = {row["part"]: row["what"] for row in result.report["failures"]}
    assert part in failures
    assert f"failed: {part}: " in result.stdout
    load = result.report["load"]
    # Without its database the registry answers 5xx by itself; no connection may break, no worker die.
    ours = {status: count for status, count in load["errors"].items() if part != "postgres" or status == "0"}
    assert ours == {}, load["errors"]
    assert load["sent"] > 100
    if part == "sidecar":
        assert result.report["endpoints"]


def test_ctrl_c_ends_everything(open_directory: Callable[[], Path]) -> None:
    """Ctrl-C while load is fired ends every process within seconds and leaves no file."""
    demo = DemoProcess(open_directory(), "--duration=60s")
    demo.wait_for(FIRING)
    pids = list(demo.descendants())
    assert len(pids) >= 6
    demo.process.send_signal(signal.SIGINT)
    code = demo.process.wait(25)
    demo.end()
    assert code == 130, demo.outcome(code).stderr
    assert alive(pids) == []
    assert list(demo.temporary.iterdir()) == []


def test_a_part_that_cannot_start_shows_its_log(open_directory: Callable[[], Path]) -> None:
    """A registry that fails to start ends the demo with exit code 3, the tail of its log and a next step."""
    demo = DemoProcess(open_directory(), "--duration=10s", "--exit", "--weak=no_such_switch")
    result = demo.wait(60)
    assert result.code == 3
    assert "no_such_switch" in result.stderr
    assert " next: " in result.stderr
    assert "Traceback" not in result.stderr.split("error: ")[-1]
    assert list(demo.temporary.iterdir()) == []
