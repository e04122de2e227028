"""The messages that clients send, as tables: enough to check them, and to read OTLP's JSON.

Sources: opentelemetry-proto `trace/v1`, `metrics/v1`, `common/v1`, `resource/v1`; google/pprof
`proto/profile.proto`; grafana/pyroscope `api/push/v1/push.proto`. A line is a message and its fields,
`NUMBER name TYPE`; a `*` before the type: repeated. `id` is bytes that OTLP's JSON has in hexadecimal.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from quayscope.profile import MalformedProfile
from quayscope.profile.protowire import FIXED32, FIXED64, LENGTH, VARINT, fields
from quayscope.sidecar.gateway.errors import Malformed, TooLarge
from quayscope.sidecar.gateway.limits import MAX_DEPTH, MAX_FIELDS

__all__ = ["METRICS", "PPROF", "PUSH", "TRACES", "WIRE", "Field", "check", "fields_of"]

TRACES, METRICS, PPROF = "ExportTraceServiceRequest", "ExportMetricsServiceRequest", "Profile"
PUSH = "PushRequest"

_MESSAGES = """
ExportTraceServiceRequest: 1 resource_spans *ResourceSpans
ResourceSpans: 1 resource Resource, 2 scope_spans *ScopeSpans, 3 schema_url string
Resource: 1 attributes *KeyValue, 2 dropped_attributes_count uint32, 3 entity_refs *EntityRef
EntityRef: 1 schema_url string, 2 type string, 3 id_keys *string, 4 description_keys *string
KeyValue: 1 key string, 2 value AnyValue
AnyValue: 1 string_value string, 2 bool_value bool, 3 int_value int64, 4 double_value double,
  5 array_value ArrayValue, 6 kvlist_value KeyValueList, 7 bytes_value bytes
ArrayValue: 1 values *AnyValue
KeyValueList: 1 values *KeyValue
InstrumentationScope: 1 name string, 2 version string, 3 attributes *KeyValue,
  4 dropped_attributes_count uint32
ScopeSpans: 1 scope InstrumentationScope, 2 spans *Span, 3 schema_url string
Span: 1 trace_id id, 2 span_id id, 3 trace_state string, 4 parent_span_id id, 5 name string, 6 kind enum,
  7 start_time_unix_nano fixed64, 8 end_time_unix_nano fixed64, 9 attributes *KeyValue,
  10 dropped_attributes_count uint32, 11 events *Event, 12 dropped_events_count uint32, 13 links *Link,
  14 dropped_links_count uint32, 15 status Status, 16 flags fixed32
Event: 1 time_unix_nano fixed64, 2 name string, 3 attributes *KeyValue, 4 dropped_attributes_count uint32
Link: 1 trace_id id, 2 span_id id, 3 trace_state string, 4 attributes *KeyValue,
  5 dropped_attributes_count uint32, 6 flags fixed32
Status: 2 message string, 3 code enum

ExportMetricsServiceRequest: 1 resource_metrics *ResourceMetrics
ResourceMetrics: 1 resource Resource, 2 scope_metrics *ScopeMetrics, 3 schema_url string
ScopeMetrics: 1 scope InstrumentationScope, 2 metrics *Metric, 3 schema_url string
Metric: 1 name string, 2 description string, 3 unit string, 5 gauge Gauge, 7 sum Sum, 9 histogram Histogram,
  10 exponential_histogram ExponentialHistogram, 11 summary Summary, 12 metadata *KeyValue
Gauge: 1 data_points *NumberDataPoint
Sum: 1 data_points *NumberDataPoint, 2 aggregation_temporality enum, 3 is_monotonic bool
Histogram: 1 data_points *HistogramDataPoint, 2 aggregation_temporality enum
ExponentialHistogram: 1 data_points *ExponentialHistogramDataPoint, 2 aggregation_temporality enum
Summary: 1 data_points *SummaryDataPoint
NumberDataPoint: 2 start_time_unix_nano fixed64, 3 time_unix_nano fixed64, 4 as_double double,
  5 exemplars *Exemplar, 6 as_int sfixed64, 7 attributes *KeyValue, 8 flags uint32
HistogramDataPoint: 2 start_time_unix_nano fixed64, 3 time_unix_nano fixed64, 4 count fixed64, 5 sum double,
  6 bucket_counts *fixed64, 7 explicit_bounds *double, 8 exemplars *Exemplar, 9 attributes *KeyValue,
  10 flags uint32, 11 min double, 12 max double
ExponentialHistogramDataPoint: 1 attributes *KeyValue, 2 start_time_unix_nano fixed64,
  3 time_unix_nano fixed64, 4 count fixed64, 5 sum double, 6 scale sint32, 7 zero_count fixed64,
  8 positive Buckets, 9 negative Buckets, 10 flags uint32, 11 exemplars *Exemplar, 12 min double,
  13 max double, 14 zero_threshold double
Buckets: 1 offset sint32, 2 bucket_counts *uint64
SummaryDataPoint: 2 start_time_unix_nano fixed64, 3 time_unix_nano fixed64, 4 count fixed64, 5 sum double,
  6 quantile_values *ValueAtQuantile, 7 attributes *KeyValue, 8 flags uint32
