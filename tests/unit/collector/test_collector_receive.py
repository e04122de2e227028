"""Reading what clients send: names, times, bodies, labels, OTLP values."""

from __future__ import annotations

import gzip
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Exemplar, HistogramDataPoint

from quayscope.collector.errors import BadRequest, CollectorError, TooLarge, UnsupportedMedia
from quayscope.collector.receive.admit import admit, series_labels
from quayscope.collector.receive.body import unpack
from quayscope.collector.receive.ingest import read_ingest, read_name, read_time
from quayscope.collector.receive.otlp import attribute_text, read_metrics, read_traces
from quayscope.collector.receive.push import read_json, read_profiles, read_protobuf
from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile, ProfileError


def profile(*samples: tuple[Attributes, tuple[int, int]], **labels: str) -> Profile:
    """A profile of one frame."""
    made = Profile(PROCESS_CPU, {"service_name": "a", "sampler": "agent", **labels}, 10**18, 10**9)
    for attributes, values in samples:
        made.add((Frame("f"),), attributes, values)
    return made


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("app", {"service_name": "app"}),
        ("app.cpu", {"service_name": "app"}),
        ("my.app.name.cpu{}", {"service_name": "my.app.name"}),
        ('app{a="b", c=d}', {"service_name": "app", "a": "b", "c": "d"}),
        ("app{service_name=other,x=}", {"service_name": "other", "x": ""}),
    ],
)
def test_names_of_the_older_push(name: str, labels: dict[str, str]) -> None:
    """Application, suffix and labels are told apart; quotes are not part of a value."""
    assert read_name(name) == labels


@pytest.mark.parametrize("name", ["", "{a=b}", "app{", "app{a}", "a}b"])
def test_names_that_are_none(name: str) -> None:
    """They are refused."""
    with pytest.raises(BadRequest):
        read_name(name)


@pytest.mark.parametrize(
    "text", ["1767225600", "1767225600000", "1767225600000000", "1767225600000000000", "1767225600.0"]
)
def test_times_in_any_unit(text: str) -> None:
    """Seconds to nanoseconds are told apart by size."""
    assert read_time(text, 0) == 1_767_225_600 * 10**9


@pytest.mark.parametrize("text", ["x", "-5", "nan", "inf", "1e40", "now-1h"])
def test_times_that_are_none(text: str) -> None:
    """They are refused."""
    with pytest.raises(BadRequest):
        read_time(text, 0)


def test_bodies_unpack_within_their_limit() -> None:
    """Members follow each other; bombs, stumps and other encodings are refused."""
    assert unpack(gzip.compress(b"a") + gzip.compress(b"b"), "gzip") == b"ab"
    assert unpack(b"plain") == b"plain"
    assert unpack(gzip.compress(b"x" * 100), limit=100) == b"x" * 100
    with pytest.raises(TooLarge):
        unpack(gzip.compress(b"x" * 101), limit=100)
    with pytest.raises(TooLarge):
        unpack(gzip.compress(b"x" * 60) * 2, limit=100)
    with pytest.raises(BadRequest):
        unpack(gzip.compress(b"x")[:-1])
    with pytest.raises(UnsupportedMedia):
        unpack(b"x", "zstd")


def test_labels_that_stock_clients_lack_are_filled_in() -> None:
    """Service and sampler are there in the end; dunder and empty labels are not."""
    assert series_labels({"__name__": "x", "empty": ""}) == {
        "service_name": "unknown_service",
        "sampler": "pyroscope",
    }
    assert series_labels({"service.name": "a", "pyroscope_spy": "gospy"}) == {
        "service_name": "a",
        "sampler": "gospy",
    }


def test_labels_that_are_attributes_become_such() -> None:
    """A tag `pid` or `endpoint` of a stock client is a sample attribute, unless the sample has its own."""
    made = profile((Attributes(), (1, 2)), (Attributes(endpoint="own"), (3, 4)), pid="12", endpoint="tag")
    admit(made)
    assert made.labels == {"service_name": "a", "sampler": "agent"}
    assert set(made.samples) == {
        ((Frame("f"),), Attributes(endpoint="tag", pid=12)),
        ((Frame("f"),), Attributes(endpoint="own", pid=12)),
    }


@pytest.mark.parametrize(
    ("attributes", "values"),
    [
        (Attributes(), (-1, 0)),
        (Attributes(), (0, 2**57)),
        (Attributes(pid=-1), (1, 1)),
        (Attributes(pid=2**31), (1, 1)),
        (Attributes(slot_ns=2**63), (1, 1)),
        (Attributes(span_id="xyz"), (1, 1)),
        (Attributes(trace_id="1" * 31), (1, 1)),
    ],
)
def test_samples_that_cannot_be(attributes: Attributes, values: tuple[int, int]) -> None:
    """Values, times and ids outside their range are refused before they reach the store."""
    with pytest.raises(BadRequest):
        admit(profile((attributes, values)))


