"""Tokens reviewed by an API server: a server that answers as its documentation says, over real TLS."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from quayscope.collector.access import CAPTURE, WRITE, Access
from quayscope.collector.errors import Forbidden, Unauthenticated
from quayscope.collector.identity import Reviewed, TokenReviews
from schemas.closed import VERSIONS, errors

SIDECAR = "system:serviceaccount:quay:example-quay-app"


class ApiServer:
    """Answers TokenReviews strictly; `tokens` are the known ones with user and audiences."""

    def __init__(self, folder: Path) -> None:
        self.tokens: dict[str, tuple[str, list[str]]] = {}
        self.asked: list[str] = []
        self.status = 201
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.crt")
        (folder / "token").write_text("own-token\n")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/apis/authentication.k8s.io/v1/tokenreviews"
                assert self.headers["Authorization"] == "Bearer own-token"
                assert [errors(review, version) for version in VERSIONS] == [[], []]
                outer.asked.append(review["spec"]["token"])
                review["status"] = outer.review(review["spec"])
                assert errors(review, VERSIONS[0]) == []
                body = json.dumps(review).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The status of a review."""
        if spec["token"] not in self.tokens:
            return {"user": {}, "error": "token lookup failed"}
        user, audiences = self.tokens[spec["token"]]
        common = [one for one in spec["audiences"] if one in audiences]
        if not common:
            return {"user": {}, "error": "token audiences do not match"}
        extra = {"authentication.kubernetes.io/pod-name": ["quay-0"]}
        return {
            "authenticated": True,
            "audiences": common,
            "user": {"username": user, "uid": "1", "groups": ["system:serviceaccounts"], "extra": extra},
        }

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """A running API server; the account's files are in the test's folder."""
    made = ApiServer(tmp_path)
    yield made
    made.stop()


def test_tells_whose_token_it_is(api: ApiServer, tmp_path: Path) -> None:
    """A pod's token names its account and pod, and is asked for once a minute."""
    api.tokens["good"] = (SIDECAR, ["quayscope"])
    reviews = TokenReviews(address=api.address, account=tmp_path)
    assert [reviews.who("good") for _ in range(3)] == [Reviewed("quay", "example-quay-app", "quay-0")] * 3
    assert api.asked == ["good"]


def test_refuses_what_is_not_for_us(api: ApiServer, tmp_path: Path) -> None:
    """Unknown tokens, tokens for another audience, people, and what can be no token are nobody's."""
    api.tokens["other"] = (SIDECAR, ["vault"])
    api.tokens["person"] = ("kube:admin", ["quayscope"])
    reviews = TokenReviews(address=api.address, account=tmp_path)
    assert [reviews.who(token) for token in ("unknown", "other", "person")] == [None] * 3
    api.asked.clear()
    assert [reviews.who(token) for token in ("a\nb", "ü", "x" * 20_000)] == [None] * 3
    assert api.asked == []
    assert reviews.failures == 0


def test_an_answer_that_failed_is_asked_for_again(api: ApiServer, tmp_path: Path) -> None:
    """A server that cannot answer leaves a token refused and counted, until it can."""
    api.tokens["good"] = (SIDECAR, ["quayscope"])
    reviews = TokenReviews(address=api.address, account=tmp_path)
    api.status = 403
    assert reviews.who("good") is None
    assert reviews.failures == 1
    api.status = 201
    assert reviews.who("good") is not None


def test_trusts_the_cluster_alone(api: ApiServer, tmp_path: Path) -> None:
    """A server that the account's CA does not vouch for is told no token."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")
    reviews = TokenReviews(address=api.address, account=tmp_path)
    assert reviews.who("good") is None
    assert (reviews.failures, api.asked) == (1, [])


def test_an_answer_ends(api: ApiServer, tmp_path: Path) -> None:
    """A token that was good is refused once its account is gone and the answer has run out."""
    api.tokens["good"] = (SIDECAR, ["quayscope"])
    reviews = TokenReviews(address=api.address, account=tmp_path, keep_s=0.0)
    assert reviews.who("good") is not None
    api.tokens.clear()
    assert reviews.who("good") is None


def test_outside_of_a_cluster_nobody_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an API server there is nobody to ask."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert TokenReviews().who("good") is None


def test_a_pod_may_write_and_nothing_else(api: ApiServer, tmp_path: Path) -> None:
    """A reviewed token gives the scope to write; those of the file are shown to nobody."""
    (tmp_path / "tokens").write_text("me read,capture secret\n")
    api.tokens["good"] = (SIDECAR, ["quayscope"])
    access = Access(tmp_path / "tokens", TokenReviews(address=api.address, account=tmp_path))
    assert access.require("Bearer good", WRITE).name == "quay/quay-0"
    with pytest.raises(Forbidden):
        access.require("Bearer good", CAPTURE)
    with pytest.raises(Unauthenticated):
        access.require("Bearer bad", WRITE)
    assert access.require("Bearer secret", CAPTURE).name == "me"
    assert api.asked == ["good", "bad"]
