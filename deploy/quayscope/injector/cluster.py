"""What the cluster's API server says of itself, asked as the pod that this runs in.

Addresses and files are those of every pod (Kubernetes: Accessing the API from a Pod); every service account
may read `/version`.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import ssl
import threading
import time
from pathlib import Path

__all__ = ["NATIVE_SINCE", "ClusterVersion", "parse_version"]

log = logging.getLogger(__name__)

NATIVE_SINCE = (1, 29)
"""From here on restartable init containers are on by default (KEP-753)."""
_ASK_EVERY_S = 600.0
_TIMEOUT_S = 2.0
_MAX_BYTES = 65_536
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NUMBER = re.compile(r"(\d+)")


def parse_version(major: str, minor: str) -> tuple[int, int] | None:
    """Return both numbers of what `/version` says, where `minor` may end in `+`; None when they are none."""
    found = [_NUMBER.match(text) for text in (major, minor)]
    return (int(found[0][1]), int(found[1][1])) if found[0] and found[1] else None


class ClusterVersion:
    """The API server's version, asked again every ten minutes; unknown counts as old.

    `account` is a folder with `token` and `ca.crt`, `address` HOST:PORT of the API server.
    """

    def __init__(self, address: str = "", account: Path = _ACCOUNT) -> None:
        host, port = (
            os.environ.get("KUBERNETES_SERVICE_HOST", ""),
            os.environ.get("KUBERNETES_SERVICE_PORT", ""),
        )
        self._address = address or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else "")
        self._account = account
        self._lock = threading.Lock()
        self._known: tuple[int, int] | None = None
        self._due = 0.0

    def has_native_sidecars(self) -> bool:
        """Whether restartable init containers can be used."""
        with self._lock:
            if time.monotonic() >= self._due:
                # Set before asking: a failure is not asked again at once.
                self._due = time.monotonic() + _ASK_EVERY_S
                self._known = self._ask() or self._known
            return self._known is not None and self._known >= NATIVE_SINCE

    def _ask(self) -> tuple[int, int] | None:
        if not self._address:
            return None
        try:
            context = ssl.create_default_context(cafile=self._account / "ca.crt")
            token = (self._account / "token").read_text(encoding="ascii").strip()
            connection = http.client.HTTPSConnection(self._address, timeout=_TIMEOUT_S, context=context)
            try:
                connection.request("GET", "/version", headers={"Authorization": f"Bearer {token}"})
                answer = connection.getresponse()
                said = json.loads(answer.read(_MAX_BYTES)) if answer.status == 200 else {}
            finally:
                connection.close()
            found = parse_version(str(said["major"]), str(said["minor"]))
        except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
            log.warning("the API server's version is unknown", extra={"error": str(error)})
            return None
        log.info("API server", extra={"version": ".".join(map(str, found or ()))})
        return found
