"""`quayscope load`: `run` fires a workload, `list` shows the bundled ones."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from quayscope.load.engine import Engine, Settings, Tick
from quayscope.load.errors import LoadError, TargetUnreachable, ThresholdsMissed
from quayscope.load.progress import Feed, Progress
from quayscope.load.render import show
from quayscope.load.report import build, error_share
from quayscope.load.schedule import plan
from quayscope.load.schema import bundled, find, read_workload
from quayscope.load.target import parse_target
from quayscope.load.workload import Workload

__all__ = ["load"]

log = logging.getLogger(__name__)

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_S = 24 * 3600.0
RUN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
SPARE_DESCRIPTORS = 64


def _duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Return the seconds of `30s`, `2m`, `1h` or `90`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", value)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_S:
        raise click.BadParameter(f"{value!r} is not a duration up to 24h, such as 30s or 2m", ctx, param)
    return seconds


@click.group()
def load() -> None:
    """Fire a workload at a registry and measure it."""


@load.command(
    "list",
    epilog="Examples:\n\n  quayscope load list\n\n  quayscope load list --json",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_workloads(as_json: bool) -> None:
    """Show the workloads that come with Quayscope."""
    workloads = [read_workload(file) for file in bundled().values()]
    if as_json:
        print(json.dumps([_described(workload) for workload in workloads], indent=1))
        return
    for workload in workloads:
        print(f"{workload.name}: {workload.description}".rstrip(": "))
        for phase in workload.phases:
            print(f"  {phase.name}: {phase.rate:g}/s {phase.arrival}, share {phase.share:g}")


def _described(workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "description": workload.description,
        "phases": [
            {"name": phase.name, "share": phase.share, "rate": phase.rate, "arrival": phase.arrival}
            for phase in workload.phases
        ],
        "endpoints": workload.endpoints(),
    }


@load.command(
    epilog="Examples:\n\n  quayscope load run registry --url http://127.0.0.1:5000\n\n"
    "  quayscope load run my.yaml --url https://quay.example --duration 5m --rate-scale 2 --json out.json\n\n"
    "  quayscope load run my.yaml --url http://127.0.0.1:8080 --phase browse --seed 7 --strict\n\n"
    "Exit codes: 0 done, 1 too many answers were not as asserted (or, with --strict, a figure is not valid), "
    "2 usage, 3 could not run. Ctrl-C or SIGTERM ends a run early, with its report."
)
@click.argument("workload")
@click.option("--url", required=True, help="Where to send it: http(s)://HOST[:PORT][/PREFIX].")
@click.option(
    "--duration",
    "duration_s",
    callback=_duration,
    metavar="DURATION",
    default="60s",
    show_default=True,
    help="Of all phases together.",
)
@click.option(
    "--rate-scale",
    type=click.FloatRange(0, 1000, min_open=True),
    default=1.0,
    show_default=True,
    help="Multiplies every arrival rate.",
)
@click.option(
    "--phase", "phases", multiple=True, metavar="NAME", help="Run this phase only; may be repeated."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 1 << 32),
    default=1,
    show_default=True,
    help="Makes arrivals and choices repeatable.",
)
@click.option("--run", "run_id", metavar="ID", help="Name of the run in baggage and reports; else made up.")
@click.option(
    "--trace-ratio",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Share of requests marked to be traced.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(1, 100_000),
    default=2000,
    show_default=True,
    help="Arrivals beyond so many unanswered requests are dropped, and counted as errors.",
)
@click.option(
    "--max-error-share",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Exit 1 when more than this share was not answered as asserted.",
)
@click.option("--strict", is_flag=True, help="Exit 1 when a phase is not valid: the driver did not keep up.")
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificates of the authorities to trust.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the report there."
)
@click.option("--progress-fd", type=int, metavar="N", help="Write a JSON line a second to this descriptor.")
def run(
    workload: str,
    url: str,
    duration_s: float,
    rate_scale: float,
    phases: tuple[str, ...],
    seed: int,
    run_id: str | None,
    trace_ratio: float,
    max_in_flight: int,
    max_error_share: float,
    strict: bool,
    ca_file: str | None,
    json_file: Path | None,
    progress_fd: int | None,
) -> None:
    """Fire WORKLOAD, the name of a bundled one or a .yaml file, and report what came back.

    Open loop: requests are sent when they are due, and latency counts from then.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise click.BadParameter(f"{json_file.parent} is not a directory", param_hint="--json")
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        raise click.BadParameter("1 to 64 letters, digits, _ . : -", param_hint="--run")
    feed = _feed(progress_fd)
    target = parse_target(url)
    chosen = _chosen(read_workload(find(workload), os.environ), phases)
    schedule = plan(chosen.phases, duration_s, rate_scale, seed)
    settings = Settings(run_id or _run_id(chosen.name), seed, trace_ratio, max_in_flight, ca_file)
    _allow_descriptors(max_in_flight)
    target.probe()
    with Progress(Console(stderr=True), duration_s) as progress:

        def on_second(tick: Tick) -> None:
            progress(tick)
            if feed is not None:
                feed(tick)

        engine = Engine(chosen, schedule, target, settings, on_second)
        with closing(engine), _stopping(engine.stop):
            engine.set_up()
            engine.run()
    report = build(chosen, schedule, target, settings, engine)
    if json_file is not None:
        _write(json_file, report)
    # A file or a pipe has no width: tables must not be cut to 80 columns there.
    show(Console(width=None if sys.stdout.isatty() else 160), report)
    _judge(report, max_error_share, strict)


