"""Pieces of the demo's registry that need no database: switches, settings, blobs, security, workload."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from quayscope.load.demo.errors import DemoError
from quayscope.load.demo.registry import weak
from quayscope.load.demo.registry.application import create
from quayscope.load.demo.registry.auth import DEMO_TOKEN
from quayscope.load.demo.registry.security import Advisory, Package, match_all, match_by_name, packages_of
from quayscope.load.demo.registry.settings import DIRECTORY, DSN, WEAK, Settings
from quayscope.load.demo.registry.storage import Storage
from quayscope.load.schema import find, read_workload

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, weak.SWITCHES),
        ("", weak.SWITCHES),
        ("none", frozenset()),
        ("row_lock, connect", {"row_lock", "connect"}),
    ],
)
def test_switches_are_read(text: str | None, expected: frozenset[str]) -> None:
    """Unset means all weak spots, `none` none, a list those in it."""
    assert weak.parse(text) == expected


def test_unknown_switch_is_named() -> None:
    """A name that is no switch is refused, and the next step lists those there are."""
    with pytest.raises(DemoError, match="no_such_switch") as caught:
        weak.parse("row_lock,no_such_switch")
    assert "n_plus_one" in caught.value.next_step


def test_every_switch_is_described() -> None:
    """Each weak spot has its paragraph in the module's docstring."""
    for name in weak.SWITCHES:
        assert f"`{name}`\n" in (weak.__doc__ or "")


def test_settings_name_what_is_missing(tmp_path: Path) -> None:
    """A variable that is not set, or a directory that is none, is named."""
    with pytest.raises(DemoError, match=DSN):
        Settings.from_environment({})
    with pytest.raises(DemoError, match=DIRECTORY):
        Settings.from_environment({DSN: NOWHERE, DIRECTORY: str(tmp_path / "gone")})
    found = Settings.from_environment({DSN: NOWHERE, DIRECTORY: str(tmp_path), WEAK: "none"})
    assert found == Settings(NOWHERE, tmp_path, frozenset())


def test_uploads_become_blobs_only_under_their_digest(tmp_path: Path) -> None:
    """An upload in parts is stored under the digest of its bytes, and not under another one."""
    storage = Storage(tmp_path)
    upload, digest = "0" * 32, f"sha256:{hashlib.sha256(b'content').hexdigest()}"
    assert storage.append(upload, b"con") == 3
    assert storage.append(upload, b"tent") == 7
    assert storage.finish(upload, f"sha256:{'0' * 64}") is None
    assert storage.finish(upload, digest) == 7
    assert storage.read(digest) == b"content"
    assert list((tmp_path / "uploads").iterdir()) == []
    storage.abandon(upload)


def test_names_from_requests_never_become_other_paths(tmp_path: Path) -> None:
    """What is no digest or no upload's identifier reaches no file."""
    storage = Storage(tmp_path)
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", "sha256:../../secret", "", "sha256:" + "Z" * 64):
        with pytest.raises(FileNotFoundError):
            storage.read(name)
        with pytest.raises(FileNotFoundError):
            storage.append(name, b"")


def test_security_reports_agree_with_and_without_the_weak_spot() -> None:
    """The slow and the quick comparison find the same, in the same order of packages."""
    packages = packages_of("sha256:1")
    advisories = [Advisory(f"CVE-{n}", f"package{n % 50}", f"{n % 5}.{n % 7}.1", "Low") for n in range(100)]
    found = match_all(packages, advisories)
    assert found == match_by_name(packages, advisories)
    assert 0 < len(found) < 100
    assert match_all([Package("package1", "1.10.0")], [Advisory("CVE-1", "package1", "1.9.0", "Low")]) == []


def test_the_workload_asks_for_routes_that_exist(tmp_path: Path) -> None:
    """Each endpoint of the workload is one of the registry's, verbatim; no weak spot is left out."""
    app = create(Settings(NOWHERE, tmp_path, weak.SWITCHES))
    routes = {f"{method} {rule.rule}" for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    workload = read_workload(find("demo"), {})
    assert set(workload.endpoints()) <= routes
    assert len(workload.endpoints()) >= 10
    assert len(workload.phases) == 4
    assert sum(phase.share for phase in workload.phases) == pytest.approx(1)
    assert {
        "GET /api/v1/repository",
        "GET /api/v1/repository/<namespace>/<repository>/logs",
        "GET /api/v1/repository/<namespace>/<repository>/manifest/<manifestref>/security",
        "GET /api/v1/organization/<orgname>/team/<teamname>/members",
        "GET /api/v1/user/",
        "GET /v2/<namespace>/<repository>/manifests/<manifest_ref>",
    } <= set(workload.endpoints())
    assert DEMO_TOKEN in find("demo").read_text()