def test_a_profile_without_a_time_is_of_now() -> None:
    """Clients that give none get the time of arrival."""
    made = profile((Attributes(), (1, 1)))
    made.start_ns = 0
    before = time.time_ns()
    admit(made)
    assert before <= made.start_ns <= time.time_ns()


def test_attribute_values_as_text() -> None:
    """Every form of an OTLP value has one text."""
    nested = AnyValue()
    nested.kvlist_value.values.add(key="k").value.int_value = 5
    array = AnyValue()
    array.array_value.values.add().string_value = "x"
    array.array_value.values.add().bool_value = True
    assert attribute_text(AnyValue(string_value="s")) == "s"
    assert attribute_text(AnyValue(double_value=0.5)) == "0.5"
    assert attribute_text(AnyValue(bytes_value=b"\x01\xff")) == "01ff"
    assert json.loads(attribute_text(nested)) == {"k": "5"}
    assert json.loads(attribute_text(array)) == ["x", "true"]
    assert attribute_text(AnyValue()) == ""


def histogram(message: ExportMetricsServiceRequest) -> HistogramDataPoint:
    """A whole point of a histogram, in the message."""
    metric = message.resource_metrics.add().scope_metrics.add().metrics.add(name="h", unit="s").histogram
    metric.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    return metric.data_points.add(time_unix_nano=10**18, count=1, sum=2.0)


def test_exemplars_are_read_with_their_point() -> None:
    """Value, time, ids and attributes; whole numbers are numbers, and ids may be missing."""
    message = ExportMetricsServiceRequest()
    point = histogram(message)
    full = point.exemplars.add(
        time_unix_nano=5, as_double=0.5, trace_id=b"t" * 16, span_id=b"s" * 8
    ).filtered_attributes
    full.add(key="why").value.string_value = "slow"
    point.exemplars.add(time_unix_nano=6, as_int=2)
    read = read_metrics(message.SerializeToString())
    assert read.entry is not None
    (kept,) = read.entry.points
    assert kept.exemplars == (
        (5, 0.5, b"t" * 16, b"s" * 8, (("why", "slow"),)),
        (6, 2.0, b"", b"", ()),
    )
    assert (read.rejected, read.exemplars_rejected, read.reason) == (0, 0, "")


@pytest.mark.parametrize(
    "bad",
    [
        Exemplar(time_unix_nano=5),
        Exemplar(as_double=0.5),
        Exemplar(time_unix_nano=1 << 63, as_double=0.5),
        Exemplar(time_unix_nano=5, as_double=math.inf),
        Exemplar(time_unix_nano=5, as_double=math.nan),
        Exemplar(time_unix_nano=5, as_double=0.5, trace_id=b"t" * 15),
        Exemplar(time_unix_nano=5, as_double=0.5, trace_id=b"t" * 16, span_id=b"s" * 9),
    ],
)
def test_exemplars_that_cannot_be_cost_themselves_alone(bad: Exemplar) -> None:
    """They are counted and said; the point and its other exemplars are kept."""
    message = ExportMetricsServiceRequest()
    point = histogram(message)
    point.exemplars.extend([bad, Exemplar(time_unix_nano=5, as_double=0.5)])
    read = read_metrics(message.SerializeToString())
    assert read.entry is not None
    assert [len(kept.exemplars) for kept in read.entry.points] == [1]
    assert (read.rejected, read.exemplars_rejected) == (0, 1)
    assert "exemplars" in read.reason


def test_a_point_has_a_bounded_number_of_exemplars() -> None:
    """The first thousand are kept, the rest counted; those of a refused point are counted too."""
    message = ExportMetricsServiceRequest()
    whole, timeless = histogram(message), histogram(message)
    whole.exemplars.extend([Exemplar(time_unix_nano=5, as_double=0.5)] * 1003)
    timeless.exemplars.extend([Exemplar(time_unix_nano=5, as_double=0.5)] * 2)
    timeless.time_unix_nano = 0
    read = read_metrics(message.SerializeToString())
    assert read.entry is not None
    assert [len(kept.exemplars) for kept in read.entry.points] == [1000]
    assert (read.rejected, read.exemplars_rejected) == (1, 5)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No reader ends in anything but a result or a refusal."""
    for read in (
        lambda: list(read_profiles(read_protobuf(data))),
        lambda: list(read_profiles(read_json(data))),
        lambda: read_traces(data),
        lambda: read_metrics(data),
        lambda: unpack(data, "gzip"),
        lambda: read_ingest({"name": "a"}, data, pprof=True),
        lambda: read_ingest({"name": "a"}, data, pprof=False),
    ):
        try:
            read()
        except (CollectorError, ProfileError):
            continue
