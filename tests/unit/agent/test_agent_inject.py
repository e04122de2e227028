"""What Python finds through PYTHONPATH: acts in gunicorn alone, and costs next to nothing elsewhere."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import quayscope.agent
from interpreters import VERSIONS, bare, find
from quayscope.agent.bootstrap import wanted
from quayscope.agent.bundle import write

INJECT = Path(quayscope.agent.__path__[0]) / "inject"
LOADED = "import sys; print(sorted(n for n in sys.modules if n in ('threading', 'ssl') or 'quayscope.' in n))"

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_with(
    python: Path, *arguments: str, path: list[Path], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders on PYTHONPATH, and nothing else of ours."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "QUAYSCOPE"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [python, *arguments], env={**environment, **variables}, capture_output=True, text=True, timeout=30
    )


@pytest.fixture(params=VERSIONS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run an interpreter that has nothing installed."""
    return functools.partial(run_with, bare(request.param))


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A folder with the bundle."""
    write(tmp_path / "stack")
    return tmp_path / "stack"


@pytest.fixture
def gunicorn(tmp_path: Path) -> Path:
    """A program called gunicorn that says what was loaded before its first line."""
    program = tmp_path / "gunicorn"
    program.write_text(LOADED)
    return program


def test_other_programs_load_nothing(run: Run, stack: Path, tmp_path: Path) -> None:
    """A program that is not gunicorn has nothing of ours in it, whatever its code mentions."""
    program = tmp_path / "serve_gunicorn_logs.py"
    program.write_text(LOADED)
    for arguments in (("-c", f"{LOADED} # gunicorn"), (str(program),)):
        done = run(*arguments, path=[stack])
        assert "worker" not in done.stdout
        assert done.stderr == ""
    assert run("-c", LOADED, path=[stack]).stdout == "[]\n"


def test_gunicorn_gets_its_hooks_and_no_more(run: Run, stack: Path, gunicorn: Path) -> None:
    """In gunicorn the hooks are set, and neither threading nor ssl comes before gevent can patch them."""
    done = run(str(gunicorn), path=[stack])
    assert "quayscope.agent.bootstrap" in done.stdout
    assert "quayscope.agent.worker" not in done.stdout
    assert "threading" not in done.stdout
    assert "ssl" not in done.stdout
    assert done.stderr == ""


def test_switched_off(run: Run, stack: Path, gunicorn: Path) -> None:
    """QUAYSCOPE_AGENT=off sets no hook."""
    gunicorn.write_text("import sys; print([type(finder).__module__ for finder in sys.meta_path])")
    assert "quayscope" in run(str(gunicorn), path=[stack]).stdout
    assert "quayscope" not in run(str(gunicorn), path=[stack], QUAYSCOPE_AGENT="off").stdout


def test_a_listed_program_is_started_in(run: Run, stack: Path, tmp_path: Path) -> None:
    """QUAYSCOPE_PROGRAMS names further programs."""
    program = tmp_path / "serve.py"
    program.write_text(LOADED)
    assert "bootstrap" in run(str(program), path=[stack], QUAYSCOPE_PROGRAMS="x, serve.py").stdout


def test_the_applications_own_sitecustomize_runs(
    run: Run, stack: Path, tmp_path: Path, gunicorn: Path
) -> None:
    """An application that has a sitecustomize of its own finds it run, under its name and by its path."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys; mark, path = 'own', list(sys.path)")
    code = "import sitecustomize as s, sys; print(s.mark, s.path[0], s.__spec__.origin, *sys.path[1:3])"
    gunicorn.write_text(code)
    for program in (("-c", code), (str(gunicorn),)):
        done = run(*program, path=[stack, own])
        assert done.stdout.split() == ["own", *map(str, (own, own / "sitecustomize.py", stack, own))]
        assert done.stderr == ""


@pytest.mark.parametrize("fails", ["1 / 0", "import no_such_module", "raise ImportError('on purpose')"])
def test_the_applications_own_failure_is_its_own(run: Run, stack: Path, tmp_path: Path, fails: str) -> None:
    """An application's sitecustomize that fails is reported as it is without ours, and the program runs."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(fails)
    code = "import sys; print('sitecustomize' in sys.modules)"
    with_ours, without = (run("-c", code, path=path) for path in ([stack, own], [own]))
    assert "sitecustomize" in without.stderr
    assert (with_ours.stdout, with_ours.stderr) == (without.stdout, without.stderr)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_users_own_customisation_runs(version: str, stack: Path, tmp_path: Path) -> None:
    """`usercustomize` is left to Python, which runs it outside of virtual environments."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "usercustomize.py").write_text("mark = 'own'")
    code = "import sys; print(sys.modules['usercustomize'].mark)"
    done = run_with(find(version), "-c", code, path=[stack, own])
    assert (done.stdout, done.stderr) == ("own\n", "")


def test_two_copies_act_once(run: Run, stack: Path, tmp_path: Path, gunicorn: Path) -> None:
    """Where a pod has the agent on its path and `agent run` puts it there again, one of them acts."""
    write(tmp_path / "again")
    gunicorn.write_text(
        "from quayscope.agent.hooks import _FINDER\nprint(len(_FINDER.patches['gunicorn.workers.base']))"
    )
    done = run(str(gunicorn), path=[stack, tmp_path / "again"])
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_broken_agent_stays_silent(run: Run, stack: Path, gunicorn: Path) -> None:
    """When the agent itself cannot be imported, the program runs as if it were not there."""
    (stack / "agent.zip").write_bytes(b"no zip")
    done = run(str(gunicorn), path=[stack])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")
    (stack / "agent.zip").unlink()
    done = run(str(gunicorn), path=[stack])
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]\n")


