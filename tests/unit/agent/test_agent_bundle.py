"""The agent as one artefact: what it holds, where it is kept, and the commands that deliver it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import quayscope.agent
from interpreters import VERSIONS, bare
from plain_user import NOBODY
from quayscope.agent import bundle
from quayscope.agent.bundle import cached, contents
from quayscope.agent.commands import agent
from quayscope.agent.errors import AgentError

AGENT = Path(quayscope.agent.__path__[0])


@pytest.fixture
def cache(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first place that is tried; the others lie beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(open_folder / "cache"))
    monkeypatch.setenv("HOME", str(open_folder))
    monkeypatch.setattr(bundle, "_SYSTEM_CACHE", open_folder / "var")
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    return open_folder / "cache"


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_is_two_small_files(tmp_path: Path) -> None:
    """A bundle has two files under 1 MiB together, pure Python, the same bytes each time."""
    for name in ("a", "b"):
        written = CliRunner().invoke(agent, ["bundle", str(tmp_path / name)])
        assert written.exit_code == 0, written.output
        assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / name).iterdir()} == {0o644}
    first, second = held(tmp_path / "a"), held(tmp_path / "b")
    assert first == second == contents()
    assert sorted(first) == ["agent.zip", "sitecustomize.py"]
    assert sum(map(len, first.values())) < 1 << 20
    names = zipfile.ZipFile(tmp_path / "a" / "agent.zip").namelist()
    assert all(name.endswith((".py", "quayscope/")) for name in names)
    assert not {"quayscope/agent/commands.py", "quayscope/agent/bundle.py"} & set(names)
    assert not [name for name in names if "inject" in name or name.startswith("quayscope/cli")]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bundle_works_where_nothing_is_installed(tmp_path: Path, version: str) -> None:
    """Each module of the archive imports from it, on each interpreter, with nothing else there."""
    bundle.write(tmp_path)
    archive = tmp_path / "agent.zip"
    names = [
        name[:-3].replace("/", ".") for name in zipfile.ZipFile(archive).namelist() if name[-3:] == ".py"
    ]
    names = [name.removesuffix(".__init__") for name in names]
    assert {"quayscope.agent.worker", "quayscope.relay", "quayscope.profile"} < set(names)
    code = (
        f"import sys; sys.path.append({str(archive)!r}); import importlib\n"
        f"for name in {names!r}: assert {str(archive)!r} in importlib.import_module(name).__file__"
    )
    done = subprocess.run([bare(version), "-S", "-E", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_images_path_can_be_written_beside(tmp_path: Path) -> None:
    """`bundle --pythonpath` writes a third file; without the option one that is there stays."""
    given = ["bundle", "--pythonpath", "/image/a:/image/\udcff", str(tmp_path)]
    assert CliRunner().invoke(agent, given).exit_code == 0
    assert CliRunner().invoke(agent, ["bundle", str(tmp_path)]).exit_code == 0
    assert held(tmp_path) == {**contents(), "pythonpath": b"/image/a:/image/\xff\n"}


@pytest.mark.parametrize("text", ["/a\n/b", "x" * 65_536], ids=["two lines", "too long"])
def test_what_is_no_path_is_refused(tmp_path: Path, text: str) -> None:
    """A text that cannot be a PYTHONPATH is a usage error with a next step, and nothing is written."""
    done = CliRunner().invoke(agent, ["bundle", "--pythonpath", text, str(tmp_path / "stack")])
    assert getattr(done.exception, "exit_code", None) == 2
    assert getattr(done.exception, "next_step", "")
    assert not (tmp_path / "stack").exists()


def test_it_is_kept_once(cache: Path) -> None:
    """The kept bundle has the written one's bytes, can be read by everybody, and is not written again."""
    previous = os.umask(0o077)
    try:
        folder = cached()
    finally:
        os.umask(previous)
    assert folder.parent == cache / "quayscope"
    assert held(folder) == contents()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (cache, folder.parent, folder, *folder.iterdir())]
    assert modes[1:] == [0o755, 0o755, 0o644, 0o644]
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cached() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_many_may_begin_at_once(cache: Path) -> None:
    """Programs that start together all get the same folder, whole; nothing else is left in it."""
    code = "from quayscope.agent.bundle import cached; print(cached())"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    printed = {process.communicate(timeout=30)[0].strip() for process in processes}
    assert printed == {str(cached())}
    assert held(cached()) == contents()


