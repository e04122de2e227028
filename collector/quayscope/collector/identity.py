"""Who shows a service account's token: asked of the cluster's API server.

Format: TokenReview of authentication.k8s.io/v1; a pod's own token and CA are where every pod has them
(Kubernetes: Accessing the API from a Pod). The collector's service account needs `create` on `tokenreviews`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import ssl
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Reviewed", "TokenReviews"]

log = logging.getLogger(__name__)

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_TIMEOUT_S = 3.0
_KEEP_S = 60.0
"""How long an answer holds: a pod that is gone may push for so long after it."""
_REFUSED_S = 10.0
_MOST = 10_000
"""Answers kept; beyond it the oldest go."""
_MAX_BYTES = 1 << 20
_MAX_TOKEN = 16_384
_ACCOUNT_NAME = "system:serviceaccount:"


class Reviewed(NamedTuple):
    """A service account; `pod` is the pod that the token was made for, empty where it was made for none."""

    namespace: str
    account: str
    pod: str


class TokenReviews:
    """Has tokens reviewed, and remembers answers by the token's digest for a minute. Thread-safe.

    `address` is HOST:PORT of the API server, by default the cluster's own; `account` a folder with `token`
    and `ca.crt`. `failures` counts reviews that got no answer: those tokens are refused, and asked for again.
    """

    def __init__(
        self,
        audience: str = "quayscope",
        address: str = "",
        account: Path = _ACCOUNT,
        keep_s: float = _KEEP_S,
    ) -> None:
        host, port = (
            os.environ.get("KUBERNETES_SERVICE_HOST", ""),
            os.environ.get("KUBERNETES_SERVICE_PORT", ""),
        )
        self._address = address or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else "")
        self._account = account
        self._audience = audience
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[float, Reviewed | None]] = {}
        self.failures = 0

    def who(self, token: str) -> Reviewed | None:
        """Return whose token this is; None where it is nobody's, not for us, or not to be found out."""
        if not self._address or not token.isascii() or not token.isprintable() or len(token) > _MAX_TOKEN:
            return None
        digest = hashlib.sha256(token.encode("ascii")).digest()
        now = time.monotonic()
        with self._lock:
            until, found = self._known.get(digest, (0.0, None))
        if now < until:
            return found
        try:
            found = self._review(token)
        except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
            with self._lock:
                self.failures += 1
            log.warning("a token could not be reviewed", extra={"error": str(error)})
            return None
        with self._lock:
            self._known.pop(digest, None)
            self._known[digest] = (now + (self._keep_s if found else min(self._keep_s, _REFUSED_S)), found)
            while len(self._known) > _MOST:
                del self._known[next(iter(self._known))]
        return found

    def _review(self, token: str) -> Reviewed | None:
        # Read each time: a kubelet puts another one there every hour.
        own = (self._account / "token").read_text(encoding="ascii").strip()
        context = ssl.create_default_context(cafile=self._account / "ca.crt")
        spec = {"token": token, "audiences": [self._audience]}
        body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec})
        connection = http.client.HTTPSConnection(self._address, timeout=_TIMEOUT_S, context=context)
        try:
            headers = {"Authorization": f"Bearer {own}", "Content-Type": "application/json"}
            connection.request("POST", _PATH, body, headers)
            answer = connection.getresponse()
            content = answer.read(_MAX_BYTES)
            if answer.status not in (200, 201):
                raise ValueError(f"the API server answered {answer.status}")
        finally:
            connection.close()
        return self._read(json.loads(content)["status"])

    def _read(self, status: dict[str, Any]) -> Reviewed | None:
        # A server that knows no audiences leaves them out: then nothing says that the token is for us.
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or ()):
            return None
        user = status["user"]
        name = str(user["username"])
        namespace, colon, account = name.removeprefix(_ACCOUNT_NAME).partition(":")
        if not name.startswith(_ACCOUNT_NAME) or not colon:
            return None
        pods = (user.get("extra") or {}).get("authentication.kubernetes.io/pod-name") or [""]
        return Reviewed(namespace, account, str(pods[0]))
