"""The examination as text for a terminal, and as JSON for scripts."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

import click

from quayscope.sidecar.doctor.attempts import Attempt
from quayscope.sidecar.doctor.examination import Examination
from quayscope.sidecar.doctor.standing import Standing

__all__ = ["as_json", "as_text"]

_WORDS = {True: ("yes", "green"), False: ("no", "red"), None: ("-", "yellow")}
_NAME_WIDTH = 18


def as_json(examination: Examination) -> str:
    """Return everything; `pod_spec` is the YAML that would give what is missing."""
    standing = examination.standing._asdict()
    for name in ("effective", "bounding"):
        standing[name] = sorted(standing[name])
    return json.dumps(
        {
            "standing": standing,
            "processes": [one._asdict() for one in examination.subjects],
            "attempts": [_flat(attempt) for attempt in examination.attempts],
        },
        indent=2,
    )


def _flat(attempt: Attempt) -> dict[str, object]:
    flat = attempt._asdict()
    del flat["remedy"]
    return {**flat, **attempt.remedy._asdict()}


def as_text(examination: Examination) -> Iterator[str]:
    """Yield lines: who we are, then a table for each process and one for ourselves."""
    yield from _who(examination.standing)
    for one in examination.subjects:
        yield ""
        yield click.style(f"process {one.pid}, {one.kind}, uid {one.uid}: {one.command[:80]}", bold=True)
        for attempt in examination.attempts:
            if attempt.pid == one.pid:
                yield from _row(attempt)
    yield ""
    yield click.style("this container", bold=True)
    for attempt in examination.attempts:
        if attempt.pid == 0:
            yield from _row(attempt)


def _who(standing: Standing) -> Iterator[str]:
    yield f"uid {standing.uid}, capabilities in effect: {', '.join(sorted(standing.effective)) or 'none'}"
    if extra := standing.bounding - standing.effective:
        yield f"listed but not in effect: {', '.join(sorted(extra))}"
    yield (
        f"seccomp {standing.seccomp}, no_new_privileges {'on' if standing.no_new_privileges else 'off'}, "
        f"kernel {standing.kernel}, perf_event_paranoid {standing.perf_event_paranoid}, "
        f"kptr_restrict {standing.kptr_restrict}, yama.ptrace_scope {standing.yama_ptrace_scope}"
    )


def _row(attempt: Attempt) -> Iterator[str]:
    word, colour = _WORDS[attempt.permitted]
    answer = f"{attempt.detail} ({attempt.errno})" if attempt.errno else attempt.detail
    mark = click.style(f"{word:3}", fg=colour)
    yield f"  {mark} {attempt.name:{_NAME_WIDTH}} {attempt.call}: {answer}"
    if attempt.permitted:
        return
    remedy = attempt.remedy
    if remedy.why:
        yield textwrap.indent(f"why: {remedy.why}", " " * 8)
    if remedy.pod_spec:
        yield textwrap.indent("in the pod spec:\n" + textwrap.indent(remedy.pod_spec, "  "), " " * 8)
    if remedy.otherwise:
        yield textwrap.indent(remedy.otherwise, " " * 8)