def test_a_damaged_one_is_repaired(cache: Path) -> None:
    """Files that were cut, closed, removed, or replaced by a link are put right; what a link shows stays."""
    folder = cached()
    archive = folder / "agent.zip"
    other = cache.parent / "other"

    def cut() -> None:
        archive.write_bytes(archive.read_bytes()[:-1])

    def link() -> None:
        other.write_bytes(b"somebody's")
        archive.unlink()
        archive.symlink_to(other)

    for damage in (cut, archive.unlink, lambda: archive.chmod(0o600), link, lambda: folder.chmod(0o777)):
        damage()
        assert cached() == folder
        assert held(folder) == contents()
        assert not archive.is_symlink()
        assert stat.S_IMODE(archive.stat().st_mode) == 0o644
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert other.read_bytes() == b"somebody's"


def test_a_link_in_its_place_is_not_followed(cache: Path) -> None:
    """Where the folder's name is taken by a link, the next place is used and the link's target untouched."""
    target = cache.parent / "target"
    target.mkdir()
    cache.mkdir()
    (cache / "quayscope").symlink_to(target)
    assert cached().parent == cache.parent / ".cache" / "quayscope"
    assert list(target.iterdir()) == []


def test_a_folder_that_others_may_change_is_not_used(cache: Path) -> None:
    """A cache that other users could write to is passed over: they could replace the agent."""
    cache.mkdir()
    cache.chmod(0o777)
    assert cached().parent == cache.parent / ".cache" / "quayscope"


def test_without_a_cache_it_is_kept_in_a_temporary_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no cache can be made a folder of this user's among the temporary ones does; else it is said."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(bundle, "_SYSTEM_CACHE", Path("/proc/nowhere"))
    ours = cache.parent / f"quayscope-agent-{os.geteuid()}"
    assert cached().parent == ours
    # The name is taken by a file: another one is made up.
    for path in sorted(ours.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    ours.rmdir()
    ours.touch()
    assert cached().parent.name.startswith("quayscope-")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(AgentError, match="no folder") as raised:
        cached()
    assert "XDG_CACHE_HOME" in raised.value.next_step


def test_root_keeps_it_where_others_reach_it(cache: Path) -> None:
    """Root's gunicorn may run its workers under another uid: a cache in a closed home is passed over.

    So is one that belongs to somebody else, as it does where HOME was kept when the user changed.
    """
    assert os.geteuid() == 0, "this test wants root; next: run it as root or in a container"
    for folder in (cache, cache.parent / ".cache"):
        folder.mkdir()
    cache.chmod(0o700)
    os.chown(cache.parent / ".cache", NOBODY, NOBODY)
    assert cached().parent == cache.parent / "var" / "quayscope"


def test_run_sets_the_path_and_becomes_the_program(cache: Path) -> None:
    """`agent run` puts the bundle first on PYTHONPATH, keeps what was there, and hands over its process."""
    code = "import os; print(os.getpid(), os.environ['PYTHONPATH'])"
    command = "from quayscope.agent.commands import agent; agent()"
    own = [str(AGENT.parents[1]), str(cache.parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(own)},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=30)
    assert out.split() == [str(process.pid), os.pathsep.join([str(cached()), *own])]


def test_run_says_what_is_missing() -> None:
    """A program that does not exist is a usage error with a next step."""
    done = CliRunner().invoke(agent, ["run", "--", "no-such-program"])
    assert getattr(done.exception, "exit_code", None) == 2
    assert getattr(done.exception, "next_step", "")


def test_path_prints_the_folder(cache: Path) -> None:
    """`agent path` prints the folder that goes on PYTHONPATH."""
    assert CliRunner().invoke(agent, ["path"]).output == f"{cached()}\n"
