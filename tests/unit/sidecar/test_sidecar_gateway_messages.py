"""The gateway's own reading of OTLP and pushes, against the real protobuf library."""

from __future__ import annotations

import base64
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile, pprof
from quayscope.profile.push import PushSeries, decode_push, encode_push
from quayscope.sidecar.gateway.errors import Malformed, TooLarge, Unsupported
from quayscope.sidecar.gateway.ingest import read_ingest
from quayscope.sidecar.gateway.otlp import read_otlp
from quayscope.sidecar.gateway.push import read_push
from quayscope.sidecar.gateway.schema import METRICS, PPROF, TRACES, WIRE, check, fields_of

_DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
_NOW = 1_700_000_000_000_000_000
_LABELS = {"namespace": "quay", "pod": "quay-0"}
_WIRES = {
    FieldDescriptor.TYPE_FIXED64: "fixed64",
    FieldDescriptor.TYPE_SFIXED64: "sfixed64",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FIXED32: "fixed32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_SINT32: "sint32",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
}
_NEWER = {"key_strindex", "string_value_strindex"}
"""Fields of the profiles signal, which spans and metrics do not have."""


def _messages(start: Descriptor) -> dict[str, Descriptor]:
    found = {start.name: start}
    todo = [start]
    while todo:
        for field in todo.pop().fields:
            nested = field.message_type
            if nested is not None and nested.name not in found:
                found[nested.name] = nested
                todo.append(nested)
    return found


@pytest.mark.parametrize("start", [ExportTraceServiceRequest, ExportMetricsServiceRequest])
def test_the_tables_are_opentelemetrys(start: Any) -> None:
    """Each message has the same fields, numbers, types and repetition as the published definition."""
    for name, descriptor in _messages(start.DESCRIPTOR).items():
        ours = fields_of(name)
        assert ours is not None, name
        theirs = {field.number: field for field in descriptor.fields if field.name not in _NEWER}
        assert set(ours) == set(theirs), name
        for number, field in theirs.items():
            mine = ours[number]
            kind = field.message_type.name if field.message_type else _WIRES[field.type]
            if mine.type == "id":
                assert (kind, mine.name[-3:]) == ("bytes", "_id")
            else:
                assert (mine.type, mine.name) == (kind, field.name)
            assert mine.repeated == field.is_repeated
            assert mine.type not in WIRE or mine.wire == WIRE[mine.type]


def _traces() -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    for service in ("clair", "quay"):
        resource = message.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = service
        resource.resource.attributes.add(key="pod").value.string_value = "a lie"
        scope = resource.scope_spans.add()
        scope.scope.name = "net/http"
        for number in range(3):
            span = scope.spans.add(
                trace_id=b"\x00" * 15 + b"\x01",
                span_id=bytes([number + 1]) * 8,
                name="GET / é",
                kind=Span.SPAN_KIND_SERVER,
                start_time_unix_nano=_NOW,
                end_time_unix_nano=_NOW + 5,
                flags=257,
            )
            span.status.code = Status.STATUS_CODE_ERROR
            span.attributes.add(key="n").value.int_value = -3
            span.attributes.add(key="empty").value.string_value = ""
            span.attributes.add(key="f").value.double_value = 0.5
            span.attributes.add(key="b").value.bool_value = False
            span.attributes.add(key="raw").value.bytes_value = b"\xff\x00"
            nested = span.attributes.add(key="deep").value.kvlist_value.values.add(key="k")
            nested.value.array_value.values.add().int_value = 1 << 40
            span.events.add(name="e", time_unix_nano=7)
            span.links.add(trace_id=b"\x02" * 16, span_id=b"\x03" * 8)
    return message


def _metrics() -> ExportMetricsServiceRequest:
    message = ExportMetricsServiceRequest()
    metrics = message.resource_metrics.add().scope_metrics.add().metrics
    gauge = metrics.add(name="g", unit="1").gauge.data_points
    gauge.add(time_unix_nano=5, as_int=-7)
    gauge.add(time_unix_nano=5, as_double=float("inf"))
    total = metrics.add(name="s").sum
    total.aggregation_temporality, total.is_monotonic = _DELTA, True
    total.data_points.add(time_unix_nano=6, as_int=0)
    bars = metrics.add(name="h").histogram
    bars.aggregation_temporality = _DELTA
    point = bars.data_points.add(count=3, sum=1.5, bucket_counts=[1, 2], explicit_bounds=[0.1])
    point.exemplars.add(as_double=1.0, trace_id=b"\x02" * 16, span_id=b"\x03" * 8)
    exponential = metrics.add(name="e").exponential_histogram.data_points.add(scale=-3, count=1)
    exponential.positive.offset = -2
    exponential.positive.bucket_counts.extend([1, 1 << 40])
    metrics.add(name="q").summary.data_points.add(count=1).quantile_values.add(quantile=0.5, value=2.0)
    return message


