"""The agent's small pieces: settings, import hooks, counters, slots, stacks, requests' headers."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers import sync

from quayscope.agent import faults, frames, psycopg, slots
from quayscope.agent.border import Border
from quayscope.agent.context import CURRENT, Request
from quayscope.agent.frames import FrameTable, Stacker
from quayscope.agent.hooks import after_import
from quayscope.agent.settings import Settings, read, switched_off
from quayscope.agent.slots import SlotLength, Slots
from quayscope.agent.turns import Turns
from quayscope.agent.wakeups import Wakeups


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    faults.take()
    yield
    faults.take()


def test_settings_have_defaults() -> None:
    """Nothing set: the defaults; nonsense counts as the default, too much as the most."""
    assert read({}) == Settings()
    assert read({"OTEL_SERVICE_NAME": "o", "QUAYSCOPE_HZ": "x"}) == Settings(service_name="o")
    assert read({"QUAYSCOPE_MAX_OVERHEAD": "2.5", "QUAYSCOPE_STALL_MS": "nan"}) == Settings(
        max_overhead=0.025
    )
    assert read({"QUAYSCOPE_STALL_MS": "1", "QUAYSCOPE_SLOW_MS": "20"})[3:5] == (5_000_000, 20_000_000)
    assert read({"QUAYSCOPE_HZ": "5000"}).hz == 999
    assert read({"QUAYSCOPE_HZ": "0"}).hz == 1
    assert read({"QUAYSCOPE_HZ": "9" * 5_000}).hz == 999
    assert read({"QUAYSCOPE_SERVICE_NAME": "q", "OTEL_SERVICE_NAME": "o"}).service_name == "q"
    assert not read({"QUAYSCOPE_TRACING": "off"}).tracing
    assert not read({"QUAYSCOPE_SQL_COMMENT": "Off "}).sql_comment
    assert switched_off({"QUAYSCOPE_AGENT": "off"})
    assert not switched_off({"QUAYSCOPE_AGENT": "on"})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that is not imported yet."""
    name = f"quayscope_waited_for_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("value = 1\nseen = __spec__.loader.get_source(__name__)")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_a_patch_waits_for_the_import(module: str) -> None:
    """A patch runs once, after the import, though the module was looked for before; its loader is its own."""
    patched: list[ModuleType] = []
    after_import(module, patched.append)
    after_import(module, lambda found: setattr(found, "second", True))
    assert importlib.util.find_spec(module) is not None
    assert patched == []
    imported: Any = importlib.import_module(module)
    assert patched == [imported]
    assert imported.second
    assert imported.seen.startswith("value = 1")
    assert type(imported.__loader__).__name__ == "SourceFileLoader"
    after_import(module, patched.append)
    assert len(patched) == 2


def test_a_patch_that_fails_is_counted(module: str) -> None:
    """What a patch raises stays here, and is told by type and place alone."""

    def fail(_: ModuleType) -> None:
        raise ValueError("a secret")

    after_import(module, fail)
    assert importlib.import_module(module).value == 1
    assert faults.take() == {"faults": 1}
    assert "secret" not in faults.first_fault()


