"""Import hooks: something is done to a module right after it was imported, or at once if it has been."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Callable

from quayscope.agent.early import get_ident
from quayscope.agent.faults import guarded

__all__ = ["after_import"]

Patch = Callable[[ModuleType], None]


class _Loader:
    """The module's own loader, with the patches behind it."""

    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name

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
        for patch in _FINDER.patches.pop(self._name, ()):
            guarded(patch, module)


class _Finder:
    """Finds nothing itself: asks the other finders, and wraps the loader of the modules we wait for.

    A module that is looked for may never be loaded (`importlib.util.find_spec`), so its patches stay
    until it is.
    """

    def __init__(self) -> None:
        self.patches: dict[str, list[Patch]] = {}
        self._asking: set[tuple[str, int]] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return guarded(self._find, name, path, target)

    def _find(self, name: str, path: Any, target: Any) -> ModuleSpec | None:
        asking = (name, get_ident())
        if name not in self.patches or asking in self._asking:
            return None
        self._asking.add(asking)
        try:
            for finder in list(sys.meta_path):
                if finder is self or not hasattr(finder, "find_spec"):
                    continue
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader, name)  # type: ignore[assignment]
                    return spec
            return None
        finally:
            self._asking.discard(asking)


_FINDER = _Finder()


def after_import(name: str, patch: Patch) -> None:
    """Call `patch(module)` once the module is imported; what it raises is counted, never passed on."""
    module = sys.modules.get(name)
    if module is not None:
        guarded(patch, module)
        return
    _FINDER.patches.setdefault(name, []).append(patch)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
