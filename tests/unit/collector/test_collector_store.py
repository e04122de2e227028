"""The store by itself: transactions, refusals, duplicates, dictionaries at their limit."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from quayscope.collector.errors import CannotOpenStore, Overloaded, StoreUnavailable
from quayscope.collector.store import (
    Exemplar,
    MetricPoint,
    MetricsEntry,
    ProfileEntry,
    Store,
    Work,
    dictionaries,
    tries,
    writer,
)
from quayscope.collector.store.database import Database
from quayscope.collector.store.schema import VERSION
from quayscope.profile import PROCESS_CPU, Attributes, Frame, Profile


def work(name: str, value: int = 1, key: bytes = b"") -> Work:
    """One profile with one stack."""
    profile = Profile(PROCESS_CPU, {"service_name": "s", "sampler": "agent"}, time.time_ns(), 10**9)
    profile.add((Frame("main"), Frame(name)), Attributes(endpoint="GET /", trace_id="1" * 32), (1, value))
    return Work(100, profiles=[ProfileEntry(profile, key)])


def total(store: Store) -> int:
    """All CPU in the store."""
    row = store.reading().execute("SELECT coalesce(sum(v1), 0) FROM samples").fetchone()
    assert row is not None
    return int(row[0])


def test_one_transaction_takes_what_waits(tmp_path: Path) -> None:
    """Requests that arrive within the interval share a commit and are acknowledged after it."""
    store = Store(tmp_path)
    store.keep(work("first"))
    threads = [threading.Thread(target=store.keep, args=(work(f"f{number}", 10),)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total(store) == 201
    assert store.counters.snapshot()["commits"] <= 4
    assert store.close()


def test_keys_survive_a_restart(tmp_path: Path) -> None:
    """An entry whose key is on disk counts as a duplicate, in the same process and in the next."""
    store = Store(tmp_path)
    store.keep(work("a", 5, b"k" * 16))
    store.keep(work("a", 5, b"k" * 16))
    store.close()
    store = Store(tmp_path)
    store.keep(work("a", 5, b"k" * 16))
    assert total(store) == 5
    assert store.counters.snapshot()["duplicates"] == 1
    store.close()


def test_a_full_dictionary_refuses_one_and_keeps_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile that needs a new node is refused by name; known stacks are stored, before and after."""
    monkeypatch.setattr(tries, "MAX_NODES", 3)
    store = Store(tmp_path)
    assert store.keep(work("a")) == []
    both = work("new")
    both.profiles += work("a", 7).profiles
    (text,) = store.keep(both)
    assert "3 distinct stack prefixes" in text
    assert total(store) == 8
    assert store.counters.snapshot()["refused"] == 1
    store.close()
    store = Store(tmp_path)
    assert store.keep(work("a")) == []
    store.close()


