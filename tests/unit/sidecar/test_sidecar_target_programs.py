"""What a process is, told by its command line, its build information, its cgroup and its pod."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quayscope.sidecar.targets.golang import BuildInfo, read_build_info
from quayscope.sidecar.targets.identify import Identity
from quayscope.sidecar.targets.labels import labels_of
from quayscope.sidecar.targets.pod import Container, Pod, parse_cgroup, parse_podinfo, read_pod
from quayscope.sidecar.targets.python import python_program
from quayscope.sidecar.targets.selection import select
from quayscope.sidecar.targets.watch import Target


@pytest.mark.parametrize(
    ("command", "role", "quay"),
    [
        (
            "/app/bin/python /app/bin/gunicorn -c /quay-registry/conf/gunicorn_web.py web:application",
            "web",
            1,
        ),
        ("python3 /usr/bin/gunicorn -c conf/gunicorn_registry.py registry:application", "registry", 1),
        ("python -m gunicorn -b localhost:8080 -b 0.0.0.0:5000 secscan:application", "secscan", 1),
        ("python /bin/gunicorn -c conf/gunicorn_registry.py", "registry", 1),
        ("gunicorn: master [registry:application]", "registry", 1),
        ("python gunicorn -b 127.0.0.1:8000 demo.app:create()", "web", 0),
        (
            "python gunicorn -c c/gunicorn_worker.py workers.gc.gcworker:create_gunicorn_worker()",
            "gcworker",
            1,
        ),
        ("python -m workers.gc.gcworker", "gcworker", 1),
        ("python -m workers.notificationworker.notificationworker", "notificationworker", 1),
        ("python -Im workers.queuecleanupworker", "queuecleanupworker", 1),
        ("python -mbuildman.builder", "builder", 1),
        ("python3.12 -X dev -W ignore -m workers.securityworker", "securityworker", 1),
        ("python -uE /opt/jobs/nightly.py --all", "nightly", 0),
        ("/usr/bin/python3 /usr/local/bin/supervisord -c supervisord.conf", "supervisord", 0),
        ("python -c pass", "inline", 0),
        ("python", "python", 0),
        ("python -m", "python", 0),
        ("uwsgi --http :80", "uwsgi", 0),
        ("python " + "x" * 300 + ".py", "x" * 64, 0),
    ],
)
def test_python_roles(command: str, role: str, quay: int) -> None:
    """A role is Quay's application, a background worker's name or the script's."""
    found = python_program(command.split(" "))
    assert (found.role, found.quay) == (role, bool(quay))


def test_a_gunicorn_title_tells_master_from_worker() -> None:
    """setproctitle's words say it; without them it is not told here."""
    assert python_program(["gunicorn: worker [web:application]"]).worker is True
    assert python_program(["gunicorn: master [web:application]"]).worker is False
    assert python_program(["python", "gunicorn", "web:application"]).worker is None


@given(st.lists(st.text(), max_size=8))
def test_any_command_line(arguments: list[str]) -> None:
    """Whatever a process calls itself, its role is short and printable in a label."""
    role = python_program(arguments).role
    assert 0 < len(role) <= 64
    assert not set(role) & set("/ \n\0;")


_UID = "0d9c45fd-fb83-4022-bbfc-f249bee6bab2"
_ID = "ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        f"0::/kubepods.slice/kubepods-pod{_UID.replace('-', '_')}.slice/crio-{_ID}.scope\n",
        f"12:memory:/kubepods/besteffort/pod{_UID}/{_ID}\n9:pids:/\n0::/\n",
        f"2:cpu:/\n1:name=systemd:/kubepods/pod{_UID}/{_ID}/init.scope\n",
        f"0::/../../kubepods-pod{_UID.replace('-', '_')}.slice/cri-containerd-{_ID}.scope\n",
    ],
)
def test_container_of_a_cgroup(text: str) -> None:
    """The pod and the container are found in v1 and v2 paths of each runtime."""
    found = parse_cgroup(text)
    assert (found.pod_uid, found.id) == (_UID, _ID)


def test_a_cgroup_that_says_nothing() -> None:
    """From a cgroup namespace of its own a process is in none that has a name."""
    assert parse_cgroup("0::/\n") == Container()
    assert parse_cgroup(f"0::/../{_ID}\n").id == _ID
    assert parse_cgroup("") == Container()
    assert parse_cgroup("nonsense") == Container("", "", "nonsense")


