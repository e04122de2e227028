"""`quayscope agent`: run a program with the agent inside, or write the agent down as a bundle."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import click

from quayscope.agent.errors import AgentError

__all__ = ["agent"]

INJECT = Path(__file__).parent / "inject"
ROOT = Path(__file__).parent.parent
PACKAGES = ("profile", "agent", "relay")
_EPOCH = (1980, 1, 1, 0, 0, 0)


@click.group()
def agent() -> None:
    """Run a program with the agent in its gunicorn workers, or bundle the agent."""


@agent.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example:\n\n  QUAYSCOPE_SOCKET=/run/quayscope/agent.sock quayscope agent run -- gunicorn app:app",
)
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def run(program: tuple[str, ...]) -> None:
    """Replace this process by PROGRAM, with the agent in its gunicorn workers.

    Everything is set by variables: QUAYSCOPE_SOCKET (the relay's socket), QUAYSCOPE_SERVICE_NAME,
    QUAYSCOPE_ROLE, QUAYSCOPE_HZ, QUAYSCOPE_TRACING=off, QUAYSCOPE_SQL_COMMENT=off; QUAYSCOPE_AGENT=off
    switches the agent off.
    """
    found = shutil.which(program[0])
    if found is None:
        raise AgentError(
            f"{program[0]} was not found", next_step="give a program on PATH, or its path", exit_code=2
        )
    own = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(INJECT), *([own] if own else [])])}
    try:
        os.execve(found, list(program), environment)  # noqa: S606 - that is what this command does
    except OSError as error:
        raise AgentError(f"{found} cannot be run: {error.strerror}") from error


@agent.command()
def path() -> None:
    """Print the folder that goes on PYTHONPATH."""
    click.echo(INJECT)


@agent.command(epilog="Example:\n\n  quayscope agent bundle ./stack && PYTHONPATH=./stack gunicorn app:app")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def bundle(directory: Path) -> None:
    """Write sitecustomize.py and agent.zip (pure Python, the same bytes each time) to DIRECTORY."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(INJECT / "sitecustomize.py", directory / "sitecustomize.py")
        with zipfile.ZipFile(directory / "agent.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            # Before CPython 3.13 a folder without an entry of its own is no namespace package.
            archive.writestr(zipfile.ZipInfo("quayscope/", _EPOCH), b"")
            for package in PACKAGES:
                for source in sorted((ROOT / package).rglob("*.py")):
                    if source.parent == INJECT or source == Path(__file__):
                        continue
                    entry = zipfile.ZipInfo(str(Path("quayscope") / source.relative_to(ROOT)), _EPOCH)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, source.read_bytes())
    except OSError as error:
        raise AgentError(f"the bundle cannot be written: {error}") from error
    size = sum(file.stat().st_size for file in (directory / "sitecustomize.py", directory / "agent.zip"))
    click.echo(f"{directory}: {size} bytes")
