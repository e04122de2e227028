"""What is measured, part by part: each takes what is given and returns flat figures."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from bench.keeper import page_costs
from integration.sidecar.conftest import Server
from postgres.pgbench import LOADS, Bracket, Pgbench, fill
from quayscope.sidecar import procfs

__all__ = ["JOINS", "PARTS", "QUICK_JOINS", "Given"]

Figures = dict[str, object]
SIZES = (16, 64, 200, 500)
QUICK_JOINS: Sequence[tuple[str, Sequence[str]]] = (("mixed", ()),)
JOINS: Sequence[tuple[str, Sequence[str]]] = (*((load, ()) for load in LOADS), ("oltp", ("--normal",)))
_HELD = 200
"""So many backends have bounds."""
_ROUNDS = 3
ROUTES = {"mmap": "mapped", "readv": "read"}
KEPT: Mapping[str, Sequence[str]] = {"": (), "_kept": ("--kept",)}
"""As it is, and while another process keeps the reader's memory in reach (`bench.keeper`)."""
_SLEEP = b"SELECT pg_sleep(36000) /* as long as nobody ends it, which is what a session does that waits */"


class Given(NamedTuple):
    """What the parts work with: a way to start servers, a folder, how long, how often.

    `joins` are the loads to sample, each with the runner's options.
    """

    start: Callable[..., contextlib.AbstractContextManager[Server]]
    folder: Path
    joins: Sequence[tuple[str, Sequence[str]]]
    seconds: float
    pairs: int
    pair_seconds: float
    warm_seconds: float
    say: Callable[[str], None]


