"""One Postgres, filled once, and one registry on it, for all tests of the demo's application."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.demo.registry_process import RegistryProcess, environment, run_program
from quayscope.load.demo.postgres import DemoPostgres


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory that other users may pass through, which pytest's own are not."""
    made = Path(tempfile.mkdtemp(prefix="quayscope-test-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def postgres(directory: Path) -> Iterator[DemoPostgres]:
    """A running server with the registry's tables filled."""
    with DemoPostgres(directory / "postgres") as server:
        done = run_program("seed", environment(server.dsn, directory, ""))
        assert done.returncode == 0, done.stderr
        yield server


@pytest.fixture(scope="session")
def registry(postgres: DemoPostgres, directory: Path) -> Iterator[RegistryProcess]:
    """The registry with all weak spots on."""
    running = RegistryProcess(postgres.dsn, directory)
    yield running
    assert running.stop() == 0
