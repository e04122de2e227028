"""A collector, a pod with two workers and one with a Postgres, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from integration.agent.serving import Gunicorn
from integration.collector.running_collector import RunningCollector
from integration.control.pods import Sidecar, load, queries, requests, wait_attached
from open_folders import made_open
from quayscope.load.demo.postgres import DemoPostgres


class Stack(NamedTuple):
    """Everything that runs: a registry of two workers under the agent, a database, load on both."""

    collector: RunningCollector
    registry: Sidecar
    database: Sidecar
    gunicorn: Gunicorn
    postmaster: int


@pytest.fixture(scope="module")
def attached_collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCollector]:
    """A collector for the tests of a module."""
    running = RunningCollector(tmp_path_factory.mktemp("collector")).start()
    yield running
    assert running.stop() == 0
    log = (running.directory / "log").read_text()
    assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def stack(attached_collector: RunningCollector) -> Iterator[Stack]:
    """The whole stack, attached."""
    # Postgres runs as another user when we are root, and must reach its files.
    with made_open("stack") as directory, DemoPostgres(directory / "server") as postgres:
        postmaster = int((directory / "server" / "data" / "postmaster.pid").read_text().split()[0])
        database = Sidecar(
            directory,
            "database-0",
            attached_collector,
            "--postgres",
            str(postmaster),
            environment={"QUAYSCOPE_POSTGRES_DSN": postgres.dsn},
        )
        registry = Sidecar(directory, "registry-0", attached_collector, "--postgres", "off")
        gunicorn = None
        try:
            gunicorn = Gunicorn(
                directory,
                "--workers=2",
                environment={
                    "QUAYSCOPE_SOCKET": str(registry.socket),
                    "QUAYSCOPE_TRACING": "off",
                    "AGENT_TEST_DSN": postgres.dsn,
                },
            )
            wait_attached(attached_collector, "database-0", 1)
            with load(requests(gunicorn), requests(gunicorn), queries(postgres.dsn)):
                wait_attached(attached_collector, "registry-0", 2)
                yield Stack(attached_collector, registry, database, gunicorn, postmaster)
        finally:
            if gunicorn is not None:
                gunicorn.kill()
            for one in (registry, database):
                one.begin_stop()
            registry.stop()
            database.stop()
