"""Go's pprof conventions for every attached pod: `/targets/POD/debug/pprof/...`.

Whatever reads a Go program's profiles (`go tool pprof`, Grafana Alloy, Parca) reads Python and Postgres here
as if they were Go. Source of the conventions: Go's net/http/pprof.
"""

from __future__ import annotations

from html import escape

from flask import Blueprint, Response, g, request

from quayscope.collector.control.captures import GRACE_S, Captures
from quayscope.collector.control.http import refusal
from quayscope.collector.control.hub import Hub, Session
from quayscope.collector.control.kept import KeptCaptures
from quayscope.collector.control.request import ALL, LONGEST_S, CaptureRequest
from quayscope.collector.errors import BadRequest, CollectorError, NoTarget, StoreUnavailable

__all__ = ["pprof_blueprint"]

_ENDPOINTS = {
    "profile": ("process_cpu", ALL, 30, "CPU: Python stacks, Postgres with its statements, Go"),
    "block": ("block", ALL, 10, "time spent blocked: database waits, statements that workers wait for"),
    "mutex": ("mutex", ("go",), 10, "contended mutexes of Go programs"),
    "heap": ("memory", ("memory",), 1, "memory of Go programs"),
    "allocs": ("memory", ("memory",), 10, "the same, of a longer time"),
    "goroutine": ("goroutine", ("go",), 1, "goroutines of Go programs"),
}
"""By name: profile type, kinds of capture, seconds by default, and what it is."""
_NOT_HERE = ("cmdline", "symbol", "trace", "threadcreate")


def pprof_blueprint(captures: Captures, kept: KeptCaptures, hub: Hub) -> Blueprint:
    """Return the blueprint; its errors are plain text, as Go's are."""
    paths = Blueprint("pprof", __name__, url_prefix="/targets")

    @paths.errorhandler(CollectorError)
    def refused(error: CollectorError) -> tuple[str, int, dict[str, str]]:
        answer, status, headers = refusal(error)
        step = f"\nnext: {answer['next_step']}" if answer["next_step"] else ""
        return f"{answer['error']}{step}\n", status, {"Content-Type": "text/plain; charset=utf-8", **headers}

    @paths.get("/")
    def index() -> Response:
        rows = [
            f'<li><a href="{escape(session.name, quote=True)}/debug/pprof/">{escape(session.name)}</a> '
            f"({len(session.targets)} targets)</li>"
            for session in hub.sessions()
        ]
        return _page("Targets", f"<ul>{''.join(rows) or '<li>no pod is attached</li>'}</ul>")

    @paths.get("/<path:pod>/debug/pprof/")
    def of_pod(pod: str) -> Response:
        session = _session(pod)
        profiles = "".join(
            f'<li><a href="{name}?seconds={seconds}">{name}</a>: {escape(what)}</li>'
            for name, (_, _, seconds, what) in _ENDPOINTS.items()
        )
        targets = "".join(
            f"<li>{target.pid} {escape(target.kind)} "
            f"{escape(' '.join(f'{name}={value}' for name, value in sorted(target.labels.items())))}</li>"
            for target in session.targets
        )
        return _page(
            session.name, f"<ul>{profiles}</ul><p>Targets (add pid=N for one):</p><ul>{targets}</ul>"
        )

    @paths.get("/<path:pod>/debug/pprof/<name>")
    def profile(pod: str, name: str) -> Response:
        if name not in _ENDPOINTS:
            why = "not served for pods" if name in _NOT_HERE else "not known"
            raise NoTarget(f"{name[:40]!r} is {why}", next_step=f"use {', '.join(_ENDPOINTS)}")
        kind, kinds, default, _ = _ENDPOINTS[name]
        session = _session(pod)
        labels = {
            label: session.register.labels[label]
            for label in ("namespace", "pod")
            if label in session.register.labels
        }
        asked = CaptureRequest(
            labels,
            tuple(_number("pid", 0, 1 << 31) for _ in range("pid" in request.args)),
            request.args.get("endpoint", ""),
            _number("seconds", default, LONGEST_S),
            _number("rate", 99, 999),
            kinds,
        )
        capture = captures.begin(asked, g.who)
        if not capture.wait(asked.seconds + GRACE_S + 5):
            captures.cancel(capture.name, "the collector")
            raise StoreUnavailable("the capture did not end in time")
        data = kept.profile(capture.name, f"{kind}.pprof")
        if data is None:
            failed = [one["error"] for one in capture.shown()["failed"]]
            said = "; ".join(failed[:5]) or f"nothing of this type was seen in {asked.seconds} s"
            raise NoTarget(f"no profile: {said}")
        answer = Response(data, mimetype="application/octet-stream")
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        answer.headers["X-Quayscope-Capture"] = capture.name
        return answer

    def _session(pod: str) -> Session:
        for session in hub.sessions():
            if pod in (session.name, session.pod):
                return session
        raise NoTarget(f"no pod {pod[:80]!r} is attached", next_step="GET /targets/ lists them")

    return paths


def _number(name: str, default: int, most: int) -> int:
    text = request.args.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= most):
        raise BadRequest(f"{name}={text[:40]!r} is not a whole number from 1 to {most}")
    return int(text)


def _page(title: str, body: str) -> Response:
    text = f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    return Response(f"{text}<h1>{escape(title)}</h1>{body}</html>\n", mimetype="text/html")
