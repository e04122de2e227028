"""What the collector takes over HTTP, and how it refuses the rest."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import time

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from integration.collector.running_collector import RunningCollector, cpu_profile
from quayscope.profile.push import PushSeries, encode_push, series_of

CPU = "process_cpu"


def total(collector: RunningCollector, service: str) -> int:
    """The CPU stored for a service."""
    return int(collector.get("flamegraph", type=CPU, match=f"service_name={service}")["total"])


@pytest.mark.parametrize("form", ["protobuf", "protobuf-gzip", "gzip-unannounced", "json", "json-gzip"])
def test_every_form_of_a_push_is_stored_to_the_nanosecond(shared: RunningCollector, form: str) -> None:
    """Protobuf and JSON, gzipped with and without saying so, give the sum that was pushed."""
    profile = cpu_profile(service_name=f"form-{form}")
    series = series_of(profile, f"id-{form}")
    body, content_type, headers = encode_push([series]), "application/proto", {}
    if form.startswith("json"):
        ((push_id, data),) = series.samples
        labels = [{"name": name, "value": value} for name, value in series.labels.items()]
        sample = {"rawProfile": base64.b64encode(data).decode(), "ID": push_id}
        body = json.dumps({"series": [{"labels": labels, "samples": [sample]}]}).encode()
        content_type = "application/json"
    if "gzip" in form:
        body = gzip.compress(body)
    if form.endswith("-gzip"):
        headers = {"Content_Encoding": "gzip"}
    status, answer = shared.post_push(body, content_type, **headers)
    assert (status, answer) == (200, {} if form.startswith("json") else b"")
    assert total(shared, f"form-{form}") == profile.totals()[1]


def test_times_are_moved_by_what_is_known_of_the_senders_clock(shared: RunningCollector) -> None:
    """By whole seconds; a word on it that cannot be read is counted, and moves nothing."""
    before = shared.get("status")["clock_malformed"]
    for service, header, moved in (
        ("clock-behind", "offset=2600000000, error=5000000", 3),
        ("clock-odd", "offset=2.6s", 0),
    ):
        profile = cpu_profile(service_name=service)
        headers = {"Quayscope_Clock": header}
        assert shared.post_push(encode_push([series_of(profile, service)]), **headers)[0] == 200
        body = gauge(service, profile.start_ns)
        assert shared.post("/v1/metrics", body, "application/x-protobuf", **headers)[0] == 200
        start = profile.start_ns // 10**9 + moved
        match = f"service_name={service}"
        for second in (1, 2):
            slot = profile.start_ns + second * 10**9
            used = sum(values[1] for (_, about), values in profile.samples.items() if about.slot_ns == slot)
            asked = {"type": CPU, "match": match, "from_": start + second, "to": start + second + 1}
            assert shared.get("flamegraph", **asked)["total"] == used > 0
        (series,) = shared.get("metrics", name="clock.test", match=match)["series"]
        assert series["points"] == [[start, 1.0]]
        (row,) = shared.get("series", type=CPU, match=match)["series"]
        known = {"offset": 2.6, "error": 0.005, "unknown": 0}
        assert row["clock"] == (known if moved else {"offset": 0.0, "error": 0.0, "unknown": 1})
    assert shared.get("status")["clock_malformed"] - before == 2


def gauge(service: str, time_ns: int) -> bytes:
    """A metrics message of one point."""
    message = ExportMetricsServiceRequest()
    resource = message.resource_metrics.add()
    resource.resource.attributes.add(key="service_name").value.string_value = service
    metric = resource.scope_metrics.add().metrics.add(name="clock.test")
    metric.gauge.data_points.add(time_unix_nano=time_ns, as_int=1)
    return message.SerializeToString()


def test_the_same_id_is_stored_once(shared: RunningCollector) -> None:
    """A resent push counts as a duplicate, and two of one ID in one push too; other IDs are kept."""
    profile = cpu_profile(service_name="twice")
    before = shared.get("status")
    for _ in range(3):
        shared.push(profile, "same")
    series = series_of(profile, "other")
    status, _ = shared.post_push(encode_push([series, series]))
    after = shared.get("status")
    assert status == 200
    assert total(shared, "twice") == 2 * profile.totals()[1]
    assert after["duplicates"] - before["duplicates"] == 3
    assert after["stored"] - before["stored"] == 2


def test_a_malformed_profile_does_not_cost_its_neighbours(shared: RunningCollector) -> None:
    """One broken profile of three is refused by name and counted; the other two are on disk."""
    good = cpu_profile(service_name="neighbour")
    broken = PushSeries(series_of(good, "x").labels, (("broken", b"\x1f\x8bnot gzip"),))
    before = shared.get("status")["malformed"]
    push = encode_push([series_of(good, "n1"), broken, series_of(good, "n2")])
    status, answer = shared.post_push(push)
    assert status == 400
    assert answer["code"] == "invalid_argument"
    assert answer["message"].startswith("1 of 3 profiles refused; the other 2 are stored: ")
    assert total(shared, "neighbour") == 2 * good.totals()[1]
    assert shared.get("status")["malformed"] == before + 1


def _labelled(labels: dict[str, str]) -> bytes:
    return encode_push([PushSeries({"__name__": CPU, **labels}, series_of(cpu_profile(), "l").samples)])


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"\xff\xff\xff", "application/proto", 400, "malformed"),
        (b"{", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b'{"series": 3}', "application/json", 400, "JSON is not"),
        (b'{"series": [{"samples": [{"rawProfile": "%%%"}]}]}', "application/json", 400, "base64"),
        (b"x", "text/plain", 415, "content type"),
        (_labelled({"bad name": "x"}), "application/proto", 400, "label name"),
        (_labelled({f"l{i}": "x" for i in range(31)}), "application/proto", 400, "labels"),
        (_labelled({"a": "x" * 2049}), "application/proto", 400, "2049 characters"),
        (_labelled({"__name__": "wall"}), "application/proto", 400, "not registered"),
        (encode_push([PushSeries({"__name__": CPU}, (("e", b""),))]), "application/proto", 400, "no bytes"),
    ],
)
def test_what_is_malformed_gets_a_clear_connect_error(
    shared: RunningCollector, body: bytes, content_type: str, status: int, text: str
) -> None:
    """Each error says what is wrong in Connect's shape, and the collector goes on."""
    found, answer = shared.post_push(body, content_type)
    assert found == status
    assert set(answer) == {"code", "message"}
    assert text in answer["message"]
    assert shared.get("health")["status"] == "ok"
    assert shared.get("status")["faults"] == 0


