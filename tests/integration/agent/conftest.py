"""Fixtures of the agent's tests: a Postgres, a relay, and gunicorns with the agent inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.agent.serving import Gunicorn, Kept
from open_folders import made_open
from quayscope.agent.bundle import write
from quayscope.load.demo.postgres import DemoPostgres
from quayscope.relay import Relay


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A connection string of a Postgres that ends with the tests."""
    with made_open("agent") as directory, DemoPostgres(directory / "server") as postgres:
        yield postgres.dsn


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the agent as applications get it."""
    folder = tmp_path_factory.mktemp("bundle")
    write(folder)
    return folder


@pytest.fixture
def kept() -> Kept:
    """What the relay made."""
    return Kept()


@pytest.fixture
def relay(tmp_path: Path, kept: Kept) -> Iterator[Relay]:
    """A running relay with windows of one second."""
    relay = Relay(str(tmp_path / "agent.sock"), kept, window_s=1)
    relay.start()
    yield relay
    relay.close(5.0)


@pytest.fixture
def serve(tmp_path: Path, dsn: str) -> Iterator[Callable[..., Gunicorn]]:
    """Start a gunicorn with the agent inside; all are ended with the test."""
    started: list[Gunicorn] = []

    def start(*arguments: str, environment: dict[str, str] | None = None, **named: Any) -> Gunicorn:
        folder = tmp_path / f"gunicorn{len(started)}"
        folder.mkdir()
        given = {
            "QUAYSCOPE_SOCKET": str(tmp_path / "agent.sock"),
            "AGENT_TEST_DSN": dsn,
            "QUAYSCOPE_TRACING": "off",  # half of a worker's start, where no test asks for it
            **(environment or {}),
        }
        gunicorn = Gunicorn(folder, *arguments, environment=given, **named)
        started.append(gunicorn)
        return gunicorn

    yield start
    for gunicorn in started:
        gunicorn.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, dsn: str) -> Iterator[Gunicorn]:
    """One gunicorn for tests that only ask it something; nobody reads its records."""
    directory = tmp_path_factory.mktemp("shared")
    environment = {"QUAYSCOPE_SOCKET": str(directory / "agent.sock"), "AGENT_TEST_DSN": dsn}
    gunicorn = Gunicorn(directory, "--preload", environment=environment)
    yield gunicorn
    gunicorn.kill()
