"""Headers that our own pushes carry beside the standard ones."""

__all__ = ["PID_HEADER"]

PID_HEADER = "Quayscope-Pid"
"""Whose a push is, for the sidecar of the same pod: a label would make a series of each process."""
