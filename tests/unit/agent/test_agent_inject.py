"""What Python finds through PYTHONPATH: acts in gunicorn alone, and costs next to nothing elsewhere."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner

import quayscope.agent
from quayscope.agent.bootstrap import wanted
from quayscope.agent.commands import agent

INJECT = Path(quayscope.agent.__path__[0]) / "inject"
LOADED = "import sys; print(sorted(n for n in sys.modules if n in ('threading', 'ssl') or 'quayscope.' in n))"


@functools.cache
def bare() -> str:
    """Return an interpreter that has nothing installed: in ours, Quayscope is, and .pth files run."""
    folder = tempfile.mkdtemp(prefix="quayscope-bare-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    venv.create(folder, symlinks=True, with_pip=False)
    return str(Path(folder) / "bin" / "python")


def run(*arguments: str, path: list[Path], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders on PYTHONPATH, and nothing else of ours."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "QUAYSCOPE"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [bare(), *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture
def gunicorn(tmp_path: Path) -> Path:
    """A program called gunicorn that says what was loaded before its first line."""
    program = tmp_path / "gunicorn"
    program.write_text(LOADED)
    return program


def test_other_programs_load_nothing(tmp_path: Path) -> None:
    """A program that is not gunicorn has nothing of ours in it, whatever its code mentions."""
    program = tmp_path / "serve_gunicorn_logs.py"
    program.write_text(LOADED)
    for arguments in (("-c", f"{LOADED} # gunicorn"), (str(program),)):
        done = run(*arguments, path=[INJECT])
        assert "worker" not in done.stdout
        assert done.stderr == ""
    assert run("-c", LOADED, path=[INJECT]).stdout == "[]\n"


def test_gunicorn_gets_its_hooks_and_no_more(gunicorn: Path) -> None:
    """In gunicorn the hooks are set, and neither threading nor ssl comes before gevent can patch them."""
    done = run(str(gunicorn), path=[INJECT])
    assert "quayscope.agent.bootstrap" in done.stdout
    assert "quayscope.agent.worker" not in done.stdout
    assert "threading" not in done.stdout
    assert "ssl" not in done.stdout
    assert done.stderr == ""


def test_switched_off(gunicorn: Path) -> None:
    """QUAYSCOPE_AGENT=off sets no hook."""
    gunicorn.write_text("import sys; print([type(finder).__module__ for finder in sys.meta_path])")
    assert "quayscope" in run(str(gunicorn), path=[INJECT]).stdout
    assert "quayscope" not in run(str(gunicorn), path=[INJECT], QUAYSCOPE_AGENT="off").stdout


def test_a_listed_program_is_started_in(tmp_path: Path) -> None:
    """QUAYSCOPE_PROGRAMS names further programs."""
    program = tmp_path / "serve.py"
    program.write_text(LOADED)
    assert "bootstrap" in run(str(program), path=[INJECT], QUAYSCOPE_PROGRAMS="x, serve.py").stdout


def test_the_applications_own_sitecustomize_runs(tmp_path: Path, gunicorn: Path) -> None:
    """An application that has a sitecustomize of its own finds it run, and under its name."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("mark = 'own'")
    for program in (["-c", "import sitecustomize; print(sitecustomize.mark)"],):
        assert run(*program, path=[INJECT, own]).stdout == "own\n"
    gunicorn.write_text("import sitecustomize; print(sitecustomize.mark)")
    assert run(str(gunicorn), path=[INJECT, own]).stdout == "own\n"


def test_a_broken_agent_stays_silent(tmp_path: Path, gunicorn: Path) -> None:
    """When the agent itself cannot be imported, the program runs as if it were not there."""
    folder = tmp_path / "stack"
    folder.mkdir()
    (folder / "sitecustomize.py").write_bytes((INJECT / "sitecustomize.py").read_bytes())
    (folder / "agent.zip").write_bytes(b"no zip")
    done = run(str(gunicorn), path=[folder])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")


def test_it_costs_little(tmp_path: Path) -> None:
    """Where it does nothing it costs less than 20 ms of CPU."""

    def cpu(path: list[Path]) -> float:
        before = os.times()
        for _ in range(10):
            run("-c", "pass", path=path)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    empty = min(cpu([tmp_path]) for _ in range(2))
    assert min(cpu([INJECT]) for _ in range(2)) - empty < 10 * 0.020


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["python", "/opt/bin/gunicorn", "app:app"], True),
        (["python", "-m", "gunicorn", "app:app"], True),
        (["python", "-X", "dev", "-u", "-m", "gunicorn.app.wsgiapp"], True),
        (["python", "-m", "http.server", "gunicorn"], False),
        (["python", "worker.py", "gunicorn"], False),
        (["python", "-c", "gunicorn"], False),
        (["python"], False),
        (["python", "/app/other.py"], True),
    ],
)
def test_which_programs_are_wanted(arguments: list[str], answer: bool) -> None:
    """The program itself decides, not what else stands on its command line."""
    assert wanted(arguments, "other.py") is answer


def test_the_bundle_is_small_and_the_same_each_time(tmp_path: Path, gunicorn: Path) -> None:
    """A bundle has two files under 1 MiB, the same bytes each time, and works where nothing is installed."""
    for name in ("a", "b"):
        written = CliRunner().invoke(agent, ["bundle", str(tmp_path / name)])
        assert written.exit_code == 0, written.output
    first, second = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("a", "b")
    ]
    assert first == second
    assert sorted(first) == ["agent.zip", "sitecustomize.py"]
    assert sum(map(len, first.values())) < 1 << 20
    gunicorn.write_text(
        "import quayscope.agent.worker as w, quayscope.relay as r; print(w.__file__, r.__file__)"
    )
    done = run("-S", str(gunicorn), path=[tmp_path / "a", tmp_path / "a" / "agent.zip"])
    assert done.stdout.count("agent.zip") == 2, done.stderr
    gunicorn.write_text("import quayscope.agent.bootstrap as b, sys; print(b.__file__, sys.path[-1])")
    done = run(str(gunicorn), path=[tmp_path / "a"])
    assert done.stdout.count("agent.zip") == 2, done.stderr


def test_run_sets_the_path_and_becomes_the_program(tmp_path: Path) -> None:
    """`agent run` puts the folder first on PYTHONPATH, keeps what was there, and hands over its process."""
    code = "import os; print(os.getpid(), os.environ['PYTHONPATH'])"
    command = "from quayscope.agent.commands import agent; agent()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(INJECT.parents[2]), str(tmp_path)])},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=30)
    assert out.split() == [
        str(process.pid),
        os.pathsep.join([str(INJECT), str(INJECT.parents[2]), str(tmp_path)]),
    ]


def test_run_says_what_is_missing() -> None:
    """A program that does not exist is a usage error with a next step."""
    done = CliRunner().invoke(agent, ["run", "--", "no-such-program"])
    assert getattr(done.exception, "exit_code", None) == 2
    assert getattr(done.exception, "next_step", "")


def test_path_prints_the_folder() -> None:
    """`agent path` prints the folder that goes on PYTHONPATH."""
    printed = CliRunner().invoke(agent, ["path"]).output.strip()
    assert (Path(printed) / "sitecustomize.py").is_file()
