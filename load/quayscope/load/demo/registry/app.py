"""The application as gunicorn names it: `quayscope.load.demo.registry.app:app`."""

from __future__ import annotations

import os

from quayscope.load.demo.registry.application import create
from quayscope.load.demo.registry.settings import Settings

__all__ = ["app"]

app = create(Settings.from_environment(os.environ))
