"""Injected pods under plain runc: what their images are made of, and who receives what they send."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from oci.bundle import python_binds
from oci.netns import in_network_of
from oci.pods import Image, as_container, start_pod, write_podinfo
from oci.runtime import Machine, Pod, machine
from operator_pods import SETTINGS, component_pod
from plain_user import NOBODY, as_nobody
from quayscope.injector.inject import inject
from quayscope.injector.pods import Subject
from quayscope.injector.settings import Settings
from receiving_server import ReceivingServer

POSTGRES = Path("/usr/lib/postgresql/15/bin")
COLLECTOR_PORT = 4040


def wait_until(
    condition: Callable[[], Any], seconds: float = 20.0, what: Callable[[], str] | str = ""
) -> Any:
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what or condition}")


@pytest.fixture(scope="module")
def node() -> Iterator[Machine]:
    """A node that runs containers."""
    assert os.geteuid() == 0, "only root may start containers with runc; next: run the tests as root"
    assert shutil.which("runc"), "no runc on PATH; next: apt-get install runc"
    with machine() as made:
        yield made


@pytest.fixture(scope="module")
def folders() -> Iterator[Path]:
    """A folder through which every user may pass; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="quayscope-open-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def images(checkout: Path, folders: Path) -> dict[str, Image]:
    """Images by their names in the pod specifications: our own, Quay's and Postgres'."""
    agent = folders / "agent-image"
    subprocess.run(
        [sys.executable, "-m", "quayscope.cli.main", "agent", "bundle", str(agent)],
        check=True,
        capture_output=True,
    )
    ours = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    packages = sysconfig.get_paths()["purelib"]
    # Quay's interpreter finds its packages through the image's PYTHONPATH alone.
    application = checkout / "tests" / "integration" / "injector"
    quay = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{packages}:{application}"}
    plain = f"{sys.base_prefix}/bin/python3.{sys.version_info.minor}"
    serve = (plain, "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", "127.0.0.1:8080", "quay_like:app")
    files = python_binds(checkout)
    return {
        SETTINGS["agent_image"]: Image(
            {"PATH": "/usr/bin:/bin"}, {"/opt/quayscope/agent": agent}, uid=NOBODY
        ),
        SETTINGS["sidecar_image"]: Image(ours, files, uid=NOBODY),
        "registry.example/quay-app:3.12": Image(quay, files, uid=NOBODY, command=serve),
        "registry.example/postgres:3.12": Image(
            {"PATH": f"{POSTGRES}:/usr/bin:/bin"},
            uid=NOBODY,
            command=(
                "postgres", "-D", "/var/lib/pgsql/data/userdata", "-c", "listen_addresses=",
                "-c", "unix_socket_directories=/tmp", "-c", "fsync=off",
            ),
        ),
    }  # fmt: skip


class Running(NamedTuple):
    """A pod that runs: `pids` of its containers, `volumes` by name, `receiver` what its sidecar sends to."""

    pod: Pod
    pids: dict[str, int]
    rendered: dict[str, Any]
    volumes: dict[str, Path]
    receiver: ReceivingServer


class Pods:
    """Renders a component's pod, makes its volumes, and starts it on the node."""

    def __init__(self, node: Machine, images: dict[str, Image], folder: Path) -> None:
        self._node = node
        self._images = images
        self._folder = folder
        self._started = 0
        self._receivers: list[ReceivingServer] = []

    def plain(self, component: str) -> dict[str, Any]:
        """A pod of what runs here, as it is without us: kube's own token and secrets are left out."""
        pod = component_pod(component)
        kept = ("postgres-data",)
        pod["spec"]["volumes"] = [one for one in pod["spec"]["volumes"] if one["name"] in kept]
        container = pod["spec"]["containers"][0]
        container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] in kept]
        container.pop("env", None)
        return pod

    def render(self, component: str, **changed: Any) -> dict[str, Any]:
        """The same as the injector makes it."""
        given = {
            **SETTINGS,
            "collector": f"http://127.0.0.1:{COLLECTOR_PORT}",
            "control": "",
            "insecure": True,
            "ca_config_map": "",
            "uids": {"quay-app": NOBODY, "quay-database": NOBODY},
            **changed,
        }
        made, subject = inject(self.plain(component), Settings(**given), namespace="quay")
        assert isinstance(subject, Subject), subject
        return made

    def start(self, rendered: dict[str, Any], data: Path | None = None) -> Running:
        """Start it; `data` is what lies on the database's volume."""
        self._started += 1
        name = f"pod{self._started}"
        volumes = {}
        for volume in rendered["spec"]["volumes"]:
            folder = self._folder / name / volume["name"]
            folder.mkdir(parents=True)
            folder.chmod(0o777)
            volumes[volume["name"]] = folder
        if data is not None:
            volumes["postgres-data"] = data
        if "quayscope-credentials" in volumes:
            (volumes["quayscope-credentials"] / "token").write_text("secret")
            write_podinfo(volumes["quayscope-podinfo"], rendered)

        def receive(pod: Pod) -> None:
            self._receivers.append(
                in_network_of(pod.pause, lambda: ReceivingServer(content=b"{}", port=COLLECTOR_PORT))
            )

        pod, pids = start_pod(self._node, name, rendered, self._images, volumes, receive)
        return Running(pod, pids, rendered, volumes, self._receivers[-1])

    def kill(self, running: Running) -> None:
        """End all of a pod with SIGKILL; one whose containers share their processes."""
        # The kernel ends a process namespace with its first process.
        os.kill(running.pod.pause, signal.SIGKILL)
        for pid in running.pids.values():
            wait_until(functools.partial(_ended, pid))

    def run_again(self, running: Running, container: str) -> tuple[int, bytes]:
        """Run a container of a running pod a second time, to its end."""
        again = copy.deepcopy(running.rendered)
        one = next(one for one in again["spec"]["containers"] if one["name"] == container)
        one["name"] = f"{container}-again"
        made = as_container(running.pod.name, again, one, self._images, running.volumes)
        return running.pod.run(made)

    def log(self, running: Running, container: str) -> str:
        """What a container printed."""
        return self._node.log(f"{running.pod.name}-{container}").read_text()

    def close(self) -> None:
        """End the receivers; the node ends the containers."""
        for receiver in self._receivers:
            receiver.stop()


@pytest.fixture(scope="module")
def pods(node: Machine, images: dict[str, Image], folders: Path) -> Iterator[Pods]:
    """Pods on the node."""
    made = Pods(node, images, folders / "volumes")
    yield made
    made.close()


@pytest.fixture(scope="module")
def fresh_data(folders: Path) -> Path:
    """A volume with a new database in `userdata`, of the plain user, as the operator's image lays it out."""
    volume = folders / "data"
    volume.mkdir()
    os.chown(volume, NOBODY, NOBODY)
    programs: list[str | Path] = [POSTGRES / "initdb", "-D", volume / "userdata"]
    command = [*programs, "-A", "trust", "--no-sync", "--no-instructions"]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **as_nobody())
    return volume


def _ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}/exe").exists()
