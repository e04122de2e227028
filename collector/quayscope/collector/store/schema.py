"""The tables of the store, and the columns that the writer fills."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TABLES", "VERSION", "Table", "create_statements", "upgrade_statements"]

VERSION = 3
"""Grows with each change of the tables; a store of a newer version is not opened."""


class Table(NamedTuple):
    """A table and its columns as (name, SQL type), in insert order. BLOB columns hold bytes."""

    name: str
    columns: tuple[tuple[str, str], ...]


_CLOCK = (("clock_offset_ns", "BIGINT"), ("clock_error_ns", "BIGINT"))
"""What the sender's clock was behind ours, and by how much that may be wrong; -1: it is not known."""

# Times are Unix nanoseconds. There are no indexes: a primary key tripled the file, and the
# dictionaries stand in memory anyway; DuckDB prunes by the range of `ts` in each row group.
TABLES = {
    table.name: table
    for table in (
        Table("series", (("id", "INTEGER"), ("type", "VARCHAR"), ("labels", "VARCHAR"))),
        Table("strings", (("id", "INTEGER"), ("text", "VARCHAR"))),
        Table(
            "frames",
            (
                ("id", "INTEGER"),
                ("function", "VARCHAR"),
                ("file", "VARCHAR"),
                ("line", "BIGINT"),
                ("kind", "VARCHAR"),
            ),
        ),
        Table("nodes", (("id", "INTEGER"), ("parent", "INTEGER"), ("frame", "INTEGER"))),
        # One request's span and trace; samples name it by id. 0 means unknown.
        Table(
            "links",
            (
                ("id", "BIGINT"),
                ("span", "UBIGINT"),
                ("trace_high", "UBIGINT"),
                ("trace_low", "UBIGINT"),
                ("ts", "BIGINT"),
            ),
        ),
        Table(
            "profiles",
            (
                ("series", "INTEGER"),
                ("start_ns", "BIGINT"),
                ("end_ns", "BIGINT"),
                ("received_ns", "BIGINT"),
                ("key", "BLOB"),
                ("lost", "BIGINT"),
                ("late", "BIGINT"),
                ("truncated", "BIGINT"),
                ("unproven", "BIGINT"),
                ("unattributed", "BIGINT"),
                *_CLOCK,
            ),
        ),
        Table(
            "samples",
            (
                ("ts", "BIGINT"),
                ("series", "INTEGER"),
                ("node", "INTEGER"),
                ("v0", "BIGINT"),
                ("v1", "BIGINT"),
                ("v2", "BIGINT"),
                ("v3", "BIGINT"),
                ("link", "BIGINT"),
                ("endpoint", "INTEGER"),
                ("run", "INTEGER"),
                ("phase", "INTEGER"),
                ("pid", "INTEGER"),
            ),
        ),
        Table(
            "messages",
            (
                ("id", "BIGINT"),
                ("received_ns", "BIGINT"),
                ("key", "BLOB"),
                ("spans", "INTEGER"),
                ("first_ns", "BIGINT"),
                ("last_ns", "BIGINT"),
                ("body", "BLOB"),
                *_CLOCK,
            ),
        ),
        Table("traces", (("trace_high", "UBIGINT"), ("trace_low", "UBIGINT"), ("message", "BIGINT"))),
        Table(
            "metric_series",
            (
                ("id", "INTEGER"),
                ("name", "VARCHAR"),
                ("unit", "VARCHAR"),
                ("kind", "VARCHAR"),
                ("attributes", "VARCHAR"),
                ("bounds", "VARCHAR"),
            ),
        ),
        Table(
            "points",
            (
                ("ts", "BIGINT"),
                ("series", "INTEGER"),
                ("value", "DOUBLE"),
                ("count", "BIGINT"),
                ("buckets", "BLOB"),
            ),
        ),
        # Single events of histograms; `series` is a metric series. Ids of 0 mean unknown.
        Table(
            "exemplars",
            (
                ("ts", "BIGINT"),
                ("series", "INTEGER"),
                ("value", "DOUBLE"),
                ("span", "UBIGINT"),
                ("trace_high", "UBIGINT"),
                ("trace_low", "UBIGINT"),
                ("attributes", "VARCHAR"),
            ),
        ),
        Table("metric_messages", (("received_ns", "BIGINT"), ("key", "BLOB"))),
    )
}


_NEW_TABLES = {2: ("exemplars",)}
_NEW_COLUMNS = {3: ("profiles", "messages")}
"""What each version brought to an older store: tables, empty; and in these tables the columns of `_CLOCK`."""


def create_statements() -> list[str]:
    """Return the statements that lay out an empty store."""
    statements = ["CREATE TABLE meta(version INTEGER)", f"INSERT INTO meta SELECT {VERSION}"]
    return statements + [_create(table) for table in TABLES.values()]


def upgrade_statements(version: int) -> list[str]:
    """Return the statements that make a store of an older `version` one of this."""
    since = range(version + 1, VERSION + 1)
    made = [_create(TABLES[name]) for one in since for name in _NEW_TABLES.get(one, ())]
    added = [
        f"ALTER TABLE {table} ADD COLUMN {column} BIGINT DEFAULT {default}"
        for one in since
        for table in _NEW_COLUMNS.get(one, ())
        for (column, _), default in zip(_CLOCK, (0, -1), strict=True)
    ]
    return [*made, *added, f"UPDATE meta SET version = {VERSION}"]  # noqa: S608 - ours


def _create(table: Table) -> str:
    columns = ", ".join(f'"{name}" {kind}' for name, kind in table.columns)
    return f"CREATE TABLE {table.name}({columns})"
