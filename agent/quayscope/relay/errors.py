"""What can go wrong in the relay.

::

    quayscope.profile.Failure
    └── RelayError            the relay cannot listen where it was told to
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = ["RelayError"]


class RelayError(Failure):
    """The relay cannot listen where it was told to."""
