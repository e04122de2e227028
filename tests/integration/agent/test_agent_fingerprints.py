"""One statement, one fingerprint: as psycopg2 was given it, and as Postgres wrote it down."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from integration.agent.serving import Gunicorn
from integration.demo.registry_process import environment, run_program
from open_folders import made_open
from quayscope.load.demo.postgres import SETTINGS, DemoPostgres
from quayscope.profile.statement import normalize

Serve = Callable[..., Gunicorn]

_ENTRY = re.compile(r"^\d{4}-\d\d-\d\d \S+ \S+ \[\d+\] .*?[A-Z]+: +", re.MULTILINE)
_HEAD = re.compile(r"/\*quayscope:fp='([0-9a-f]{16})',[^*]*\*/ ")


@pytest.fixture
def chatty(monkeypatch: pytest.MonkeyPatch) -> Iterator[DemoPostgres]:
    """The demo's Postgres with the registry's tables, which writes down each statement that it is sent."""
    monkeypatch.setitem(SETTINGS, "log_statement", "all")
    with made_open("chatty") as directory, DemoPostgres(directory / "postgres") as server:
        done = run_program("seed", environment(server.dsn, directory, ""))
        assert done.returncode == 0, done.stderr
        yield server


def test_the_demos_statements_keep_their_fingerprint(serve: Serve, chatty: DemoPostgres, full: bool) -> None:
    """Of all statements that the demo's workload sends, 99 of 100 have the same fingerprint on both sides."""
    gunicorn = serve(
        "--config=python:quayscope.load.demo.registry.gunicorn_conf",
        application="quayscope.load.demo.registry.app:app",
        environment=environment(chatty.dsn, chatty.directory.parent, "") | {"QUAYSCOPE_TRACING": "auto"},
        ready="/v2/",
    )
    command = [sys.executable, "-m", "quayscope.cli.main", "load", "run", "demo"]
    command += ["--url", f"http://127.0.0.1:{gunicorn.port}", "--duration", "60s" if full else "12s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert gunicorn.stop() == 0
    same, different = Counter[str](), Counter[str]()
    for entry in _ENTRY.split(chatty.log_path.read_text(errors="replace")):
        head = _HEAD.match(entry.removeprefix("statement: "))
        if head is not None:
            found = normalize(entry.removeprefix("statement: ")[head.end() :].rstrip("\n"))
            (same if found.fingerprint == head[1] else different)[found.text] += 1
    pairs = same.total() + different.total()
    print(f"{pairs} pairs of {len(same) + len(different)} statements, {same.total() / pairs:.4f} the same")
    for text, count in different.most_common():
        print(f"  differs {count} times: {text}")
    assert pairs > 500
    assert len(same) > 25
    assert same.total() >= 0.99 * pairs
