"""Builds the page's script and style when the package is built.

Takes npm where there is one; else Node from PyPI, so that a machine without Node installs
Quayscope all the same. The work is done by `build_page.py` beside the page's sources.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WEB = Path("collector/quayscope/collector/web")


class AssetsBuildHook(BuildHookInterface):  # type: ignore[type-arg] # its configuration is untyped upstream
    """Puts the built page among the package's files."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        page = self._builder()
        return [] if page.fresh() or page.system_npm() else [page.NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # The output is git-ignored, which would keep it out of the package.
        build_data.setdefault("artifacts", []).append(f"/{WEB}/static/*")
        page = self._builder()
        try:
            page.build()
        except page.PageBuildFailed as error:
            raise SystemExit(f"error: {error}") from error

    def _builder(self) -> ModuleType:
        path = Path(self.root) / WEB / "frontend" / "build_page.py"
        spec = importlib.util.spec_from_file_location("build_page", path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"error: {path} is missing from the source tree")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
