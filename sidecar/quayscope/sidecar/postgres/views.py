"""Postgres's statistics views: which columns, since which version, under which metric names.

Views and columns: PostgreSQL manual, "The Cumulative Statistics System" and "pg_stat_statements", 13 to 18.
A row of a view is first its attributes, then its values, in the order in which they stand here.
"""

from __future__ import annotations

from typing import NamedTuple

from quayscope.sidecar.measurements import Kind

__all__ = ["STATEMENTS", "VIEWS", "Value", "View"]

_ALL = 0
_NEVER = 1_000_000


class Value(NamedTuple):
    """A column: its metric's name below the view's, its SQL, and what turns it into the unit.

    `since` and `until` are of `server_version`, the end excluded: the versions that have it.
    """

    name: str
    sql: str
    unit: str = "1"
    kind: Kind = "cumulative"
    since: int = _ALL
    until: int = _NEVER
    scale: float = 1


class View(NamedTuple):
    """A view: metrics are `postgresql.PREFIX.NAME`; `attributes` are (name, SQL) pairs.

    Read every `period_s`; of its rows those that come first, at most `limit`.
    """

    prefix: str
    source: str
    attributes: tuple[tuple[str, str], ...]
    values: tuple[Value, ...]
    period_s: int = 10
    order: str = ""
    limit: int = 0
    since: int = _ALL

    def held(self, version: int) -> tuple[Value, ...]:
        """Return the values that a server of this version has."""
        return tuple(value for value in self.values if value.since <= version < value.until)

    def query(self, version: int) -> str:
        """Return the SELECT for a server of this version."""
        columns = [sql for _, sql in self.attributes] + [value.sql for value in self.held(version)]
        order = f" ORDER BY {self.order}" if self.order else ""
        limit = f" LIMIT {self.limit}" if self.limit else ""
        return f"SELECT {', '.join(columns)} FROM {self.source}{order}{limit}"  # noqa: S608 - constants of this module


def _counters(names: str, table: str = "", *, since: int = _ALL, until: int = _NEVER) -> tuple[Value, ...]:
    """Return columns by name; `table` is the alias they are asked of, with its dot."""
    return tuple(Value(name, table + name, since=since, until=until) for name in names.split())


def _seconds(names: str, *, since: int = _ALL) -> tuple[Value, ...]:
    """Return columns that are in milliseconds."""
    return tuple(Value(name, name, "s", since=since, scale=0.001) for name in names.split())


