"""`quayscope demo`."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from quayscope.load.demo.errors import DemoError
from quayscope.load.demo.flow import Options, Running, run
from quayscope.load.demo.render import show

__all__ = ["demo"]

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", str(value))
        seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
        if not 5 <= seconds <= 6 * 3600:
            self.fail(f"{value!r} is not a duration between 5s and 6h (such as 30s or 2m)", param, ctx)
        return seconds


@click.command(
    epilog="Examples:\n\n  quayscope demo\n\n  quayscope demo --duration 30s --exit --json out.json\n\n"
    "  quayscope demo --weak n_plus_one --pyroscope http://127.0.0.1:4040"
)
@click.option(
    "--duration",
    "duration_s",
    type=_Duration(),
    default="60s",
    show_default=True,
    help="How long load is fired.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the report as JSON.",
)
@click.option("--exit", "exit_at_once", is_flag=True, help="End after the report; else stay up until Ctrl-C.")
@click.option(
    "--port", default=4040, show_default=True, help="Port of the page (another one where it is taken)."
)
@click.option("--pyroscope", metavar="URL", help="Send the same profiles to a Pyroscope too.")
@click.option(
    "--weak", metavar="LIST", help="Which of the registry's weak spots are on, comma-separated, or `none`."
)
@click.option("--rate-scale", default=1.0, show_default=True, help="Multiplies every arrival rate.")
@click.option("--seed", default=1, show_default=True, help="Makes the workload's choices repeatable.")
def demo(
    duration_s: float,
    json_file: Path | None,
    exit_at_once: bool,
    port: int,
    pyroscope: str | None,
    weak: str | None,
    rate_scale: float,
    seed: int,
) -> int:
    """Run the whole flow on a small registry and show why its requests were slow.

    Starts Postgres, a registry under gunicorn with the agent inside, a sidecar and a collector, all on
    loopback and in a temporary directory; fires a workload in phases; prints where the time went.
    Everything it started ends with it. Exits 3 when a part failed.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise click.BadParameter(f"{json_file.parent} is not a directory", param_hint="--json")
    signal.signal(signal.SIGTERM, _interrupt)
    options = Options(duration_s, port, pyroscope, rate_scale, seed, weak)
    narrator = Console(stderr=True)
    try:
        with run(options, lambda text: narrator.print(f"[dim]{text}[/dim]", highlight=False)) as running:
            _report(running, json_file)
            if not exit_at_once:
                _stay(running)
            return 3 if running.report["failures"] else 0
    except DemoError as error:
        for line in error.log:
            narrator.print(f"  | {line}", markup=False, highlight=False, soft_wrap=True)
        raise


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _report(running: Running, json_file: Path | None) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(running.report, indent=1) + "\n")
    # A file or a pipe has no width: tables must not be cut to 80 columns there.
    show(Console(width=None if sys.stdout.isatty() else 160), running.report)
    if running.page:
        print(f"flame graphs: {running.page}/")


def _stay(running: Running) -> None:
    print("everything stays up; Ctrl-C ends it", flush=True)
    try:
        while True:
            running.parts.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("ending")