def test_no_increment_is_lost_to_a_signal() -> None:
    """Counting in a signal handler and outside of it adds up."""
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        faults.add("x")

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    taken = own = 0
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            for _ in range(50):
                faults.add("x")
            own += 50
            taken += faults.take().get("x", 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert handled > 50
    assert taken + faults.take().get("x", 0) == own + handled


def test_slots_are_cut_on_seconds_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second that runs stays; what nobody takes is dropped, the oldest first, and counted."""
    clock = [1000.0]
    monkeypatch.setattr(time, "time_ns", lambda: int(clock[0] * 1e9))
    length = SlotLength()
    held: Slots[str, int] = Slots(length)
    held.now()["a"] = 1
    assert held.take(everything=False) == []
    clock[0] = 1001.5
    held.now()["b"] = 2
    assert held.take(everything=False) == [(1000 * 10**9, {"a": 1})]
    length.ns = 250_000_000
    clock[0] = 1001.76
    held.now()["c"] = 3
    assert held.take(everything=False) == [(1001 * 10**9, {"b": 2})]
    assert held.take(everything=True) == [(1001_750_000_000, {"c": 3})]
    length.ns = 10**9
    for second in range(slots.MAX_SLOTS + 3):
        clock[0] = 2000.0 + second
        held.now()["d"] = 4
    assert faults.take() == {"records_dropped": 3}
    assert len(held.take(everything=True)) == slots.MAX_SLOTS


def names_of(table: FrameTable, stack: frames.Stack) -> list[str]:
    """Return a stack's functions as a reader finds them, root first."""
    ids = json.loads(table.encoded(stack))
    names = {number: name for number, name, _, _ in table.undefined()}
    return [names[number] for number in ids]


def test_functions_are_forgotten_but_not_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many functions the table starts anew, and a stack not yet written keeps its names."""
    stacker = Stacker()
    table = FrameTable()

    def waiting() -> frames.Stack:
        made = "def inner(take, frame): return take(frame())"  # code that nobody but the stack holds
        namespace: dict[str, Any] = {}
        exec(made, namespace)
        return namespace["inner"](stacker.take, sys._getframe)  # type: ignore[no-any-return]

    stack = waiting()
    before = names_of(table, stack)
    assert before[-2:] == [waiting.__qualname__ if sys.version_info >= (3, 11) else "waiting", "inner"]
    monkeypatch.setattr(frames, "MAX_CODES", 1)
    assert table.large()
    stacker.forget()
    table.forget()
    assert table.undefined() == []
    gc.collect()
    waiting()
    assert names_of(table, stack) == before


def test_a_stack_is_the_same_in_pieces_as_in_one() -> None:
    """Whatever its depth: root first, each frame once, marks at the ends; the same stack is one object."""
    stacker = Stacker()
    table = FrameTable()

    def deep(frames_more: int) -> frames.Stack:
        return deep(frames_more - 1) if frames_more else stacker.take(sys._getframe())

    for more in (*range(20), frames.MAX_DEPTH):
        stack = deep(more)
        truth = [code.co_qualname if hasattr(code, "co_qualname") else code.co_name for code in stack.codes][
            ::-1
        ]
        assert len(stack.codes) == len(stack.offsets) <= frames.MAX_DEPTH
        cut = ["[truncated]"] if more == frames.MAX_DEPTH else []
        assert names_of(table, stack) == cut + truth
        assert names_of(table, stack.marked(frames.LATE)) == [*cut, *truth, "[C call]"]
        assert stack.marked(frames.LATE) is stack.marked(frames.LATE)
    one, again = [stacker.take(sys._getframe()) for _ in range(2)]
    assert one is again
    assert names_of(table, frames.OWN) == ["[quayscope agent]"]
    assert names_of(table, frames.UNSEEN) == ["Hub:unseen"]


def test_others_signals_stay_in_the_servers_pipe() -> None:
    """Ours are taken out; others' stay in order; a pipe that was closed is left alone."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    try:
        wakeups = Wakeups(ends)
        wakeups.drop_ours()
        os.write(ends[1], bytes([signal.SIGPROF, signal.SIGTERM, signal.SIGPROF, signal.SIGHUP]))
        wakeups.drop_ours()
        assert wakeups.intact()
        os.set_blocking(ends[0], True)
        wakeups.drop_ours()  # would wait for ever on what is read in vain, had it not looked
        os.set_blocking(ends[0], False)
        assert os.read(ends[0], 10) == bytes([signal.SIGTERM, signal.SIGHUP])
        for _ in range(100):
            os.write(ends[1], bytes([signal.SIGPROF]))
            wakeups.signalled()
        assert len(os.read(ends[0], 1_000)) == 1 + 36
    finally:
        for end in ends:
            os.close(end)
    assert not wakeups.intact()
    wakeups.drop_ours()


def test_a_sync_worker_finds_what_it_was_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample between its `select` and its `read` leaves something to read: without, the worker dies."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    wakeups = Wakeups(ends)
    plain = sync.select.select

    def select_then_sample(*arguments: Any) -> Any:
        ready = plain(*arguments)
        wakeups.drop_ours()
        return ready

    monkeypatch.setattr(sync, "select", SimpleNamespace(select=select_then_sample))
    worker = SimpleNamespace(PIPE=ends, wait_fds=[ends[0]], sockets=[], notify=lambda: None)
    try:
        os.write(ends[1], bytes([signal.SIGPROF]) * 3)
        assert sync.SyncWorker.wait(worker, 1.0) == [ends[0]]
        with pytest.raises(BlockingIOError):
            os.read(ends[0], 1)
    finally:
        for end in ends:
            os.close(end)


def border(began: Callable[[Request], None], finished: Callable[[Request], None]) -> Border:
    """Return a border that runs."""
    length = SlotLength()
    made = Border(began, finished, Turns(Stacker(), length, 50_000_000))
    made.running = True
    return made


def request_of(**environ: str) -> Request:
    """Return the request as it is while the application runs."""
    seen: list[Request | None] = []
    made = border(lambda _: None, lambda _: None)

    def application(_: Any, start: Any) -> list[bytes]:
        seen.append(CURRENT.get())
        start("200 OK", [])
        return [b""]

    wsgi = made.around_application(application)
    made.around_worker(lambda: wsgi(environ, lambda *_: None))()
    assert CURRENT.get() is None
    (request,) = seen
    assert request is not None
    return request


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE),
        (f"00-{TRACE}-{SPAN}-00", TRACE),
        (f"01-{TRACE}-{SPAN}-01-more", TRACE),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE.upper()}-{SPAN}-01", ""),
        (f"00-{TRACE}-{SPAN}", ""),
        (f"00-{TRACE}-{SPAN}-01-more", ""),
        ("00-" + "'; drop table" * 10, ""),
        ("", ""),
    ],
)
def test_the_trace_is_read_strictly(header: str, trace: str) -> None:
    """Only a valid traceparent gives a trace id (W3C Trace Context, level 1)."""
    assert request_of(REQUEST_METHOD="GET", HTTP_TRACEPARENT=header).trace_id == trace


