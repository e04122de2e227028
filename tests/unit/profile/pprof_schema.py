"""pprof's schema, built at run time: the truth that our own codec is held against.

Source: google/pprof `proto/profile.proto`, the messages and fields that Quayscope reads and writes.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto
_INT64, _UINT64, _BOOL, _STRING = _FIELD.TYPE_INT64, _FIELD.TYPE_UINT64, _FIELD.TYPE_BOOL, _FIELD.TYPE_STRING
_ONE, _MANY = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED

# message: (field, number, label, type or message name)
_SCHEMA: dict[
    str,
    list[
        tuple[
            str,
            int,
            descriptor_pb2.FieldDescriptorProto.Label.ValueType,
            descriptor_pb2.FieldDescriptorProto.Type.ValueType | str,
        ]
    ],
] = {
    "ValueType": [("type", 1, _ONE, _INT64), ("unit", 2, _ONE, _INT64)],
    "Label": [
        ("key", 1, _ONE, _INT64),
        ("str", 2, _ONE, _INT64),
        ("num", 3, _ONE, _INT64),
        ("num_unit", 4, _ONE, _INT64),
    ],
    "Sample": [
        ("location_id", 1, _MANY, _UINT64),
        ("value", 2, _MANY, _INT64),
        ("label", 3, _MANY, "Label"),
    ],
    "Mapping": [
        ("id", 1, _ONE, _UINT64),
        ("memory_start", 2, _ONE, _UINT64),
        ("memory_limit", 3, _ONE, _UINT64),
        ("file_offset", 4, _ONE, _UINT64),
        ("filename", 5, _ONE, _INT64),
        ("build_id", 6, _ONE, _INT64),
        ("has_functions", 7, _ONE, _BOOL),
    ],
    "Line": [("function_id", 1, _ONE, _UINT64), ("line", 2, _ONE, _INT64), ("column", 3, _ONE, _INT64)],
    "Location": [
        ("id", 1, _ONE, _UINT64),
        ("mapping_id", 2, _ONE, _UINT64),
        ("address", 3, _ONE, _UINT64),
        ("line", 4, _MANY, "Line"),
        ("is_folded", 5, _ONE, _BOOL),
    ],
    "Function": [
        ("id", 1, _ONE, _UINT64),
        ("name", 2, _ONE, _INT64),
        ("system_name", 3, _ONE, _INT64),
        ("filename", 4, _ONE, _INT64),
        ("start_line", 5, _ONE, _INT64),
    ],
    "Profile": [
        ("sample_type", 1, _MANY, "ValueType"),
        ("sample", 2, _MANY, "Sample"),
        ("mapping", 3, _MANY, "Mapping"),
        ("location", 4, _MANY, "Location"),
        ("function", 5, _MANY, "Function"),
        ("string_table", 6, _MANY, _STRING),
        ("drop_frames", 7, _ONE, _INT64),
        ("keep_frames", 8, _ONE, _INT64),
        ("time_nanos", 9, _ONE, _INT64),
        ("duration_nanos", 10, _ONE, _INT64),
        ("period_type", 11, _ONE, "ValueType"),
        ("period", 12, _ONE, _INT64),
        ("comment", 13, _MANY, _INT64),
        ("default_sample_type", 14, _ONE, _INT64),
    ],
}


def _build(packed: bool) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="pprof", syntax="proto3")
    for message, rows in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, number, label, kind in rows:
            field = described.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".pprof.{kind}"
            else:
                field.type = kind
                if label == _MANY and kind != _STRING:
                    field.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pprof.Profile"))


PprofProfile = _build(packed=True)
UnpackedProfile = _build(packed=False)
"""The same, writing repeated numbers one by one, as old encoders do."""


class Table:
    """A string table for messages made by hand: `table("main")` is its index."""

    def __init__(self, profile: Any) -> None:
        self._profile = profile
        self("")

    def __call__(self, value: str) -> int:
        if value not in self._profile.string_table:
            self._profile.string_table.append(value)
        return list(self._profile.string_table).index(value)
