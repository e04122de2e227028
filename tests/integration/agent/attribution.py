"""Whose CPU a profiler says it was, against what the application measured itself: ours and the stock one.

The application is `accuracy_app`: three endpoints of known cost, 50 requests at once in one worker, and work
that is no request's beside them.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from integration.agent import stock_pyroscope
from integration.agent.push_receiver import PushReceiver
from integration.agent.serving import Gunicorn, Kept, at_once, process_cpu_ns
from quayscope.profile import Stack
from quayscope.relay import Relay

APP = "integration.agent.accuracy_app:app"
CLIENTS = 50
NOBODY = ("", "")
NOBODYS_WORK = "burn_nobodys"
WORK = {
    "burn_small": "GET /small/<name>",
    "burn_medium": "GET /medium/<name>",
    "burn_large": "GET /large/<name>",
    NOBODYS_WORK: "",
}
"""The application's functions that burn, and for whom."""
TRACED = {"OTEL_TRACES_SAMPLER": "always_on", "QUAYSCOPE_TRACING": "auto"}

Account = dict[tuple[str, str], int]
"""Nanoseconds of CPU by (endpoint, span id)."""
Row = tuple[Stack, str, str, int]
"""Stack, endpoint, span id, nanoseconds."""


class Attribution(NamedTuple):
    """What came of it. Shares are of CPU time.

    `right` of the requests' CPU is on its endpoint and span; `right_endpoint` of what was sampled in an
    endpoint's own code is on that endpoint; `nobodys_tagged` of what was no request's is on one; `untagged`
    of all that was recorded is on none, `several` is on more than one span at once; `recorded` is what was
    recorded, beside the kernel's figure; `perfect` is what `right` would be of a profiler that takes as many
    samples, each right.
    """

    right: float
    right_endpoint: float
    nobodys_tagged: float
    untagged: float
    recorded: float
    perfect: float
    several: float
    samples: int
    spans: int
    seconds: float
    counts: Mapping[str, int]


def keep_asking(gunicorn: Gunicorn, paths: list[str], clients: int, seconds: float) -> int:
    """Ask for the paths in turn with so many clients for so long; returns how many requests were made."""
    end = time.monotonic() + seconds
    asked: list[int] = []

    def client(number: int) -> None:
        count = number
        while time.monotonic() < end:
            assert gunicorn.get(paths[count % len(paths)])[0] == 200
            count += 1
        asked.append(count - number)

    at_once(*[lambda n=number: client(n) for number in range(clients)])
    return sum(asked)


def by_first(table: Account) -> dict[str, int]:
    """Return the sums by the first part of the keys."""
    found: dict[str, int] = {}
    for (first, _), value in table.items():
        found[first] = found.get(first, 0) + value
    return found


def overlap(true: Mapping[str, int], profiled: Mapping[str, int]) -> float:
    """Return which share of the truth was found where it is."""
    return sum(min(value, profiled.get(key, 0)) for key, value in true.items()) / sum(true.values())


def of_agent(folder: Path, seconds: float) -> Attribution:
    """Let our agent profile the application for so long."""
    kept = Kept()
    relay = Relay(str(folder / "agent.sock"), kept, window_s=1)
    relay.start()
    try:
        environment = {**TRACED, "QUAYSCOPE_SOCKET": str(folder / "agent.sock")}
        true, kernel = _serve(folder, environment, [], seconds)
    finally:
        relay.close(5.0)
    samples = list(kept.samples("process_cpu"))
    rows = ((stack, about.endpoint, about.span_id, cpu) for stack, about, (_, cpu) in samples)
    return _judge(true, rows, kernel, sum(values[0] for _, _, values in samples), 0, kept.counts())


def of_pyroscope(folder: Path, seconds: float, implementation: str) -> Attribution:
    """Let pyroscope-io and pyroscope-otel do it; `implementation` is PySpy or Stack."""
    report = folder / "kernel.json"
    with PushReceiver() as receiver:
        environment = {
            "QUAYSCOPE_AGENT": "off",
            stock_pyroscope.SERVER: receiver.address,
            stock_pyroscope.IMPLEMENTATION: implementation,
            stock_pyroscope.REPORT: str(report),
        }
        config = ["-c", f"python:{stock_pyroscope.__name__}"]
        true, _ = _serve(folder, environment, config, seconds)
    assert not receiver.failures, receiver.failures
    endpoints = {span: endpoint for endpoint, span in true}
    rows: list[Row] = []
    samples = several = 0
    for profile, named_several in receiver.pushed:
        several += named_several
        samples += profile.totals()[1] // max(1, profile.period)
        for (stack, about), (_, cpu) in profile.samples.items():
            rows.append((stack, endpoints.get(about.span_id, ""), about.span_id, cpu))
    return _judge(true, rows, json.loads(report.read_text())["cpu_ns"], samples, several, {})


def _serve(
    folder: Path, environment: Mapping[str, str], arguments: list[str], seconds: float
) -> tuple[Account, int]:
    """Return what the application measured, and its worker's CPU by the kernel."""
    gunicorn = Gunicorn(folder, "--preload", *arguments, application=APP, environment=environment)
    try:
        gunicorn.get("/background/2")
        keep_asking(gunicorn, ["/small/x", "/medium/x", "/large/x"], CLIENTS, seconds)
        true = {(row[0], row[1]): row[2] for row in gunicorn.json("/account")["account"]}
        (pid,) = gunicorn.workers()
        kernel = process_cpu_ns(pid)
        assert gunicorn.stop() == 0
    finally:
        gunicorn.kill()
    return true, kernel


def _judge(
    true: Account, rows: Iterable[Row], kernel: int, samples: int, several: int, counts: Mapping[str, int]
) -> Attribution:
    profiled: Counter[tuple[str, str]] = Counter()
    sampled: Counter[tuple[str, bool]] = Counter()
    for stack, endpoint, span, cpu in rows:
        profiled[endpoint, span] += cpu
        work = next((frame.function for frame in reversed(stack) if frame.function in WORK), "")
        if work:
            sampled[work, endpoint == WORK[work] and bool(span) == bool(endpoint)] += cpu
    recorded = sum(profiled.values())
    requests = {key: cpu for key, cpu in true.items() if key != NOBODY}
    total = sum(requests.values())
    # Who records more than there was would else be right everywhere.
    scale = min(1.0, kernel / max(1, recorded))
    nobodys = sampled[NOBODYS_WORK, False], sampled[NOBODYS_WORK, True]
    wrong, right = (
        sum(cpu for (work, is_right), cpu in sampled.items() if is_right is wanted and work != NOBODYS_WORK)
        for wanted in (False, True)
    )
    return Attribution(
        right=sum(min(cpu, profiled[key] * scale) for key, cpu in requests.items()) / total,
        right_endpoint=right / max(1, right + wrong),
        nobodys_tagged=nobodys[0] / max(1, sum(nobodys)),
        untagged=profiled[NOBODY] / max(1, recorded),
        recorded=recorded / kernel,
        perfect=_perfect(true, samples),
        several=several / max(1, recorded),
        samples=samples,
        spans=len(requests),
        seconds=total / 1e9,
        counts=counts,
    )


def _perfect(true: Account, samples: int) -> float:
    """Return the share that so many samples of one weight would put right, each on the work that ran."""
    if not samples:
        return 0.0
    weight = sum(true.values()) / samples
    drawn = Counter(random.Random(1).choices(list(true), weights=list(true.values()), k=samples))
    requests = {key: cpu for key, cpu in true.items() if key != NOBODY}
    return sum(min(cpu, drawn[key] * weight) for key, cpu in requests.items()) / sum(requests.values())
