"""The views of real servers as metrics: every column asked for is there, and says what the server says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.measurements import Reading
from quayscope.sidecar.postgres.statistics import ServerStatistics
from quayscope.sidecar.postgres.views import VIEWS

SECRET = "q7x2v9"


class Kept:
    """What was emitted, by name."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.capabilities = Capabilities()
        self.statistics = ServerStatistics(self.readings.extend, self.capabilities)

    def read(self, connection: Any) -> dict[str, list[Reading]]:
        """Read once, everything that is due."""
        self.readings.clear()
        self.statistics.read(connection)
        found: dict[str, list[Reading]] = {}
        for reading in self.readings:
            found.setdefault(reading.name, []).append(reading)
        return found


def of(found: dict[str, list[Reading]], name: str, **attributes: str) -> float:
    """The one value of that name with these attributes."""
    (one,) = [
        reading
        for reading in found[name]
        if all(reading.attributes[key] == text for key, text in attributes.items())
    ]
    return one.value


@pytest.mark.parametrize("version", ["15", "16", "18"])
def test_every_view_of_a_version_is_read(make_server: Callable[..., Any], version: str) -> None:
    """No column is missing, none is left out that the version has, and the counts are the server's."""
    server = make_server(version)
    with server.connect() as connection:
        connection.execute("CREATE TABLE counted (a int PRIMARY KEY)")
        connection.execute("INSERT INTO counted SELECT generate_series(1, 1000)")
        connection.execute("SELECT count(*) FROM counted")
        connection.execute("SELECT pg_stat_clear_snapshot()")
    with server.connect() as connection:
        kept = Kept()
        found = kept.read(connection)
        number = connection.info.server_version
        if version != "15":
            assert not [one for one in kept.capabilities.all() if one.name != "pg_stat_statements"]
            assert kept.statistics.refused == 0
        wanted = {f"postgresql.{view.prefix}" for view in VIEWS if number >= view.since and view.held(number)}
        missing = wanted - {name.rpartition(".")[0] for name in found}
        assert missing <= {"postgresql.replication", "postgresql.replication_slot"}
        table = {"table": "counted", "database": "postgres"}
        assert of(found, "postgresql.table.n_tup_ins", **table) == 1_000
        assert of(found, "postgresql.table.seq_scan", **table) >= 1
        assert of(found, "postgresql.table.size", **table) > 30_000
        assert of(found, "postgresql.index.size", index="counted_pkey") > 10_000
        assert of(found, "postgresql.database.size", database="postgres") > 1_000_000
        assert of(found, "postgresql.wal.bytes") > 0
        settings = {
            one.attributes["setting"]: one.attributes["text"] for one in found["postgresql.setting.changed"]
        }
        assert settings["max_connections"] == "60"
        assert settings["shared_buffers"] == "4096"
        assert "primary_conninfo" not in settings
        again = kept.read(connection)
        assert "postgresql.table.n_tup_ins" not in again


def test_statements_are_normalised_and_merged(make_server: Callable[..., Any]) -> None:
    """`pg_stat_statements` of any length of list is one statement; utility statements show no literal."""
    server = make_server("15", "-c", "shared_preload_libraries=pg_stat_statements")
    with server.connect() as connection:
        kept = Kept()
        kept.read(connection)
        (missing,) = [one for one in kept.capabilities.all() if one.name == "pg_stat_statements"]
        assert not missing.permitted
        assert "CREATE EXTENSION" in missing.remedy
        connection.execute('CREATE SCHEMA "My Schema"')
        connection.execute('CREATE EXTENSION pg_stat_statements SCHEMA "My Schema"')
        connection.execute("CREATE TABLE t (a int, b text)")
        for count in (1, 2, 5, 9):
            connection.execute(f"SELECT b FROM t WHERE a IN ({', '.join(map(str, range(count)))})")
        connection.execute(f"CREATE ROLE r LOGIN PASSWORD '{SECRET}'")
        connection.execute(f"SET app.key = '{SECRET}'")
        found = Kept().read(connection)
        calls = of(found, "postgresql.statement.calls", statement="select b from t where a in (?)")
        assert calls == 4
        one = next(
            reading
            for reading in found["postgresql.statement.exec_time"]
            if reading.attributes["statement"] == "select b from t where a in (?)"
        )
        assert 0 < one.value < 5
        assert one.unit == "s"
        assert (one.attributes["database"], one.attributes["user"]) == ("postgres", "postgres")
        assert SECRET not in repr(found)
        assert any(
            "create role" in reading.attributes["statement"]
            for reading in found["postgresql.statement.calls"]
        )


def test_a_role_that_may_not_see_is_told_so(make_server: Callable[..., Any]) -> None:
    """What a plain role may not read is a capability with its remedy; the rest goes on."""
    server = make_server("18")
    with server.connect() as connection:
        connection.execute("CREATE ROLE plain LOGIN")
        connection.execute("REVOKE ALL ON pg_stat_wal FROM PUBLIC")
    with server.connect(user="plain") as connection:
        kept = Kept()
        found = kept.read(connection)
        assert found["postgresql.commits"]
        held = {one.name: one for one in kept.capabilities.all()}
        assert not held["postgres_wal"].permitted
        assert "permission denied" in held["postgres_wal"].detail
        assert kept.statistics.refused == 1
        assert "postgresql.wal.bytes" not in found
