"""The benchmark's parts, each one real servers or programs of its own, each giving flat figures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.agent import pairs, switches
from bench.agent.app import DSN, STATEMENTS
from bench.agent.pairs import Summary
from bench.agent.site import Site, process_clock_ns
from bench.agent.switching import (
    AgentSwitch,
    InWorkerSwitch,
    PyroscopeSwitch,
    PySpySwitch,
    Recorded,
    pushed_cpu,
)
from integration.agent.attribution import of_agent, of_pyroscope
from integration.agent.push_receiver import PushReceiver
from quayscope.agent.settings import AGENT, MAX_OVERHEAD, SERVICE_NAME, SOCKET
from quayscope.relay import Relay

__all__ = ["PARTS", "Given"]

TURNS_A_REQUEST = 10
"""Greenlet switches: to and from the hub at each wait, and at the request's begin and end."""
REQUEST_US = 20_000
HZ = 100
_ALONE_TIMEOUT_S = 300.0
_QUIET_S = 2.5
"""After that the last second of the load is written."""


@dataclass(frozen=True)
class Given:
    """What all parts are given: how much to measure, where to write, whom to tell."""

    folder: Path
    dsn: str
    pairs: int
    others: int
    seconds: float
    settle_s: float
    accuracy_s: float
    alone_rounds: int
    alone_runs: int
    say: Callable[[str], None]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of an application, the agent turned off unless they say otherwise."""
        return {AGENT: "off", DSN: self.dsn, SERVICE_NAME: "bench", **more}

    def with_agent(self, socket: Path) -> dict[str, str]:
        """Return those of one with the agent; the governor does not lower its rate."""
        return self.environment(**{AGENT: "on", SOCKET: str(socket), MAX_OVERHEAD: "100"})


@contextmanager
def _relay(path: Path, recorded: Recorded) -> Iterator[Relay]:
    relay = Relay(str(path), recorded, window_s=1)
    relay.start()
    try:
        yield relay
    finally:
        relay.close(5.0)


def agent(given: Given) -> dict[str, float]:
    """CPU of a request with our agent on and off, everything on at 100 Hz."""
    recorded = Recorded()
    socket = given.folder / "agent.sock"
    with _relay(socket, recorded) as relay, Site(given.folder / "agent", given.with_agent(socket)) as site:
        site.load(given.settle_s)
        switch = AgentSwitch(site, relay, given.settle_s)
        found = pairs.measure(site, switch, given.pairs, given.seconds, given.say, "agent")
    summary = pairs.summarise(found)
    return {
        **_named("", summary),
        "cpu_ratio_on_off_median": summary.ratio,
        "request_cpu_ms": summary.off_us / 1e3,
        "agent_samples": recorded.samples,
        "agent_unattributed_share": recorded.unattributed_ns / max(1, recorded.cpu_ns),
        "agent_own_account_share": recorded.counts["cpu_ns"] / max(1, recorded.cpu_ns),
        "agent_faults": recorded.counts["faults"],
        "agent_samples_per_cpu_second": recorded.samples / max(1.0, recorded.cpu_ns / 1e9),
    }


def otel(given: Given) -> dict[str, float]:
    """CPU of a request with and without OpenTelemetry, one of a thousand traced; no agent."""
    with Site(given.folder / "otel", given.environment()) as site:
        switch = InWorkerSwitch(site, switches.OTEL, given.settle_s, after=True)
        found = pairs.measure(site, switch, given.others, given.seconds, given.say, "OpenTelemetry")
    summary = pairs.summarise(found)
    return {
        **_named("otel_", summary),
        "otel_cpu_ratio": summary.ratio,
        "otel_us_per_request": summary.on_us - summary.off_us,
    }


def pyroscope(given: Given) -> dict[str, float]:
    """CPU of a request with and without pyroscope-io, by implementation; and what it recorded."""
    found: dict[str, float] = {}
    for name, prefix in (("PySpy", "pyroscope_"), ("Stack", "pyroscope_stack_")):
        with PushReceiver() as receiver:
            environment = given.environment(**{switches.SERVER: receiver.address})
            with Site(given.folder / name, environment) as site:
                switch = PyroscopeSwitch(site, name, given.settle_s)
                measured = pairs.measure(
                    site, switch, given.others, given.seconds, given.say, f"pyroscope-io {name}"
                )
                switch.all_off()
        if receiver.failures:
            raise RuntimeError(f"pyroscope-io's pushes were not understood: {receiver.failures[0]}")
        cpu, without_span = pushed_cpu(receiver)
        summary = pairs.summarise(measured)
        found.update(_named(prefix, summary))
        found[f"{prefix}cpu_ratio"] = summary.ratio
        found[f"{prefix}recorded_share"] = cpu / max(1, switch.kernel_ns)
        found[f"{prefix}unattributed_share"] = without_span / max(1, cpu)
    return found


def py_spy(given: Given) -> dict[str, float]:
    """`py-spy record` on one of the two workers: its own CPU, the worker's, and what it saw."""
    folder = given.folder / "py-spy"
    with Site(folder, given.environment()) as site, PySpySwitch(folder, max(1.0, given.settle_s)) as switch:
        site.load(given.settle_s)
        rounds = max(1, given.others // 2)
        found = pairs.measure(site, switch, rounds, given.seconds, given.say, "py-spy record")
        switch.finish()
    summary = pairs.summarise(found)
    return {
        **_named("pyspy_", summary),
        "pyspy_cpu_ratio": summary.ratio,
        "pyspy_core_share": switch.own_ns / switch.wall_ns,
        "pyspy_recorded_share": switch.samples / HZ * 1e9 / switch.kernel_ns,
        "pyspy_unattributed_share": 1.0,  # it knows stacks, and no request
    }


def alone(given: Given) -> dict[str, float]:
    """Each part of the agent by itself, and from it the share of the CPU that all cost at 100 Hz."""
    socket = given.folder / "alone.sock"
    runs = []
    with _relay(socket, Recorded()):
        for number in range(given.alone_runs):
            given.say(f"alone: run {number + 1} of {given.alone_runs}")
            runs.append(_alone(given, socket))
    found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    shares = sorted(run["cost_share_100hz"] for run in runs)
    return {
        **found,
        "alone_runs": given.alone_runs,
        "cost_share_100hz_least": shares[0],
        "cost_share_100hz_most": shares[-1],
    }


def _alone(given: Given, socket: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.agent.alone", f"--socket={socket}", f"--rounds={given.alone_rounds}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), DSN: given.dsn, SOCKET: str(socket)},
        capture_output=True,
        check=False,
        timeout=_ALONE_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"measuring alone failed: {done.stderr.decode(errors='replace')}")
    found: dict[str, float] = json.loads(done.stdout)
    second = found["us_per_sample"] * HZ + found["us_per_early_signal"] * found["early_signals_a_second"]
    second += found["us_per_write"] + found["us_own_thread_busy_second"]
    found["us_per_request"] = (
        found["us_per_border"]
        + STATEMENTS * found["us_per_statement"]
        + TURNS_A_REQUEST * found["us_per_turn"]
    )
    found["us_per_second"] = second
    found["cost_share_100hz"] = second / 1e6 + found["us_per_request"] / REQUEST_US
    return found


