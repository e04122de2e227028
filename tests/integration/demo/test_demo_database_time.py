"""The database's time through the registry: whether each moment of it carries the endpoint that spent it."""

from __future__ import annotations

import bisect
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from integration.agent.serving import Gunicorn, Kept, until
from integration.demo.registry_process import environment
from postgres.joined import joining
from postgres.reading import postmaster_of
from quayscope.load.demo.postgres import DemoPostgres
from quayscope.load.demo.registry.database import APPLICATION
from quayscope.profile import Profile
from quayscope.relay import Relay
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.postgres.memory import BackendMemory
from quayscope.sidecar.postgres.naming import Namer
from quayscope.sidecar.postgres.sessions import Sessions
from quayscope.sidecar.postgres.shared import SharedReader
from quayscope.sidecar.windows import Windows

_NOT_TRACED = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.001"}
"""One request in a thousand, whatever the load driver's own headers ask for."""


_HZ = 299
"""More than by default: a few seconds then give enough moments."""


class Moment(NamedTuple):
    """A backend within a statement at a time (Unix ns); `endpoint` is what it was said to work for."""

    backend: int
    at_ns: int
    endpoint: str
    inherited: bool
    statement: str
    wait: str


class Call(NamedTuple):
    """A call of the registry's to the database, Unix nanoseconds."""

    began_ns: int
    ended_ns: int
    endpoint: str


class _Watched(Sessions):
    """The sidecar's sweeps, each active backend of the registry written down with what was said of it."""

    def __init__(self, server: Any, profiles: list[Profile]) -> None:
        postmaster = postmaster_of(server)
        windows = Windows({"service_name": "db", "sampler": "sessions"}, 10, profiles.extend)
        texts = BackendMemory(postmaster)
        super().__init__(
            postmaster, Capabilities(), windows, lambda _: None, service="db", hz=_HZ, texts=texts
        )
        self.moments: list[Moment] = []
        self.backends: set[int] = set()
        self._seen = self._time.seen
        self._time.seen = self._noted  # type: ignore[method-assign] # what it holds is written down

    def _noted(self, reader: SharedReader, now_ns: int, unix_ns: int) -> None:
        self._seen(reader, now_ns, unix_ns)
        for number, held in self._time._held.items():
            slot = held.slot
            if slot.session.application != APPLICATION:
                continue
            self.backends.add(slot.session.pid)
            if slot.active:
                described = self._time._describe(number, held)
                statement = "" if described.frame is None else described.frame.function
                wait = f"{slot.wait.kind}:{slot.wait.event}" if slot.wait.event else ""
                self.moments.append(
                    Moment(
                        slot.session.pid, unix_ns, described.endpoint, described.inherited, statement, wait
                    )
                )


class Judged(NamedTuple):
    """Moments by whether the endpoint is that of the call they lie in; `unchecked` lie in none."""

    right: int
    wrong: int
    without: int
    unchecked: int
    inherited: int

    @property
    def share(self) -> float:
        """The part with the right endpoint."""
        return self.right / max(1, self.right + self.wrong + self.without)


def _judge(moments: list[Moment], calls: dict[int, list[Call]]) -> Judged:
    counts = Counter[str]()
    missed = Counter[tuple[str, str]]()
    for moment in moments:
        of = calls.get(moment.backend, [])
        at = bisect.bisect_right(of, (moment.at_ns,), key=lambda call: (call.began_ns,)) - 1
        if at < 0 or moment.at_ns > of[at].ended_ns:
            counts["unchecked"] += 1
            continue
        counts["inherited"] += moment.inherited
        if moment.endpoint == of[at].endpoint:
            counts["right"] += 1
        else:
            counts["wrong" if moment.endpoint else "without"] += 1
            missed[moment.statement, moment.endpoint] += 1
    print(missed.most_common(8))
    return Judged(**{name: counts[name] for name in Judged._fields})


def _calls(directory: Path) -> dict[int, list[Call]]:
    found: dict[int, list[Call]] = defaultdict(list)
    for path in directory.glob("calls-*"):
        for line in path.read_text().splitlines():
            backend, began, ended, method, rule = line.split(" ", 4)
            found[int(backend)].append(Call(int(began), int(ended), f"{method} {rule}"))
    for calls in found.values():
        calls.sort()
    return found


@pytest.mark.alone
def test_database_time_has_its_endpoint(postgres: DemoPostgres, directory: Path, full: bool) -> None:
    """Of the time within statements at least 95 % is said to be of the endpoint that called, though spans
    are made of one request in a thousand: of what runs or waits at each sweep, and of what CPU samples show.
    """
    own = directory / "timed"
    own.mkdir()
    kept, profiles = Kept(), list[Profile]()
    relay = Relay(str(own / "agent.sock"), kept)
    relay.start()
    registry = Gunicorn(
        own,
        "--config=python:quayscope.load.demo.registry.gunicorn_conf",
        environment={
            **environment(postgres.dsn, own, ""),
            **_NOT_TRACED,
            "QUAYSCOPE_SOCKET": str(own / "agent.sock"),
        },
        application="integration.demo.timed_registry:app",
        ready="/v2/",
    )
    watched = _Watched(postgres, profiles)
    assert watched.start()
    seconds = 60 if full else 8
    result = own / "load.json"
    try:
        with joining(postgres, hz=_HZ) as joined:
            command = [
                sys.executable,
                "-m",
                "quayscope.cli.main",
                "--log-level=warning",
                "load",
                "run",
                "demo",
            ]
            command += [
                f"--url=http://127.0.0.1:{registry.port}",
                f"--duration={seconds}s",
                "--rate-scale=0.6",
            ]
            subprocess.run([*command, f"--json={result}"], timeout=300, capture_output=True, check=False)
            until(lambda: len(joined.samples) > 20, "samples")
    finally:
        watched.close(5)
        assert registry.stop() == 0
        relay.close(5.0)
    assert json.loads(result.read_text())["ok"] > 50
    calls = _calls(own)
    namer = Namer()
    on_cpu = []
    for one in joined.samples:
        # Of an unproven one the statement is not known; that it lies within a call is enough here.
        if one.pid in watched.backends and (one.ran.text is not None or one.ran.unproven):
            namer.next_second()
            described = namer.inherit(namer.describe(one.ran.text or ""), one.ran.comment)
            statement = "" if described.frame is None else described.frame.function
            on_cpu.append(
                Moment(one.pid, one.time_ns, described.endpoint, described.inherited, statement, "")
            )
    swept, sampled = _judge(watched.moments, calls), _judge(on_cpu, calls)
    waiting = _judge([moment for moment in watched.moments if moment.wait], calls)
    spans = len(kept.spans_kept())
    print(f"active: {swept.share:.2%} {swept}\nwaiting: {waiting.share:.2%} {waiting}")
    print(f"CPU samples: {sampled.share:.2%} {sampled}; {spans} spans")
    assert watched.faults == 0
    assert swept.right > 100
    assert swept.share >= 0.95
    assert waiting.share >= 0.95
    # Some three hundred at CI size, of which the first of each connection weigh more.
    assert sampled.share >= (0.95 if full else 0.9)
    assert swept.inherited > (10 if full else 2)
    assert swept.unchecked < 0.05 * len(watched.moments)
    # Hardly any request was traced: nothing of this depends on it.
    assert spans < 0.05 * sum(kept.requests().values())
