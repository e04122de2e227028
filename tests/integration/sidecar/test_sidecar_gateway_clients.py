"""Stock clients through a real sidecar to a real collector, through outages and kills."""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from integration.collector.running_collector import RunningCollector, cpu_profile, wait_for
from integration.sidecar.gateway_client import a_push, post
from integration.sidecar.running_sidecar import RunningSidecar
from quayscope.profile.push import PUSH_PATH, encode_push, series_of
from receiving_server import ReceivingServer

_LABELS = ("--label", "namespace=quay", "--label", "pod=quay-0")
_SECOND = 10**9


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[RunningCollector]:
    """A collector that comes back at the same address."""
    folder = tmp_path / "collector"
    folder.mkdir()
    running = RunningCollector(folder, listen=f"127.0.0.1:{_lasting_port()}").start()
    yield running
    running.stop()


def _lasting_port() -> int:
    """A free port below those that connections get: none of them takes it while its server is away."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@pytest.fixture
def sidecar(collector: RunningCollector, tmp_path: Path) -> Iterator[RunningSidecar]:
    """A sidecar with a spool that sends to it."""
    spool = str(tmp_path / "spool")
    running = RunningSidecar(tmp_path, "--collector", collector.http, "--spool", spool, *_LABELS).start()
    yield running
    assert running.stop() == 0, running.log()
    assert "Traceback" not in running.log()


_BURNER = """
import sys, time
import pyroscope

pyroscope.configure(application_name="stock-app", server_address=sys.argv[1], tags={"region": "eu"})

def burning():
    return sum(number * number for number in range(20_000))

end = time.monotonic() + 2
while time.monotonic() < end:
    burning()
pyroscope.shutdown()
"""


def test_stock_clients_need_no_credential_and_get_the_pods_labels(
    collector: RunningCollector, sidecar: RunningSidecar
) -> None:
    """pyroscope-io and OpenTelemetry's HTTP exporters send to loopback, and are found by pod."""
    burner = subprocess.Popen([sys.executable, "-c", _BURNER, sidecar.url("push")])
    resource = Resource.create({"service.name": "clair-app"})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(f"{sidecar.url('otlp')}/v1/traces", compression=Compression.Gzip)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("index_report") as span:
        pass
    assert provider.force_flush(10_000)
    provider.shutdown()
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{sidecar.url('otlp')}/v1/metrics"))
    meters = MeterProvider([reader], resource=resource)
    meters.get_meter("t").create_counter("clair.layers").add(7)
    meters.shutdown()
    trace_id = f"{span.get_span_context().trace_id:032x}"
    wait_for(lambda: collector.get("spans", trace_id=trace_id)["count"] == 1)
    (found,) = collector.get("spans", trace_id=trace_id)["spans"]
    assert (found["service_name"], found["name"]) == ("clair-app", "index_report")
    wait_for(lambda: collector.get("metrics", name="clair.layers", match="pod=quay-0")["series"])
    (series,) = collector.get("metrics", name="clair.layers")["series"]
    assert {"service_name": "clair-app", "namespace": "quay"}.items() <= series["attributes"].items()
    assert series["points"][0][1] == 7
    assert burner.wait(60) == 0
    match = ["service_name=stock-app", "pod=quay-0", "namespace=quay", "region=eu"]
    wait_for(lambda: collector.get("series", type="process_cpu", match=match)["series"])
    top = collector.get("top", type="process_cpu", match=match)
    assert "burning" in {row["function"] for row in top["rows"]}
    assert top["total"] > _SECOND / 4


class _Client:
    """Pushes and spans through whatever sidecar runs; notes which were acknowledged."""

    def __init__(self, sidecar: RunningSidecar, number: int) -> None:
        self.sidecar = sidecar
        self.number = number
        self.sent: list[str] = []
        self.acknowledged: list[str] = []
        self.traces: list[bytes] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stop.is_set():
            count = len(self.sent)
            push_id = f"{self.number}-{count}"
            self.sent.append(push_id)
            trace = self.number.to_bytes(8, "big") + (count + 1).to_bytes(8, "big")
            if self._taken("push", PUSH_PATH, a_push(push_id, "killed"), "application/proto"):
                self.acknowledged.append(push_id)
            if self._taken("otlp", "/v1/traces", _span(trace), "application/x-protobuf"):
                self.traces.append(trace)

    def _taken(self, port: str, path: str, body: bytes, media: str) -> bool:
        try:
            return post(self.sidecar.ports[port], path, body, media).status == 200
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)  # the sidecar is away for a moment
            return False


def _span(trace: bytes) -> bytes:
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "killed"
    resource.scope_spans.add().spans.add(
        trace_id=trace,
        span_id=b"\x01" * 8,
        name="s",
        start_time_unix_nano=1_700_000_000 * _SECOND,
        end_time_unix_nano=1_700_000_001 * _SECOND,
    )
    return message.SerializeToString()


