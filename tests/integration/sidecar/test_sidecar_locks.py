"""Who holds the lock that a session waits for stands below its wait."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from quayscope.profile import Profile
from quayscope.sidecar.capabilities import Capabilities
from quayscope.sidecar.database import Database, DatabaseOptions

HOLDER = "held by idle in transaction: update locked set b = b + ? where a = ?"


@pytest.mark.parametrize("version", ["15", "18"])
def test_the_holder_of_a_lock_is_named(
    version: str, make_server: Callable[..., Any], until: Callable[..., Any]
) -> None:
    """A second after a wait began its holder is known, by state and statement, without a literal."""
    server = make_server(version)
    profiles: list[Profile] = []
    options = DatabaseOptions(str(server.pid), server.dsn, "db", {}, 99, 1)
    database = Database(options, Capabilities(), profiles.extend, lambda _: None)
    with server.connect() as holder, server.connect() as waiter:
        holder.execute("CREATE TABLE locked AS SELECT 4711 AS a, 0 AS b")
        holder.execute("BEGIN")
        holder.execute("UPDATE locked SET b = b + 1 WHERE a = 4711")
        thread = threading.Thread(target=waiter.execute, args=("UPDATE locked SET b = 7 WHERE a = 4711",))
        database.start()
        try:
            thread.start()
            pid = waiter.info.backend_pid
            until(lambda: database._locks.of(pid), 20.0, "the holder is known")
            # What is charged from now on has the holder in it.
            until(lambda: _ticked(database, profiles)[_WAIT, HOLDER] > 0, 20.0, "it is charged")
            holder.execute("COMMIT")
            thread.join(10)
            until(lambda: not database._locks.of(pid), 20.0, "nobody waits any more")
        finally:
            holder.execute("COMMIT")
            thread.join(10)
            database.close()
    assert database.counts()["faults"] == 0
    (statement,) = {
        stack[-3].function for one in profiles for stack, _ in one.samples if stack[-1].function == HOLDER
    }
    assert statement == "update locked set b = ? where a = ?"


_WAIT = "Lock:transactionid"


def _ticked(database: Database, profiles: list[Profile]) -> Counter[tuple[str, str]]:
    database.tick()
    return _by_stack(profiles)


def _by_stack(profiles: list[Profile]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for profile in list(profiles):
        for (stack, _), values in profile.samples.items():
            if profile.type.name == "block" and len(stack) > 2:
                found[stack[-2].function, stack[-1].function] += values[1]
    return found
