"""The report as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show"]

STATEMENT_WIDTH = 70


def show(console: Console, report: Mapping[str, Any]) -> None:
    """Print every table of the report."""
    _load(console, report["load"])
    _top(console, report["endpoints"])
    _statements(console, report["statements"], report["waits"])
    _workers(console, report["workers"], report.get("cpu_share_overlap"))
    _database(console, report.get("database", {}))
    _cost(console, report["cost_per_1000"])
    _lost(console, report["lost"])
    _missing(console, report["missing"], report["failures"])


def _table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in columns:
        table.add_column(
            name,
            justify="right" if justify == "right" else "left",
            overflow="fold",
            no_wrap=justify == "right",
        )
    return table


def _load(console: Console, load: Mapping[str, Any]) -> None:
    figures = ("sent", "ok", "errors", "p50 ms", "p95 ms", "p99 ms", "req/s")
    table = _table(
        "Requests by phase and endpoint",
        [("phase / endpoint", "left"), *((name, "right") for name in figures)],
    )
    for phase in load.get("phases", []):
        note = "" if phase["valid"] else " (not valid: the driver was late)"
        table.add_row(f"[bold]{escape(phase['name'])}[/bold] at {phase['rate']:g}/s{note}", *_figures(phase))
        for row in phase["endpoints"]:
            table.add_row(f"  {escape(row['endpoint'])}", *_figures(row))
    console.print(table)
    console.print(
        f"sent {load.get('sent', 0)}, ok {load.get('ok', 0)}, errors {_errors(load.get('errors', {}))}; "
        f"arrivals late by p99 {_number(load.get('late_p99_ms'))} ms; "
        f"{'valid' if load.get('valid') else 'NOT VALID: ' + '; '.join(load.get('invalid_because', []))}\n"
    )


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    times = (_number(row.get(name)) for name in ("p50_ms", "p95_ms", "p99_ms", "throughput"))
    return (str(row["sent"]), str(row["ok"]), _errors(row["errors"]), *times)


def _errors(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{status}: {count}" for status, count in errors.items()) or "0"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _top(console: Console, endpoints: Iterable[Mapping[str, Any]]) -> None:
    rows = list(endpoints)
    table = _table(
        "Top endpoints by CPU in the workers",
        [
            ("endpoint", "left"),
            ("CPU s", "right"),
            ("own account s", "right"),
            ("ms/request", "right"),
            ("Python line", "left"),
        ],
    )
    for row in sorted(rows, key=lambda row: -row["cpu_s"])[:5]:
        each = f"{row['cpu_s'] / row['requests'] * 1000:.1f}" if row["requests"] else "-"
        table.add_row(
            escape(row["endpoint"]),
            f"{row['cpu_s']:.2f}",
            f"{row['truth_cpu_s']:.2f}",
            each,
            escape(row.get("cpu_line", "")),
        )
    console.print(table)
    table = _table(
        "Top endpoints by time stalled in SQL (the whole worker waits)",
        [("endpoint", "left"), ("stalled s", "right"), ("Python line", "left"), ("statement", "left")],
    )
    for row in sorted(rows, key=lambda row: -row["stall_s"])[:5]:
        table.add_row(
            escape(row["endpoint"]),
            f"{row['stall_s']:.2f}",
            escape(row.get("stall_line", "")),
            escape(_short(row["stall_statement"])),
        )
    console.print(table)


def _statements(
    console: Console, statements: Sequence[Mapping[str, Any]], waits: Sequence[Mapping[str, Any]]
) -> None:
    how = {"perf": "perf samples", "activity": "pg_stat_activity, unproven"}
    sampler = statements[0]["sampler"] if statements else "none"
    table = _table(
        f"Top statements by Postgres CPU ({how.get(sampler, 'no samples')})",
        [
            ("statement", "left"),
            ("CPU s", "right"),
            ("samples", "right"),
            ("endpoints", "left"),
            ("waits", "left"),
        ],
    )
    for row in statements[:8]:
        own = [wait for wait in waits if wait["statement"] == row["statement"]][:2]
        table.add_row(
            escape(_short(row["statement"])),
            f"{row['cpu_s']:.2f}",
            str(row["samples"]),
            escape(", ".join(row["endpoints"][:2]) + (" ..." if len(row["endpoints"]) > 2 else "")),
            escape(", ".join(f"{wait['wait']} {wait['seconds']:.1f} s" for wait in own)),
        )
    console.print(table)


def _short(statement: str) -> str:
    return statement if len(statement) <= STATEMENT_WIDTH else statement[: STATEMENT_WIDTH - 3] + "..."


def _workers(console: Console, workers: Iterable[Mapping[str, Any]], overlap: float | None) -> None:
    table = _table(
        "Workers: profiled CPU beside the kernel's",
        [
            ("pid", "right"),
            ("role", "left"),
            ("profiled s", "right"),
            ("/proc s", "right"),
            ("ratio", "right"),
            ("attributed", "right"),
        ],
    )
    for row in workers:
        truth = row["cpu_proc_s"]
        table.add_row(
            str(row["pid"]),
            escape(row["role"]),
            f"{row['cpu_profiled_s']:.2f}",
            "-" if truth is None else f"{truth:.2f}",
            f"{row['cpu_profiled_s'] / truth:.3f}" if truth else "-",
            f"{row['attributed_share']:.1%}",
        )
    console.print(table)
    if overlap is not None:
        console.print(f"endpoints' CPU shares agree with the application's own account by {overlap:.1%}\n")


def _database(console: Console, database: Mapping[str, Any]) -> None:
    if database.get("seconds"):
        console.print(
            f"the database's time for the registry: {database['seconds']:.2f} s within statements,"
            f" {database['attributed_share']:.1%} of it with its endpoint\n"
        )


def _cost(console: Console, cost: Mapping[str, float | None]) -> None:
    table = _table("What 1,000 requests cost", [("", "left"), ("", "right")])
    table.show_header = False
    for name, value in cost.items():
        table.add_row(
            name.replace("_s", " seconds").replace("_", " "), "not seen" if value is None else f"{value:,.2f}"
        )
    if cost:
        console.print(table)


def _lost(console: Console, lost: Mapping[str, Mapping[str, int]]) -> None:
    parts = []
    for source, counts in lost.items():
        gone = {name: count for name, count in counts.items() if count and name != "samples"}
        if gone:
            of = f" of {counts['samples']}" if "samples" in counts else ""
            parts.append(f"{source}: " + ", ".join(f"{count}{of} {name}" for name, count in gone.items()))
    console.print("lost or unsure: " + ("; ".join(parts) if parts else "nothing"), markup=False)


def _missing(
    console: Console, missing: Iterable[Mapping[str, str]], failures: Iterable[Mapping[str, Any]]
) -> None:
    for row in missing:
        console.print(
            f"missing: {row['capability']}: {row['detail']}; needs: {row['remedy']}",
            markup=False,
            soft_wrap=True,
        )
    for failure in failures:
        console.print(f"failed: {failure['part']}: {failure['what']}", markup=False, soft_wrap=True)
        for line in failure["log"]:
            console.print(f"  | {line}", markup=False, highlight=False, soft_wrap=True)