def test_bodies_past_the_limits_are_refused(shared: RunningCollector) -> None:
    """A gzip bomb, a broken gzip stream and an unknown encoding are errors of their own."""
    before = shared.get("status")["malformed"]
    bomb = gzip.compress(b"\0" * (65 << 20))
    assert shared.post_push(bomb)[0] == 413
    assert shared.post_push(gzip.compress(b"abc")[:-6])[0] == 400
    assert shared.post_push(b"abc", Content_Encoding="gzip")[0] == 400
    assert shared.post_push(b"abc", Content_Encoding="br")[0] == 415
    inner = encode_push([PushSeries({"__name__": CPU}, (("b", bomb),))])
    status, answer = shared.post_push(inner)
    assert status == 400
    assert "unpacks to more" in answer["message"]
    assert shared.get("status")["malformed"] == before + 5


@pytest.mark.parametrize("path", ["/push.v1.PusherService/Push", "/v1/traces", "/ingest?name=a"])
def test_a_body_past_the_limit_is_413(shared: RunningCollector, path: str) -> None:
    """More bytes than a request may have are refused with a Connect error, sent whole or in chunks."""
    for body in (b"x" * (17 << 20), (b"x" * (1 << 20) for _ in range(17))):
        status, answer, _ = shared.request("POST", path, body, {"Content-Type": "application/x-protobuf"})
        assert (status, json.loads(answer)["code"]) == (413, "invalid_argument")


@pytest.mark.parametrize("chunked", [False, True])
def test_half_a_body_is_never_acknowledged(shared: RunningCollector, chunked: bool) -> None:
    """A client that goes away amid a body has nothing stored, though its first half reads well."""
    service = f"half-{chunked}"
    series = series_of(cpu_profile(service_name=service), "h1")
    body = encode_push([series])
    head = (
        "POST /push.v1.PusherService/Push HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\n"
    )
    if chunked:
        payload = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n"
    else:
        payload = f"{head}Content-Length: {2 * len(body)}\r\n\r\n".encode() + body
    host, _, port = shared.http.partition("//")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(payload)
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(4096)
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert shared.get("series", match=f"service_name={service}")["series"] == []