def test_a_source_tree_is_its_own_artefact(run: Run, gunicorn: Path) -> None:
    """In a checkout the folder works without an archive: the packages are three folders up."""
    gunicorn.write_text("import sys, quayscope.agent.bootstrap as b; print(b.__file__, sys.path[-1])")
    done = run(str(gunicorn), path=[INJECT])
    assert done.stdout.split() == [str(INJECT.parent / "bootstrap.py"), str(INJECT.parents[2])]


def test_an_installation_lends_no_packages(run: Run, tmp_path: Path, gunicorn: Path) -> None:
    """Without an archive an installed folder does nothing: its neighbours are not the application's."""
    packages = tmp_path / "site-packages"
    shutil.copytree(INJECT.parents[1], packages / "quayscope")
    gunicorn.write_text("import sys; print(sys.path[-1])")
    path = run(str(gunicorn), path=[packages / "quayscope" / "agent" / "inject"]).stdout.strip()
    assert path != str(packages)


def test_nothing_else_is_imported(run: Run, stack: Path, tmp_path: Path) -> None:
    """In a program that is none of ours the file is all that is imported, with a path to put back too."""
    code = "import sys; print(*sys.modules)"
    plain = set(run("-c", code, path=[tmp_path]).stdout.split())
    (stack / "pythonpath").write_text("/image/a:/image/b\n")
    assert set(run("-c", code, path=[stack]).stdout.split()) - plain == {"sitecustomize"}


def test_it_costs_little(run: Run, stack: Path, tmp_path: Path) -> None:
    """Where it does nothing it costs less than 20 ms of CPU, compiled anew as on a read-only volume."""

    def cpu(path: list[Path]) -> float:
        before = os.times()
        for _ in range(10):
            run("-B", "-c", "pass", path=path)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    (stack / "pythonpath").write_text("/image/a:/image/b\n")
    empty = min(cpu([tmp_path]) for _ in range(2))
    assert min(cpu([stack]) for _ in range(2)) - empty < 10 * 0.020


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        # console scripts: the interpreter of the `#!` line, and what else stands on it
        (["/venv/bin/python", "/venv/bin/gunicorn", "app:app"], True),
        (["/venv/bin/python", "-s", "/venv/bin/gunicorn", "app:app"], True),
        (["python", "gunicorn", "-c", "conf.py"], True),
        (["python", "--", "/venv/bin/gunicorn"], True),
        (["python", "/venv/lib/python3.12/site-packages/gunicorn", "app:app"], True),
        # modules
        (["python", "-m", "gunicorn", "app:app"], True),
        (["python", "-m", "gunicorn.app.wsgiapp"], True),
        (["python", "-mgunicorn", "app:app"], True),
        (["python", "-m", "gunicorn_tools"], False),
        (["python", "-m", "http.server", "gunicorn"], False),
        (["python", "-m"], False),
        # how gunicorn starts itself anew when it was started as a module
        (["python", "/venv/lib/python3.12/site-packages/gunicorn/__main__.py", "app:app"], True),
        (["python", "/venv/lib/python3.12/site-packages/gunicorn/app/wsgiapp.py"], True),
        # options before, apart, attached and together
        (["python", "-X", "dev", "-W", "ignore", "-u", "-m", "gunicorn"], True),
        (["python", "-Wignore", "-Xfrozen_modules=off", "-m", "gunicorn"], True),
        (["python", "--check-hash-based-pycs", "always", "-m", "gunicorn"], True),
        (["python", "-Bum", "gunicorn"], True),
        (["python", "-Bumgunicorn"], True),
        (["python", "-bb", "/venv/bin/gunicorn"], True),
        (["python", "-bbX", "dev", "/venv/bin/gunicorn"], True),
        (["python", "-W", "gunicorn", "worker.py"], False),
        (["python", "-X", "gunicorn"], False),
        (["python", "-Xm", "gunicorn"], True),  # an odd option, then the script
        # what only mentions it
        (["python", "worker.py", "gunicorn"], False),
        (["python", "/opt/gunicorn/worker.py", "app:app"], False),
        (["python", "/opt/gunicorn.py"], False),
        (["python", "-c", "gunicorn"], False),
        (["python", "-uc", "gunicorn"], False),
        (["python", "-cgunicorn"], False),
        (["python", "-", "gunicorn"], False),
        (["python", "--version", "gunicorn-23"], False),
        (["python", ""], False),
        (["python"], False),
        ([], False),
        # QUAYSCOPE_PROGRAMS
        (["python", "/app/other.py"], True),
        (["python", "/app/another.py"], False),
        (["python", "-m", "own.server"], True),
        (["python", "-m", "own"], False),
        (["python", "-Im", "package.within"], True),
        (["python", "/srv/package/__main__.py"], True),
        (["python", "/srv/exact.py"], True),
        (["python", "/else/exact.py"], False),
    ],
)
def test_which_programs_are_wanted(arguments: list[str], answer: bool) -> None:
    """The program itself decides, not what else stands on its command line."""
    assert wanted(arguments, "other.py, own.server,package, /srv/exact.py,") is answer
