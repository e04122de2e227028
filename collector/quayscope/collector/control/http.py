"""Captures over HTTP, as docs/now.md describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from quayscope.collector.control.captures import Captures
from quayscope.collector.control.hub import Hub
from quayscope.collector.control.kept import KeptCaptures
from quayscope.collector.control.request import read_rate, read_request
from quayscope.collector.errors import BadRequest, CollectorError, NoTarget, TooManyCaptures
from quayscope.collector.receive.body import read
from quayscope.collector.render import FORMATS
from quayscope.collector.render.page import policy
from quayscope.profile import pprof, split_type_id
from quayscope.profile.errors import UnknownProfileType

__all__ = ["captures_blueprint", "refusal"]

_MAX_BODY = 64 << 10
_MOST_WATCHERS = 8
"""Streams of progress at once: each holds a thread that others wait for."""


def refusal(error: CollectorError) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return the answer to what was refused."""
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, TooManyCaptures) else {}
    return {"error": str(error), "next_step": error.next_step}, error.status, headers


def captures_blueprint(captures: Captures, kept: KeptCaptures, hub: Hub, pyroscope: str = "") -> Blueprint:
    """Return the blueprint. `pyroscope` is where the continuous profiles are forwarded to, for links."""
    paths = Blueprint("captures", __name__, url_prefix="/api/v1")
    watchers = _Watchers()

    @paths.errorhandler(CollectorError)
    def refused(error: CollectorError) -> tuple[dict[str, Any], int, dict[str, str]]:
        return refusal(error)

    @paths.errorhandler(HTTPException)
    def not_found(error: HTTPException) -> tuple[dict[str, str], int]:
        return {"error": error.description or error.name, "next_step": "see docs/now.md"}, error.code or 400

    @paths.get("/targets")
    def targets() -> Response:
        return jsonify(
            pods=[
                {
                    "pod": session.name,
                    "labels": dict(session.register.labels),
                    "version": session.register.version,
                    "permitted": list(session.register.permitted),
                    "kinds": list(session.register.kinds),
                    "clock_offset": session.offset_ns / 1e9,
                    "round_trip": session.round_trip_ns / 1e9,
                    "since": session.since,
                    "targets": [
                        {"pid": target.pid, "kind": target.kind, "labels": dict(target.labels)}
                        for target in session.targets
                    ],
                }
                for session in hub.sessions()
            ]
        )

    @paths.post("/sampling")
    def sampling() -> tuple[Response, int]:
        asked, rate = read_rate(_document())
        return jsonify(pods=captures.set_rate(asked, rate, g.who)), 202

    @paths.post("/captures")
    def begin() -> tuple[Response, int, dict[str, str]]:
        capture = captures.begin(read_request(_document()), g.who)
        place = f"/api/v1/captures/{capture.name}"
        return (
            jsonify(id=capture.name, start=capture.start_ns / 1e9, end=capture.end_ns / 1e9),
            202,
            {"Location": place},
        )

    @paths.get("/captures")
    def listed() -> Response:
        return jsonify(captures=captures.all())

    @paths.get("/captures/<name>")
    def one(name: str) -> Response:
        return jsonify(_linked(_about(name)))

    @paths.delete("/captures/<name>")
    def cancel(name: str) -> tuple[str, int]:
        if not captures.cancel(name, g.who):
            _about(name)  # 404 where there is none at all
        return "", 204

    @paths.get("/captures/<name>/events")
    def events(name: str) -> Response:
        capture = captures.active(name)
        progress = capture.progress() if capture is not None else iter([_about(name)])
        return Response(
            watchers.watch(_event(_linked(shown)) for shown in progress),
            mimetype="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )

    @paths.get("/captures/<name>/result")
    def result(name: str) -> Response:
        about = _about(name)
        if "end" in about and about["state"] == "running":
            raise BadRequest("the capture is not over", next_step=f"GET /api/v1/captures/{name}/events")
        wanted = request.args.get("format", "pprof")
        if wanted not in FORMATS:
            raise BadRequest(f"format {wanted[:40]!r}", next_step=f"use {', '.join(FORMATS)}")
        kind, column, file = _file(about, request.args.get("type", ""), request.args.get("pod", ""))
        if request.args.get("when", "") == "before":
            file = f"before-{kind}.pprof"
        data = kept.profile(name, file)
        if data is None:
            raise NoTarget(f"the capture has no profile of type {kind}", next_step="see its types")
        form = FORMATS[wanted]
        if wanted != "pprof":
            data = form.render(pprof.decode(data, name=kind), column, f"{kind}, capture {name}")
        answer = Response(data, mimetype=form.media)
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}-{kind}.{form.suffix}"'
        if wanted == "html":
            answer.headers["Content-Security-Policy"] = policy()
        return answer

    def _document() -> Any:
        body = read(request.environ["wsgi.input"], request.content_length or 0, _MAX_BODY)
        try:
            return json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise BadRequest("the body is not JSON", next_step='send {"selector": {...}}') from error

    def _about(name: str) -> dict[str, Any]:
        about = captures.shown(name)
        if about is None:
            raise NoTarget(f"there is no capture {name[:40]!r}", next_step="GET /api/v1/captures lists them")
        return about

    def _linked(about: dict[str, Any]) -> dict[str, Any]:
        if not pyroscope:
            return about
        services = sorted({part["labels"].get("service_name", "") for part in about.get("parts", ())} - {""})
        links = {service: _pyroscope_link(pyroscope, service, about) for service in services}
        return {**about, "pyroscope": links}

    return paths


def _file(about: dict[str, Any], wanted: str, pod: str) -> tuple[str, int, str]:
    """Return the type, column and file name of a result."""
    types = about.get("types", {})
    name = wanted or ("process_cpu" if "process_cpu" in types or not types else sorted(types)[0])
    try:
        kind, column = split_type_id(name)
    except UnknownProfileType as error:
        raise BadRequest(str(error)[:300], next_step=error.next_step) from error
    if not pod:
        return kind.name, column, f"{kind.name}.pprof"
    pods = about.get("pods_with_profiles", [])
    if pod not in pods:
        raise NoTarget(
            f"the capture has nothing of pod {pod[:80]!r}", next_step=f"use one of {', '.join(pods)}"
        )
    return kind.name, column, f"pod{pods.index(pod)}-{kind.name}.pprof"


def _pyroscope_link(base: str, service: str, about: dict[str, Any]) -> str:
    query = {
        "query": f'process_cpu:cpu:nanoseconds:cpu:nanoseconds{{service_name="{service}"}}',
        "from": int(about["start"]),
        "until": int(about["end"]) + 1,
    }
    return f"{base.rstrip('/')}/?{urlencode(query)}"


def _event(shown: dict[str, Any]) -> bytes:
    name = "end" if shown["state"] != "running" else "progress"
    return f"event: {name}\ndata: {json.dumps(shown)}\n\n".encode()


class _Watchers:
    """Bounds how many streams of progress there are."""

    def __init__(self) -> None:
        self._count = 0

    def watch(self, events: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the events; raises `TooManyCaptures` when too many watch."""
        if self._count >= _MOST_WATCHERS:
            raise TooManyCaptures(_MOST_WATCHERS, 5)
        return self._counted(events)

    def _counted(self, events: Iterator[bytes]) -> Iterator[bytes]:
        self._count += 1
        try:
            yield from events
        finally:
            self._count -= 1
