"""Packages that come with the agent for applications that have none: OpenTelemetry, pyroscope-io.

Beside the agent's archive there may be `packages/cp312/opentelemetry`, `packages/cp312/pyroscope` and so on
for each CPython: folders as pip fills them, each named as the module that it brings. One is appended to the
path, last, where the interpreter is that one and the application has no such module: it never shadows, and
never mixes two versions of one thing.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

__all__ = ["append_packages"]

_MOST = 16


def append_packages(bundle: str, path: list[str]) -> list[str]:
    """Append to `path` what the bundle in the folder `bundle` brings and `path` lacks; returns what was.

    Without a folder nothing is: a name alone would be looked for where the application happens to run.
    """
    if not os.path.isabs(bundle):
        return []
    folder = os.path.join(bundle, "packages", "cp{}{}".format(*sys.version_info))
    try:
        names = sorted(os.listdir(folder))[:_MOST]
    except OSError:
        return []
    # Looked up on the path alone, before any is appended: nothing is imported.
    lacking = [name for name in names if name.isidentifier() and PathFinder.find_spec(name, path) is None]
    appended = [os.path.join(folder, name) for name in lacking]
    path += appended
    return appended