def _as_json(message: Message) -> Any:
    """OTLP's JSON: protobuf's own, but ids in hexadecimal and enumerations as numbers."""

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: base64.b64decode(item).hex()
                if key in ("traceId", "spanId", "parentSpanId")
                else turned(item)
                for key, item in value.items()
            }
        return [turned(item) for item in value] if isinstance(value, list) else value

    return turned(json_format.MessageToDict(message, use_integers_for_enums=True))


@pytest.mark.parametrize(("kind", "message"), [("spans", _traces()), ("metrics", _metrics())])
def test_json_is_the_same_message(kind: str, message: Any) -> None:
    """OTLP's JSON becomes the protobuf that the same client would have sent."""
    body = json.dumps(_as_json(message)).encode()
    assert type(message).FromString(read_otlp(kind, body, {}, is_json=True)) == message


def test_pod_labels_are_added_and_win() -> None:
    """Each resource gets them once; a client's own word stays about itself, not about the pod."""
    message = ExportTraceServiceRequest.FromString(
        read_otlp("spans", _traces().SerializeToString(), _LABELS, is_json=False)
    )
    expected = _traces()
    assert [one.scope_spans for one in message.resource_spans] == [
        one.scope_spans for one in expected.resource_spans
    ]
    for resource, service in zip(message.resource_spans, ("clair", "quay"), strict=True):
        pairs = [(pair.key, pair.value.string_value) for pair in resource.resource.attributes]
        assert sorted(pairs) == [("namespace", "quay"), ("pod", "quay-0"), ("service.name", service)]


def test_a_request_without_resources_gets_one() -> None:
    """Spans of a client that describes nothing are still the pod's."""
    message = ExportMetricsServiceRequest.FromString(
        read_otlp("metrics", _metrics().SerializeToString(), {"pod": "p"}, is_json=False)
    )
    (pair,) = message.resource_metrics[0].resource.attributes
    assert (pair.key, pair.value.string_value) == ("pod", "p")


@pytest.mark.parametrize(
    "document",
    [
        "[]",
        "{",
        '{"resourceSpans": {}}',
        '{"resourceSpans": [3]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "1.5"}]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": -1}]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": 5}]}]}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": "SPAN_KIND_SERVER"}]}]}]}',
        '{"resourceSpans": [{"resource": {"attributes": [{"key": "k", "value": {"boolValue": 1}}]}}]}',
        "[" * 100_000,
    ],
)
def test_json_that_is_none_is_refused(document: str) -> None:
    """Each kind of nonsense is malformed, with its place, and nothing else happens."""
    with pytest.raises(Malformed):
        read_otlp("spans", document.encode(), {}, is_json=True)


def test_depth_is_bounded() -> None:
    """Values inside values end at a bound, in both forms."""
    value: dict[str, Any] = {"stringValue": "x"}
    body = b"\x0a\x01x"
    for _ in range(200):
        value = {"arrayValue": {"values": [value]}}
        body = b"\x0a" + _length(body) + body
        body = b"\x2a" + _length(body) + body
    document = {"resourceSpans": [{"resource": {"attributes": [{"key": "k", "value": value}]}}]}
    with pytest.raises(Malformed, match="inside each other"):
        read_otlp("spans", json.dumps(document).encode(), {}, is_json=True)
    for tag in (b"\x12", b"\x0a", b"\x0a", b"\x0a"):
        body = tag + _length(body) + body
    with pytest.raises(Malformed, match="inside each other"):
        read_otlp("spans", body, {}, is_json=False)


def _length(body: bytes) -> bytes:
    size, out = len(body), bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


_BASES = [
    (TRACES, ExportTraceServiceRequest, _traces().SerializeToString()),
    (METRICS, ExportMetricsServiceRequest, _metrics().SerializeToString()),
]


