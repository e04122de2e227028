"""The image files build without a daemon, on a base made here, and what comes out runs as a plain user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

IMAGES = Path(__file__).parents[3] / "deploy" / "images"
NAMES = sorted(path.stem for path in IMAGES.glob("*.Containerfile"))
PYTHON = Path("/usr/bin/python3.11")
"""Debian's own: an image's interpreter is no virtual environment."""


def needed(program: Path) -> set[Path]:
    """The libraries that a program or library is loaded with."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    words = [word for word in done.stdout.split() if word.startswith("/")]
    return {Path(word) for word in words if Path(word).exists()}


def put(root: Path, *programs: Path) -> None:
    """Copy programs with their libraries to the places where they lie here."""
    for source in {path for program in programs for path in {program, *needed(program)}}:
        target = root / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(source.resolve(), target)


class Builder:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._command = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]
        self._command += ["--storage-driver", "vfs"]

    def run(self, *arguments: str) -> str:
        """Run it; what it prints."""
        done = subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def base(self, name: str, root: Path) -> None:
        """Make an image of a folder."""
        container = self.run("from", "scratch")
        self.run("copy", container, str(root), "/")
        self.run("commit", container, name)

    def build(self, name: str, base: str, context: Path) -> dict[str, Any]:
        """Build one of ours; its configuration."""
        file = str(IMAGES / f"{name}.Containerfile")
        self.run("build", "--build-arg", f"BASE={base}", "-f", file, "-t", f"localhost/{name}", str(context))
        config = json.loads(self.run("inspect", "--type", "image", f"localhost/{name}"))["OCIv1"]["config"]
        assert isinstance(config, dict)
        return config

    def execute(self, name: str, *command: str, volume: str = "") -> str:
        """Run a command in a container of an image, as its user."""
        container = self.run("from", f"localhost/{name}")
        options = ["--volume", volume] if volume else []
        return self.run("run", *options, container, "--", *command)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """A builder; what it made is removed."""
    if os.geteuid() != 0:
        pytest.skip("only root may build here")
    assert shutil.which("buildah"), "no buildah on PATH; next: apt-get install buildah"
    folder = tmp_path_factory.mktemp("buildah")
    yield Builder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def made(context: Path, *options: str) -> Path:
    """The folder that images are built from."""
    subprocess.run([sys.executable, str(IMAGES / "context.py"), str(context), *options], check=True)
    return context


@pytest.mark.parametrize("name", NAMES)
def test_file_says_what_an_image_must(name: str) -> None:
    """The base is an argument with a fixed version, the user a number and not root, the labels are there."""
    lines = (IMAGES / f"{name}.Containerfile").read_text().splitlines()
    base = next(line for line in lines if line.startswith("ARG BASE="))
    assert base.startswith("ARG BASE=registry.access.redhat.com/ubi9/")
    assert not base.endswith(":latest")
    last = max(i for i, line in enumerate(lines) if line.startswith("FROM "))
    users = [line.split()[1] for line in lines[last:] if line.startswith("USER ")]
    assert users == ["65532:65532"]
    assert not any(line.startswith("RUN") for line in lines[last:])
    text = "\n".join(lines)
    for label in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in text


def test_agent_image_copies_the_agent(builder: Builder, tmp_path: Path) -> None:
    """Its command, as the init container has it, leaves the agent in a volume that its user may write to."""
    base = tmp_path / "base"
    put(base, Path("/bin/cp"))
    builder.base("base-files", base)
    config = builder.build("agent", "base-files", made(tmp_path / "context", "--extras", "--cpython"))
    assert config["User"] == "65532:65532"
    assert config["Labels"]["org.opencontainers.image.title"] == "quayscope-agent"
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    builder.execute("agent", *config["Cmd"], volume=f"{volume}:/quayscope")
    assert sorted(path.name for path in volume.iterdir()) == ["agent.zip", "sitecustomize.py"]
    assert {path.stat().st_uid for path in volume.iterdir()} == {65532}


@pytest.mark.full_size
def test_sidecar_image_runs(builder: Builder, tmp_path: Path) -> None:
    """The sidecar's image is built offline from wheels, has no pip, and its program runs."""
    base = tmp_path / "base"
    library = Path("/usr/lib/python3.11")
    put(
        base,
        PYTHON,
        *(Path(f"/bin/{name}") for name in ("sh", "ln", "rm")),
        *library.glob("lib-dynload/*.so"),
    )
    # What manylinux wheels may take for granted.
    common = ("libpthread", "libdl", "librt", "libutil", "libresolv", "libz", "libgcc_s", "libstdc++")
    put(base, *(path for name in common for path in Path("/lib").glob(f"*-linux-gnu/{name}.so.?")))
    (base / "usr/bin/python3").symlink_to("python3.11")
    shutil.copytree(
        library, base / "usr/lib/python3.11", dirs_exist_ok=True, ignore=shutil.ignore_patterns("test")
    )
    shutil.copytree("/usr/share/python-wheels", base / "usr/share/python-wheels")
    (base / "tmp").mkdir(mode=0o777)
    (base / "tmp").chmod(0o1777)
    builder.base("base-python", base)
    context = made(tmp_path / "context", "--extras", "sidecar", "--cpython", "3.12")
    assert (context / "agent" / "packages" / "cp312" / "opentelemetry" / "opentelemetry").is_dir()
    builder.build("sidecar", "base-python", context)
    assert "postmaster.pid" in builder.execute("sidecar", "quayscope", "sidecar", "pass-pids", "--help")
    program = "import importlib.util as u; print(u.find_spec('pip'), u.find_spec('psycopg') is not None)"
    assert builder.execute("sidecar", "/opt/quayscope/bin/python", "-c", program) == "None True"