ValueAtQuantile: 1 quantile double, 2 value double
Exemplar: 2 time_unix_nano fixed64, 3 as_double double, 4 span_id id, 5 trace_id id, 6 as_int sfixed64,
  7 filtered_attributes *KeyValue

PushRequest: 1 series *RawProfileSeries
RawProfileSeries: 1 labels *LabelPair, 2 samples *RawSample, 3 annotations *KeyValue
LabelPair: 1 name string, 2 value string
RawSample: 1 raw_profile bytes, 2 ID string

Profile: 1 sample_type *ValueType, 2 sample *Sample, 3 mapping *Mapping, 4 location *Location,
  5 function *Function, 6 string_table *string, 7 drop_frames int64, 8 keep_frames int64, 9 time_nanos int64,
  10 duration_nanos int64, 11 period_type ValueType, 12 period int64, 13 comment *int64,
  14 default_sample_type int64, 15 doc_url int64
ValueType: 1 type int64, 2 unit int64
Sample: 1 location_id *uint64, 2 value *int64, 3 label *Label
Label: 1 key int64, 2 str int64, 3 num int64, 4 num_unit int64
Mapping: 1 id uint64, 2 memory_start uint64, 3 memory_limit uint64, 4 file_offset uint64, 5 filename int64,
  6 build_id int64, 7 has_functions bool, 8 has_filenames bool, 9 has_line_numbers bool,
  10 has_inline_frames bool
Location: 1 id uint64, 2 mapping_id uint64, 3 address uint64, 4 line *Line, 5 is_folded bool
Line: 1 function_id uint64, 2 line int64, 3 column int64
Function: 1 id uint64, 2 name int64, 3 system_name int64, 4 filename int64, 5 start_line int64
"""

WIRE = {
    **dict.fromkeys(("bool", "enum", "int64", "uint32", "uint64", "sint32"), VARINT),
    **dict.fromkeys(("fixed64", "sfixed64", "double"), FIXED64),
    "fixed32": FIXED32,
}
"""The wire type of each scalar; all else is length-delimited."""
_ENDLESS_VARINT = re.compile(rb"[\x80-\xff]{10}")


class Field(NamedTuple):
    """One field: `type` is a scalar's or a message's name, `wire` what it travels as."""

    number: int
    name: str
    type: str
    repeated: bool
    wire: int


def _read_tables(text: str) -> dict[str, dict[int, Field]]:
    tables: dict[str, dict[int, Field]] = {}
    for name, rest in re.findall(r"^(\w+):((?:[^:]|\n)*)(?=^\w+:|\Z)", text, re.MULTILINE):
        tables[name] = {}
        for number, field, star, kind in re.findall(r"(\d+) (\w+) (\*?)(\w+)", rest):
            tables[name][int(number)] = Field(int(number), field, kind, bool(star), WIRE.get(kind, LENGTH))
    return tables


_TABLES = _read_tables(_MESSAGES)


def fields_of(message: str) -> dict[int, Field] | None:
    """Return a message's fields by number; None for a scalar's name."""
    return _TABLES.get(message)


def check(message: str, data: bytes | memoryview, most: int = MAX_FIELDS) -> None:
    """Check that bytes are a message of that name, down to its leaves; raises `Malformed`.

    What passes is read by every protobuf reader: whole fields of their own wire type, text in UTF-8, no
    more than `MAX_DEPTH` messages inside each other. Fields that the tables do not have are passed over.
    Raises `TooLarge` for more than `most` fields.
    """
    try:
        _check(message, _TABLES[message], data, 0, [most])
    except MalformedProfile as error:
        raise Malformed(f"it is no {message}: {error}") from error


def _check(
    message: str, table: dict[int, Field], data: bytes | memoryview, depth: int, left: list[int]
) -> None:
    if depth > MAX_DEPTH:
        raise Malformed(f"more than {MAX_DEPTH} messages lie inside each other")
    for number, wire, value in fields(data):
        left[0] -= 1
        if left[0] < 0:
            raise TooLarge("the message has too many fields")
        field = table.get(number)
        if field is None:
            continue
        if wire != field.wire:
            if not (field.repeated and wire == LENGTH and isinstance(value, memoryview)):
                raise Malformed(f"{message}.{field.name} has wire type {wire} instead of {field.wire}")
            _check_packed(message, field, value)
        elif isinstance(value, memoryview):
            nested = _TABLES.get(field.type)
            if nested is not None:
                _check(field.type, nested, value, depth + 1, left)
            elif field.type == "string":
                _check_text(message, field, value)


def _check_text(message: str, field: Field, value: memoryview) -> None:
    try:
        str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"{message}.{field.name} is not UTF-8") from error


def _check_packed(message: str, field: Field, value: memoryview) -> None:
    if field.wire == FIXED64:
        whole = len(value) % 8 == 0
    else:
        whole = not value or (value[-1] < 128 and not _ENDLESS_VARINT.search(value))
    if not whole:
        raise Malformed(f"{message}.{field.name} ends inside a number")
