"""From raw columns to figures, from figures to a verdict, and to what a person sees."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from quayscope.load.engine import Engine, Settings, Tick
from quayscope.load.errors import LoadError
from quayscope.load.progress import Progress
from quayscope.load.record import CAPTURE_MISSING, Record
from quayscope.load.render import show
from quayscope.load.report import build, error_share
from quayscope.load.schedule import plan
from quayscope.load.target import parse_target
from quayscope.load.template import Template
from quayscope.load.workload import Choice, Flow, Phase, Step, Workload

MS = 1_000_000
BASE = 10**15


def workload(rate: float = 100) -> Workload:
    """Two endpoints in one phase."""
    steps = [Step(endpoint=f"GET /{name}", path=Template(f"/{name}")) for name in "ab"]
    phase = Phase("only", 1, rate, "constant", tuple(Choice(1, Flow("", (step,))) for step in steps))
    return Workload("w", "", {}, {}, (), (phase,))


def record(latencies_ms: list[float], late_ms: float = 0.0, **common: Any) -> Record:
    """Requests 10 ms apart."""
    held = Record()
    for index, latency in enumerate(latencies_ms):
        intended = BASE + index * 10 * MS
        fields = {
            "status": 200,
            "error": 0,
            "size": 1,
            "endpoint": 0,
            "stage": 0,
            "step": 0,
            "ok": True,
        } | common
        held.add(
            intended=intended,
            sent=intended + int(late_ms * MS),
            first=0,
            ended=intended + int(latency * MS),
            **fields,
        )
    return held


def report(held: Record, *, interrupted: bool = False, elapsed_s: float = 1.0) -> dict[str, Any]:
    """The report of a run of one second at 100/s."""
    schedule = plan(workload().phases, 1.0, 1.0, 1)
    engine = SimpleNamespace(
        record=held,
        started=1000.0,
        base_ns=BASE,
        ended_ns=BASE + int(elapsed_s * 1e9),
        interrupted=interrupted,
    )
    settings = Settings("r1", max_in_flight=7)
    return build(workload(), schedule, parse_target("http://h:1"), settings, cast(Engine, engine))


def test_quantiles_are_of_the_raw_latencies() -> None:
    """1 to 100 ms: nothing is rounded into buckets."""
    made = report(record([float(n) for n in range(1, 101)]))
    assert (made["p50_ms"], made["max_ms"]) == (50.5, 100.0)
    assert made["p99_ms"] == pytest.approx(99.01)
    assert made["sent"] == made["ok"] == made["scheduled"] == 100
    assert made["throughput"] == 100.0
    assert made["valid"]
    assert [row["endpoint"] for row in made["endpoints"]] == ["GET /a"]


def test_a_late_driver_makes_the_phase_invalid() -> None:
    """More than 50 ms at the 99th percentile."""
    assert report(record([90.0] * 100, late_ms=49.0))["valid"]
    late = report(record([90.0] * 100, late_ms=51.0))
    assert not late["valid"]
    assert late["invalid_because"] == ["only: the driver was late: 99th percentile 51 ms, 50 allowed"]


def test_later_requests_of_a_flow_do_not_count_as_arrivals() -> None:
    """Their lateness is none of the schedule's."""
    made = report(record([90.0] * 10, late_ms=80.0, step=1))
    assert made["late_p99_ms"] is None
    assert made["valid"]


def test_dropped_arrivals_are_errors_and_the_servers_fault() -> None:
    """Two in a hundred are too many; one is not."""
    held = record([1.0] * 98)
    held.dropped[0, 1] += 2
    made = report(held)
    assert made["errors"] == {"dropped": 2}
    assert error_share(made) == pytest.approx(0.02)
    assert "the server is slower than the rate" in made["invalid_because"][0]
    assert made["phases"][0]["endpoints"][1] == {
        "endpoint": "GET /b", "sent": 0, "ok": 0, "errors": {"dropped": 2}, "throughput": 0.0,
        "p50_ms": None, "p95_ms": None, "p99_ms": None, "max_ms": None,
    }  # fmt: skip
    held.dropped[0, 1] -= 1
    assert report(held)["valid"]


