"""The command line: usage errors, help, and the list of workloads."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from quayscope.load.commands import load


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--duration=0s"], "is not a duration"),
        (["--duration=soon"], "is not a duration"),
        (["--rate-scale=0"], "0 is not in the range"),
        (["--phase=nonesuch"], "'nonesuch' is not one of ping, catalog"),
        (["--run=a b"], "letters, digits"),
        (["--json=/nonesuch/file.json"], "is not a directory"),
        (["--progress-fd=987"], "is not open"),
        (["--trace-ratio=2"], "is not in the range"),
    ],
)
def test_wrong_options_are_usage_errors(options: list[str], said: str) -> None:
    """Exit code 2, and what would be right; nothing is sent."""
    result = CliRunner().invoke(load, ["run", "registry", "--url=http://127.0.0.1:1", *options])
    assert result.exit_code == 2
    assert said in result.output


def test_a_target_is_required() -> None:
    """There is no default to fire at by accident."""
    assert "--url" in CliRunner().invoke(load, ["run", "registry"]).output


def test_help_has_examples_and_exit_codes() -> None:
    """For both commands."""
    text = CliRunner().invoke(load, ["run", "--help"]).output
    assert "quayscope load run registry --url" in text
    assert "3 could not run" in " ".join(text.split())
    assert "quayscope load list --json" in CliRunner().invoke(load, ["list", "--help"]).output


def test_the_list_names_workloads_and_phases() -> None:
    """As text and as JSON."""
    text = CliRunner().invoke(load, ["list"]).output
    assert "registry: Ping any v2 registry" in text
    assert "catalog: 10/s poisson" in text
    rows = json.loads(CliRunner().invoke(load, ["list", "--json"]).output)
    row = next(row for row in rows if row["name"] == "registry")
    assert row["endpoints"] == ["GET /v2/", "GET /v2/_catalog"]
