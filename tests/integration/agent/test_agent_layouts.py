"""The one artefact by every way that brings it into a pod, in interpreters that have nothing of ours."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.agent.layouts import Supervised, mount_as_secret
from integration.agent.serving import CHECKOUT, Gunicorn, Kept, left_behind, until
from integration.collector.running_collector import RunningCollector
from interpreters import VERSIONS, bare, prepared
from quayscope.agent.bundle import write
from quayscope.relay import Relay

Serve = Callable[..., Gunicorn]

QUAYS = "3.12"
TESTS = CHECKOUT / "tests"
QUAYSCOPE = [sys.executable, "-m", "quayscope.cli.main"]
HEAVY = "GET /heavy/<name>"


def packages_of(python: Path) -> Path:
    """Return where an interpreter's packages lie."""
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


@pytest.mark.parametrize("way", ["run", "copy", "bundle"])
def test_three_ways_deliver_the_same(
    serve: Serve, relay: Relay, kept: Kept, open_folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """`agent run`, a copied folder and `agent bundle` bring two files, and nothing of our environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(open_folder / "cache"))
    folder = open_folder / "volume"
    if way == "copy":
        command = [*QUAYSCOPE, "agent", "path"]
        kept_at = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        shutil.copytree(kept_at, folder)
    elif way == "bundle":
        subprocess.run([*QUAYSCOPE, "agent", "bundle", str(folder)], capture_output=True, check=True)
    prefix = [*QUAYSCOPE, "agent", "run", "--"] if way == "run" else []
    gunicorn = serve(inject=None if way == "run" else folder, prefix=prefix, python=prepared(QUAYS))
    seen = gunicorn.json("/agent")
    inject, archive = Path(seen["path"][1]), Path(seen["path"][-1])
    assert archive == inject / "agent.zip"
    assert {path.name for path in inject.iterdir()} - {"__pycache__"} == {"sitecustomize.py", "agent.zip"}
    assert "quayscope.agent.worker" in seen["loaded"]
    ours = packages_of(Path(sys.executable))
    assert not [path for path in seen["path"] if Path(path) in (ours, CHECKOUT / "agent")]
    assert gunicorn.get_often("/heavy/x", 5) == [200] * 5
    assert gunicorn.stop() == 0
    relay.close(5.0)
    assert kept.cpu()[HEAVY] > 40e6


def supervised(bundle: Path, directory: Path, socket: str, **environment: str) -> Supervised:
    """Start two workers under supervisord, with the bundle mounted as a Secret."""
    mount = directory / "stack"
    assert mount_as_secret(bundle, mount) < 1 << 20
    command = [str(prepared(QUAYS)), "-m", "gunicorn", "--worker-class=gevent", "--preload", "--workers=2"]
    command += ["--bind=127.0.0.1:0", "--graceful-timeout=3", "integration.agent.agent_app:app"]
    path = os.pathsep.join(map(str, (mount, TESTS)))
    return Supervised(directory, command, {"PYTHONPATH": path, "QUAYSCOPE_SOCKET": socket, **environment})


def test_a_secret_under_supervisord(bundle: Path, relay: Relay, kept: Kept, tmp_path: Path, dsn: str) -> None:
    """A bundle that a Secret can hold, mounted as one, profiles the workers that supervisord started."""
    socket = str(tmp_path / "agent.sock")
    web = supervised(bundle, tmp_path, socket, AGENT_TEST_DSN=dsn)
    try:
        assert web.get_often("/heavy/x", 10) == [200] * 10
    finally:
        web.stop()
    relay.close(5.0)
    assert web.process.returncode == 0
    assert "Traceback" not in web.log()
    assert left_behind(socket) == []
    assert kept.requests()[HEAVY, 200] == 10
    assert kept.cpu()[HEAVY] > 100e6
    assert kept.counts().get("faults", 0) == 0


def test_a_secret_without_a_sidecar(bundle: Path, tmp_path: Path, dsn: str) -> None:
    """Where no sidecar listens, the bundle's own helper process sends to a collector: one, and no more."""
    socket, service = str(tmp_path / "agent.sock"), "without-a-sidecar"
    (tmp_path / "collector").mkdir()
    collector = RunningCollector(tmp_path / "collector").start()
    try:
        web = supervised(
            bundle,
            tmp_path,
            socket,
            AGENT_TEST_DSN=dsn,
            QUAYSCOPE_COLLECTOR=collector.http,
            QUAYSCOPE_SERVICE_NAME=service,
        )
        try:
            assert web.get_often("/heavy/x", 10) == [200] * 10
            until(lambda: Path(socket).exists(), "the helper listens")
            assert web.get_often("/heavy/x", 10) == [200] * 10
        finally:
            web.stop()
            helpers = left_behind(socket)
            for pid in helpers:
                os.kill(pid, signal.SIGTERM)
        until(lambda: left_behind(socket) == [], "the helper ends")
        found = collector.get("flamegraph", type="process_cpu", match=[f"service_name={service}"])
    finally:
        collector.stop()
    assert len(helpers) == 1
    assert web.process.returncode == 0
    assert "Traceback" not in web.log()
    assert found["total"] > 100e6


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_whose_path_was_replaced(
    serve: Serve, relay: Relay, kept: Kept, tmp_path: Path, version: str
) -> None:
    """An application found through a PYTHONPATH that a pod's replaced starts and is profiled.

    The interpreter has no package: gunicorn, flask and the application come from the image's path alone.
    """
    stack = tmp_path / "stack"
    images = os.pathsep.join(map(str, (packages_of(prepared(version)), TESTS)))
    write(stack)
    without = subprocess.run(
        [bare(version), "-m", "gunicorn", "--version"],
        env={**os.environ, "PYTHONPATH": str(stack)},
        capture_output=True,
        text=True,
    )
    assert "No module named gunicorn" in without.stderr
    write(stack, images)
    gunicorn = serve(
        "--workers=1",
        application="integration.agent.forking_app:app",
        inject=stack,
        path=(),
        python=bare(version),
    )
    customised, variable, path = gunicorn.json("/child")
    assert Path(customised) == stack / "sitecustomize.py"
    assert variable == os.pathsep.join((str(stack), images))
    assert path[1:4] == variable.split(os.pathsep)
    assert gunicorn.get_often("/heavy/x", 5) == [200] * 5
    assert gunicorn.stop() == 0
    relay.close(5.0)
    assert kept.cpu()[HEAVY] > 40e6
    assert kept.counts().get("faults", 0) == 0