def test_kills_and_outages_lose_nothing_acknowledged(
    collector: RunningCollector, sidecar: RunningSidecar, full: bool
) -> None:
    """Killed at random while the collector comes and goes: each acknowledged message is stored, and once."""
    dice = random.Random(11)
    clients = [_Client(sidecar, number) for number in range(2)]
    for client in clients:
        client.thread.start()
    for attempt in range(10 if full else 2):
        if attempt % 2 == 0:
            collector.kill()
        have = sum(len(client.traces) for client in clients)
        # Each is on disk before it is acknowledged, and the disk may be everybody's.
        wait_for(lambda have=have: sum(len(client.traces) for client in clients) >= have + 15, 60)
        time.sleep(dice.uniform(0, 0.2))
        sidecar.kill()
        if attempt % 2 == 0:
            collector.start()
        sidecar.start()
    for client in clients:
        client.stop.set()
        client.thread.join()
    # What was never acknowledged a client sends again, under the ID it had.
    sent = [push_id for client in clients for push_id in client.sent]
    for push_id in set(sent) - {push_id for client in clients for push_id in client.acknowledged}:
        body = a_push(push_id, "killed")
        assert post(sidecar.ports["push"], PUSH_PATH, body, "application/proto").status == 200
    traces = [trace for client in clients for trace in client.traces]
    window = {"from_": 1_700_000_000 - 60, "to": 1_700_000_000 + 60}
    found: dict[str, int] = {}

    def all_there() -> bool:
        cpu = collector.get("flamegraph", type="process_cpu", match="service_name=killed", **window)["total"]
        found["cpu"] = cpu
        found["spans"] = collector.get("spans", **window)["count"]
        return bool(cpu >= len(sent) and found["spans"] >= len(traces))

    try:
        wait_for(all_there, 60)
    except AssertionError:
        print(f"stored {found} of {len(sent)} pushes and {len(traces)} traces", sidecar.log())
        raise
    # A profile's CPU here is 1 ns: the sum is how many are stored, each once.
    assert found["cpu"] == len(sent), sidecar.log()
    for trace in dice.sample(traces, min(100, len(traces))):
        assert collector.get("spans", trace_id=trace.hex())["count"] == 1
    assert found["spans"] <= len(sent)
    duplicates = collector.get("status")["duplicates"]
    print(f"{len(sent)} pushes, {len(traces)} traces acknowledged, {duplicates} came twice")


def test_what_a_sidecar_holds_at_its_end_is_sent_by_the_next(tmp_path: Path) -> None:
    """With the receiver away it ends at once, not after its whole time, and leaves nothing behind."""
    server = ReceivingServer()
    server.answer = lambda received: 503
    sidecar = RunningSidecar(tmp_path, "--collector", server.url, "--spool", str(tmp_path / "spool")).start()
    assert post(sidecar.ports["push"], PUSH_PATH, a_push("1"), "application/proto").status == 200
    wait_for(lambda: server.seen)
    began = time.monotonic()
    assert sidecar.stop() == 0
    assert time.monotonic() - began < 4.0
    server.answer = lambda received: 200
    sidecar.start()
    wait_for(lambda: any(received.path == PUSH_PATH for received in server.taken))
    assert sidecar.stop() == 0
    assert not [path for path in (tmp_path / "spool").rglob("*.spool") if path.stat().st_size > 64]
    server.stop()


def test_a_pyroscope_and_an_otlp_backend(tmp_path: Path) -> None:
    """Profiles go to the one, spans and metrics to the other, each with its own credentials."""
    pyroscope, backend = ReceivingServer(), ReceivingServer()
    (tmp_path / "token").write_text("for-profiles")
    (tmp_path / "otlp-token").write_text("for-spans")
    sidecar = RunningSidecar(
        tmp_path,
        *("--pyroscope", pyroscope.url, "--token-file", str(tmp_path / "token"), "--tenant", "team"),
        *("--otlp-endpoint", backend.url, "--otlp-token-file", str(tmp_path / "otlp-token")),
    ).start()
    body = encode_push([series_of(cpu_profile(), "")])
    assert post(sidecar.ports["push"], PUSH_PATH, body, "application/proto").status == 200
    assert post(sidecar.ports["otlp"], "/v1/traces", _span(b"\x01" * 16)).status == 200
    wait_for(lambda: pyroscope.taken and {"/v1/traces", "/v1/metrics"} <= {one.path for one in backend.taken})
    assert sidecar.stop() == 0
    assert {one.path for one in pyroscope.taken} == {PUSH_PATH}
    assert {one.headers["authorization"] for one in pyroscope.taken} == {"Bearer for-profiles"}
    assert {one.headers["x-scope-orgid"] for one in pyroscope.taken} == {"team"}
    assert {one.path for one in backend.taken} == {"/v1/traces", "/v1/metrics"}
    assert {one.headers["authorization"] for one in backend.taken} == {"Bearer for-spans"}
    pyroscope.stop()
    backend.stop()


def test_spans_for_a_pyroscope_alone_are_refused(tmp_path: Path) -> None:
    """Nothing is acknowledged that has nowhere to go; the client is told why."""
    server = ReceivingServer()
    sidecar = RunningSidecar(tmp_path, "--pyroscope", server.url).start()
    said = post(sidecar.ports["otlp"], "/v1/traces", b"{}", "application/json")
    assert said.status == 404
    assert b"no address" in said.body
    assert sidecar.stop() == 0
    server.stop()


def test_a_port_that_is_taken_costs_the_gateway_alone(tmp_path: Path) -> None:
    """The sidecar serves without it, and says what is missing."""
    server = ReceivingServer()
    first = RunningSidecar(tmp_path, "--collector", server.url).start()
    other = tmp_path / "other"
    other.mkdir()
    second = RunningSidecar(other, "--collector", server.url, "--otlp-listen", first.url("otlp")[7:]).start()
    assert "gateway" in second.missing
    assert second.stop() == 0
    assert first.stop() == 0
    server.stop()
