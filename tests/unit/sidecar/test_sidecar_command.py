"""The command line's own refusals, and the memory of capabilities."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from quayscope.sidecar.capabilities import Capabilities, Capability
from quayscope.sidecar.commands import sidecar
from quayscope.sidecar.errors import BadOption

_BASE = ["--socket", "/tmp/none.sock", "--collector", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--postgres", "maybe"],
        ["--postgres", "-5"],
        ["--python", "12"],
        ["--python", "x=role"],
        ["--python", "12="],
        ["--label", "novalue"],
        ["--label", "bad-name=1"],
        ["--hz", "18"],
        ["--hz", "1000"],
        ["--window", "600"],
        ["--quay-pid", "0"],
        ["--pyspy", "maybe"],
        ["--go-every", "0"],
        ["--go-cpu", "3000"],
    ],
)
def test_bad_options(arguments: list[str]) -> None:
    """A value that cannot be meant ends with usage and exit code 2."""
    result = CliRunner().invoke(sidecar, [*_BASE, *arguments])
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_connection_string_is_not_quoted() -> None:
    """A connection string that cannot be parsed may hold a password: the message does not show it."""
    result = CliRunner().invoke(sidecar, [*_BASE, "--postgres-dsn", "host=x hunter2 secret"])
    assert isinstance(result.exception, BadOption)
    assert "hunter2" not in str(result.exception) + result.exception.next_step + result.output


@pytest.mark.parametrize(
    ("arguments", "next_step"),
    [
        (["--debuginfod", "https://debuginfod.example"], "--cache"),
        (["--debuginfod", "http://debuginfod.example", "--cache", "CACHE"], "https"),
    ],
)
def test_a_debuginfod_that_cannot_be_used(arguments: list[str], next_step: str, tmp_path: Path) -> None:
    """Debug files need a folder, and come over an encrypted connection."""
    given = [str(tmp_path) if argument == "CACHE" else argument for argument in arguments]
    result = CliRunner().invoke(sidecar, [*_BASE, *given])
    assert isinstance(result.exception, BadOption)
    assert next_step in result.exception.next_step


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--collector", "ftp://x"], "--collector"),
        (["--collector", "https://quay:hunter2@x"], "--collector"),
        (["--collector", "http://10.0.0.1:4040"], "--insecure"),
        (["--token-file", "/nowhere/token"], "--token-file"),
        (["--collector", ""], "--pyroscope"),
        (["--pyroscope", "http://127.0.0.1:1"], "--collector"),
        (["--otlp-endpoint", "http://127.0.0.1:1"], "--otlp-endpoint"),
        (["--collector", "", "--pyroscope", "http://10.0.0.1:1"], "--insecure"),
        (["--collector", "", "--pyroscope", "http://127.0.0.1:1", "--otlp-endpoint", "x"], "--otlp-endpoint"),
        (["--ca-file", "/nowhere/ca"], "--ca-file"),
        (["--basic-auth-file", "/nowhere/secret"], "--basic-auth-file"),
        (["--otlp-listen", "0.0.0.0:4318"], "--otlp-listen"),
        (["--push-listen", "nowhere"], "--push-listen"),
    ],
)
def test_a_collector_that_cannot_be_sent_to(arguments: list[str], flag: str) -> None:
    """It is a usage error before anything starts, and the next step names the flag."""
    result = CliRunner().invoke(sidecar, [*_BASE, *arguments])
    assert isinstance(result.exception, BadOption)
    assert result.exception.exit_code == 2
    assert flag in result.exception.next_step
    assert "hunter2" not in str(result.exception)


@pytest.mark.parametrize("urls", [["ftp://x"], ["http://quay:hunter2@x:1"], ["off", "http://x:1"]])
def test_addresses_that_cannot_be_scraped(urls: list[str]) -> None:
    """They are a usage error before anything starts; what was given is not quoted."""
    arguments = [part for url in urls for part in ("--go-pprof", url)]
    result = CliRunner().invoke(sidecar, [*_BASE, *arguments])
    assert isinstance(result.exception, BadOption)
    assert result.exception.exit_code == 2
    assert "hunter2" not in str(result.exception)


def test_what_it_cannot_run_without() -> None:
    """The sidecar itself needs a socket and somewhere to send to, its other commands neither."""
    result = CliRunner(env={"QUAYSCOPE_SOCKET": None}).invoke(sidecar, _BASE[2:])
    assert result.exit_code == 2
    assert "--socket" in result.output
    result = CliRunner().invoke(sidecar, _BASE[:2])
    assert isinstance(result.exception, BadOption)
    assert "--collector" in f"{result.exception} {result.exception.next_step}"


def test_help_has_examples() -> None:
    """The help shows whole commands."""
    output = CliRunner().invoke(sidecar, ["--help"]).output
    assert "Examples" in output
    assert "quayscope sidecar --socket" in output


def test_capabilities_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A missing capability is logged when it is found missing, not each time it is tried."""
    caplog.set_level(logging.INFO)
    held = Capabilities()
    missing = Capability("perf_user", False, "EPERM", "PERFMON")
    for _ in range(5):
        held.note(missing)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert not held.permitted("perf_user")
    held.note(Capability("perf_user", True, "opened"))
    assert held.permitted("perf_user")
    assert held.all() == [Capability("perf_user", True, "opened")]
    assert not held.permitted("never tried")
