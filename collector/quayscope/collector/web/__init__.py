"""The page: built files served as they are, under a content security policy that runs nothing else."""

from __future__ import annotations

from quayscope.collector.web.page import page_blueprint

__all__ = ["page_blueprint"]
