"""What the command line itself can refuse.

::

    quayscope.profile.Failure
    └── CliError              this package
        └── MissingExtra      a command whose packages are not installed
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = ["CliError", "MissingExtra"]


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
