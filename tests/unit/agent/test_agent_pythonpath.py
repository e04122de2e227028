"""The file `pythonpath`: an image's PYTHONPATH that another one replaced is put back, in every program."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interpreters import VERSIONS, bare
from quayscope.agent.bundle import write

SEEN = "import json, os, sys; print(json.dumps([sys.path, os.environ.get('PYTHONPATH')]))"

See = Callable[..., Any]


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> Path:
    """An interpreter with nothing installed."""
    return bare(request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder for what an image has."""
    for name in ("a", "b", "c"):
        (tmp_path / "image" / name).mkdir(parents=True)
    return tmp_path / "image"


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A folder with the bundle."""
    write(tmp_path / "stack")
    return tmp_path / "stack"


@pytest.fixture
def see(python: Path, image: Path) -> See:
    """Return sys.path and the variable as a program in `image` sees them."""

    def see(*path: Path | str, code: str = SEEN, **variables: str) -> Any:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "QUAYSCOPE"))
        }
        done = subprocess.run(
            [python, "-c", code],
            env={**environment, "PYTHONPATH": os.pathsep.join(map(str, path)), **variables},
            cwd=image,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return see


def joined(*entries: Path | str) -> str:
    return os.pathsep.join(map(str, entries))


def test_it_is_as_if_the_image_had_been_asked(see: See, stack: Path, image: Path) -> None:
    """sys.path and the variable are what they would be with both paths in the variable."""
    own = joined(image / "a", image / "b")
    for text in (own, f"{own}\n", f"{own}\r\n"):
        (stack / "pythonpath").write_text(text)
        assert see(stack) == see(stack, own)
    assert see(stack)[1] == joined(stack, own)


@pytest.mark.parametrize(
    "entries",
    [
        ("a", "", "b"),
        ("", "a"),
        ("a", ""),
        ("a", "a", "b", "a"),
        ("./a", "../image/b/", "b"),
        ("nowhere", "a"),
    ],
)
def test_odd_entries_mean_what_they_mean_to_python(
    see: See, stack: Path, image: Path, tmp_path: Path, entries: tuple[str, ...]
) -> None:
    """Empty entries (the current folder), relative, doubled and missing ones come out as Python has them."""
    (stack / "pythonpath").write_text(joined(*entries) + "\n")
    put_back = see(stack)[0]
    (stack / "pythonpath").unlink()
    assert put_back == see(stack, joined(*entries))[0]


def test_what_is_there_is_not_doubled(see: See, stack: Path, image: Path) -> None:
    """The pod's own entries come first, and entries that are there already are not doubled."""
    (stack / "pythonpath").write_text(joined(image / "a", image / "b", stack))
    path, variable = see(stack, image / "c", image / "b")
    assert path[1:5] == [str(stack), *(str(image / name) for name in ("c", "b", "a"))]
    assert path.count(str(image / "b")) == 1
    assert variable == joined(stack, image / "c", image / "b", image / "a")


def test_a_folder_of_packages_moves_to_the_front(see: See, stack: Path, python: Path, image: Path) -> None:
    """An entry that Python has behind the standard library stands before it, as the variable would put it."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    (stack / "pythonpath").write_text(joined(packages, image / "a"))
    put_back = see(stack)
    (stack / "pythonpath").unlink()
    assert put_back == see(stack, packages, image / "a")


def test_children_get_both(see: See, stack: Path, image: Path) -> None:
    """Child programs and theirs get the agent's folder first and the image's path behind it."""
    (stack / "pythonpath").write_text(joined(image / "a", image / "b"))
    nested = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {SEEN!r}]))"
    assert see(stack, code=nested) == see(stack)
    # A child that does not load ours has the variable all the same.
    bare_child = nested.replace("'-c'", "'-S', '-c'")
    assert see(stack, code=bare_child)[0][1:4] == [str(stack), str(image / "a"), str(image / "b")]


def test_it_comes_before_everything_else(see: See, stack: Path, image: Path) -> None:
    """An application's own sitecustomize that lies in one of the entries runs, and finds the whole path."""
    (image / "b" / "sitecustomize.py").write_text("import sys; seen = list(sys.path)")
    (image / "c" / "own.pth").write_text("import sys; sys.never = True\n/never\n")
    (stack / "pythonpath").write_text(joined(image / "a", image / "b", image / "c"))
    code = "import json, sitecustomize, sys; print(json.dumps([sitecustomize.seen, hasattr(sys, 'never')]))"
    seen, pth_ran = see(stack, code=code)
    assert seen[:3] == [str(image / name) for name in ("a", "b", "c")]
    # Python reads no .pth files in PYTHONPATH's folders.
    assert not pth_ran


def test_it_does_not_depend_on_the_agent(see: See, stack: Path, image: Path) -> None:
    """The path is put back where the agent is switched off, and where its archive is broken."""
    (stack / "pythonpath").write_text(joined(image / "a"))
    expected = see(stack)
    assert see(stack, QUAYSCOPE_AGENT="off") == expected
    assert see(stack, QUAYSCOPE_PROGRAMS="x") == [[*expected[0], str(stack / "agent.zip")], expected[1]]
    (stack / "agent.zip").write_bytes(b"no zip")
    assert see(stack) == expected


def test_bytes_that_are_no_text_are_kept(see: See, stack: Path, image: Path) -> None:
    """A folder whose name is not UTF-8 is found."""
    odd = image / os.fsdecode(b"\xff\xfe")
    odd.mkdir()
    (odd / "found.py").touch()
    (stack / "pythonpath").write_bytes(os.fsencode(odd) + b"\n")
    assert see(stack, code="import found; print(1)") == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"/a\0/b", b"/a:" * 30_000, b"\n/a"],
    ids=["empty", "empty line", "null", "too long", "second line"],
)
def test_what_is_no_path_changes_nothing(see: See, stack: Path, content: bytes) -> None:
    """An empty file, one too long for a variable or with bytes that no variable can hold does nothing."""
    plain = see(stack)
    (stack / "pythonpath").write_bytes(content)
    assert see(stack) == plain


def test_what_is_no_file_changes_nothing(see: See, stack: Path) -> None:
    """A folder, a pipe or a link to nowhere under that name neither stops nor holds up the program."""
    plain = see(stack)
    place = stack / "pythonpath"
    place.mkdir()
    assert see(stack) == plain
    place.rmdir()
    os.mkfifo(place)
    assert see(stack) == plain
    place.unlink()
    place.symlink_to("nowhere")
    assert see(stack) == plain


def test_a_current_folder_that_is_gone_spoils_nothing(
    python: Path, stack: Path, image: Path, tmp_path: Path
) -> None:
    """Where the current folder was removed, the absolute entries are put back all the same."""
    gone = tmp_path / "gone"
    gone.mkdir()
    (stack / "pythonpath").write_text(joined("relative", image / "a"))
    shell = f'cd "{gone}" && rmdir "{gone}" && exec "$0" "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, python, "-c", SEEN],
        env={"PYTHONPATH": str(stack)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    path, variable = json.loads(done.stdout)
    assert str(image / "a") in path
    assert variable == joined(stack, "relative", image / "a")
