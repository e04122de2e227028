"""`quayscope sidecar doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from quayscope.sidecar.doctor.examination import DIRECTORIES, NAMES, examine
from quayscope.sidecar.doctor.report import as_json, as_text

__all__ = ["doctor"]


@click.command()
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    help="Try on this process. Without it: one of each user, container and kind that is visible.",
)
@click.option("--json", "json_output", is_flag=True, help="Print JSON for scripts.")
@click.option(
    "--require",
    multiple=True,
    type=click.Choice(NAMES),
    metavar="NAME",
    help=f"End with 1 unless this works. Repeatable: {', '.join(NAMES)}.",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for caches: try to write there.")
@click.option("--spool", type=click.Path(path_type=Path), help="Folder for the spool: try to write there.")
@click.pass_context
def doctor(
    context: click.Context,
    pid: int | None,
    json_output: bool,
    require: tuple[str, ...],
    cache: Path | None,
    spool: Path | None,
) -> None:
    """Try what the sidecar needs, and say what is missing and which line of the pod spec gives it.

    Each thing is done, not looked up: the answer shown is the system's. py-spy stops a process for some
    milliseconds. Ends with 0 when all that is required works, with 1 when not.
    """
    folders = dict(zip(DIRECTORIES, (cache, spool), strict=True))
    examination = examine(pid, {name: path for name, path in folders.items() if path is not None})
    if json_output:
        click.echo(as_json(examination))
    else:
        for line in as_text(examination):
            click.echo(line)
    missing = [name for name in require if not examination.works(name)]
    if missing:
        click.echo(f"required, and does not work here: {', '.join(missing)}", err=True)
        context.exit(1)
