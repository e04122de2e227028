"""Tokens and scopes: who may do what, and what is said where the file makes no sense."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path

import pytest

from quayscope.collector.access import ANYBODY, Access, Certificate, scope_of
from quayscope.collector.errors import BadAccessFile, Forbidden, Unauthenticated

FILE = f"""
# who       what          token
grafana     read          reader-secret
sidecars    write         sha256:{hashlib.sha256(b"writer-secret").hexdigest()}
alice       read,capture  alice-secret
root        admin         root-secret
"""


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(FILE)
    return path


def test_scopes_by_token(path: Path) -> None:
    """As bearer token, or as the password of basic auth whatever the user; admin may do everything."""
    access = Access(path)
    assert access.require("Bearer reader-secret", "read").name == "grafana"
    assert access.require("bearer writer-secret", "write").name == "sidecars"
    assert access.require(basic("anything", "alice-secret"), "capture").name == "alice"
    for scope in ("read", "write", "capture", "admin"):
        assert access.require("Bearer root-secret", scope).name == "root"
    for shown, scope in (("Bearer reader-secret", "capture"), ("Bearer writer-secret", "read")):
        with pytest.raises(Forbidden):
            access.require(shown, scope)


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer wrong", "Basic !!!", basic("alice-secret", ""), "Digest x", "Bearer é"]
)
def test_strangers_are_refused(path: Path, shown: str) -> None:
    """Without a token that is known, whatever the form."""
    with pytest.raises(Unauthenticated):
        Access(path).require(shown, "read")


def test_without_a_file_everybody_may() -> None:
    """On loopback, as before there were tokens."""
    assert Access().require("", "admin") == ANYBODY


def test_the_file_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new token holds, a removed one no longer; a broken file changes nothing."""
    monkeypatch.setattr("quayscope.collector.access._LOOK_S", 0.0)
    access = Access(path)
    path.write_text("bob read bob-secret\n")
    assert access.require("Bearer bob-secret", "read").name == "bob"
    with pytest.raises(Unauthenticated):
        access.require("Bearer alice-secret", "read")
    path.write_text("bob everything bob-secret\n")
    assert access.require("Bearer bob-secret", "read").name == "bob"
    path.unlink()
    assert access.require("Bearer bob-secret", "read").name == "bob"
    assert time.monotonic() > 0


@pytest.mark.parametrize(
    "text",
    ["", "# nobody\n", "alice read\n", "alice fly secret-word\n", "alice read sha256:abc\n", "a b c d\n"],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    """Is refused by its line's number, and the secret in it is not repeated."""
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(BadAccessFile) as caught:
        Access(path)
    assert "secret-word" not in str(caught.value) + caught.value.next_step
    assert caught.value.exit_code == 2
    with pytest.raises(BadAccessFile):
        Access(tmp_path / "missing")
    with pytest.raises(BadAccessFile):
        Certificate(path, path).read()


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/", ""),
        ("GET", "/page.js", ""),
        ("GET", "/api/v1/health", ""),
        ("GET", "/api/v1/flamegraph", "read"),
        ("GET", "/api/v1/captures/x/result", "read"),
        ("POST", "/api/v1/captures", "capture"),
        ("POST", "/api/v1/sampling", "admin"),
        ("DELETE", "/api/v1/captures/x", "capture"),
        ("POST", "/push.v1.PusherService/Push", "write"),
        ("POST", "/ingest", "write"),
        ("POST", "/v1/traces", "write"),
        ("GET", "/targets/", "read"),
        ("GET", "/targets/quay-0/debug/pprof/", "read"),
        ("GET", "/targets/quay-0/debug/pprof/profile", "capture"),
        ("GET", "/targets/quay-0/debug/pprof/block", "capture"),
    ],
)
def test_what_each_request_needs(method: str, path: str, scope: str) -> None:
    """Reading, writing and capturing are apart; the page's own files hold no data."""
    assert scope_of(method, path) == scope