_DATABASE = View(
    "database",
    "pg_stat_database WHERE datname IS NOT NULL",
    (("database", "datname"),),
    (
        *_counters("tup_returned tup_fetched tup_inserted tup_updated tup_deleted conflicts deadlocks"),
        *_counters("temp_files checksum_failures"),
        Value("temp_bytes", "temp_bytes", "By"),
        *_seconds("blk_read_time blk_write_time"),
        *_seconds("session_time active_time idle_in_transaction_time", since=140_000),
        *_counters("sessions_abandoned sessions_fatal sessions_killed", since=140_000),
        Value("connections", "numbackends", kind="gauge"),
        Value("xid_age", "(SELECT age(datfrozenxid) FROM pg_database d WHERE d.oid = datid)", kind="gauge"),
    ),
)
_IO = View(
    "io",
    "pg_stat_io WHERE coalesce(reads, 0) + coalesce(writes, 0) + coalesce(hits, 0) > 0",
    (("backend_type", "backend_type"), ("object", "object"), ("context", "context")),
    (
        *_counters("reads writes extends hits evictions reuses fsyncs writebacks"),
        *_seconds("read_time write_time extend_time fsync_time writeback_time"),
        Value("read_bytes", "read_bytes", "By", since=180_000),
        Value("write_bytes", "write_bytes", "By", since=180_000),
    ),
    since=160_000,
)
_BACKGROUND = View(
    "background_writer",
    "pg_stat_bgwriter",
    (),
    (
        *_counters("buffers_clean maxwritten_clean buffers_alloc"),
        *_counters("buffers_backend buffers_backend_fsync", until=170_000),
    ),
)
_CHECKPOINTS_OLD = View(
    "checkpointer",
    "pg_stat_bgwriter",
    (),
    (
        Value("timed", "checkpoints_timed", until=170_000),
        Value("requested", "checkpoints_req", until=170_000),
        Value("write_time", "checkpoint_write_time", "s", until=170_000, scale=0.001),
        Value("sync_time", "checkpoint_sync_time", "s", until=170_000, scale=0.001),
        Value("buffers_written", "buffers_checkpoint", until=170_000),
    ),
)
_CHECKPOINTS = View(
    "checkpointer",
    "pg_stat_checkpointer",
    (),
    (
        Value("timed", "num_timed"),
        Value("requested", "num_requested"),
        *_seconds("write_time sync_time"),
        *_counters("buffers_written"),
    ),
    since=170_000,
)
_WAL = View(
    "wal",
    "pg_stat_wal",
    (),
    (
        Value("records", "wal_records"),
        Value("full_page_images", "wal_fpi"),
        Value("bytes", "wal_bytes", "By"),
        Value("buffers_full", "wal_buffers_full"),
        *(Value(name, f"wal_{name}", until=180_000) for name in ("write", "sync")),
        *(
            Value(name, f"wal_{name}", "s", until=180_000, scale=0.001)
            for name in ("write_time", "sync_time")
        ),
    ),
    since=140_000,
)
_REPLICATION = View(
    "replication",
    "pg_stat_replication",
    (("application", "application_name"), ("state", "state"), ("sync_state", "sync_state")),
    (
        Value("replay_lag", "extract(epoch FROM replay_lag)", "s", "gauge"),
        Value("flush_lag", "extract(epoch FROM flush_lag)", "s", "gauge"),
        Value(
            "bytes_behind",
            "CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) END",
            "By",
            "gauge",
        ),
    ),
    limit=100,
)
_SLOTS = View(
    "replication_slot",
    "pg_replication_slots WHERE NOT pg_is_in_recovery()",
    (("slot", "slot_name"), ("active", "active::text")),
    (Value("bytes_kept", "pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)", "By", "gauge"),),
    limit=100,
)
_TABLE = (("database", "current_database()"), ("schema", "s.schemaname"), ("table", "s.relname"))
_TABLES = View(
    "table",
    "pg_stat_user_tables s JOIN pg_statio_user_tables USING (relid)",
    _TABLE,
    (
        *_counters("seq_scan seq_tup_read idx_scan idx_tup_fetch", "s."),
        *_counters("n_tup_ins n_tup_upd n_tup_hot_upd n_tup_del", "s."),
        *_counters("vacuum_count autovacuum_count analyze_count autoanalyze_count", "s."),
        *_counters("heap_blks_read heap_blks_hit idx_blks_read idx_blks_hit"),
        Value("live_rows", "s.n_live_tup", kind="gauge"),
        Value("dead_rows", "s.n_dead_tup", kind="gauge"),
    ),
    order="s.seq_tup_read + coalesce(s.idx_tup_fetch, 0) + s.n_tup_ins + s.n_tup_upd + s.n_tup_del DESC",
    limit=100,
)
_INDEXES = View(
    "index",
    "pg_stat_user_indexes s",
    (*_TABLE, ("index", "s.indexrelname")),
    (
        *_counters("idx_scan idx_tup_read idx_tup_fetch", "s."),
        Value("size", "pg_relation_size(s.indexrelid)", "By", "gauge"),
    ),
    period_s=60,
    order="pg_relation_size(s.indexrelid) DESC",
    limit=200,
)
_SIZES = View(
    "table",
    "pg_stat_user_tables s",
    _TABLE,
    (
        Value("size", "pg_table_size(s.relid)", "By", "gauge"),
        Value("indexes_size", "pg_indexes_size(s.relid)", "By", "gauge"),
    ),
    period_s=60,
    order="pg_total_relation_size(s.relid) DESC",
    limit=100,
)
_DATABASE_SIZE = View(
    "database",
    "pg_database WHERE datallowconn AND has_database_privilege(datname, 'CONNECT')",
    (("database", "datname"),),
    (Value("size", "pg_database_size(oid)", "By", "gauge"),),
    period_s=60,
    limit=100,
)
_SETTINGS = View(
    "setting",
    # Of the types that hold no text: a connection string or a command may have a secret in it.
    "pg_settings WHERE vartype IN ('bool', 'integer', 'real', 'enum') AND source NOT IN ('client', 'session')"
    " AND (setting IS DISTINCT FROM boot_val OR name = ANY (ARRAY['max_connections', 'shared_buffers',"
    " 'work_mem', 'effective_cache_size', 'max_wal_size', 'random_page_cost', 'track_io_timing']))",
    (("setting", "name"), ("text", "setting"), ("unit", "coalesce(unit, '')"), ("source", "source")),
    (Value("changed", "(setting IS DISTINCT FROM boot_val)::int", kind="gauge"),),
    period_s=60,
    order="name",
    limit=200,
)
VIEWS = (
    _DATABASE,
    _IO,
    _BACKGROUND,
    _CHECKPOINTS_OLD,
    _CHECKPOINTS,
    _WAL,
    _REPLICATION,
    _SLOTS,
    _TABLES,
    _INDEXES,
    _SIZES,
    _DATABASE_SIZE,
    _SETTINGS,
)
"""Everything but the statements, which need an extension and our normaliser."""

STATEMENTS = View(
    "statement",
    "{schema}.pg_stat_statements(true) s"
    " JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.userid",
    (("query_id", "s.queryid::text"), ("database", "d.datname"), ("user", "r.rolname"), ("text", "s.query")),
    (
        *_counters("calls rows", "s."),
        Value("exec_time", "s.total_exec_time", "s", scale=0.001),
        Value("plan_time", "s.total_plan_time", "s", scale=0.001),
        *(Value(f"shared_{name}", f"s.shared_blks_{name}") for name in ("hit", "read", "dirtied", "written")),
        *(Value(f"temp_{name}", f"s.temp_blks_{name}") for name in ("read", "written")),
        Value("read_time", "s.blk_read_time", "s", until=170_000, scale=0.001),
        Value("write_time", "s.blk_write_time", "s", until=170_000, scale=0.001),
        Value("read_time", "s.shared_blk_read_time", "s", since=170_000, scale=0.001),
        Value("write_time", "s.shared_blk_write_time", "s", since=170_000, scale=0.001),
        Value("wal_bytes", "s.wal_bytes", "By"),
    ),
    order="s.total_exec_time DESC",
    limit=200,
)
"""`pg_stat_statements`, wherever the extension is installed; the texts are normalised before they go on."""
