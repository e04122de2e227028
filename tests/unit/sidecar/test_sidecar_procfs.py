"""What /proc says, read from real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from quayscope.sidecar import procfs

_BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ninput()"


def test_cpu_clock_of_another_process() -> None:
    """The CPU of a child is read to the nanosecond, and is gone with it."""
    with subprocess.Popen([sys.executable, "-c", _BURN], stdin=subprocess.PIPE) as child:
        deadline = time.monotonic() + 10
        while (procfs.cpu_ns(child.pid) or 0) < 300_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        used = procfs.cpu_ns(child.pid)
        facts = procfs.stat(child.pid)
        assert used is not None
        assert facts is not None
        assert 300_000_000 <= used < 1_500_000_000
        assert abs(facts.cpu_ns - used) < 100_000_000
        assert facts.parent == os.getpid()
    assert procfs.cpu_ns(child.pid) is None
    assert procfs.stat(child.pid) is None


def test_name_with_parentheses_and_spaces() -> None:
    """A process name may hold anything; the numbers behind it are still found."""
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) R 1 (b c'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        facts = procfs.stat(child.pid)
        assert facts is not None
        assert facts.name == "a) R 1 (b c"
        assert facts.parent == os.getpid()
        child.communicate(b"\n")


def test_descendants() -> None:
    """Grandchildren belong to a tree, strangers do not."""
    code = (
        "import subprocess; p = subprocess.Popen(['cat'], stdin=subprocess.PIPE); "
        "print(p.pid, flush=True); input(); p.kill()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert procfs.children(child.pid) == [grandchild]
        assert set(procfs.descendants(os.getpid())) >= {child.pid, grandchild}
        assert os.getpid() not in procfs.descendants(child.pid)
        child.communicate(b"\n")


def test_nobody() -> None:
    """A pid that does not exist has no children, no name and no title."""
    gone = 2**22 + 7
    assert procfs.children(gone) == []
    assert procfs.descendants(gone) == []
    assert procfs.name(gone) == ""
    assert procfs.command_line(gone) == ""
