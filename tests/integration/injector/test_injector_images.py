"""The image files build without a daemon, on a base made here, and what comes out runs as any plain user.

Every container has a read-only root, a random user without a name, no capability, and its image's own
environment. At CI size the agent's image and the collector's are built; with `--full` all four.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from integration.collector.running_collector import cpu_profile
from integration.injector.conftest import wait_until
from oci.bundle import Container
from oci.images import IMAGES, Builder, Built, files_base, made_context, python_base
from oci.netns import in_network_of
from oci.runtime import Machine, Pod
from quayscope.profile.push import PushClient, encode_push, series_of
from receiving_server import ReceivingServer

NAMES = sorted(path.stem for path in IMAGES.glob("*.Containerfile"))
UID = random.randrange(1_000_000_000, 1_000_999_999)
"""As a platform gives one: of no user that an image knows."""
WORKLOAD = """
name: short
phases:
  - name: steady
    rate: 40
    mix:
      - {endpoint: "POST /x", path: /x, body: {a: 1}, expect: [200]}
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Collect what is built at the size asked for."""
    if "program" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        metafunc.parametrize("program", ["collector", "load", "sidecar"] if full else ["collector"])


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    """A builder; what it made is removed."""
    folder = Path(tempfile.mkdtemp(prefix="quayscope-images-"))
    yield Builder(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Path:
    """What images of programs are built from."""
    extras = ("all",) if full else ("collector", "injector")
    companions = ("--cpython", "3.12") if full else ("--cpython",)
    return made_context(tmp_path_factory.mktemp("context"), "--extras", *extras, *companions)


@pytest.fixture(scope="module")
def on_python(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base with a Python."""
    builder.base("base-python", python_base(tmp_path_factory.mktemp("base")))
    return "base-python"


@pytest.mark.parametrize("name", NAMES)
def test_file_says_what_an_image_must(name: str) -> None:
    """The base is an argument with a fixed version, the user a number and not root, the labels are there."""
    lines = (IMAGES / f"{name}.Containerfile").read_text().splitlines()
    base = next(line for line in lines if line.startswith("ARG BASE="))
    assert base.startswith("ARG BASE=registry.access.redhat.com/ubi9/")
    assert not base.endswith(":latest")
    last = max(i for i, line in enumerate(lines) if line.startswith("FROM "))
    users = [line.split()[1] for line in lines[last:] if line.startswith("USER ")]
    assert users == ["65532:65532"]
    assert not any(line.startswith("RUN") for line in lines[last:])
    text = "\n".join(lines)
    for label in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in text


def test_agent_image_copies_the_agent(builder: Builder, node: Machine, tmp_path: Path, full: bool) -> None:
    """Its command, as the init container has it, leaves the agent in a volume that its user may write to."""
    builder.base("base-files", files_base(tmp_path / "base"))
    companions = ("--cpython", "3.12") if full else ("--cpython",)
    built = builder.build("agent", "base-files", made_context(tmp_path / "context", "--extras", *companions))
    assert built.config["User"] == "65532:65532"
    assert built.config["Labels"]["org.opencontainers.image.title"] == "quayscope-agent"
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    code, _ = node.run(contained("agent", built, built.config["Cmd"], {"/quayscope": volume}))
    assert code == 0, node.log("agent").read_text()
    packages = ["packages"] if full else []
    assert sorted(path.name for path in volume.iterdir()) == ["agent.zip", *packages, "sitecustomize.py"]
    assert {path.stat().st_uid for path in volume.iterdir()} == {UID}
    if full:
        assert (volume / "packages" / "cp312" / "opentelemetry" / "opentelemetry").is_dir()