def _judge(report: dict[str, Any], max_error_share: float, strict: bool) -> None:
    """Raise what the run's outcome deserves: `TargetUnreachable`, `ThresholdsMissed`, or nothing."""
    if report["sent"] and report["sent"] == report["errors"].get("0", 0):
        raise TargetUnreachable(
            f"not one of {report['sent']} requests was answered: {', '.join(report['reasons'])}",
            next_step="check --url, and the server's log",
        )
    share = error_share(report)
    if share > max_error_share:
        raise ThresholdsMissed(
            f"{share:.1%} of the requests were not answered as asserted, {max_error_share:.1%} are allowed",
            next_step="see the errors by endpoint above, and the server's log",
        )
    if strict and not report["valid"]:
        raise ThresholdsMissed(
            f"not valid: {'; '.join(report['invalid_because'])}",
            next_step="lower --rate-scale, or run the driver on a machine of its own",
        )


def _chosen(workload: Workload, names: tuple[str, ...]) -> Workload:
    """Return the workload with the phases called `names` alone, in the file's order; all without names."""
    known = [phase.name for phase in workload.phases]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint="--phase")
    if not names:
        return workload
    return replace(workload, phases=tuple(phase for phase in workload.phases if phase.name in names))


def _run_id(name: str) -> str:
    return f"{name[:40]}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _feed(descriptor: int | None) -> Feed | None:
    if descriptor is None:
        return None
    try:
        os.fstat(descriptor)
    except (OSError, OverflowError):
        raise click.BadParameter(f"{descriptor} is not open", param_hint="--progress-fd") from None
    return Feed(descriptor)


def _allow_descriptors(connections: int) -> None:
    """Raise the limit of open files to what so many connections need; raises `LoadError` (usage)."""
    needed = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadError(
            f"--max-in-flight {connections} needs {needed} open files, the limit is {hard}",
            next_step=f"--max-in-flight {max(1, hard - SPARE_DESCRIPTORS)}, or raise `ulimit -Hn`",
            exit_code=2,
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first SIGINT or SIGTERM; a second one ends the program as usual."""

    def on_signal(number: int, frame: object) -> None:  # noqa: ARG001 - the signal module's signature
        stop()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(file: Path, report: dict[str, Any]) -> None:
    """Write the report under its name only when it is whole."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LoadError(f"the report cannot be written to {file}: {error.strerror}") from error
