"""A gunicorn whose workers have one function of the agent each replaced by one that raises.

Each worker takes the next function of the list in AGENT_TEST_FAULTS, and counts it in
AGENT_TEST_FAULTS_TAKEN; which ones really were called stands in AGENT_TEST_FAULTS_HIT.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterator
from typing import Any

import quayscope.agent

# What the host itself calls: there is nothing around it. These do nothing but call through `guarded`.
HOST_FACING = {
    "account:CpuAccount._switched",
    "cpu:CpuSampler._signalled",
    "faults:guarded",
    "border:_Application.__call__",
    "border:_Application.__getattr__",
    "hooks:_Finder.find_spec",
    "hooks:_Loader.__getattr__",
    "hooks:_Loader.create_module",
    "hooks:_Loader.exec_module",
    "thread:OwnThread._run",
    "threads:_Task.__call__",
    "threads:_Task.__getattr__",
    "threads:_Task.__repr__",
    "tracing:SpanKeeper.on_start",
    "tracing:SpanKeeper.on_end",
    "tracing:SpanKeeper._on_ending",
    "tracing:SpanKeeper.shutdown",
    "tracing:SpanKeeper.force_flush",
}
# What runs before there are workers, or on the command line.
NOT_IN_WORKERS = {"bundle", "commands", "errors", "settings"}


def functions() -> Iterator[str]:
    """Yield `module:qualified name` of each function of the agent and of the normaliser it uses."""
    names = [
        f"quayscope.agent.{found.name}"
        for found in pkgutil.iter_modules(quayscope.agent.__path__)
        if found.name not in NOT_IN_WORKERS and not found.ispkg
    ]
    for module_name in [*names, "quayscope.profile.statement", "quayscope.profile.sqltext"]:
        module = importlib.import_module(module_name)
        short = module_name.rpartition(".")[2]
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module_name:
                continue
            if inspect.isfunction(value):
                yield f"{short}:{name}"
            elif inspect.isclass(value) and not issubclass(value, tuple):
                for method, held in vars(value).items():
                    if inspect.isfunction(held) or isinstance(held, (property, staticmethod)):
                        yield f"{short}:{name}.{method}"


def break_one(target: str) -> None:
    """Replace one function by one that raises, and notes that it was called."""
    short, _, qualified = target.partition(":")
    package = "profile" if short in ("statement", "sqltext") else "agent"
    holder: Any = importlib.import_module(f"quayscope.{package}.{short}")
    *path, name = qualified.split(".")
    for part in path:
        holder = getattr(holder, part)
    held = vars(holder)[name]

    def fail(*_: Any, **__: Any) -> Any:
        if not called:
            called.append(True)
            with open(os.environ["AGENT_TEST_FAULTS_HIT"], "a") as file:
                file.write(f"{target}\n")
        raise RuntimeError(f"injected into {target}")

    called: list[bool] = []
    plain: Any = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
    broken: Any = functools.wraps(plain)(fail)
    if isinstance(held, property):
        broken = property(broken)
    elif isinstance(held, staticmethod):
        broken = staticmethod(broken)
    setattr(holder, name, broken)


def post_fork(_server: Any, worker: Any) -> None:
    """Take the next function, before the agent starts in this worker."""
    from quayscope.agent.slots import SlotLength

    # Quarter seconds, so that a worker of half a second writes.
    SlotLength.__init__.__defaults__ = (250_000_000,)
    with (
        open(os.environ["AGENT_TEST_FAULTS"]) as file,
        open(os.environ["AGENT_TEST_FAULTS_TAKEN"], "a") as taken,
    ):
        targets = file.read().splitlines()
        fcntl.flock(taken, fcntl.LOCK_EX)
        number = taken.tell()
        taken.write("x")  # one character for each that was taken
    if number < len(targets):
        break_one(targets[number])
        worker.log.info("broken: %s", targets[number])
