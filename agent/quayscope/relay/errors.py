"""What can go wrong in the relay.

::

    quayscope.profile.Failure
    └── RelayError            the relay cannot listen where it was told to
        └── BadDestination    nothing can be sent as it was told to (exit code 2)
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = ["BadDestination", "RelayError"]


class RelayError(Failure):
    """The relay cannot listen where it was told to."""


class BadDestination(RelayError):
    """An address, a credential or a certificate that cannot be used.

    `field` is the field of `Destination` to blame: flags and variables have names of their own for it.
    """

    exit_code = 2

    def __init__(self, message: str, field: str, *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.field = field
