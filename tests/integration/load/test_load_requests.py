"""What is sent: headers, bodies, flows and captured values; and what is asserted of the answers."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest


def one(request: str, rate: float = 40) -> str:
    """A workload of one request."""
    return f"name: one\nphases:\n  - {{name: only, rate: {rate}, mix: [{request}]}}\n"


def test_each_request_is_joined_to_its_run(server: Any, driver: Any) -> None:
    """It has a trace of its own, a share of them sampled, and baggage with run and phase."""
    driver.run(
        one('{endpoint: "GET /x", path: "/x"}', 400), "--duration=1s", "--run=r:1", "--trace-ratio=0.25"
    )
    rows = server.arrivals()
    parents = [row["headers"]["traceparent"] for row in rows]
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", parent) for parent in parents)
    assert len({parent.split("-")[1] for parent in parents}) == len(rows) == 400
    sampled = sum(parent.endswith("-01") for parent in parents)
    assert 60 <= sampled <= 140
    assert {row["headers"]["baggage"] for row in rows} == {"run=r%3A1,phase=only"}


def test_an_unexpected_status_is_an_error(server: Any, driver: Any) -> None:
    """Without `expect` any 2xx is ok; the run exits 1 and names status and share."""
    outcome = driver.run(one('{endpoint: "GET /status/<n>", path: "/status/503"}'), "--duration=0.5s")
    assert outcome.code == 1
    assert outcome.report["errors"] == {"503": 20}
    assert outcome.report["ok"] == 0
    assert outcome.report["phases"][0]["endpoints"][0]["errors"] == {"503": 20}
    assert "100.0% of the requests were not answered as asserted" in outcome.stderr
    assert "503: 20" in outcome.stdout


def test_an_expected_status_is_ok_whatever_it_is(server: Any, driver: Any) -> None:
    """An asserted 404 is ok, and a 200 in its place is not."""
    good = driver.run(one('{endpoint: "GET /gone", path: "/status/404", expect: [404]}'), "--duration=0.5s")
    bad = driver.run(one('{endpoint: "GET /gone", path: "/x", expect: [404]}'), "--duration=0.5s")
    assert (good.code, good.report["ok"], good.report["errors"]) == (0, 20, {})
    assert (bad.code, bad.report["ok"], bad.report["errors"]) == (1, 0, {"200": 20})


def test_errors_up_to_the_allowed_share_are_reported_and_pass(server: Any, driver: Any) -> None:
    """`--max-error-share` decides about the exit code alone."""
    workload = """
name: mixed
phases:
  - name: only
    rate: 200
    mix:
      - {weight: 9, endpoint: "GET /x", path: "/x"}
      - {weight: 1, endpoint: "GET /bad", path: "/status/500"}
"""
    outcome = driver.run(workload, "--duration=1s", "--max-error-share=0.3")
    assert outcome.code == 0
    assert 5 <= outcome.report["errors"]["500"] <= 45
    rows = {row["endpoint"]: row for row in outcome.report["endpoints"]}
    assert rows["GET /bad"]["ok"] == 0
    assert rows["GET /x"]["errors"] == {}
    assert rows["GET /x"]["sent"] + rows["GET /bad"]["sent"] == outcome.report["sent"] == 200


UPLOAD = """
name: upload
vars:
  repo: {choices: 3, format: "org{n}/repo"}
  layer: {bytes: {size: 5000, choices: 4}}
flows:
  push:
    - endpoint: "POST /uploads"
      path: "/uploads"
      expect: [202]
      capture: {upload: {header: Location}}
    - endpoint: "PUT /uploads/<id>"
      path: "{upload}"
      query: {digest: "{layer.digest}"}
      bytes: layer
      expect: [201]
    - endpoint: "PUT /manifests/<reference>"
      path: "/manifests/{repo}"
      body: {layers: [{digest: "{layer.digest}", size: "{layer.size}"}]}
setup:
  - {flow: push, repeat: 4}
phases:
  - {name: only, rate: 20, mix: [{flow: push}]}
"""


def test_a_flow_follows_the_location_it_was_given(server: Any, driver: Any) -> None:
    """POST, PUT to the captured upload with digest and bytes, manifest: each after the one before."""
    outcome = driver.run(UPLOAD, "--duration=1s")
    assert (outcome.code, outcome.report["errors"]) == (0, {})
    assert outcome.report["scheduled"] == 20
    assert outcome.report["sent"] == outcome.report["ok"] == 60
    assert [row["sent"] for row in outcome.report["endpoints"]] == [20, 20, 20]
    rows = server.arrivals()
    assert [row["method"] for row in rows[:3]] == ["POST", "PUT", "PUT"]
    assert {row["size"] for row in rows if row["path"].startswith("/uploads/")} == {5000}
    setup = [row for row in rows if "phase=setup" in row["headers"]["baggage"]]
    assert len(setup) == 12
    assert len({row["query"]["digest"] for row in setup if row["query"]}) == 4, "setup covers each choice"
    manifest = next(row for row in rows if row["path"].startswith("/manifests/"))
    assert re.fullmatch(r'\{"layers":\[\{"digest":"sha256:[0-9a-f]{64}","size":5000\}\]\}', manifest["body"])
    assert manifest["headers"]["content-type"] == "application/json"


def test_a_flow_ends_where_a_request_fails(server: Any, driver: Any) -> None:
    """The rest is not sent and counted as skipped; the failure is counted once."""
    outcome = driver.run(
        UPLOAD.replace("expect: [201]", "expect: [200]").replace("setup:\n  - {flow: push, repeat: 4}", ""),
        "--duration=1s",
    )
    assert outcome.code == 1
    assert outcome.report["errors"] == {"201": 20}
    assert outcome.report["skipped"] == 20
    assert not [row for row in server.arrivals() if row["path"].startswith("/manifests/")]


TOKEN = """
name: token
setup:
  - endpoint: "GET /token"
    path: "/token"
    headers: {Authorization: "Basic {env.LOAD_TEST_BASIC}"}
    capture: {token: {json: "tokens.0.value"}}
