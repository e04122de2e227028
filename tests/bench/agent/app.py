"""What is measured: an application of Quay's build, whose requests cost 20 ms of CPU and a dozen statements.

Flask, psycopg2 and JSON, the work spread over Python stacks of 30 to 40 frames, with places where other
greenlets run. How much work a request is, is found once, before the workers are forked: all do the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from typing import Any

import psycopg2
from flask import Flask, Response, jsonify

from bench.agent import switches

REQUEST_MS = 24.0
"""CPU of a request, about: the work is sized on a busy machine, and must not fall below 20."""
STATEMENTS = 12
DEPTH = 15
"""Frames between the view and the work; the server's and Flask's are above them."""
DSN = "BENCH_DSN"
TABLE = """
CREATE TABLE IF NOT EXISTS tag (id int PRIMARY KEY, repository int, name text, digest text, size bigint);
INSERT INTO tag SELECT n, n % 50, 'v' || n, md5(n::text), n * 1000 FROM generate_series(1, 2000) n
ON CONFLICT DO NOTHING;
"""

app = Flask(__name__)
_connections: list[Any] = []


def piece(seed: int) -> int:
    """Do about 1 ms of what such applications do: make rows, sort, serialise, read back, hash."""
    rows = [
        {
            "name": f"repository-{seed}-{index}",
            "tags": [f"v{index}.{tag}" for tag in range(4)],
            "size": index * seed,
        }
        for index in range(60)
    ]
    rows.sort(key=lambda row: (-int(str(row["size"])), str(row["name"])))
    text = json.dumps({"repositories": rows, "page": seed})
    names = {row["name"]: row for row in json.loads(text)["repositories"]}
    return len(names) + len(hashlib.sha256(text.encode()).hexdigest())


def _pieces_a_request() -> int:
    def cost() -> int:
        began = time.thread_time_ns()
        for seed in range(20):
            piece(seed)
        return time.thread_time_ns() - began

    return round(REQUEST_MS * 1e6 / (min(cost() for _ in range(7)) / 20))


PIECES = _pieces_a_request()


def connection() -> Any:
    """Return this worker's connection; a new one after a switch, since who patches connects anew."""
    if not _connections:
        made = psycopg2.connect(os.environ[DSN])
        made.autocommit = True
        _connections.append(made)
    return _connections[0]


def tags(cursor: Any, repository: int) -> list[Any]:
    cursor.execute(
        "SELECT id, name, digest FROM tag WHERE repository = %s ORDER BY id LIMIT 20", (repository,)
    )
    return list(cursor.fetchall())


def size(cursor: Any, repository: int) -> list[Any]:
    cursor.execute("SELECT count(*), sum(size) FROM tag WHERE repository = %s", (repository,))
    return list(cursor.fetchall())


def newest(cursor: Any, repository: int) -> list[Any]:
    cursor.execute(
        "SELECT t.id, t.name FROM tag t WHERE t.repository = %s AND t.size > %s ORDER BY t.size DESC LIMIT 1",
        (repository, 1000),
    )
    return list(cursor.fetchall())


QUERIES = (tags, size, newest)


def step(number: int, repository: int) -> int:
    """A twelfth of a request: a statement, then work on what it gave."""
    with connection().cursor() as cursor:
        found = QUERIES[number % len(QUERIES)](cursor, repository)
    share = PIECES * (number + 1) // STATEMENTS - PIECES * number // STATEMENTS
    return len(found) + sum(piece(repository + seed) for seed in range(share))


def authorised(depth: int, number: int, repository: int) -> int:
    return validated(depth - 1, number, repository) if depth else step(number, repository)


def validated(depth: int, number: int, repository: int) -> int:
    return resolved(depth - 1, number, repository) if depth else step(number, repository)


def resolved(depth: int, number: int, repository: int) -> int:
    return authorised(depth - 1, number, repository) if depth else step(number, repository)


@app.get("/api/v1/repository/<int:repository>")
def show(repository: int) -> Response:
    """A request: the statements one after the other, and four times another greenlet's turn."""
    total = 0
    for number in range(STATEMENTS):
        total += authorised(DEPTH, number, repository)
        if number % 3 == 2:
            time.sleep(0)
    answer = jsonify(repository=repository, total=total)
    answer.headers["X-Worker"] = str(os.getpid())
    answer.headers["X-Agent"] = "on" if agent_runs() else "off"
    return answer


def agent_runs() -> bool:
    """Whether the agent samples in this worker now."""
    bootstrap = sys.modules.get("quayscope.agent.bootstrap")
    agent = None if bootstrap is None else bootstrap._agent
    return agent is not None and bool(agent.border.running)


@app.get("/agent")
def agent() -> Response:
    return jsonify(pid=os.getpid(), cpu_ns=time.process_time_ns())


@app.get("/switch/<name>/<state>")
def switch(name: str, state: str) -> Response:
    """Turn something on or off in this worker; answers when it is done."""
    done = switches.turn(app, name, on=state == "on")
    for made in _connections:
        made.close()
    _connections.clear()
    return jsonify(pid=os.getpid(), done=done)
