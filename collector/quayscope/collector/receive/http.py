"""The receiving paths over HTTP: push.v1 by Connect, /ingest, OTLP."""

from __future__ import annotations

from io import BytesIO

from flask import Blueprint, Request, Response, request
from werkzeug.exceptions import HTTPException

from quayscope.collector.errors import BadRequest, CollectorError, UnsupportedMedia
from quayscope.collector.receive.body import read
from quayscope.collector.receive.receiver import Receiver
from quayscope.profile.clock import CLOCK_HEADER, ClockEstimate
from quayscope.profile.push import PUSH_PATH

__all__ = ["receive_blueprint"]

_PROTOBUF = ("application/proto", "application/x-protobuf", "application/protobuf")
_CODES = {404: "not_found", 405: "unimplemented", 413: "invalid_argument", 415: "invalid_argument"}


def receive_blueprint(receiver: Receiver) -> Blueprint:
    """Return the blueprint; its errors are `{"code", "message"}` as Connect has them."""
    paths = Blueprint("receive", __name__)

    def raw() -> bytes:
        chunked = bool(request.environ.get("wsgi.input_terminated"))
        try:
            return read(request.environ["wsgi.input"], None if chunked else request.content_length or 0)
        except CollectorError:
            receiver.unreadable()
            raise

    def body() -> bytes:
        return receiver.unpacked(raw(), request.headers.get("Content-Encoding", ""))

    def clock() -> ClockEstimate | None:
        return receiver.clock(request.headers.get(CLOCK_HEADER, ""))

    def otlp_body() -> bytes:
        if _media(request) not in _PROTOBUF:
            raise UnsupportedMedia(
                f"content type {_media(request)[:60]!r} is not taken", next_step="send application/x-protobuf"
            )
        return body()

    @paths.errorhandler(CollectorError)
    def refused(error: CollectorError) -> tuple[dict[str, str], int]:
        return {"code": error.code, "message": str(error)}, error.status

    @paths.errorhandler(HTTPException)
    def not_http(error: HTTPException) -> tuple[dict[str, str], int]:
        status = error.code or 400
        code = _CODES.get(status, "invalid_argument" if status < 500 else "internal")
        return {"code": code, "message": error.description or error.name}, status

    @paths.post(PUSH_PATH)
    def push() -> Response:
        is_json = _media(request) == "application/json"
        if not is_json and _media(request) not in _PROTOBUF:
            raise UnsupportedMedia(
                f"content type {_media(request)[:60]!r} is not taken",
                next_step="send application/proto or JSON",
            )
        answer = receiver.push(body(), is_json=is_json, clock=clock())
        return Response(answer, mimetype="application/json" if is_json else "application/proto")

    @paths.post("/ingest")
    def ingest() -> Response:
        # The parameters are bounded by the server's limit on header bytes.
        query = request.args.to_dict()
        if _media(request) == "multipart/form-data":
            # The form's parser gets the body that was read whole: its own reading has no such check.
            whole = raw()
            parsed = {"wsgi.input": BytesIO(whole), "CONTENT_LENGTH": str(len(whole))}
            upload = Request({**request.environ, **parsed}).files.get("profile")
            if upload is None:
                raise BadRequest("the form has no file `profile`")
            receiver.ingest(query, receiver.unpacked(upload.read()), pprof=True)
            return Response("", 200)
        data = body()
        form = query.get("format", "")
        if form not in ("", "pprof", "folded", "groups", "collapsed"):
            raise BadRequest(f"format {form[:40]!r} is not taken", next_step="send pprof or folded")
        # Without a format the content type tells; folded text is what the oldest clients send bare.
        pprof = form == "pprof" or (not form and _is_pprof(_media(request), data))
        receiver.ingest(query, data, pprof=pprof)
        return Response("", 200)

    @paths.post("/v1/traces")
    def traces() -> Response:
        return Response(receiver.traces(otlp_body(), clock()), mimetype="application/x-protobuf")

    @paths.post("/v1/metrics")
    def metrics() -> Response:
        return Response(receiver.metrics(otlp_body(), clock()), mimetype="application/x-protobuf")

    return paths


def _media(incoming: Request) -> str:
    return (incoming.mimetype or "").lower()


def _is_pprof(media: str, body: bytes) -> bool:
    # A pprof begins with its sample types (field 1, length-delimited); folded text never with a newline.
    return media in (*_PROTOBUF, "application/octet-stream", "binary/octet-stream+pprof") or body[:1] == b"\n"
