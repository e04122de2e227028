"""Every variable that the helper process reads, one documented constant each."""

COLLECTOR = "QUAYSCOPE_COLLECTOR"
"""Address of a collector."""
PYROSCOPE = "QUAYSCOPE_PYROSCOPE"
"""Address of a Pyroscope."""
LOCK_FD = "QUAYSCOPE_LOCK_FD"
"""Descriptor of the lock that the helper holds."""