def test_downward_api_files(tmp_path: Path) -> None:
    """The operator's label names the component, an annotation where there is none, an option before both."""
    annotations = 'other="a\\"b"\nquayscope.io/component="clair-app"\nbroken\nworse=\n'
    (tmp_path / "annotations").write_text(annotations)
    assert parse_podinfo(annotations)["other"] == 'a"b'
    environment = {"POD_NAME": "p-0", "POD_NAMESPACE": "quay", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    pod = read_pod(environment, tmp_path)
    assert (pod.name, pod.namespace, pod.component, pod.operator, pod.inside) == (
        *("p-0", "quay", "clair-app", False),
        True,
    )
    (tmp_path / "labels").write_text('quay-component="postgres"\nquay-operator/quayregistry="r"\n')
    assert read_pod(environment, tmp_path).component == "postgres"
    assert read_pod(environment, tmp_path).operator
    assert read_pod(environment, tmp_path, "redis").component == "redis"
    assert (
        not read_pod({}, tmp_path / "none").inside or parse_cgroup(Path("/proc/self/cgroup").read_text()).id
    )


def test_labels() -> None:
    """A label given wins, then the program's own variables, then the component, then what it is."""
    here, there = Container("", "", "/"), Container(_UID, _ID, f"/../{_ID}")
    quay = Pod("p-0", "quay", _UID, "quay-app", operator=True, inside=True)
    nginx = Identity("nginx", "nginx", "nginx worker")
    assert labels_of(nginx, there, {}, quay, here, {}) == {
        "service_name": "quay-app",
        "role": "nginx worker",
        "container": "quay-app",
        "pod": "p-0",
        "namespace": "quay",
    }
    clair = Identity("go", "clair", "clair", "", "clair-app")
    assert labels_of(clair, here, {}, Pod(), here, {}) == {"service_name": "clair-app", "role": "clair"}
    assert labels_of(clair, there, {}, Pod(), here, {})["container"] == _ID[:12]
    environment = {"QUAYSCOPE_SERVICE_NAME": "quay-mirror", "QUAYSCOPE_ROLE": "mirror"}
    master = Identity("python", "python3", "web master", "gunicorn", "quay-app")
    found = labels_of(master, here, environment, quay, here, {"pod": "given"})
    assert (found["service_name"], found["role"], found["pod"]) == ("quay-mirror", "mirror master", "given")
    database = Identity("postgres", "postgres", "checkpointer")
    assert (
        labels_of(database, here, {}, Pod(component="postgres"), here, {})["service_name"] == "quay-database"
    )


def _target(pid: int, parent: int, kind: str, program: str, role: str) -> Target:
    labels = {"service_name": "quay-app", "role": role}
    return Target(pid, 1, parent, Identity(kind, program, role), Container(), labels)


def test_selection() -> None:
    """A pid names its descendants too, a kind all of a kind, another word a role or a program."""
    targets = [
        _target(2, 1, "python", "python3.12", "web master"),
        _target(3, 2, "python", "python3.12", "web"),
        _target(4, 3, "other", "git", "git"),
        _target(5, 1, "go", "clair", "clair"),
        _target(6, 5, "other", "loop", "loop"),
    ]

    def pids(*wanted: str, default: bool = False) -> list[int]:
        return [target.pid for target in select(targets, wanted, default=default)]

    assert pids("2") == [2, 3, 4]
    assert pids("go", "git") == [4, 5]
    assert pids("web") == [3]
    assert pids("quay-app") == [2, 3, 4, 5, 6]
    assert pids("nobody") == []
    assert pids() == []
    assert pids(default=True) == [2, 3, 4, 5, 6]


def _go() -> Path:
    found = shutil.which("go") or "/usr/local/go/bin/go"
    if not os.access(found, os.X_OK):
        pytest.skip("no Go toolchain")
    return Path(found).resolve()


def test_build_information() -> None:
    """Go's own command says its version and path; a program in C is no Go program."""
    with _go().open("rb") as file:
        found = read_build_info(file.fileno())
    assert found is not None
    assert found.go_version.startswith("go1.")
    assert found.path == "cmd/go"
    with Path("/bin/cat").open("rb") as file:
        assert read_build_info(file.fileno()) is None


def _read(path: Path, content: bytes) -> BuildInfo | None:
    path.write_bytes(content)
    with path.open("rb") as file:
        return read_build_info(file.fileno())


def _blob(modules: bytes, version: bytes = b"go1.25.0") -> bytes:
    text = b"0123456789abcdef" + modules + b"fedcba9876543210"
    size = bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
    return b"\xff Go buildinf:\x08\x02".ljust(32, b"\0") + bytes([len(version)]) + version + size + text


def _elf(blob: bytes) -> bytes:
    """A file of one data segment and no sections, as `strip --strip-section-headers` leaves it."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += bytes.fromhex("02003e0001000000") + b"\0" * 8 + (64).to_bytes(8, "little") + b"\0" * 8
    header += b"\0" * 4 + b"".join(n.to_bytes(2, "little") for n in (64, 56, 1, 0, 0, 0))
    segment = (1).to_bytes(4, "little") + (6).to_bytes(4, "little") + (128).to_bytes(8, "little")
    segment += b"\0" * 16 + len(blob).to_bytes(8, "little") * 2 + (16).to_bytes(8, "little")
    return (header + segment).ljust(128, b"\0") + blob


_CLAIR = (
    b"path\tgithub.com/quay/clair/v4/cmd/clair\nmod\tgithub.com/quay/clair/v4\tv4.9.0\th1:x\ndep\tx\tv1\n"
)


def test_build_information_without_sections(tmp_path: Path) -> None:
    """The blob is found in the data segment, at a 16-byte boundary, past what only looks like it."""
    found = _read(tmp_path / "x", _elf(b"\0\xff Go buildinf:" + b"\0" * 17 + _blob(_CLAIR)))
    assert found == BuildInfo(
        "go1.25.0", "github.com/quay/clair/v4/cmd/clair", "github.com/quay/clair/v4", "v4.9.0"
    )
    far = _read(tmp_path / "x", _elf(b"\0" * (1 << 20) + _blob(_CLAIR)))
    assert far == found
    old = _blob(_CLAIR)
    assert _read(tmp_path / "x", _elf(old[:15] + b"\0" + old[16:])) == BuildInfo("")


@settings(max_examples=150)
@given(st.data())
def test_broken_executables(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file cut or changed anywhere is read as something or nothing, never an error."""
    whole = bytearray(_elf(_blob(_CLAIR)))
    for _ in range(data.draw(st.integers(0, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    _read(tmp_path_factory.getbasetemp() / f"broken-{os.getpid()}", bytes(whole[:cut]))