@contextlib.contextmanager
def beside(part: str, pid: int, *options: str) -> Iterator[dict[str, Any]]:
    """Run a part of the runner while entered; its figures are in what is yielded afterwards."""
    command = [sys.executable, "-m", "bench.postgres.runner", part, str(pid), *options]
    figures: dict[str, Any] = {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdin is not None
        assert runner.stderr is not None
        said = ""
        for line in runner.stderr:
            if line == "ready\n":
                break
            said += line
        else:
            raise RuntimeError(said)
        try:
            yield figures
        finally:
            with contextlib.suppress(BrokenPipeError):
                runner.stdin.close()
            assert runner.stdout is not None
            found = runner.stdout.read()
            if runner.wait(60) == 0:
                figures.update(json.loads(found))


def measured(part: str, pid: int, seconds: float, *options: str) -> dict[str, Any]:
    """Run a part for so long; returns its figures."""
    with beside(part, pid, *options) as figures:
        time.sleep(seconds)
    return figures


@contextlib.contextmanager
def sleeping(server: Server, count: int) -> Iterator[list[int]]:
    """Keep so many backends active on a statement that waits; yields their pids."""
    with contextlib.ExitStack() as stack:
        pids = []
        for _ in range(count):
            connection = stack.enter_context(contextlib.closing(psycopg.connect(server.dsn, autocommit=True)))
            pids.append(connection.info.backend_pid)
            stack.callback(connection.cancel)
            connection.pgconn.send_query(_SLEEP)
        yield pids


def sweeps(given: Given) -> Figures:
    """Sweeps of all backends at 99 Hz, by both routes, their waking included: medians of three rounds."""
    figures: Figures = {}
    with given.start("max_connections=600") as server:
        for kept, options in KEPT.items():
            share = _median(given, "wake", server.pid, *options)
            figures[f"core_share_waking{kept}"] = share
            given.say(f"waking alone{kept}: {share:.2%} of a core")
        for size in SIZES:
            with sleeping(server, size):
                figures.update(_swept(given, server, str(size)))
                if size == _HELD:
                    figures.update(_swept(given, server, str(size), "_kept"))
    with given.start("max_connections=2000") as server, sleeping(server, 200):
        found = _swept(given, server, "200_of_2000")
        figures["core_share_200_of_2000"] = found["core_share_200_of_2000_mmap"]
        figures["core_share_200_of_2000_readv"] = found["core_share_200_of_2000_readv"]
    return figures


def _swept(given: Given, server: Server, what: str, kept: str = "") -> dict[str, float]:
    found = {}
    for name, route in ROUTES.items():
        share = _median(given, "sweep", server.pid, "--route", route, *KEPT[kept])
        found[f"core_share_{what}_{name}{kept}"] = share
        given.say(f"{what} backends, {name}{kept}: {share:.2%} of a core")
    return found


def _median(given: Given, part: str, pid: int, *options: str) -> float:
    rounds = (measured(part, pid, given.seconds / _ROUNDS, *options) for _ in range(_ROUNDS))
    share: float = statistics.median(figures["core_share"] for figures in rounds)
    return share


def polls(given: Given) -> Figures:
    """The same 200 backends by `pg_stat_activity`, ten times a second: our CPU and the server's."""
    with given.start("max_connections=600") as server, sleeping(server, 200) as pids:
        known = {server.pid, *procfs.children(server.pid)}
        assert set(pids) <= known
        with beside("poll", server.pid, "--dsn", server.dsn) as figures:
            mine = set(procfs.children(server.pid)) - known
            before = sum(procfs.cpu_ns(pid) or 0 for pid in mine)
            began = time.monotonic()
            time.sleep(given.seconds)
            theirs = (sum(procfs.cpu_ns(pid) or 0 for pid in mine) - before) / 1e9
            theirs /= time.monotonic() - began
        ours = measured("sweep", server.pid, given.seconds)["core_share"]
    given.say(f"polled ten times a second: {figures['core_share']:.2%} and {theirs:.2%} of the server's")
    return {
        "core_share_polls": figures["core_share"] + theirs,
        "core_share_polls_server": theirs,
        "ratio_to_polls": ours / (figures["core_share"] + theirs),
    }


def join(given: Given) -> Figures:
    """CPU samples and their statements under three loads, and what noting them takes."""
    figures: Figures = {}
    right = wrong = 0
    with given.start() as server:
        fill(server)
        for load, options in given.joins:
            name = f"{load}_normal" if options else load
            folder = given.folder / f"join-{name}"
            folder.mkdir()
            with Pgbench(server, folder, LOADS[load], 2) as client:
                found = measured("join", server.pid, given.seconds, *options)
            share, good, bad = _compared(found["samples"], client.brackets)
            right, wrong = right + good, wrong + bad
            figures[f"proven_share_{name}"] = share
            figures[f"samples_{name}"] = len(found["samples"])
            if load == "mixed":
                figures["core_share_join"] = found["core_share"]
                figures["core_share_join_notes"] = found["notes_core_share"]
                figures["realtime"] = found["realtime"]
            given.say(
                f"{name}: {share:.1%} proven; {good} right, {bad} wrong; {found['core_share']:.2%} of a core"
            )
    figures["proven_right_share"] = right / max(1, right + wrong)
    figures["proven_checked"] = right + wrong
    return figures


def _compared(samples: list[Any], brackets: Mapping[tuple[int, int], Bracket]) -> tuple[float, int, int]:
    """Return the proven share of the samples within statements, how many are right, how many wrong."""
    proven = unproven = right = wrong = 0
    for time_ns, is_unproven, which, has_text in samples:
        unproven += is_unproven
        proven += has_text
        bracket = brackets.get(tuple(which)) if which is not None else None
        if bracket is not None:
            within = bracket.sent_ns <= time_ns <= bracket.answered_ns
            right, wrong = right + within, wrong + (not within)
    return proven / max(1, proven + unproven), right, wrong


def effect(given: Given) -> Figures:
    """What all of it does to a server under load: transactions, and CPU for each, with it and without."""
    folder = given.folder / "effect"
    folder.mkdir()
    rounds: list[tuple[bool, int, int, int]] = []
    with given.start() as server:
        fill(server)
        with Pgbench(server, folder, LOADS["oltp"], 2) as client:
            time.sleep(1.0)
            pids = client.backends()
            for number in range(given.pairs):
                for on in (True, False) if number % 2 else (False, True):
                    with beside("join", server.pid) if on else contextlib.nullcontext():
                        # Reading unwind tables and naming the first stacks is the price of a start.
                        time.sleep(given.warm_seconds)
                        before, began = _cpu(pids), time.time_ns()
                        time.sleep(given.pair_seconds)
                        rounds.append((on, began, time.time_ns(), _cpu(pids) - before))
    ends = [bracket.answered_ns for bracket in client.brackets.values()]
    ratios, cpu_ratios = [], []
    for pair in zip(rounds[::2], rounds[1::2], strict=True):
        rates, costs = {}, {}
        for on, began, ended, cpu in pair:
            count = max(1, sum(began <= end < ended for end in ends))
            rates[on], costs[on] = count / (ended - began), cpu / count
        ratios.append(rates[True] / rates[False])
        cpu_ratios.append(costs[True] / costs[False])
        given.say(
            f"pgbench: {ratios[-1]:.3f} of the transactions without, {cpu_ratios[-1]:.3f} of the CPU for each"
        )
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "pgbench_ratio": statistics.median(ratios),
        "pgbench_ratio_quartile1": quartiles[0],
        "pgbench_ratio_quartile3": quartiles[2],
        "pgbench_cpu_ratio": statistics.median(cpu_ratios),
        "pgbench_pairs": len(ratios),
    }


def _cpu(pids: list[int]) -> int:
    return sum(procfs.cpu_ns(pid) or 0 for pid in pids)


def machine(given: Given) -> Figures:
    """What the machine takes for memory not touched for a while."""
    return dict(page_costs(min(given.pairs, 3)))


PARTS: Mapping[str, Callable[[Given], Figures]] = {
    "machine": machine,
    "sweeps": sweeps,
    "polls": polls,
    "join": join,
    "effect": effect,
}
