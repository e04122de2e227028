"""What workers say reaches its destination through a helper: a collector, a Pyroscope, over TLS."""

from __future__ import annotations

import base64
import sys
import uuid
from pathlib import Path

import pytest

from certificates import Certificates
from integration.collector.running_collector import RunningCollector
from integration.relay.conftest import Start
from integration.relay.helper_process import until
from interpreters import find
from quayscope.profile.pprof import decode
from quayscope.profile.push import PUSH_PATH, decode_push
from receiving_server import ReceivingServer

CPU = "process_cpu"


def interpreter(version: str) -> str:
    return sys.executable if version == "this" else str(find(version))


@pytest.mark.parametrize("version", ["3.9", "3.13", "this"])
def test_records_reach_a_collector(start: Start, collector: RunningCollector, version: str) -> None:
    """CPU, requests with their exemplar, spans, counters and levels are there once the helper has ended."""
    service, trace = f"service-{version}", uuid.uuid4().hex
    helper = start(
        interpreter=interpreter(version),
        idle_s=0.5,
        before="program._REPORT_S = 0.5; ",
        environment={
            "QUAYSCOPE_COLLECTOR": collector.http,
            "QUAYSCOPE_LABELS": f"namespace=quay, pod={trace}",
        },
    )
    worker = helper.work(service, trace=trace)

    def pushed() -> float:
        named = collector.get("metrics", name="quayscope.uplink.pushed", match=f"pod={trace}")
        return float(sum(value for series in named["series"] for _, value in series["points"]))

    until(pushed, "the helper says what it pushed")
    worker.close()
    assert helper.ended()["code"] == 0
    match = f"service_name={service}"
    flame = collector.get("flamegraph", type=CPU, match=match)
    assert (flame["total"], flame["samplers"]) == (5_000_000, ["agent"])
    (series,) = collector.get("series", type=CPU, match=match)["series"]
    assert {"namespace": "quay", "pod": trace, "role": "web"}.items() <= series["labels"].items()
    (duration,) = collector.get("metrics", name="http.server.request.duration", match=match)["series"]
    assert sum(value["count"] for _, value in duration["points"]) == 1
    (exemplar,) = duration["exemplars"]
    assert (exemplar["value"], exemplar["trace_id"], exemplar["span_id"]) == (2.0, trace, "b" * 16)
    assert exemplar["attributes"]["why"] == "slow"
    busy = collector.get("metrics", name="quayscope.request.busy", match=match)
    assert (busy["kind"], busy["series"][0]["points"][0][1]["count"]) == ("delta histogram", 1)
    level = collector.get("metrics", name="quayscope.agent.hz", match=match)
    assert (level["kind"], level["series"][0]["points"][0][1]) == ("gauge", 100)
    (span,) = collector.get("spans", trace_id=trace)["spans"]
    assert (span["service_name"], span["name"]) == (service, "GET /a")
    relay = collector.get("metrics", name="quayscope.relay.*", match=f"pod={trace}")["metrics"]
    assert {metric["name"] for metric in relay} == {"quayscope.relay.packets"}


def test_what_is_held_is_sent_at_sigterm(start: Start, collector: RunningCollector) -> None:
    """The window that is not over yet goes with the rest."""
    helper = start(environment={"QUAYSCOPE_COLLECTOR": collector.http})
    worker = helper.work("stopped")
    helper.signal()
    assert helper.ended()["code"] == 0
    worker.close()
    assert collector.get("flamegraph", type=CPU, match="service_name=stopped")["total"] == 5_000_000


@pytest.mark.parametrize("version", ["3.9", "this"])
def test_certificates_password_and_tenant(
    start: Start, certificates: Certificates, tmp_path: Path, version: str
) -> None:
    """A Pyroscope behind a CA of its own that asks for a certificate gets it, the user and the tenant."""
    (tmp_path / "secret").write_text("quay:hunter2\n")
    server = ReceivingServer(certificates.asking_server)
    try:
        helper = start(
            interpreter=interpreter(version),
            idle_s=0.5,
            environment={
                "QUAYSCOPE_PYROSCOPE": server.url,
                "QUAYSCOPE_BASIC_AUTH_FILE": "secret",  # beside the worker's folder, which the helper leaves
                "QUAYSCOPE_TENANT": "team",
                "QUAYSCOPE_CA_FILE": str(certificates.ca),
                "QUAYSCOPE_CERT_FILE": str(certificates.client),
                "QUAYSCOPE_KEY_FILE": str(certificates.client_key),
            },
        )
        helper.work().close()
        assert helper.ended()["code"] == 0
    finally:
        server.stop()
    assert [got.path for got in server.taken] == [PUSH_PATH]
    (got,) = server.taken
    assert got.certified
    assert got.headers["x-scope-orgid"] == "team"
    assert base64.b64decode(got.headers["authorization"].partition(" ")[2]) == b"quay:hunter2"
    ((_, ((_, data),)),) = decode_push(got.body)
    ((stack, attributes),) = decode(data).samples
    assert [frame.function for frame in stack] == ["GET /a", "main", "work"]
    assert (attributes.span_id, attributes.run) == ("b" * 16, "")
    assert "hunter2" not in helper.log()
    # A Pyroscope takes no counters: what it was not sent is in the log.
    assert "ended pushed=1 unsent=" in helper.log()


def test_a_receiver_that_repeats_the_token_does_not_get_it_into_the_log(start: Start, tmp_path: Path) -> None:
    """Nor does a refusal at all: the log says the status, not what was sent."""
    (tmp_path / "token").write_text("t0ken-s3cret\n")
    server = ReceivingServer(content=b"no Authorization: Bearer t0ken-s3cret")
    server.answer = lambda got: 403
    try:
        helper = start(
            idle_s=0.5,
            environment={"QUAYSCOPE_COLLECTOR": server.url, "QUAYSCOPE_TOKEN_FILE": str(tmp_path / "token")},
        )
        helper.work().close()
        assert helper.ended()["code"] == 0
    finally:
        server.stop()
    assert server.seen[0].headers["authorization"] == "Bearer t0ken-s3cret"
    assert "status=403" in helper.log()
    assert "t0ken" not in helper.log()


def test_an_untrusted_certificate_is_said(start: Start, certificates: Certificates) -> None:
    """Nothing is sent to a server that nobody vouches for, and the log says what to check."""
    server = ReceivingServer(certificates.plain_server)
    try:
        helper = start(idle_s=0.5, environment={"QUAYSCOPE_COLLECTOR": server.url})
        helper.work().close()
        assert helper.ended()["code"] == 0
    finally:
        server.stop()
    assert server.seen == []
    assert "CERTIFICATE_VERIFY_FAILED" in helper.log()
    assert "check the CA file" in helper.log()
