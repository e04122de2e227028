"""A run's report as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show"]


def show(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report: a table by phase and endpoint, then what it comes to."""
    console.print(_table(report))
    took = f"{report['duration_s']:.1f} s" + (", interrupted" if report["interrupted"] else "")
    console.print(
        f"run {report['run']} of {report['workload']}, seed {report['seed']}, {took}: "
        f"{report['scheduled']} arrivals, {report['sent']} sent, {report['ok']} ok, "
        f"errors {_errors(report['errors'])}",
        highlight=False,
        markup=False,
    )
    for reason, count in report["reasons"].items():
        console.print(f"  {count} without an answer: {reason}", highlight=False, markup=False)
    for name, meaning in (
        ("unanswered", "in flight when the run was interrupted"),
        ("skipped", "not sent, since an earlier request of their flow failed"),
    ):
        if report[name]:
            console.print(f"  {report[name]} requests {meaning}", highlight=False)
    console.print(
        f"arrivals were late by p50 {_number(report['late_p50_ms'], 3)} ms, "
        f"p99 {_number(report['late_p99_ms'], 3)} ms",
        highlight=False,
    )
    for why in report["invalid_because"]:
        console.print(f"not valid: {why}", highlight=False, markup=False)


def _table(report: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("phase / endpoint", overflow="fold")
    for name in ("sent", "ok", "errors", "p50 ms", "p95 ms", "p99 ms", "max ms", "ok/s"):
        table.add_column(name, justify="right", no_wrap=name != "errors")
    for phase in report["phases"]:
        note = "" if phase["valid"] else " [not valid]"
        title = f"[bold]{escape(phase['name'])}[/bold] " + escape(f"at {phase['rate']:g}/s{note}")
        table.add_row(title, *_figures(phase))
        for row in phase["endpoints"]:
            table.add_row(f"  {escape(row['endpoint'])}", *_figures(row))
    table.add_section()
    table.add_row("[bold]whole run[/bold]", *_figures(report))
    return table


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    times = (_number(row[name], 1) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms", "throughput"))
    return (str(row["sent"]), str(row["ok"]), _errors(row["errors"]), *times)


def _errors(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{status}: {count}" for status, count in errors.items()) or "0"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