def test_a_full_queue_refuses_and_a_closed_store_does_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overload and stopping are errors that say: send again."""
    monkeypatch.setattr(writer, "QUEUE_REQUESTS", 0)
    store = Store(tmp_path)
    with pytest.raises(Overloaded):
        store.keep(work("a"))
    assert store.counters.snapshot()["overloaded"] == 1
    store.close()
    with pytest.raises(StoreUnavailable):
        store.keep(work("a"))
    with pytest.raises(StoreUnavailable):
        store.reading()


def test_a_reader_survives_opening_again(tmp_path: Path) -> None:
    """After an invalidated database was opened again the same thread reads on, and writes go on."""
    store = Store(tmp_path)
    store.keep(work("a", 3))
    assert total(store) == 3
    store._database.reopen()
    assert total(store) == 3
    store.keep(work("b", 4))
    assert total(store) == 7
    store.close()


def test_a_failed_transaction_is_put_back_and_told(tmp_path: Path) -> None:
    """A fault amid a transaction fails its clients; nothing of it is stored, and the next one is whole."""
    store = Store(tmp_path)
    store.keep(work("a", 3, b"a" * 16))
    store.reading().execute("ALTER TABLE samples RENAME TO away")
    with pytest.raises(StoreUnavailable):
        store.keep(work("b", 4, b"b" * 16))
    counts = store.counters.snapshot()
    assert (counts["commit_failures"], counts["refused"], counts["stored"]) == (3, 1, 1)
    store.reading().execute("ALTER TABLE away RENAME TO samples")
    store.keep(work("b", 4, b"b" * 16))
    assert (total(store), store.counters.snapshot()["duplicates"]) == (7, 0)
    store.close()
    store = Store(tmp_path)
    assert (total(store), len(store.dictionaries.tries.node_parent)) == (7, 4)
    store.close()


def test_work_put_back_is_stored_when_the_fault_passes(tmp_path: Path) -> None:
    """A fault shorter than the retries costs the client nothing but time."""
    store = Store(tmp_path)
    store.keep(work("a", 3))
    store.reading().execute("ALTER TABLE samples RENAME TO away")
    waiting = threading.Thread(target=store.keep, args=(work("b", 4),))
    waiting.start()
    deadline = time.monotonic() + 5
    while not store.counters.snapshot()["commit_failures"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    store.reading().execute("ALTER TABLE away RENAME TO samples")
    waiting.join(5)
    assert (total(store), store.counters.snapshot()["refused"]) == (7, 0)
    store.close()


def test_a_store_of_another_version_is_not_opened(tmp_path: Path) -> None:
    """It is refused with a next step, and left as it was."""
    database = Database(tmp_path)
    database.writing().execute(f"UPDATE meta SET version = {VERSION + 1}")
    database.close()
    with pytest.raises(CannotOpenStore) as refused:
        Store(tmp_path)
    assert "--data" in refused.value.next_step


def measured(name: str, exemplars: int) -> Work:
    """One histogram point with exemplars."""
    one = Exemplar(10**18, 0.5, b"\x01" * 16, b"", (("why", "slow"),))
    point = MetricPoint(name, "s", "delta histogram", (), 10**18, 1.0, 2, (0.5,), (1, 1), (one,) * exemplars)
    return Work(100, metrics=[MetricsEntry([point], name.encode())])


def test_a_store_of_version_1_gets_what_came_since(tmp_path: Path) -> None:
    """It is opened with all it holds, can keep exemplars from now on, and is not upgraded twice."""
    store = Store(tmp_path)
    store.keep(work("a", 5, b"k" * 16))
    store.keep(measured("before", 0))
    store.close()
    older = Database(tmp_path)
    older.writing().execute("DROP TABLE exemplars")
    for table in ("profiles", "messages"):
        for column in ("clock_offset_ns", "clock_error_ns"):
            older.writing().execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    older.writing().execute("UPDATE meta SET version = 1")
    older.close()
    for name in ("first", "second"):
        store = Store(tmp_path)
        store.keep(work("a", 5, b"k" * 16))
        store.keep(measured(name, 2))
        store.close()
    reading = Database(tmp_path)
    query = reading.writing().execute
    assert query("SELECT version FROM meta").fetchall() == [(VERSION,)]
    assert query("SELECT sum(v1) FROM samples").fetchall() == [(5,)]
    assert query("SELECT count(*) FROM exemplars").fetchall() == [(4,)]
    assert query("SELECT count(*) FROM points").fetchall() == [(3,)]
    # Of what came before, and of what says nothing, the sender's clock is not known.
    assert query("SELECT DISTINCT clock_offset_ns, clock_error_ns FROM profiles").fetchall() == [(0, -1)]
    reading.close()


def test_exemplars_share_the_fate_of_their_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored with it once, refused with it when its series is not taken, and counted either way."""
    monkeypatch.setattr(dictionaries, "MAX_SERIES", 1)
    store = Store(tmp_path)
    store.keep(measured("a", 2))
    store.keep(measured("a", 2))
    store.keep(measured("b", 3))
    counts = store.counters.snapshot()
    assert (counts["exemplars_stored"], counts["exemplars_refused"]) == (2, 3)
    rows = store.reading().execute("SELECT ts, value, span, trace_high, attributes FROM exemplars").fetchall()
    assert rows == [(10**18, 0.5, 0, 0x0101010101010101, '{"why":"slow"}')] * 2
    store.close()


def test_a_file_that_is_no_store_is_not_opened(tmp_path: Path) -> None:
    """Other bytes under the store's name are refused."""
    (tmp_path / "quayscope.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(CannotOpenStore):
        Store(tmp_path)


def test_the_data_directory_is_private(tmp_path: Path) -> None:
    """Others on the machine cannot read profiles."""
    store = Store(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    store.close()
