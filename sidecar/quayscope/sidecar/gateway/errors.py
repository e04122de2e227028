"""What the gateway answers instead of taking a request.

::

    SidecarError
    └── Refused             an HTTP status, its reason in words
        ├── Malformed       400: the body is not what it claims to be
        ├── Foreign         403: it comes from a page of another site
        ├── NotHere         404: nothing of that name is taken
        ├── TooSlow         408: the client did not finish in time
        ├── TooLarge        413
        ├── Unsupported     415: a content type or encoding that is not taken
        ├── TooMany         429: more than the rate allows
        └── NoRoom          503: nothing is lost, send it again later
"""

from __future__ import annotations

from quayscope.sidecar.errors import SidecarError

__all__ = [
    "Foreign",
    "Malformed",
    "NoRoom",
    "NotHere",
    "Refused",
    "TooLarge",
    "TooMany",
    "TooSlow",
    "Unsupported",
]


class Refused(SidecarError):
    """A request that is not taken. `status` is HTTP's, `code` Connect's, `number` gRPC's, for OTLP.

    `retry_s` above 0: sending it again after so many seconds may help.
    """

    status, code, number, count = 500, "internal", 13, "faults"

    def __init__(self, message: str, *, retry_s: int = 0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Malformed(Refused):
    """The body is not what it claims to be."""

    status, code, number, count = 400, "invalid_argument", 3, "malformed"


class Foreign(Refused):
    """It comes from a page of another site."""

    status, code, number, count = 403, "permission_denied", 7, "foreign"


class NotHere(Refused):
    """Nothing of that name is taken."""

    status, code, number, count = 404, "not_found", 5, "not_found"


class TooSlow(Refused):
    """The client did not finish its request in time."""

    status, code, number, count = 408, "deadline_exceeded", 4, "too_slow"


class TooLarge(Refused):
    """A body or a header beyond its bound."""

    status, code, number, count = 413, "invalid_argument", 3, "too_large"


class Unsupported(Refused):
    """A content type or an encoding that is not taken."""

    status, code, number, count = 415, "invalid_argument", 3, "unsupported"


class TooMany(Refused):
    """More than the rate allows."""

    status, code, number, count = 429, "resource_exhausted", 8, "throttled"


class NoRoom(Refused):
    """There is no room now; the sender keeps what it has."""

    status, code, number, count = 503, "unavailable", 14, "no_room"
