"""Rows of one transaction, as columns, and their way into DuckDB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import duckdb
import numpy as np

from quayscope.collector.store.schema import TABLES

__all__ = ["Rows"]

_NUMPY_TYPES: dict[str, Any] = {
    "INTEGER": np.int32,
    "BIGINT": np.int64,
    "UBIGINT": np.uint64,
    "DOUBLE": np.float64,
    "VARCHAR": object,
    "BLOB": object,
}


class Rows:
    """Columns per table. `row` adds one row, `columns` many; `insert` writes them all."""

    def __init__(self) -> None:
        self._tables: dict[str, list[list[Any]]] = {}

    def row(self, table: str, *values: object) -> None:
        """Add one row."""
        for column, value in zip(self._columns(table), values, strict=True):
            column.append(value)

    def rows(self, table: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Add rows."""
        for values in rows:
            self.row(table, *values)

    def columns(self, table: str, *values: list[Any]) -> None:
        """Add whole columns of equal length."""
        for column, more in zip(self._columns(table), values, strict=True):
            column.extend(more)

    def _columns(self, table: str) -> list[list[Any]]:
        found = self._tables.get(table)
        if found is None:
            found = self._tables[table] = [[] for _ in TABLES[table].columns]
        return found

    def insert(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Insert everything inside the caller's transaction; raises `duckdb.Error`.

        Numpy columns by name are the fastest way in without Arrow: 200,000 rows of 5 columns take
        80-90 ms CPU, while `executemany` takes 1.9 s for 2,000 rows.
        """
        for table, columns in self._tables.items():
            if not columns[0]:
                continue
            arrays = {}
            for (name, kind), values in zip(TABLES[table].columns, columns, strict=True):
                numpy_type = _NUMPY_TYPES[kind]
                array = np.empty(len(values), dtype=numpy_type)
                array[:] = values
                arrays[name] = array
            connection.register("incoming", arrays)
            try:
                connection.execute(f"INSERT INTO {table} SELECT * FROM incoming")  # noqa: S608 - our own table names
            finally:
                connection.unregister("incoming")
