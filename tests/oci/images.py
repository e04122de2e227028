"""Images of our own files, built without a daemon on bases that are made of this machine's programs.

No registry is asked. A base stands for UBI 9's: a Python, a shell and what manylinux wheels take for granted,
in the same places.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["IMAGES", "Builder", "Built", "files_base", "made_context", "python_base"]

IMAGES = Path(__file__).parents[2] / "deploy" / "images"
_PYTHON = Path("/usr/bin/python3.11")
"""Debian's own: an image's interpreter is no virtual environment."""
_LIBRARY = Path("/usr/lib/python3.11")
_COMMON = ("libpthread", "libdl", "librt", "libutil", "libresolv", "libz", "libgcc_s", "libstdc++")


class Built(NamedTuple):
    """An image: its configuration, and the folder where its files are while the builder is there."""

    config: Mapping[str, Any]
    root: Path

    def environment(self) -> dict[str, str]:
        """Its variables."""
        return dict(line.split("=", 1) for line in self.config["Env"])


class Builder:
    """buildah with a store of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        assert shutil.which("buildah"), "no buildah on PATH; next: apt-get install buildah"
        self._folder = folder
        self._command = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]
        self._command += ["--storage-driver", "vfs"]

    def base(self, name: str, root: Path) -> None:
        """Make an image of a folder."""
        container = self._run("from", "scratch")
        self._run("copy", container, str(root), "/")
        self._run("commit", "--rm", container, name)

    def build(self, name: str, base: str, context: Path) -> Built:
        """Build one of ours, without a network."""
        file = str(IMAGES / f"{name}.Containerfile")
        image = f"localhost/{name}"
        self._run(
            *("build", "--network", "none", "--build-arg", f"BASE={base}"),
            *("-f", file, "-t", image, str(context)),
        )
        config = json.loads(self._run("inspect", "--type", "image", image))["OCIv1"]["config"]
        assert isinstance(config, dict)
        root = Path(self._run("mount", self._run("from", image)))
        # For a user of whatever number to reach it.
        for folder in (root, *root.parents):
            if folder.is_relative_to(self._folder):
                folder.chmod(folder.stat().st_mode | 0o055)
        return Built(config, root)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def made_context(folder: Path, *options: str) -> Path:
    """The folder that images are built from."""
    subprocess.run([sys.executable, str(IMAGES / "context.py"), str(folder), *options], check=True)
    return folder


def files_base(root: Path) -> Path:
    """A base with `cp` alone."""
    _put(root, Path("/bin/cp"))
    return _with_mount_points(root)


def python_base(root: Path) -> Path:
    """A base with a Python, its `venv`, and a shell."""
    programs = [Path(f"/bin/{name}") for name in ("sh", "ln", "rm")]
    _put(root, _PYTHON, *programs, *_LIBRARY.glob("lib-dynload/*.so"))
    _put(root, *(path for name in _COMMON for path in Path("/lib").glob(f"*-linux-gnu/{name}.so.?")))
    (root / "usr/bin/python3").symlink_to(_PYTHON.name)
    left_out = shutil.ignore_patterns("test", "__pycache__")
    shutil.copytree(_LIBRARY, root / "usr/lib" / _LIBRARY.name, dirs_exist_ok=True, ignore=left_out)
    shutil.copytree("/usr/share/python-wheels", root / "usr/share/python-wheels")
    return _with_mount_points(root)


def _with_mount_points(root: Path) -> Path:
    for name in ("proc", "dev", "sys", "run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    return root


def _put(root: Path, *programs: Path) -> None:
    """Copy programs with their libraries to the places where they lie here."""
    for source in {path for program in programs for path in {program, *_needed(program)}}:
        target = root / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(source.resolve(), target)


def _needed(program: Path) -> set[Path]:
    """The libraries that a program or library is loaded with."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    words = [word for word in done.stdout.split() if word.startswith("/")]
    return {Path(word) for word in words if Path(word).exists()}
