"""`quayscope sidecar targets`: what runs here, as the sidecar would see and call it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from quayscope.sidecar.targets.pod import PODINFO, read_pod
from quayscope.sidecar.targets.selection import select
from quayscope.sidecar.targets.watch import Target, TargetWatch

__all__ = ["component_option", "podinfo_option", "target_option", "targets"]

target_option = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME|PID|KIND",
    help="What to watch: a role, service_name, container or program; a process and its descendants; or "
    "postgres, go, python, nginx, other. Repeatable. Default: everything in the pod, outside of one nothing.",
)
component_option = click.option(
    "--component",
    default="",
    envvar="QUAYSCOPE_COMPONENT",
    show_envvar=True,
    help="The pod's component (quay-app, clair-app, postgres, ...). Default: its label, else its annotation.",
)
podinfo_option = click.option(
    "--podinfo",
    type=click.Path(path_type=Path),
    default=PODINFO,
    show_default=True,
    help="Folder of the downward API's files: labels, annotations.",
)
_HEAD = ("PID", "KIND", "SERVICE", "ROLE", "CONTAINER", "WHAT")


@click.command()
@target_option
@component_option
@podinfo_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def targets(targets: tuple[str, ...], component: str, podinfo: Path, as_json: bool) -> None:
    """List the processes here as the sidecar sees them: kind, service, role, labels."""
    watch = TargetWatch(read_pod(os.environ, podinfo, component))
    watch.scan()
    found = select(watch.targets(), targets, default=True)
    if as_json:
        click.echo(json.dumps([_entry(target) for target in found], indent=1))
        return
    rows = [_HEAD, *(_row(target) for target in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


def _entry(target: Target) -> dict[str, object]:
    return {
        "pid": target.pid,
        "parent": target.parent,
        "kind": target.kind,
        "program": target.identity.program,
        "detail": target.identity.detail,
        "labels": dict(target.labels),
    }


def _row(target: Target) -> tuple[str, ...]:
    labels = target.labels
    what = f"{target.identity.program} {target.identity.detail}".rstrip()
    named = tuple(labels.get(name, "") for name in ("service_name", "role", "container"))
    return (str(target.pid), target.kind, *named, what)
