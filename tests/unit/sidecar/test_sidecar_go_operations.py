"""Operations by marker frames: the rules of the table, and Clair's own functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.profile import MEMORY, PROCESS_CPU, Attributes, Frame, Profile, Stack
from quayscope.sidecar.golang import OperationTable, clair_operations

_CORE = "github.com/quay/claircore/"
_CLAIR = "github.com/quay/clair/v4/"


def _stack(*functions: str) -> Stack:
    return tuple(Frame(function, kind="go") for function in functions)


@pytest.mark.parametrize(
    ("functions", "operation"),
    [
        (
            [
                "net/http.(*conn).serve",
                f"{_CLAIR}httptransport.(*IndexerV1).indexReport",
                f"{_CORE}libindex.(*Libindex).Index",
                f"{_CORE}indexer/controller.(*Controller).run",
                f"{_CORE}indexer/controller.checkManifest",
            ],
            "index report",
        ),
        (
            [
                "golang.org/x/sync/errgroup.(*Group).Go.func1",
                f"{_CORE}libindex.(*FetchProxy).RealizeDescriptions.(*RemoteFetchArena).fetchInto.func1",
            ],
            "index report: fetch",
        ),
        (
            [
                f"{_CORE}internal/singleflight.(*Group[...]).doCall",
                f"{_CORE}internal/cache.(*Live[go.shape.string,go.shape.int]).Get.func1",
                f"{_CORE}libindex.(*RemoteFetchArena).fetchFileForCache",
                "compress/gzip.(*Reader).Read",
                "runtime.memmove",
            ],
            "index report: fetch",
        ),
        (
            [
                f"{_CORE}indexer.(*LayerScanner).Scan.func1.1",
                f"{_CORE}indexer.(*LayerScanner).scanLayer",
                f"{_CORE}indexer.(*result).Do",
                f"{_CORE}dpkg.(*Scanner).Scan",
            ],
            "index report: scan",
        ),
        (
            [
                f"{_CORE}indexer.(*LayerScanner).scanLayer",
                f"{_CORE}datastore/postgres.(*IndexerStore).LayerScanned",
                "github.com/jackc/pgx/v5/pgxpool.(*Pool).QueryRow",
            ],
            "index report: store",
        ),
        (
            [
                f"{_CORE}indexer/controller.coalesce",
                f"{_CORE}datastore/postgres.(*IndexerStore).PackagesByLayer",
            ],
            "index report: coalesce",
        ),
        (
            [
                f"{_CLAIR}httptransport.(*MatcherV1).vulnerabilityReport",
                f"{_CORE}libindex.(*Libindex).IndexReport",
                f"{_CORE}datastore/postgres.(*IndexerStore).IndexReport",
            ],
            "index report",
        ),
        (
            [
                f"{_CORE}internal/matcher.EnrichedMatch.func3",
                f"{_CORE}datastore/postgres.(*MatcherStore).Get",
            ],
            "vulnerability report",
        ),
        ([f"{_CORE}libvuln/updates.(*Manager).driveUpdater", f"{_CORE}rhel/vex.(*Updater).Parse"], "updater"),
        (
            [
                f"{_CLAIR}httptransport.(*IndexerV1).indexReport",
                f"{_CORE}libindex.(*Libindex).DeleteManifests",
                f"{_CORE}datastore/postgres.(*IndexerStore).DeleteManifests",
            ],
            "manifest garbage collection",
        ),
        (
            [f"{_CLAIR}notifier/service.(*Notifier).Run.func1", f"{_CLAIR}notifier.(*Poller).Poll"],
            "notification",
        ),
        (["runtime/pprof.profileWriter", "compress/flate.(*Writer).Write"], "introspection"),
        (["runtime.systemstack", "runtime.gcBgMarkWorker.func2", "internal/runtime/maps.h2"], "runtime"),
        (["runtime.main", "main.main"], ""),
        (["net/http.(*conn).serve", "runtime.mallocgc"], ""),
        ([], ""),
    ],
)
def test_clairs_functions(functions: list[str], operation: str) -> None:
    """The marker nearest to the leaf decides, the longer one in a frame; what matches nothing stays so."""
    assert clair_operations().of(_stack(*functions)) == operation


def test_kernel_frames_do_not_count_for_only() -> None:
    """Where perf adds the kernel's part, the runtime is still the runtime."""
    stack = (*_stack("runtime.mcall", "runtime.futex"), Frame("do_syscall_64", kind="kernel"))
    assert clair_operations().of(stack) == "runtime"
    assert clair_operations().of((Frame("do_syscall_64", kind="kernel"),)) == ""


def test_rules_of_a_table() -> None:
    """A marker matches from one of the last path elements on, and ends at a dot or the name's end."""
    table = OperationTable("# c\n[a]\nx.F\n[b]\ny/x.F\nx.F.func1\n[-]\nz.G\n[c]\nz\n")
    assert table.operations == ["a", "b", "c"]
    assert table.of(_stack("h.org/x.F")) == "a"
    assert table.of(_stack("x.F.func2")) == "a"
    assert table.of(_stack("x.Find")) == ""
    assert table.of(_stack("h/ax.F")) == ""
    assert table.of(_stack("h/y/x.F")) == "b"
    assert table.of(_stack("q/x.F.func1")) == "b"
    assert table.of(_stack("z.H", "z.G")) == "c"
    assert table.of(_stack("x.F", "z.G")) == "a"
    assert table.of(_stack("z.G")) == ""


@pytest.mark.parametrize("text", ["x.F\n", "[a]\nx.F y\n", "[a]\nx.F\n[b]\nx.F\n", "[]\nx.F\n"])
def test_broken_tables(text: str) -> None:
    """A table that says two things, or none, is refused with its line."""
    with pytest.raises(ValueError, match="line"):
        OperationTable(text)


@given(st.lists(st.text(), max_size=5))
def test_any_name(functions: list[str]) -> None:
    """Whatever a function is called, there is an answer."""
    clair_operations().of(_stack(*functions))


def test_unattributed_samples_are_counted() -> None:
    """Values stay what they were; what has no operation is counted in samples, of memory by the stack."""
    known, unknown = _stack(f"{_CORE}indexer.(*result).Do"), _stack("main.main")
    profile = Profile(PROCESS_CPU, {"service_name": "clair-app"}, 1, 2, 3)
    profile.add(known, Attributes(pid=4), (5, 50))
    profile.add(unknown, Attributes(pid=4), (7, 70))
    profile.add(unknown, Attributes(endpoint="given"), (1, 10))
    found = clair_operations().attribute(profile)
    assert found.totals() == profile.totals()
    assert found.losses.unattributed == 7
    assert found.samples[known, Attributes(pid=4, endpoint="index report: scan")] == (5, 50)
    assert found.samples[unknown, Attributes(endpoint="given")] == (1, 10)
    memory = Profile(MEMORY, {}, 1, 2)
    memory.add(unknown, Attributes(), (9, 9, 9, 9))
    assert clair_operations().attribute(memory).losses.unattributed == 1
