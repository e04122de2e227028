"""Serves the built page at / and nothing outside its folder."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, send_from_directory

__all__ = ["CONTENT_SECURITY_POLICY", "STATIC", "page_blueprint"]

STATIC = Path(__file__).parent / "static"
"""Where the build puts index.html, page.js and page.css."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Names of frames and statements are untrusted text: nothing inline runs, nothing foreign loads."""

_NOT_BUILT = (
    "The page has not been built. The API under /api/v1 works without it.\n"
    "next: install the package, or run `npm ci && npm run build` in the page's frontend folder\n"
)


def page_blueprint(static: Path = STATIC) -> Blueprint:
    """Return the blueprint; answers 503 with a text where the page has not been built."""
    paths = Blueprint("page", __name__)

    @paths.get("/")
    def index() -> Response:
        if not (static / "index.html").is_file():
            return Response(_NOT_BUILT, 503, mimetype="text/plain")
        return _file("index.html")

    @paths.get("/<name>")
    def asset(name: str) -> Response:
        return _file(name)

    def _file(name: str) -> Response:
        answer = send_from_directory(static, name, max_age=0)
        answer.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return answer

    return paths
