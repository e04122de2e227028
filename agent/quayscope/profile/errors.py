"""What can go wrong, as one tree.

::

    Failure                     the root of every Quayscope exception; carries a next step and an exit code
    ├── ProfileError            this package
    │   ├── MalformedProfile    bytes that are not the pprof, folded or push message they claim to be
    │   ├── UnknownProfileType  a profile type outside the registry of `quayscope.profile.types`
    │   └── PushFailed          a receiver refused a push, or could not be reached
    ├── AgentError, RelayError, SidecarError, CollectorError, LoadError, CliError   one root a package
"""

from __future__ import annotations

__all__ = ["Failure", "MalformedProfile", "ProfileError", "PushFailed", "UnknownProfileType"]


class Failure(Exception):
    """Something a person must hear about: what happened, and what to do next.

    `exit_code` is what the command line ends with: 1 the thing measured failed its thresholds,
    2 usage, 3 could not run.
    """

    exit_code = 3

    def __init__(self, message: str, *, next_step: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.next_step = next_step
        if exit_code is not None:
            self.exit_code = exit_code


class ProfileError(Failure):
    """Root of what `quayscope.profile` raises."""


class MalformedProfile(ProfileError):
    """Bytes that are not the message they claim to be; the text says where reading stopped."""


class UnknownProfileType(ProfileError):
    """A profile type that is not in the registry."""


class PushFailed(ProfileError):
    """A receiver refused a push (`status` is its HTTP status) or could not be reached (`status` 0)."""

    def __init__(self, message: str, *, status: int = 0, code: str = "", next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.status = status
        self.code = code

    @property
    def retryable(self) -> bool:
        """Whether sending the same bytes again can succeed: unreachable, overloaded or broken receivers."""
        return self.status in (0, 408, 429) or self.status >= 500
