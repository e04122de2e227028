"""Import hooks: something is done to a module right after it was imported, or at once if it has been."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Callable

from quayscope.agent.faults import fault

__all__ = ["after_import"]

Patch = Callable[[ModuleType], None]


class _Loader:
    """The module's own loader, with a patch behind it."""

    def __init__(self, loader: Any, patch: Patch) -> None:
        self._loader = loader
        self._patch = patch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must find its real loader: some read their own source or data through it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _apply(self._patch, module)


class _Finder:
    """Finds nothing itself: asks the other finders, and wraps the loader of the modules we wait for."""

    def __init__(self) -> None:
        self.patches: dict[str, Patch] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        patch = self.patches.pop(name, None)
        if patch is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, patch)  # type: ignore[assignment]
                return spec
        self.patches[name] = patch
        return None


_FINDER = _Finder()


def after_import(name: str, patch: Patch) -> None:
    """Call `patch(module)` once the module is imported; what it raises is counted, never passed on."""
    module = sys.modules.get(name)
    if module is not None:
        _apply(patch, module)
        return
    _FINDER.patches[name] = patch
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _apply(patch: Patch, module: ModuleType) -> None:
    try:
        patch(module)
    except Exception as error:  # noqa: BLE001 - the border to somebody else's process
        fault(error)