phases:
  - name: only
    rate: 20
    mix:
      - {endpoint: "GET /guarded", path: "/guarded", headers: {Authorization: "Bearer {token}"}}
"""


def test_setup_captures_a_token_for_the_run_and_no_output_shows_it(
    server: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials come from the environment; neither they nor the token reach report or terminal."""
    secret = base64.b64encode(b"user:open-sesame").decode()
    monkeypatch.setenv("LOAD_TEST_BASIC", secret)
    outcome = driver.run(TOKEN, "--duration=0.5s")
    assert (outcome.code, outcome.report["ok"]) == (0, 10)
    shown = outcome.stdout + outcome.stderr + driver.json.read_text()
    assert secret not in shown
    assert "tok-s3cret" not in shown


def test_a_setup_that_fails_ends_the_run_before_it_starts(
    server: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3, with the request and what was answered, and nothing else was sent."""
    monkeypatch.setenv("LOAD_TEST_BASIC", "wrong")
    outcome = driver.run(TOKEN, "--duration=0.5s")
    assert (outcome.code, outcome.report) == (3, {})
    assert "setup[0], GET /token: answered 401, which the workload does not expect" in outcome.stderr
    assert len(server.arrivals()) == 1


def test_a_captured_value_cannot_write_headers(server: Any, driver: Any) -> None:
    """A value with a line break is refused as missing; nothing is sent with it."""
    workload = """
name: injected
flows:
  f:
    - {endpoint: "GET /injecting", path: "/injecting", capture: {value: {json: value}}}
    - {endpoint: "GET /x", path: "/x", headers: {X-Value: "{value}"}}
phases:
  - {name: only, rate: 10, mix: [{flow: f}]}
"""
    outcome = driver.run(workload, "--duration=0.5s")
    assert outcome.report["errors"] == {"capture": 5}
    assert {row["path"] for row in server.arrivals()} == {"/injecting"}


def test_a_seed_repeats_a_run(server: Any, driver: Any) -> None:
    """The same seed asks for the same things in the same order; another seed does not."""
    workload = """
name: seeded
vars: {repo: {choices: 1000, format: "r{n}"}}
phases:
  - name: only
    rate: 50
    arrival: poisson
    mix:
      - {endpoint: "GET /a", path: "/a/{repo}"}
      - {endpoint: "GET /b", path: "/b/{repo}"}
"""
    paths = []
    for seed in (5, 5, 6):
        driver.run(workload, "--duration=0.6s", f"--seed={seed}")
        paths.append(sorted(row["path"] for row in server.arrivals()))
    assert paths[0] == paths[1]
    assert paths[0] != paths[2]


def test_only_the_phases_asked_for_run(server: Any, driver: Any) -> None:
    """They share the whole duration."""
    workload = """
name: three
phases:
  - {name: a, share: 8, rate: 10, mix: [{endpoint: "GET /a", path: "/a"}]}
  - {name: b, share: 1, rate: 20, mix: [{endpoint: "GET /b", path: "/b"}]}
  - {name: c, share: 3, rate: 40, mix: [{endpoint: "GET /c", path: "/c"}]}
"""
    report = driver.run(workload, "--duration=1s", "--phase=c", "--phase=b", "--rate-scale=2").report
    assert [(phase["name"], phase["sent"]) for phase in report["phases"]] == [("b", 10), ("c", 60)]
    assert {row["path"] for row in server.arrivals()} == {"/b", "/c"}
    assert report["phases"][0]["end"] == report["phases"][1]["start"]


def test_paths_are_sent_as_they_are_under_the_targets_prefix(server: Any, driver: Any) -> None:
    """No dot segment is resolved; a prefix in --url comes first."""
    driver.url = f"{server.url}/prefix/"
    driver.run(one('{endpoint: "GET /v2/", path: "/v2/../x", query: {a: "1 &2"}}', 4), "--duration=0.5s")
    rows = server.arrivals()
    assert {row["path"] for row in rows} == {"/prefix/v2/../x"}
    assert rows[0]["query"] == {"a": "1 &2"}


@pytest.mark.parametrize("method", ["HEAD", "DELETE", "PATCH", "PUT", "POST", "OPTIONS"])
def test_every_method_is_sent_and_answered(server: Any, driver: Any, method: str) -> None:
    """With and without a body, and the connection is fit for the next request."""
    body = "" if method in ("HEAD", "OPTIONS") else ', body: "text"'
    outcome = driver.run(one(f'{{endpoint: "{method} /x", path: "/x"{body}}}', 20), "--duration=0.25s")
    assert (outcome.code, outcome.report["ok"]) == (0, 5)
    rows = server.arrivals()
    assert {row["method"] for row in rows} == {method}
    assert {row["body"] for row in rows} == {"text" if body else ""}


def test_the_bundled_workload_runs_by_name(server: Any, driver: Any) -> None:
    """`registry` pings, and lists the catalog."""
    outcome = driver.run("registry", "--duration=0.5s", "--rate-scale=5")
    assert outcome.code == 0
    assert {row["path"] for row in server.arrivals()} == {"/v2/", "/v2/_catalog"}


def test_a_report_is_never_half_written(server: Any, driver: Any, tmp_path: Path) -> None:
    """Nothing but the report itself is left beside it."""
    driver.run(one('{endpoint: "GET /x", path: "/x"}', 4), "--duration=0.5s")
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "workload.yaml"}
