"""What the command line itself can refuse.

::

    quayscope.profile.Failure
    └── CliError              this package
        ├── MissingExtra      a command whose packages are not installed
        └── NotCaptured       a capture that the collector refused, or of which nothing came
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = ["CliError", "MissingExtra", "NotCaptured"]


class CliError(Failure):
    """Root of what the command line raises itself."""


class MissingExtra(CliError):
    """A command needs packages that an extra of the distribution brings."""

    exit_code = 2

    def __init__(self, command: str, extra: str, missing: str) -> None:
        super().__init__(
            f"`quayscope {command}` needs the package {missing!r}, which is not installed",
            next_step=f"pip install 'quayscope[{extra}]'",
        )


class NotCaptured(CliError):
    """A capture that the collector refused, that could not be asked for, or of which nothing came."""
