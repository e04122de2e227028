"""The collector: receives profiles, spans and metrics, keeps them on disk, and answers questions about them.

What comes in passes the stages in this order: `receive` (bytes to entries), `store` (entries to
disk, acknowledged after the commit), `query` (pure functions over merged trees), `web` (the page);
`forward` sends the stored profiles on to a Pyroscope. `server` ties them together.
"""

from __future__ import annotations

from quayscope.collector.errors import CollectorError

__all__ = ["CollectorError"]
