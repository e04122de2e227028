"""What a stale postmaster.pid is found to name, and that nobody gets those numbers afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from quayscope.sidecar.pids import stale_pids


def test_finds_data_directories_of_volumes(tmp_path: Path) -> None:
    """A data directory is found as the volume and one and two levels below; by no link, not inside."""
    for place, pid in (
        ("a", "11"),
        ("a/b", "12"),
        ("c/d/e", "13"),
        ("f/g", "-14"),
        ("f/h", "word"),
        ("i", "15"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "postmaster.pid").write_text(f"{pid}\n/data\n1\n")
    (tmp_path / "i" / "PG_VERSION").write_text("15\n")
    (tmp_path / "i" / "base").mkdir()
    (tmp_path / "i" / "base" / "postmaster.pid").write_text("16\n")
    (tmp_path / "link").symlink_to(tmp_path / "c" / "d")
    (tmp_path / "lost+found").mkdir(mode=0)
    assert stale_pids(tmp_path) == ([11, 15, 14], [])
    assert stale_pids(tmp_path / "a" / "b") == ([12], [])


def test_says_what_it_could_not_look_into(tmp_path: Path) -> None:
    """A folder that is not there, or in which a name leads nowhere, is said, not taken for empty."""
    found, refused = stale_pids(tmp_path / "none")
    assert (found, len(refused)) == ([], 1)
    (tmp_path / "postmaster.pid").symlink_to("postmaster.pid")
    assert len(stale_pids(tmp_path)[1]) == 1


_PASSED = """
import os, sys
from pathlib import Path
from quayscope.sidecar.pids import pass_pids
passed = pass_pids([Path(sys.argv[1])])
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print(passed.stale, passed.left, passed.last, child)
"""


def test_passes_what_is_near_and_leaves_what_is_far(tmp_path: Path) -> None:
    """Afterwards the next thread has a number beyond the one in the file; one out of reach is told."""
    near, far = 800, 2_000_000_000
    for name, pid in (("a", near), ("b", far)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "postmaster.pid").write_text(f"{pid}\n")
    # As in a pod: its numbers begin at 1, and nobody else takes any.
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", _PASSED, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"({near}, {far}) ({far},) {near} {near + 1}\n"