def memory(given: Given) -> dict[str, float]:
    """What a worker holds with the agent and without, after the same load; and what it uses when idle."""
    found: dict[str, float] = {}
    held: dict[str, dict[str, float]] = {}
    socket = given.folder / "memory.sock"
    with _relay(socket, Recorded()):
        for name, environment in (
            ("off", given.environment()),
            ("on", given.with_agent(socket)),
            ("on_no_relay", given.with_agent(given.folder / "nobody.sock")),
        ):
            given.say(f"memory and idle CPU: agent {name.replace('_', ' ')}")
            with Site(given.folder / f"memory_{name}", environment) as site:
                site.load(3 * given.seconds)
                held[name] = _held(site.pids)
                time.sleep(_QUIET_S)
                found[f"idle_us_per_second_{name}"] = _idle(site.pids, given.seconds)
    for kind, key in (("Rss", "rss"), ("Pss", "pss"), ("Private_Dirty", "private_dirty")):
        found[f"{key}_mb_per_worker"] = held["on"][kind] - held["off"][kind]
        found[f"{key}_mb_per_worker_without"] = held["off"][kind]
    return found


def _held(workers: tuple[int, ...]) -> dict[str, float]:
    """Return the workers' mean of each line of smaps_rollup, in MB."""
    sums: dict[str, float] = {}
    for pid in workers:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, size = line.partition(":")
            sums[name] = sums.get(name, 0.0) + int(size.split()[0]) / 1024 / len(workers)
    return sums


def _idle(workers: tuple[int, ...], seconds: float) -> float:
    began, before = time.perf_counter(), sum(map(process_clock_ns, workers))
    time.sleep(seconds)
    used = sum(map(process_clock_ns, workers)) - before
    return used / len(workers) / 1e3 / (time.perf_counter() - began)


def attribution(given: Given) -> dict[str, float]:
    """Whose CPU it was: ours and the stock one, against what the application measured itself."""
    found: dict[str, float] = {}
    for name, prefix in (
        ("agent", "attributed_"),
        ("PySpy", "pyroscope_otel_"),
        ("Stack", "pyroscope_otel_stack_"),
    ):
        given.say(f"attribution: {name}")
        folder = given.folder / f"attribution_{name}"
        folder.mkdir()
        if name == "agent":
            answer = of_agent(folder, given.accuracy_s)
        else:
            answer = of_pyroscope(folder, given.accuracy_s, name)
        found[f"{prefix}right_share"] = answer.right
        found[f"{prefix}right_endpoint_share"] = answer.right_endpoint
        found[f"{prefix}nobodys_tagged_share"] = answer.nobodys_tagged
        found[f"{prefix}recorded_share"] = answer.recorded
        found[f"{prefix}perfect_sampler_share"] = answer.perfect
        found[f"{prefix}samples"] = answer.samples
    return found


def _named(prefix: str, summary: Summary) -> dict[str, float]:
    return {
        f"{prefix}cpu_ratio_upper95": summary.upper_95,
        f"{prefix}cpu_ratio_quartile1": summary.quartile_1,
        f"{prefix}cpu_ratio_quartile3": summary.quartile_3,
        f"{prefix}us_on": summary.on_us,
        f"{prefix}us_off": summary.off_us,
        f"{prefix}pairs": summary.pairs,
        f"{prefix}requests": summary.requests,
    }


PARTS: Mapping[str, Callable[[Given], dict[str, Any]]] = {
    "agent": agent,
    "alone": alone,
    "otel": otel,
    "pyroscope": pyroscope,
    "py-spy": py_spy,
    "memory": memory,
    "attribution": attribution,
}
