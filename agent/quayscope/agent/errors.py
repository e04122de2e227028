"""What can go wrong in the agent's command line. Inside a worker the agent raises nothing.

::

    quayscope.profile.Failure
    └── AgentError            a program cannot be started with the agent, or a bundle not be written
"""

from __future__ import annotations

from quayscope.profile import Failure

__all__ = ["AgentError"]


class AgentError(Failure):
    """A program cannot be started with the agent, or a bundle cannot be written."""