@given(st.sampled_from(_BASES), st.data())
@settings(max_examples=400, deadline=None)
def test_what_passes_is_read_by_every_reader(base: tuple[str, Any, bytes], data: st.DataObject) -> None:
    """Bytes changed at random are refused, or the protobuf library reads them: no neighbour is lost."""
    name, kind, body = base
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        check(name, bytes(changed))
    except Malformed:
        return
    try:
        kind.FromString(bytes(changed))
    except DecodeError as error:
        raise AssertionError(f"passed, and is none: {bytes(changed).hex()}") from error


@given(st.sampled_from([TRACES, METRICS, PPROF]), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_malformed(name: str, body: bytes) -> None:
    """Nothing else is raised, whatever a client sends."""
    try:
        check(name, body)
    except Malformed:
        return


def _profile(start_ns: int = 1) -> Profile:
    profile = Profile(PROCESS_CPU, {}, start_ns, 10)
    profile.add((Frame("f"), Frame("g")), Attributes(), (1, 2))
    return profile


def _only(push: bytes) -> tuple[dict[str, str], str, bytes]:
    (series,) = decode_push(push)
    ((push_id, data),) = series.samples
    return series.labels, push_id, data


def test_a_push_keeps_its_service_and_its_id() -> None:
    """Labels of the pod are added and win; the client's ID goes on."""
    series = PushSeries({"service_name": "stock", "pod": "a lie"}, (("their-id", pprof.encode(_profile())),))
    labels, push_id, data = _only(read_push(encode_push([series]), _LABELS, is_json=False))
    assert labels == {"service_name": "stock", "namespace": "quay", "pod": "quay-0"}
    assert push_id == "their-id"
    assert data == series.samples[0][1]


def test_a_push_without_an_id_gets_the_same_one_again() -> None:
    """Sent twice it is one profile; another one is another; one without a time has the present one."""
    ids = set()
    for start in (1, 1, 2):
        push = encode_push([PushSeries({"service_name": "s"}, (("", pprof.encode(_profile(start))),))])
        ids.add(_only(read_push(push, {}, is_json=False))[1])
    assert len(ids) == 2
    assert "" not in ids
    before = time.time_ns()
    push = encode_push([PushSeries({"service_name": "s"}, (("", pprof.encode(_profile(0))),))])
    _, _, data = _only(read_push(push, {}, is_json=False))
    assert before <= pprof.decode(data, {}).start_ns <= time.time_ns()


def test_a_push_in_json() -> None:
    """The same in JSON, as browsers and scripts send it."""
    raw = base64.b64encode(pprof.encode(_profile())).decode()
    document = {
        "series": [
            {
                "labels": [{"name": "service_name", "value": "s"}],
                "samples": [{"rawProfile": raw, "ID": "1"}],
            }
        ]
    }
    labels, push_id, data = _only(read_push(json.dumps(document).encode(), _LABELS, is_json=True))
    assert (labels["service_name"], labels["pod"], push_id) == ("s", "quay-0", "1")
    assert pprof.decode(data, {}).totals() == (1, 2)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x1f\x8bbroken", gzip.compress(b"\xff\xff\xff"), b"\x0a\x05ab", gzip.compress(b"x" * 100)[:-9]],
    ids=["empty", "no gzip", "no profile", "cut short", "cut gzip"],
)
def test_a_profile_that_is_none_is_refused(data: bytes) -> None:
    """An empty, broken or cut-off profile never gets on the way."""
    with pytest.raises(Malformed):
        read_push(encode_push([PushSeries({"service_name": "s"}, (("", data),))]), {}, is_json=False)


def test_a_small_push_cannot_unpack_to_much() -> None:
    """The bound is that of the whole push, not of each of its profiles."""
    bomb = gzip.compress(b"\x32\x80\x80\x80\x04" + b"x" * (8 << 20))
    push = encode_push([PushSeries({"service_name": "s"}, (("", bomb),) * 100)])
    assert len(push) < 1 << 20
    with pytest.raises(TooLarge):
        read_push(push, {}, is_json=False)


def _labels_of_nothing(size: int) -> bytes:
    inside = b"\x0a\x00" * size
    return b"\x0a" + _length(inside) + inside


