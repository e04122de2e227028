"""What the collector can refuse or fail at, as one tree.

::

    quayscope.profile.Failure
    └── CollectorError            this package; `status` is its HTTP status, `code` its Connect code
        ├── BadRequest            a query or a body that does not mean anything (400)
        │   └── TooLarge          more bytes than the limits allow (413)
        ├── UnsupportedMedia      a content type or encoding this path does not take (415)
        ├── SamplersMixed         one query would sum two samplers' CPU (409)
        ├── ForeignRequest        a Host or Origin that is not this collector's (403)
        ├── Unauthenticated       no token, or an unknown one (401)
        ├── Forbidden             a token without the scope that is needed (403)
        ├── NoTarget              nothing that is attached matches what was asked for (404)
        ├── TooManyCaptures       as many captures run as may: come again (429)
        ├── Overloaded            the write queue is full: send again later (503)
        ├── StoreUnavailable      the store is closed, full or broken: send again later (503)
        ├── CannotOpenStore       the data directory cannot be used (command line, exit 3)
        ├── BadAccessFile         tokens or certificates that cannot be used (command line)
        └── CannotListen          an address cannot or may not be listened on (command line)
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = [
    "BadAccessFile",
    "BadRequest",
    "CannotListen",
    "CannotOpenStore",
    "CollectorError",
    "Forbidden",
    "ForeignRequest",
    "NoTarget",
    "Overloaded",
    "SamplersMixed",
    "StoreUnavailable",
    "TooLarge",
    "TooManyCaptures",
    "Unauthenticated",
    "UnsupportedMedia",
]


class CollectorError(Failure):
    """Root of what the collector raises: `status` for HTTP clients, `code` for Connect and gRPC."""

    status = 500
    code = "internal"


class BadRequest(CollectorError):
    """A request that cannot be understood; sending it again changes nothing."""

    status = 400
    code = "invalid_argument"


class TooLarge(BadRequest):
    """A body past the limit, compressed or not."""

    status = 413


class UnsupportedMedia(CollectorError):
    """A content type or encoding that this path does not take."""

    status = 415
    code = "invalid_argument"


class SamplersMixed(CollectorError):
    """CPU of several samplers under one service: they may have seen the same time."""

    status = 409
    code = "failed_precondition"

    def __init__(self, service: str, samplers: list[str]) -> None:
        super().__init__(
            f"service {service!r} has CPU from {len(samplers)} samplers ({', '.join(samplers)}): "
            "they may have seen the same time, so they are never summed",
            next_step=f"add match=sampler={samplers[0]}",
        )
        self.samplers = samplers


class ForeignRequest(CollectorError):
    """A request that a page of another site made a browser send."""

    status = 403
    code = "permission_denied"


class Unauthenticated(CollectorError):
    """Somebody showed no token, or one that is not known."""

    status = 401
    code = "unauthenticated"


class Forbidden(CollectorError):
    """A known token lacks the scope that the request needs."""

    status = 403
    code = "permission_denied"


class NoTarget(CollectorError):
    """Nothing that is attached matches, or there is no such thing."""

    status = 404
    code = "not_found"


class TooManyCaptures(CollectorError):
    """As many captures run as may; `retry_after` is when to come again, in seconds."""

    status = 429
    code = "resource_exhausted"

    def __init__(self, most: int, retry_after: int) -> None:
        super().__init__(f"{most} captures run already", next_step=f"come again in {retry_after} s")
        self.retry_after = retry_after


class Overloaded(CollectorError):
    """The write queue is full. Nothing was kept; sending again later can succeed."""

    status = 503
    code = "unavailable"


class StoreUnavailable(CollectorError):
    """The store could not keep or read data: closed, disk full, or not on disk in time. Send again."""

    status = 503
    code = "unavailable"


class CannotOpenStore(CollectorError):
    """The data directory is in use by another collector, unreadable, or of a newer version."""


class BadAccessFile(CollectorError):
    """A file of tokens or certificates that cannot be used; the text never holds what is in it."""

    exit_code = 2


class CannotListen(CollectorError):
    """An address is taken, malformed, or not allowed without `--insecure`."""
