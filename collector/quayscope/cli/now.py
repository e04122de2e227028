"""`quayscope now`: a capture of running pods from a shell, with a progress bar, and the result opened."""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from quayscope.cli.asking import Collector
from quayscope.cli.errors import NotCaptured

__all__ = ["now"]

_EPILOG = """\b
Examples:
  quayscope now --service quay-app
  quayscope now --component postgres --seconds 30 --rate 199 --format svg --output database.svg
  quayscope now --pod quay-app-7d4f --pid 41 --kind native --no-open
"""
_SUFFIXES = {
    "html": "html",
    "svg": "svg",
    "pprof": "pprof",
    "folded": "folded",
    "speedscope": "speedscope.json",
}
_BAR = 30


def _labels(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"expected NAME=VALUE, got {value!r}")
        labels[name] = content
    return labels


@click.command(epilog=_EPILOG)
@click.option(
    "--collector",
    "url",
    default="http://127.0.0.1:4040",
    envvar="QUAYSCOPE_COLLECTOR",
    show_default=True,
    show_envvar=True,
    metavar="URL",
    help="The collector to ask.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="QUAYSCOPE_TOKEN_FILE",
    show_envvar=True,
    help="File with a token that has the scopes capture and read.",
)
@click.option(
    "--ca-file", type=click.Path(path_type=Path), help="CAs (PEM) to believe instead of the system's."
)
@click.option("--service", help="Its service_name: quay-app, quay-database, ...")
@click.option("--component", help="The operator's component.")
@click.option("--namespace", help="Its namespace.")
@click.option("--pod", help="The pod's name.")
@click.option("--role", help="What a process does: web, registry, a worker's name, ...")
@click.option("--pid", "pids", type=click.IntRange(min=1), multiple=True, help="A process. Repeatable.")
@click.option("--endpoint", help="METHOD, space, route template: only its samples are kept.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=_labels,
    metavar="NAME=VALUE",
    help="Another label. Repeatable.",
)
@click.option("--seconds", type=click.IntRange(1, 600), default=10, show_default=True, help="How long.")
@click.option("--rate", type=click.IntRange(1, 999), default=99, show_default=True, help="Samples a second.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["python", "native", "postgres", "go", "memory", "all"]),
    help="What is captured; the first that suits a process. Repeatable. Default: all.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_SUFFIXES)),
    default="html",
    show_default=True,
    help="Of the result's file.",
)
@click.option("--type", "kind", default="", help="Profile type of the file: process_cpu, block, memory, ...")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="The file. Default: by its id."
)
@click.option("--open/--no-open", "opens", default=None, help="Open the file. Default: on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of it as JSON.")
def now(
    url: str,
    token_file: Path | None,
    ca_file: Path | None,
    pids: tuple[int, ...],
    labels: dict[str, str],
    seconds: int,
    rate: int,
    kinds: tuple[str, ...],
    form: str,
    kind: str,
    output: Path | None,
    opens: bool | None,
    as_json: bool,
    **selector: str | None,
) -> None:
    """Capture a profile of every process that matches, all at once, and write one merged result.

    Pods that gave nothing are named. Interrupting it cancels the capture.
    """
    collector = Collector(url, token_file, ca_file)
    asked = {
        "selector": {
            **labels,
            **{name: value for name, value in selector.items() if value},
            **({"pid": list(pids)} if pids else {}),
        },
        "seconds": seconds,
        "rate": rate,
        "kinds": list(kinds) or ["all"],
    }
    begun = collector.json("POST", "/api/v1/captures", asked)
    name = str(begun["id"])
    try:
        shown = _follow(collector, name)
    except KeyboardInterrupt:
        collector.json("DELETE", f"/api/v1/captures/{name}")
        click.echo(f"capture {name} is cancelled", err=True)
        raise
    for failed in shown["failed"]:
        where = f"{failed['pod']} {failed['pid']}" if "pid" in failed else failed["pod"]
        click.echo(f"{where}: {failed['error']}", err=True)
    if shown["state"] == "failed":
        raise NotCaptured(shown["error"] or "nothing was captured")
    types = shown["types"]
    if not types:
        raise NotCaptured("nothing was seen: no process used CPU or waited", next_step="capture for longer")
    query = urlencode({"format": form, **({"type": kind} if kind else {})})
    data = collector.file(f"/api/v1/captures/{name}/result?{query}")
    path = output or Path(f"{name}.{_SUFFIXES[form]}")
    path.write_bytes(data)
    if as_json:
        click.echo(json.dumps({**shown, "file": str(path)}))
    else:
        _say(shown, path)
    if opens if opens is not None else sys.stdout.isatty() and form in ("html", "svg"):
        webbrowser.open(path.absolute().as_uri())


def _follow(collector: Collector, name: str) -> dict[str, Any]:
    """Show progress until the capture is over; returns what it looks like then."""
    shown: dict[str, Any] = {}
    terminal = sys.stderr.isatty()
    said = -1
    for shown in collector.events(f"/api/v1/captures/{name}/events"):
        done = sum(part["state"] != "running" for part in shown["parts"])
        text = f"{shown['progress']:4.0%}  {done} of {len(shown['parts'])} processes  {shown['state']}"
        if terminal:
            filled = round(_BAR * shown["progress"])
            click.echo(f"\r[{'#' * filled}{'.' * (_BAR - filled)}] {text:<50}", err=True, nl=False)
        elif int(shown["progress"] * 4) != said or shown["state"] != "running":
            said = int(shown["progress"] * 4)
            click.echo(text.strip(), err=True)
    if terminal:
        click.echo(err=True)
    if not shown or shown["state"] == "running":
        raise NotCaptured("the collector ended the stream", next_step=f"GET /api/v1/captures/{name}")
    return shown


def _say(shown: dict[str, Any], path: Path) -> None:
    cpu = shown["types"].get("process_cpu")
    blocked = shown["types"].get("block")
    pods = len(shown["pods_with_profiles"])
    click.echo(f"{shown['id']}: {len(shown['parts'])} processes of {pods} pods, {shown['seconds']} s")
    if cpu:
        click.echo(f"  CPU      {cpu[1] / 1e9:.3f} s in {cpu[0]} samples")
    if blocked:
        click.echo(f"  blocked  {blocked[1] / 1e9:.3f} s")
    for service, link in shown.get("pyroscope", {}).items():
        click.echo(f"  Pyroscope, {service}: {link}")
    click.echo(f"  {path}")
