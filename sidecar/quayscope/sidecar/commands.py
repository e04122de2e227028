"""`quayscope sidecar`: the command line of the sidecar."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict

from quayscope.sidecar.doctor.command import doctor
from quayscope.sidecar.errors import BadOption
from quayscope.sidecar.keeping import keep_running
from quayscope.sidecar.native.sampler import HIGHEST_HZ, LOWEST_HZ
from quayscope.sidecar.outward import outward_options, take_outward
from quayscope.sidecar.pids import pass_pids
from quayscope.sidecar.program import Options, Sidecar
from quayscope.sidecar.python import PythonTarget
from quayscope.sidecar.targets.commands import component_option, podinfo_option, target_option, targets

__all__ = ["sidecar"]

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0

_EPILOG = """\b
Examples:
  quayscope sidecar --socket /run/quayscope/agent.sock --collector http://127.0.0.1:4040
  quayscope sidecar --socket /tmp/qs.sock --collector https://profiles.example:4040 \\
      --token-file /var/run/secrets/token --label namespace=quay --label pod=quay-0
  QUAYSCOPE_POSTGRES_DSN='host=127.0.0.1 dbname=quay user=postgres password=...' \\
      quayscope sidecar --socket /tmp/qs.sock --collector http://127.0.0.1:4040 --postgres 4242
"""


def _postgres(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if value in ("auto", "off") or (value.isdigit() and int(value) > 0):
        return value
    raise click.BadParameter("expected auto, off or a pid")


def _targets(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> list[PythonTarget]:
    targets = []
    for value in values:
        pid, equals, role = value.partition("=")
        if not (pid.isdigit() and int(pid) > 0 and equals and role):
            raise click.BadParameter(f"expected PID=ROLE, got {value!r}")
        targets.append(PythonTarget(int(pid), role))
    return targets


def _labels(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not (name.isidentifier() and equals):
            raise click.BadParameter(f"expected NAME=VALUE, got {value!r}")
        labels[name] = content
    return labels


def _dsn(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        conninfo_to_dict(value)
    except psycopg.ProgrammingError:
        # The parser's message quotes what it stumbled over, which may be the password.
        raise BadOption(
            "the connection string cannot be parsed",
            next_step="use 'host=... dbname=... user=...' or postgresql://",
        ) from None
    return value


@click.group(epilog=_EPILOG, invoke_without_command=True)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    envvar="QUAYSCOPE_SOCKET",
    show_envvar=True,
    help="Unix socket on which the agents' records are received.",
)
@click.option("--collector", default="", metavar="URL", help="Where everything is sent: http(s)://HOST:PORT.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the bearer token; read again when it is refused.",
)
@click.option("--wait-for-files", is_flag=True, help="Wait for --token-file and --ca-file to be there.")
@click.option("--keep", is_flag=True, help="Start again after a fault, so that the container does not end.")
@click.option("--insecure", is_flag=True, help="Allow plain http to a collector beyond loopback.")
@outward_options
@click.option(
    "--postgres",
    default="auto",
    show_default=True,
    metavar="auto|off|PID",
    callback=_postgres,
    help="The Postgres server to watch: the one that is found, none, or a postmaster's pid.",
)
@click.option(
    "--postgres-dsn",
    default="",
    metavar="DSN",
    envvar="QUAYSCOPE_POSTGRES_DSN",
    show_envvar=True,
    callback=_dsn,
    help="Connection for pg_stat_activity and statistics. Prefer the variable: command lines are public.",
)
@click.option("--database-service", default="quay-database", show_default=True, help="Its service_name.")
@click.option(
    "--python",
    multiple=True,
    metavar="PID=ROLE",
    callback=_targets,
    help="A Python process without an agent, captured once by py-spy. Repeatable.",
)
@target_option
@component_option
@podinfo_option
@click.option(
    "--pyspy",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="py-spy in turn over the Python targets in which no agent lives, within 0.5 % of a core.",
)
@click.option(
    "--go-pprof",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="auto|off|URL",
    help="Where Go targets serve their profiles: a port of theirs that answers, nowhere, here. Repeatable.",
)
@click.option(
    "--go-every",
    "go_every_s",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    help="Seconds between scrapes of a Go target.",
)
@click.option(
    "--go-cpu",
    "go_cpu_s",
    type=click.IntRange(1, 300),
    default=10,
    show_default=True,
    help="Seconds of CPU profile in each of them.",
)
@click.option("--quay-pid", type=click.IntRange(min=1), help="gunicorn's master: its tree's CPU is counted.")
@click.option(
    "--hz",
    type=click.IntRange(LOWEST_HZ, HIGHEST_HZ),
    default=99,
    show_default=True,
    help="CPU samples a second and CPU.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which the rules of unwinding are kept from one start to the next; at most 64 MB.",
)
@click.option(
    "--debuginfod",
    default="",
    metavar="URL",
    help="Server of debug files for what has none here; they are kept in --cache. It learns what runs here.",
)
@click.option(
    "--window",
    "window_s",
    type=click.IntRange(1, 60),
    default=10,
    show_default=True,
    help="Seconds a profile covers.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_labels,
    help="Label on all series. Repeatable.",
)
@click.option("--ready-file", type=click.Path(path_type=Path), help="Written as JSON once everything serves.")
@click.pass_context
def sidecar(context: click.Context, /, wait_for_files: bool, keep: bool, **options: Any) -> None:
    """Watch a pod: relay its agents, sample its Postgres, send everything to the collector.

    What the system does not permit is reported as a missing capability with its remedy; the rest goes on.
    Ends on SIGTERM after sending what it holds.
    """
    if context.invoked_subcommand is not None:
        return
    if keep:
        keep_running()
    if options["socket"] is None:
        raise click.UsageError("missing option '--socket'")
    outward = take_outward(options)
    if wait_for_files:
        _wait_for([path for path in (options["token_file"], outward.ca_file) if path is not None])
    Sidecar(Options(**options, outward=outward)).run()


def _wait_for(files: list[Path]) -> None:
    """Return when all are there: a pod that we are in must not fail for want of them."""
    said: set[Path] = set()
    while missing := {path for path in files if not path.exists()}:
        for path in sorted(missing - said):
            log.warning("waiting for a file", extra={"file": str(path)})
        said |= missing
        time.sleep(_LOOK_EVERY_S)


@sidecar.command("pass-pids")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
def pass_pids_command(folders: tuple[Path, ...]) -> None:
    """Use up the pids that a stale postmaster.pid under FOLDERS may name, then end.

    For an init container of a database's pod with shareProcessNamespace; always ends with 0, since a database
    must start whatever happens to us.
    """
    try:
        pass_pids(folders)
    except Exception:
        # This program's border: an init container that fails keeps its pod from starting.
        log.exception("fault")


sidecar.add_command(doctor)
sidecar.add_command(targets)