def test_chunked_bodies_are_read(shared: RunningCollector) -> None:
    """A push without a Content-Length arrives whole."""
    body = encode_push([series_of(cpu_profile(service_name="chunked"), "c")])
    pieces = (body[at : at + 100] for at in range(0, len(body), 100))
    status, _, _ = shared.request(
        "POST", "/push.v1.PusherService/Push", pieces, {"Content-Type": "application/proto"}
    )
    assert status == 200
    assert total(shared, "chunked") > 0


def test_ingest_takes_folded_stacks(shared: RunningCollector) -> None:
    """The older push's samples become CPU by its rate, under its name, labels and times."""
    now = int(time.time())
    path = (
        f"/ingest?name=old.cpu%7Brole%3D%22web%22%7D&from={now - 10}&until={now}&sampleRate=50&spyName=rbspy"
    )
    status, _ = shared.post(path, b"main;view 3\nmain 2\n", "text/plain")
    assert status == 200
    (row,) = shared.get("series", type=CPU, match="service_name=old")["series"]
    assert row["labels"] == {"service_name": "old", "role": "web", "sampler": "rbspy"}
    assert (row["samples"], row["total"]) == (5, 5 * 20_000_000)


@pytest.mark.parametrize("multipart", [False, True])
def test_ingest_takes_pprof(shared: RunningCollector, multipart: bool) -> None:
    """A pprof arrives raw or as a form's file."""
    service = f"ingest-{multipart}"
    profile = cpu_profile()
    data = series_of(profile, "x").samples[0][1]
    content_type = "application/octet-stream"
    if multipart:
        content_type = "multipart/form-data; boundary=XX"
        head = b'--XX\r\nContent-Disposition: form-data; name="profile"; filename="profile.pprof"\r\n\r\n'
        data = head + data + b"\r\n--XX--\r\n"
    status, answer = shared.post(f"/ingest?name={service}&format=pprof", data, content_type)
    assert status == 200, answer
    assert total(shared, service) == profile.totals()[1]


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("", b"a 1"),
        ("name=%7Bx%7D", b"a 1"),
        ("name=a&from=x", b"a 1"),
        ("name=a&from=20&until=10", b"a 1"),
        ("name=a&format=jfr", b"a 1"),
        ("name=a&units=bytes", b"a 1"),
        ("name=a&sampleRate=0", b"a 1"),
        ("name=a", b"no number here"),
        ("name=a&format=pprof", b"\xff\xff"),
    ],
)
def test_ingest_refuses_what_it_cannot_read(shared: RunningCollector, query: str, body: bytes) -> None:
    """Bad names, times, formats and bodies are 400 with a message."""
    status, answer = shared.post(f"/ingest?{query}", body, "text/plain")
    assert status == 400
    assert answer["message"]


def test_foreign_pages_are_refused(shared: RunningCollector) -> None:
    """A rebound Host name or another site's Origin gets 403 and is counted."""
    before = shared.get("status")["foreign"]
    for headers in (
        {"Host": "evil.example"},
        {"Host": "[::"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ):
        assert shared.request("GET", "/api/v1/health", headers=headers)[0] in (400, 403), headers
        assert shared.request("POST", "/ingest?name=a", b"a 1", headers)[0] in (400, 403), headers
    assert shared.get("status")["foreign"] >= before + 6
    own = {"Origin": shared.http}
    status, _, headers = shared.request("GET", "/api/v1/health", headers=own)
    assert status == 200
    assert not any(name.startswith("access-control") for name in headers)


def test_the_page_has_a_strict_policy_or_says_that_it_is_not_built(shared: RunningCollector) -> None:
    """GET / is the page under a policy that runs nothing inline, or a 503 with a next step."""
    status, body, headers = shared.request("GET", "/")
    assert status in (200, 503)
    if status == 503:
        assert b"next:" in body
    else:
        assert "script-src 'self';" in headers["content-security-policy"]
    for path in ("/%2e%2e/page.py", "/..%2fpage.py", "/page.py"):
        assert shared.request("GET", path)[0] == 404
