"""Entry point: finds the part behind a command, runs it, and turns failures into messages and exit codes.

Exit codes: 0 done, 1 the thing measured failed its thresholds, 2 usage, 3 could not run, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import click

from quayscope.cli.errors import MissingExtra
from quayscope.cli.log import configure
from quayscope.profile import Failure

__all__ = ["main"]


class _Command(NamedTuple):
    module: str
    attribute: str
    extra: str
    help: str


COMMANDS = {
    "demo": _Command(
        "quayscope.load.demo.commands",
        "demo",
        "all",
        "Run the whole flow on a small registry and show why its requests were slow.",
    ),
    "agent": _Command(
        "quayscope.agent.commands",
        "agent",
        "agent",
        "Run a program with the agent in its workers, or bundle it.",
    ),
    "sidecar": _Command(
        "quayscope.sidecar.commands",
        "sidecar",
        "sidecar",
        "Watch a pod: relay its agents, sample its Postgres.",
    ),
    "collector": _Command(
        "quayscope.collector.commands",
        "collector",
        "collector",
        "Receive, store, query and show profiles and spans.",
    ),
    "now": _Command(
        "quayscope.cli.now", "now", "collector", "Capture a profile of running pods, now, and open it."
    ),
    "load": _Command("quayscope.load.commands", "load", "load", "Fire a workload and measure it."),
    "injector": _Command(
        "quayscope.injector.commands",
        "injector",
        "injector",
        "Put the agent and the sidecar into pods that ask for it: an admission webhook.",
    ),
}
"""Every command: where it is, which extra brings its packages, and its one-line help (no import needed)."""


class _Parts(click.Group):
    """Imports a part only when its command is called, so that each part installs alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        try:
            command = getattr(importlib.import_module(entry.module), entry.attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("quayscope"):
                raise
            raise MissingExtra(cmd_name, entry.extra, error.name or entry.module) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def _version() -> str:
    try:
        return version("quayscope")
    except PackageNotFoundError:
        return "not installed"


@click.group(
    cls=_Parts,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: quayscope demo",
)
@click.version_option(_version(), prog_name="quayscope")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="QUAYSCOPE_LOG_LEVEL",
    show_default=True,
    show_envvar=True,
    help="How much is logged to stderr.",
)
def quayscope(log_level: str) -> None:
    """Quayscope: continuous profiling of Quay, Clair and their Postgres."""
    configure(log_level)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; user errors are one line and a next step."""
    try:
        code = quayscope.main(args=arguments, prog_name="quayscope", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing to say and nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Failure as failure:
        click.echo(f"error: {failure}", err=True)
        if failure.next_step:
            click.echo(f" next: {failure.next_step}", err=True)
        code = failure.exit_code
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