_SIZE = 4 << 20
_SMALL_PARTS: dict[str, Callable[[], bytes]] = {
    "resources": lambda: read_otlp("spans", b"\x0a\x00" * _SIZE, _LABELS, is_json=False),
    "series": lambda: read_push(b"\x0a\x00" * _SIZE, _LABELS, is_json=False),
    "labels": lambda: read_push(_labels_of_nothing(_SIZE), _LABELS, is_json=False),
    "objects": lambda: read_otlp("spans", b"[" + b"{}," * (_SIZE // 4) + b"{}]", _LABELS, is_json=True),
    "text": lambda: read_otlp("spans", b"[" + b'"ab",' * _SIZE + b"1]", _LABELS, is_json=True),
    "stacks": lambda: read_ingest({"name": "a"}, "", b"a 1\n" * _SIZE, _LABELS),
    "frames": lambda: read_ingest({"name": "a"}, "", b"a;" * _SIZE, _LABELS),
}


@pytest.mark.parametrize("shape", _SMALL_PARTS)
def test_many_small_parts_cost_little(shape: str) -> None:
    """Megabytes of the smallest parts there are end early, before they are held one by one."""
    tracemalloc.start()
    with pytest.raises(TooLarge):
        _SMALL_PARTS[shape]()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20


@pytest.mark.parametrize(
    "labels", [{"bad name": "x"}, {"a": "x" * 3000}, {"a": "\x00"}, {f"l{n}": "x" for n in range(40)}]
)
def test_labels_that_cannot_be_are_refused(labels: dict[str, str]) -> None:
    """The client hears what no receiver would take."""
    push = encode_push([PushSeries(labels, (("", pprof.encode(_profile())),))])
    with pytest.raises(Malformed):
        read_push(push, {}, is_json=False)


def test_folded_text_and_pprof_by_ingest() -> None:
    """Both become a push of a CPU profile with the name's labels, once however often they are sent."""
    query = {
        "name": 'app.cpu{region="eu"}',
        "from": "1700000000",
        "until": "1700000010",
        "sampleRate": "100",
    }
    push = read_ingest(query, "", b"main;work 3\nmain 1\n", _LABELS)
    labels, push_id, data = _only(push)
    assert labels == {"service_name": "app", "region": "eu", "__name__": "process_cpu", **_LABELS}
    profile = pprof.decode(data, {})
    assert profile.totals() == (4, 40_000_000)
    assert (profile.start_ns, profile.duration_ns) == (1_700_000_000 * 10**9, 10 * 10**9)
    assert _only(read_ingest(query, "", b"main;work 3\nmain 1\n", _LABELS))[1] == push_id
    body = gzip.compress(pprof.encode(_profile()))
    for media, content in (
        ("application/octet-stream", body),
        (
            "multipart/form-data; boundary=b0",
            b'--b0\r\nContent-Disposition: form-data; name="profile"; filename="p"\r\n\r\n'
            + body
            + b"\r\n--b0--\r\n",
        ),
    ):
        packed = read_ingest({"name": "app"}, media, content, {})
        assert pprof.decode(_only(packed)[2], {}).totals() == (1, 2)


@pytest.mark.parametrize(
    ("query", "media", "body", "error"),
    [
        ({}, "", b"a 1", Malformed),
        ({"name": "a{b"}, "", b"a 1", Malformed),
        ({"name": "a{b}"}, "", b"a 1", Malformed),
        ({"name": "a", "from": "x"}, "", b"a 1", Malformed),
        ({"name": "a", "from": "9", "until": "5"}, "", b"a 1", Malformed),
        ({"name": "a", "sampleRate": "0"}, "", b"a 1", Malformed),
        ({"name": "a", "units": "bytes"}, "", b"a 1", Unsupported),
        ({"name": "a", "format": "jfr"}, "", b"a 1", Unsupported),
        ({"name": "a"}, "", b"no number", Malformed),
        ({"name": "a", "format": "pprof"}, "", b"\xff", Malformed),
        ({"name": "a"}, "multipart/form-data; boundary=x", b"--x--", Malformed),
        ({"name": "a"}, "multipart/form-data", b"", Malformed),
    ],
)
def test_ingest_says_what_is_wrong(
    query: dict[str, str], media: str, body: bytes, error: type[Exception]
) -> None:
    """Each misuse is refused with its reason."""
    with pytest.raises(error):
        read_ingest(query, media, body, {})
