"""The doctor's words: what it prescribes, and for whom."""

from __future__ import annotations

import json

import click
import yaml

from quayscope.sidecar.doctor.attempts import Attempt, Remedy, refused, worked
from quayscope.sidecar.doctor.examination import NAMES, Examination
from quayscope.sidecar.doctor.report import as_json, as_text
from quayscope.sidecar.doctor.standing import Standing, read_standing, security_context
from quayscope.sidecar.doctor.subjects import Subject

PLAIN = Standing(
    uid=1000,
    gid=1000,
    effective=frozenset(),
    bounding=frozenset(),
    no_new_privileges=True,
    seccomp="filter",
    kernel="6.1",
    perf_event_paranoid=2,
    perf_event_mlock_kb=516,
    kptr_restrict=1,
    yama_ptrace_scope=None,
)
TARGET = Subject(7, 1001, "other", "server --option", "/pod/server")


def _examination(*attempts: Attempt) -> Examination:
    return Examination(PLAIN, [TARGET], list(attempts))


def test_prescribes_what_a_pod_spec_holds() -> None:
    """A fragment is YAML of a securityContext; uid 0 is asked for where runAsNonRoot would forbid it."""
    given = yaml.safe_load(security_context(PLAIN, run_as=0, add=["PERFMON"]))
    assert given == {
        "securityContext": {
            "runAsNonRoot": False,
            "runAsUser": 0,
            "capabilities": {"add": ["PERFMON"]},
        }
    }
    assert security_context(PLAIN, run_as=1000) == ""


def test_prescription_keeps_what_is_listed() -> None:
    """A list of capabilities replaces the one that is there, so it names those too."""
    listed = PLAIN._replace(uid=0, bounding=frozenset({"PERFMON", "DAC_OVERRIDE"}))
    given = yaml.safe_load(security_context(listed, run_as=0, add=["SYS_PTRACE"]))
    assert given == {"securityContext": {"capabilities": {"add": ["PERFMON", "SYS_PTRACE"]}}}


def test_capability_without_effect_is_told_apart() -> None:
    """A capability that is listed for a user who is not uid 0 is said to do nothing."""
    listed = PLAIN._replace(bounding=frozenset({"PERFMON"}))
    assert "PERFMON is listed, but" in listed.needs("PERFMON", why="refused").why
    assert PLAIN.needs("PERFMON", why="refused").why == "refused"
    in_effect = listed._replace(uid=0, effective=frozenset({"PERFMON"}))
    assert in_effect.needs("PERFMON", why="refused").why == "refused"


def test_remedy_on_one_line() -> None:
    """The running sidecar's metric has the same words on one line."""
    remedy = Remedy("why not", security_context(PLAIN, run_as=0, add=["PERFMON"]), "or otherwise")
    assert remedy.line() == (
        "securityContext.runAsNonRoot: false, securityContext.runAsUser: 0, "
        "securityContext.capabilities.add: [PERFMON], or otherwise (why not)"
    )
    assert Remedy("why not").line() == "why not"
    assert Remedy().line() == ""


def test_works_only_where_it_was_tried() -> None:
    """What was refused on one process, or tried on none, does not work."""
    yes, no = (
        worked("perf_user", "call", "opened", 7),
        refused("perf_user", "call", OSError(1, "no"), Remedy()),
    )
    nothing = Attempt("perf_user", None, 7, "call", "nothing there")
    assert _examination(yes, nothing).works("perf_user")
    assert not _examination(yes, no).works("perf_user")
    assert not _examination(nothing).works("perf_user")
    assert not _examination(yes).works("perf_kernel")


def test_text_and_json_say_the_same() -> None:
    """Both show each attempt with its answer, its reason and the lines that help."""
    remedy = Remedy("another user's", security_context(PLAIN, run_as=1001), "or otherwise")
    seen = _examination(
        worked("schedstat", "open(x)", "read", 7),
        refused("perf_user", "perf_event_open(pid 7)", OSError(13, "Permission denied"), remedy, 7),
        Attempt("ring_memory", None, 0, "mmap", "no event"),
    )
    text = click.unstyle("\n".join(as_text(seen)))
    assert "process 7, other, uid 1001: server --option" in text
    assert "yes schedstat" in text
    assert "perf_event_open(pid 7): Permission denied (EACCES)" in text
    assert "runAsUser: 1001" in text
    assert text.index("this container") < text.index("ring_memory")
    told = json.loads(as_json(seen))
    assert [attempt["permitted"] for attempt in told["attempts"]] == [True, False, None]
    assert told["attempts"][1]["pod_spec"] == remedy.pod_spec
    assert told["attempts"][1]["errno"] == "EACCES"
    assert told["standing"]["effective"] == []


def test_reads_its_own_standing() -> None:
    """This process's own user and filters are as the kernel says."""
    standing = read_standing()
    assert standing.kernel
    assert standing.seccomp in ("none", "filter")
    assert standing.effective <= standing.bounding
    assert len(NAMES) == len(set(NAMES))