def test_run_and_phase_come_from_the_baggage() -> None:
    """Members are found among others, percent-decoded, their properties dropped, their length bounded."""
    request = request_of(REQUEST_METHOD="GET", HTTP_BAGGAGE="a=b, run = r%2F1 ;ttl=3,phase=p")
    assert (request.run, request.phase) == ("r/1", "p")
    assert len(request_of(REQUEST_METHOD="GET", HTTP_BAGGAGE="run=" + "x" * 900).run) == 64
    assert request_of(REQUEST_METHOD="GET", HTTP_BAGGAGE="running=1,%%%").run == ""


def test_an_endpoint_is_never_a_raw_path() -> None:
    """Without a route the endpoint says so; a method that is none is a question mark."""
    assert request_of(REQUEST_METHOD="GET", PATH_INFO="/secret").endpoint == "GET (no route)"
    assert request_of(REQUEST_METHOD="G'ET").endpoint == "? (no route)"
    assert request_of().endpoint == "? (no route)"


def test_what_the_application_raises_passes_through() -> None:
    """An application's error reaches the worker as it was, and counts as a 500."""
    ended: list[Request] = []
    made = border(lambda _: None, ended.append)

    def application(*_: Any) -> list[bytes]:
        raise LookupError("its own")

    application.config = "kept"  # type: ignore[attr-defined]
    wsgi = made.around_application(application)
    assert wsgi.config == "kept"  # type: ignore[attr-defined]
    with pytest.raises(LookupError, match="its own"):
        made.around_worker(lambda: wsgi({"REQUEST_METHOD": "GET"}, None))()
    assert [(request.endpoint, request.status) for request in ended] == [("GET (no route)", 500)]


def test_our_own_failure_is_not_the_applications() -> None:
    """When noting a request fails, the request is served all the same, once."""

    def fail(_: Request) -> None:
        raise RuntimeError("ours")

    calls: list[int] = []
    made = border(fail, fail)
    wsgi = made.around_application(lambda *_: calls.append(1))
    made.around_worker(lambda: wsgi({"REQUEST_METHOD": "GET"}, None))()
    assert calls == [1]
    assert faults.take() == {"faults": 2}


@pytest.mark.parametrize(("status", "noted"), [("204 No Content", 204), (b"204 No Content", 204), (None, 0)])
def test_an_odd_status_is_the_servers_affair(status: Any, noted: int) -> None:
    """Whatever an application passes as status reaches the server untouched; ours is noted or not."""
    ended: list[Request] = []
    passed: list[Any] = []
    made = border(lambda _: None, ended.append)

    def application(_: Any, start: Any) -> list[bytes]:
        start(status, [])
        return [b""]

    wsgi = made.around_application(application)
    made.around_worker(lambda: wsgi({"REQUEST_METHOD": "GET"}, lambda given, _: passed.append(given)))()
    assert passed == [status]
    assert [request.status for request in ended] == [noted]


def test_a_class_that_refuses_attributes_connects_without_us() -> None:
    """A connection class whose metaclass refuses what we add is used as it is, and the fault counted."""

    class Stubborn(type):
        def __setattr__(cls, name: str, value: Any) -> None:
            raise RuntimeError("no")

    class Driver:
        pass

    class Timed(Driver):
        pass

    class Theirs(Driver, metaclass=Stubborn):
        pass

    mix = psycopg._mixer(Driver, Timed)
    assert mix(None) is Timed
    assert faults.guarded(mix, Theirs) is None
    assert faults.take() == {"faults": 1}