def test_errors_are_counted_by_status_and_reason() -> None:
    """A wrong status by its number, no answer by 0 and libcurl's reason, a missing capture by name."""
    held = record([1.0] * 3, status=502, ok=False)
    for fields in (
        {"status": 0, "error": 28},
        {"status": 0, "error": 7},
        {"status": 201, "error": CAPTURE_MISSING},
    ):
        for index in range(2):
            held.add(
                intended=BASE + index, sent=BASE + index, first=0, ended=BASE + MS, size=0,
                endpoint=1, stage=0, step=0, ok=False, **fields,
            )  # fmt: skip
    made = report(held)
    assert made["errors"] == {"0": 4, "502": 3, "capture": 2}
    assert made["reasons"] == {"could not connect": 2, "timed out": 2}
    assert error_share(made) == 1.0


def test_an_interrupted_run_is_judged_by_what_was_due() -> None:
    """Half a second in, half the arrivals were scheduled."""
    held = record([1.0] * 50)
    held.unanswered[0, 0] += 1
    made = report(held, interrupted=True, elapsed_s=0.5)
    assert made["interrupted"]
    assert made["scheduled"] == 51
    assert made["sent"] == 51
    assert made["valid"]
    assert made["phases"][0]["end"] == 1000.5


def test_a_run_without_any_request_is_a_report_too() -> None:
    """Interrupted at once: no phase, not valid, nothing divides by zero."""
    made = report(Record(), interrupted=True, elapsed_s=0.0)
    assert made["phases"] == []
    assert not made["valid"]
    assert error_share(made) == 0.0
    assert "interrupted before the first phase" in shown(made)


def test_the_table_shows_each_phase_and_endpoint() -> None:
    """With marks for what is not valid; route templates are not taken for markup."""
    held = record([12.0] * 100, late_ms=80.0)
    text = shown(report(held))
    assert "GET /a" in text
    assert "only at 100/s [not valid]" in text
    assert "not valid: only: the driver was late" in text
    assert "12.0" in text


def shown(made: dict[str, Any]) -> str:
    """The report as printed to a file."""
    console = Console(file=io.StringIO(), width=160)
    show(console, made)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_progress_is_a_plain_line_each_5_s() -> None:
    """No control characters reach a log file."""
    console = Console(file=io.StringIO())
    with Progress(console, 20) as progress:
        for second in range(1, 13):
            progress(Tick(float(second), "browse", second, second, 0, 1, 12.6))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "browse: 5 of 20 s, sent 5, in flight 1, ok 5, errors 0, p99 13 ms",
        "browse: 10 of 20 s, sent 10, in flight 1, ok 10, errors 0, p99 13 ms",
    ]


def test_on_a_terminal_progress_is_one_line_that_goes_away() -> None:
    """It is redrawn in place, and the cursor is given back."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(console, 20) as progress:
        progress(Tick(1.0, "browse", 1, 1, 0, 1, None))
        progress(Tick(2.0, "browse", 2, 2, 0, 1, 3.0))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "p99 - ms" in text
    assert text.rstrip().endswith("\x1b[2K")
    assert "\x1b[?25h" in text


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:80", "is not http"),
        ("ftp://h", "is not http"),
        ("http://", "is not http"),
        ("http://h:99999", "no URL"),
        ("http://h/?q=1", "is not http"),
        ("http://user:hunter2@h", "carries a user or password"),
    ],
)
def test_a_url_that_is_no_target_is_a_usage_error(url: str, said: str) -> None:
    """A password in it is refused and not repeated."""
    with pytest.raises(LoadError, match=said) as caught:
        parse_target(url)
    assert caught.value.exit_code == 2
    assert "hunter2" not in f"{caught.value}{caught.value.next_step}"


def test_a_target_is_never_left() -> None:
    """Absolute URLs keep path and query alone; what is no path is refused."""
    target = parse_target("http://h:81/prefix/")
    assert target.locate("/v2/") == "http://h:81/prefix/v2/"
    assert target.locate("https://evil.example:444/a/b?c=1") == "http://h:81/a/b?c=1"
    assert target.locate("http://evil.example") == "http://h:81/"
    assert target.locate("@evil.example/") is None
    assert target.locate("//evil.example/") == "http://h:81/prefix//evil.example/"
