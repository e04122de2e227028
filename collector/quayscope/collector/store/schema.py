"""The tables of the store, and the columns that the writer fills."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["TABLES", "VERSION", "Table", "create_statements", "upgrade_statements"]

VERSION = 2
"""Grows with each change of the tables; a store of a newer version is not opened."""


class Table(NamedTuple):
    """A table and its columns as (name, SQL type), in insert order. BLOB columns hold bytes."""

    name: str
    columns: tuple[tuple[str, str], ...]


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
"""What each version brought: a store of any version before it gets these tables, empty."""


def create_statements() -> list[str]:
    """Return the statements that lay out an empty store."""
    statements = ["CREATE TABLE meta(version INTEGER)", f"INSERT INTO meta SELECT {VERSION}"]
    return statements + [_create(table) for table in TABLES.values()]


def upgrade_statements(version: int) -> list[str]:
    """Return the statements that make a store of an older `version` one of this."""
    new = [TABLES[name] for since in range(version + 1, VERSION + 1) for name in _NEW_TABLES[since]]
    return [*map(_create, new), f"UPDATE meta SET version = {VERSION}"]  # noqa: S608 - ours


def _create(table: Table) -> str:
    columns = ", ".join(f'"{name}" {kind}' for name, kind in table.columns)
    return f"CREATE TABLE {table.name}({columns})"
