"""The application that the agent's tests serve: endpoints of known cost, and their own account of it."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.extras
from flask import Flask, Response, jsonify, request, send_file
from psycopg2 import sql

app = Flask(__name__)
account: dict[str, int] = {}
"""Nanoseconds of this thread's CPU by endpoint, measured between the points where others may run."""


def burn(milliseconds: float) -> None:
    """Use this much CPU, and write it down under the running request's endpoint."""
    began = time.thread_time_ns()
    end = began + int(milliseconds * 1e6)
    while time.thread_time_ns() < end:
        sum(range(200))
    endpoint = f"{request.method} {request.url_rule}"
    account[endpoint] = account.get(endpoint, 0) + time.thread_time_ns() - began


def let_others_run() -> None:
    if "gevent" in sys.modules:
        sys.modules["gevent"].sleep(0.001)


def connect(**named: Any) -> Any:
    return psycopg2.connect(os.environ["AGENT_TEST_DSN"], **named)


@app.get("/heavy/<name>")
def heavy(name: str) -> str:
    for _ in range(4):
        burn(3)
        let_others_run()
    return name


@app.get("/light/<name>")
def light(name: str) -> str:
    for _ in range(2):
        burn(1)
        let_others_run()
    return name


@app.get("/deep/<int:depth>")
def deep(depth: int) -> str:
    """Use 20 ms of CPU with `depth` frames below."""
    if depth > 0:
        return deep(depth - 1)
    burn(20)
    return "deep"


@app.get("/account")
def accounted() -> Response:
    return jsonify(pid=os.getpid(), account=account)


@app.get("/threads/<int:milliseconds>")
def threads(milliseconds: int) -> str:
    """Burn CPU in a thread that is no greenlet, while this one waits."""

    def work() -> None:
        end = time.thread_time_ns() + milliseconds * 1_000_000
        while time.thread_time_ns() < end:
            sum(range(200))

    if "gevent" in sys.modules:
        sys.modules["gevent"].get_hub().threadpool.apply(work)
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return "done"


@app.get("/sleep/<float:seconds>")
def sleep(seconds: float) -> str:
    connection = connect()
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", (seconds,))
    connection.close()
    return "slept"


@app.get("/seen/<form>")
def seen(form: str) -> Response:
    """Return the statement as the server sees it, sent in one of the forms that psycopg2 takes."""
    factory = psycopg2.extras.RealDictCursor if form == "factory" else None
    connection = connect(cursor_factory=psycopg2.extras.DictCursor if form == "default" else None)
    with connection, connection.cursor(cursor_factory=factory) as cursor:
        if form == "bytes":
            cursor.execute(b"SELECT current_query(), 1")
        elif form == "composed":
            cursor.execute(
                sql.SQL("SELECT current_query(), {}::text AS {}").format(
                    sql.Literal("kept"), sql.Identifier("na%me")
                )
            )
        elif form == "parameters":
            cursor.execute("SELECT current_query(), %s, '100%%'", ("kept",))
        elif form == "empty":
            try:
                cursor.execute("  ")
            except psycopg2.ProgrammingError as error:
                return jsonify(str(error))
        else:
            cursor.execute("SELECT current_query(), '100%'")
        row = cursor.fetchone()
        assert row is not None
    connection.close()
    return jsonify(row["current_query"] if form == "factory" else row[0])


@app.get("/broken-statement")
def broken() -> Response:
    connection = connect()
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT secret_value FROM nowhere WHERE token = 'hunter2'")
    except psycopg2.errors.UndefinedTable as error:
        return jsonify(str(error).splitlines()[0])
    finally:
        connection.close()
    return jsonify("")


@app.get("/fails")
def fails() -> str:
    raise RuntimeError("on purpose")


@app.get("/file")
def file() -> Response:
    return send_file(__file__, mimetype="text/plain")


@app.get("/stream")
def stream() -> Response:
    def parts() -> Iterator[str]:
        for number in range(5):
            let_others_run()
            yield f"part {number};"

    return Response(parts())


@app.get("/agent")
def agent() -> Response:
    """Return what can be seen of the agent from inside."""
    return jsonify(
        loaded=sorted(name for name in sys.modules if name.startswith("quayscope.")),
        timer=signal.getitimer(signal.ITIMER_PROF)[1],
        path=sys.path,
        signals_waiting=signals_waiting(),
    )


def signals_waiting() -> int:
    """Return how many signals lie in the pipe that this worker has them written to."""
    from gunicorn.workers.base import Worker

    # Those of workers forked before this one are here too, and never began. By type: a proxy asked for
    # its class may have no object behind it.
    workers = [found for found in gc.get_objects() if issubclass(type(found), Worker)]
    (pipe,) = (worker.PIPE for worker in workers if worker.PIPE)
    waiting = fcntl.ioctl(pipe[0], termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(waiting, sys.byteorder)


class Middleware:
    """What an application may have around it."""

    def __init__(self, wrapped: Any) -> None:
        self.app = wrapped

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)


wrapped = Middleware(app)
