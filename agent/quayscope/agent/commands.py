"""`quayscope agent`: run a program with the agent inside, or write the agent down as a bundle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from quayscope.agent.bundle import cached, write
from quayscope.agent.errors import AgentError

__all__ = ["agent"]


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
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cached()), *([own] if own else [])])}
    try:
        os.execve(found, list(program), environment)  # noqa: S606 - that is what this command does
    except OSError as error:
        raise AgentError(f"{found} cannot be run: {error.strerror}") from error


@agent.command()
def path() -> None:
    """Print the folder that goes on PYTHONPATH: the bundle, in a cache folder of yours."""
    click.echo(cached())


@agent.command(epilog="Example:\n\n  quayscope agent bundle ./stack && PYTHONPATH=./stack gunicorn app:app")
@click.option(
    "--pythonpath",
    metavar="TEXT",
    help="The image's own PYTHONPATH, for where another one replaces it: the agent puts it back.",
)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def bundle(directory: Path, pythonpath: str | None) -> None:
    """Write sitecustomize.py and agent.zip (pure Python, the same bytes each time) to DIRECTORY."""
    size = write(directory, pythonpath)
    click.echo(f"{directory}: {size} bytes")