def test_program_image_runs(
    program: str, builder: Builder, context: Path, on_python: str, node: Machine, tmp_path: Path
) -> None:
    """It is built offline from wheels, has no build tools, and its program does its work."""
    began = time.monotonic()
    built = builder.build(program, on_python, context)
    print({"image": program, "built in": round(time.monotonic() - began, 1)})
    assert built.config["User"] == "65532:65532"
    assert built.config["Labels"]["org.opencontainers.image.title"] == f"quayscope-{program}"
    assert built.config["Cmd"][0] == "quayscope"
    tools = {"pip", "pip3", "gcc", "cc", "g++", "make", "ld", "as"}
    programs = [
        path.name for folder in ("opt/quayscope/bin", "usr/bin") for path in built.root.glob(f"{folder}/*")
    ]
    assert tools.isdisjoint(programs), programs
    assert not list(built.root.glob("opt/quayscope/lib/*/site-packages/pip"))
    assert not (built.root / "wheels").exists()
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    pod = node.pod(f"pod-{program}")
    {"collector": run_collector, "load": run_load, "sidecar": run_sidecar}[program](node, pod, built, volume)
    assert {path.stat().st_uid for path in volume.rglob("*") if path.name != "short.yaml"} == {UID}


def contained(name: str, built: Built, command: list[str], volumes: dict[str, Path]) -> Container:
    """A container of an image, as restricted as a platform makes it."""
    return Container(
        name, command, uid=UID, environment=built.environment(), volumes=volumes, root=built.root
    )


def run_collector(node: Machine, pod: Pod, built: Built, volume: Path) -> None:
    """It is healthy, takes a push and answers a question about it."""
    command = [
        *built.config["Cmd"],
        "--listen=127.0.0.1:4040",
        "--grpc-listen=127.0.0.1:4317",
        "--data=/data",
    ]
    pod.start(contained("collector", built, command, {"/data": volume}))

    def get(path: str) -> Any:
        def ask() -> Any:
            with urlopen(f"http://127.0.0.1:4040/{path}", timeout=10) as answer:
                return json.loads(answer.read()) if path else answer.read()

        return in_network_of(pod.pause, ask)

    def healthy() -> bool:
        try:
            return bool(get("api/v1/health")["status"] == "ok")
        except OSError:
            return False

    wait_until(healthy, 30.0, lambda: node.log("collector").read_text())
    profile = cpu_profile()
    in_network_of(
        pod.pause, lambda: PushClient("http://127.0.0.1:4040").push(encode_push([series_of(profile, "one")]))
    )
    assert get("api/v1/flamegraph?type=process_cpu")["total"] == profile.totals()[1]
    assert b"<html" in get("")


def run_load(node: Machine, pod: Pod, built: Built, volume: Path) -> None:
    """It fires a short workload at a server on loopback; every request is answered."""
    server = in_network_of(pod.pause, ReceivingServer)
    (volume / "short.yaml").write_text(WORKLOAD)
    command = [*built.config["Cmd"], "run", "/workload/short.yaml", f"--url={server.url}", "--duration=3s"]
    try:
        code, printed = pod.run(
            contained("load", built, [*command, "--json=/workload/out.json"], {"/workload": volume})
        )
    finally:
        server.stop()
    assert code == 0, (printed, node.log("load").read_text())
    report = json.loads((volume / "out.json").read_text())
    assert report["ok"] == len(server.taken) > 60


def run_sidecar(node: Machine, pod: Pod, built: Built, volume: Path) -> None:
    """It serves, and what it measures arrives; what passes pids for a database is there too."""
    server = in_network_of(pod.pause, ReceivingServer)
    command = [*built.config["Cmd"], "--socket=/run-here/agent.sock", f"--collector={server.url}"]
    try:
        pod.start(contained("sidecar", built, command, {"/run-here": volume}))

        def measured() -> bool:
            return any(one.path == "/v1/metrics" for one in list(server.taken))

        wait_until(measured, 30.0, lambda: node.log("sidecar").read_text())
    finally:
        server.stop()
    assert (volume / "agent.sock").is_socket()
    code, printed = pod.run(contained("pids", built, [*built.config["Cmd"], "pass-pids", "--help"], {}))
    assert code == 0
    assert b"postmaster.pid" in printed
