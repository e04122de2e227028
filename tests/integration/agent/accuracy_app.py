"""Endpoints that know what they cost: CPU by endpoint and span, on the main thread and on others."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
account: dict[tuple[str, str], int] = {}
"""Nanoseconds of thread CPU by (endpoint, span id), measured between the points where others may run."""
blocked: dict[tuple[str, str], int] = {}
"""Nanoseconds by (endpoint, what): as the application's own clock saw them; of whole turns where asked."""
executor = ThreadPoolExecutor(2)
gevent: Any = sys.modules.get("gevent")
lock = threading.Lock()


def span_id() -> str:
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return format(context.span_id, "016x") if context.is_valid and context.trace_flags.sampled else ""


def burn(milliseconds: float, key: tuple[str, str]) -> None:
    """Use this much CPU in Python, and write it down."""
    began = time.thread_time_ns()
    end = began + int(milliseconds * 1e6)
    while time.thread_time_ns() < end:
        sum(range(200))
    note(account, key, time.thread_time_ns() - began)


def hash_away(milliseconds: float, key: tuple[str, str]) -> None:
    """Use this much CPU in C calls that let other threads run."""
    began = time.thread_time_ns()
    end = began + int(milliseconds * 1e6)
    data = b"x" * 200_000
    while time.thread_time_ns() < end:
        hashlib.sha256(data).digest()
    note(account, key, time.thread_time_ns() - began)


def note(table: dict[tuple[str, str], int], key: tuple[str, str], nanoseconds: int) -> None:
    with lock:
        table[key] = table.get(key, 0) + nanoseconds


class Turn:
    """The greenlet's turn that is under way: from when the hub let it run until it let others.

    A request that computes or blocks keeps the hub for all of it, what parses it and what sends its answer
    included: on a machine whose caches are cold after a pause that is several milliseconds more.
    """

    began = 0
    what: tuple[str, str] | None = None


def on_switch(event: str, ends: object) -> None:
    now = time.perf_counter_ns()
    if Turn.what is not None:
        note(blocked, Turn.what, now - Turn.began)
    Turn.began, Turn.what = now, None


if gevent is not None and "AGENT_TEST_TURNS" in os.environ:
    sys.modules["greenlet"].settrace(on_switch)


def mine() -> tuple[str, str]:
    return f"{request.method} {request.url_rule}", span_id()


def burn_small(milliseconds: float) -> None:
    burn(milliseconds, mine())


def burn_medium(milliseconds: float) -> None:
    burn(milliseconds, mine())


def burn_large(milliseconds: float) -> None:
    burn(milliseconds, mine())


def burn_nobodys(milliseconds: float) -> None:
    burn(milliseconds, ("", ""))


def pieces(work: Callable[[float], None], milliseconds: float, times: int) -> str:
    """Work in pieces, between which other greenlets run."""
    for _ in range(times):
        work(milliseconds)
        if gevent is not None:
            gevent.sleep(0.0005)
    return "done"


@app.get("/small/<name>")
def small(name: str) -> str:
    return pieces(burn_small, 2, 3)


@app.get("/medium/<name>")
def medium(name: str) -> str:
    return pieces(burn_medium, 4, 4)


@app.get("/large/<name>")
def large(name: str) -> str:
    return pieces(burn_large, 7, 6)


@app.get("/pool/<way>/<int:milliseconds>")
def pool(way: str, milliseconds: int) -> str:
    """Let another thread work for this request: a pool's task, or a thread of its own that soon ends."""
    key = mine()
    work = hash_away if way == "hash" else burn
    if gevent is not None and way != "thread":
        gevent.get_hub().threadpool.apply(work, (milliseconds, key))
    elif way == "thread":
        threads = [threading.Thread(target=work, args=(milliseconds / 4, key)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        executor.submit(work, milliseconds, key).result()
    return "done"


def connect() -> Any:
    return psycopg2.connect(os.environ["AGENT_TEST_DSN"])


@app.get("/statements/<int:times>")
def statements(times: int) -> str:
    """Many statements of a millisecond, and a long one, of the same connection."""
    endpoint, _ = mine()
    connection = connect()
    with connection.cursor() as cursor:
        for _ in range(times):
            began = time.perf_counter_ns()
            cursor.execute("SELECT pg_sleep(%s), 'short'", (0.001,))
            note(blocked, (endpoint, "short"), time.perf_counter_ns() - began)
        long_statement(cursor, endpoint)
    connection.close()
    return "done"


def long_statement(cursor: Any, endpoint: str) -> None:
    began = time.perf_counter_ns()
    cursor.execute("SELECT pg_sleep(%s) AS long", (0.03,))
    note(blocked, (endpoint, "long"), time.perf_counter_ns() - began)


@app.get("/hog/<int:milliseconds>")
def hog(milliseconds: int) -> str:
    """Keep the hub by computing."""
    burn(milliseconds, mine())
    Turn.what = (mine()[0], "cpu")
    return "done"


@app.get("/block/<int:milliseconds>")
def block(milliseconds: int) -> str:
    """Keep the hub by waiting in a call that gevent does not know."""
    plain_sleep: Any = time.sleep
    if gevent is not None:
        plain_sleep = sys.modules["gevent.monkey"].get_original("time", "sleep")
    plain_sleep(milliseconds / 1000)
    Turn.what = (mine()[0], "wait")
    return "done"


@app.get("/nap/<int:milliseconds>")
def nap(milliseconds: int) -> str:
    """Wait as gevent likes it: others run meanwhile."""
    time.sleep(milliseconds / 1000)
    return "done"


@app.get("/agent")
def agent() -> Response:
    return jsonify(pid=os.getpid())


@app.get("/account")
def accounted() -> Response:
    with lock:
        return jsonify(
            pid=os.getpid(),
            account=[[*key, nanoseconds] for key, nanoseconds in account.items()],
            blocked=[[*key, nanoseconds] for key, nanoseconds in blocked.items()],
        )


@app.get("/background/<int:milliseconds>")
def background(milliseconds: int) -> str:
    """Start work that is no request's: each piece this long, until the worker ends."""

    def forever() -> None:
        while True:
            burn_nobodys(milliseconds)
            time.sleep(0.02)

    if gevent is not None:
        gevent.spawn(forever)
    else:
        threading.Thread(target=forever, daemon=True).start()
    return "started"
