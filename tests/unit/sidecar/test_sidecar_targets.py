"""Finding servers and naming their processes by title."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from quayscope.sidecar import procfs
from quayscope.sidecar.targets import CLIENT_BACKEND, backend_type, find_postmasters, postmaster_at


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("postgres: checkpointer ", "checkpointer"),
        ("postgres: 16/main: checkpointer ", "checkpointer"),
        ("postgres: autovacuum worker quay", "autovacuum worker"),
        ("postgres: parallel worker for PID 77", "parallel worker"),
        ("postgres: io worker 1", "io worker"),
        ("postgres: logical replication launcher ", "logical replication"),
        ("postgres: quay quaydb 10.0.0.1(4711) SELECT", CLIENT_BACKEND),
        ("postgres: main: quay quaydb [local] idle in transaction", CLIENT_BACKEND),
        ("/usr/bin/postgres -D /data", None),
        ("postgres: ", None),
    ],
)
def test_titles(title: str, kind: str | None) -> None:
    """A process is what its title says; one without a title of its own is not known yet."""
    with subprocess.Popen([title], executable="/bin/cat", stdin=subprocess.PIPE) as child:
        # The kernel shows a new program's arguments a moment after it has closed our descriptors.
        deadline = time.monotonic() + 5
        while not procfs.command_line(child.pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert backend_type(child.pid) == kind
        child.communicate(b"")


def test_others_are_no_postmasters() -> None:
    """A process that is no Postgres is none, nor is one that is gone."""
    assert postmaster_at(os.getpid()) is None
    assert postmaster_at(2**22 + 7) is None
    assert find_postmasters([os.getpid(), 2**22 + 7]) == []
