"""Gets the agent into gunicorn's workers: patches what it needs as it is imported, starts after the fork.

Imports as little as possible: this runs before the program's first line, and gevent must patch the
standard library before `threading` or `ssl` are imported.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from quayscope.agent import early  # noqa: F401 - its functions must be taken now, before gevent replaces them
from quayscope.agent.faults import guarded
from quayscope.agent.hooks import after_import
from quayscope.agent.settings import PROGRAMS, read, switched_off

if TYPE_CHECKING:
    from quayscope.agent.worker import WorkerAgent

__all__ = ["install", "wanted"]

WORKERS = {
    "gunicorn.workers.base_async": "AsyncWorker",  # gevent and eventlet
    "gunicorn.workers.gthread": "ThreadWorker",
    "gunicorn.workers.sync": "SyncWorker",
}
"""Where each worker class handles one request: the method `handle_request`."""
ROLES = frozenset(("web", "registry", "secscan"))
"""Quay's applications, by the module that gunicorn is given; the pod's variables are the same for all."""

_agent: WorkerAgent | None = None


def wanted(arguments: list[str], listed: str) -> bool:
    """Whether a program with these original arguments is one to start in: gunicorn, or a listed one.

    Read as the interpreter reads them: single letters may stand together, and the last may have a value,
    attached or apart.
    """
    names = {"gunicorn", *(name.strip() for name in listed.split(",") if name.strip())}
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--check-hash-based-pycs":
            next(rest, "")
        elif argument == "--":
            return _is_script(next(rest, ""), names)
        elif argument == "-" or not argument.startswith("-"):
            return _is_script(argument, names)
        elif not argument.startswith("--"):
            for place, letter in enumerate(argument):
                if letter not in "cmWX":
                    continue
                value = argument[place + 1 :] or next(rest, "")
                if letter == "m":
                    return value in names or value.partition(".")[0] in names
                if letter == "c":
                    return False  # a command line's code, whatever it mentions
                break
    return False


def _is_script(path: str, names: set[str]) -> bool:
    if path in names or path.rpartition("/")[2] in names:
        return True
    # gunicorn that was started by `-m` and is told to replace itself (SIGUSR2) runs its module's file.
    tails = ("/__main__.py", "/app/wsgiapp.py")
    return any(path.endswith(tail) and _is_script(path[: -len(tail)], names) for tail in tails)


def install(arguments: list[str], bundle: str = "") -> None:
    """Set the hooks in a program that is wanted; does nothing elsewhere or when switched off.

    `arguments` are the interpreter's own, the interpreter first; `bundle` is the folder that we came in.
    """
    if switched_off(os.environ) or not wanted(arguments, os.environ.get(PROGRAMS, "")):
        return
    from quayscope.agent.companions import append_packages
    from quayscope.agent.memory import watch_sessions

    guarded(append_packages, bundle, sys.path)
    watch_sessions()
    after_import("gunicorn.arbiter", _patch_arbiter)
    after_import("gunicorn.workers.base", _patch_gunicorn)


def _patch_arbiter(module: ModuleType) -> None:
    """Where the application is loaded in the master, load what workers need there too: once, and shared."""
    arbiter_class: Any = module.Arbiter
    plain = arbiter_class.setup

    def setup(self: Any, *arguments: Any, **named: Any) -> Any:
        result = plain(self, *arguments, **named)
        guarded(_preload, self)
        return result

    arbiter_class.setup = setup


def _preload(arbiter: Any) -> None:
    # Not before the application had its chance to let gevent patch these.
    if arbiter.cfg.preload_app and "threading" in sys.modules and "ssl" in sys.modules:
        from quayscope.agent import execs, psycopg, worker  # noqa: F401

        if read(os.environ).tracing:
            from quayscope.agent.tracing import load_sdk

            load_sdk()


def _patch_gunicorn(module: ModuleType) -> None:
    """Start before the worker loads its application or, with preload, before it serves."""
    worker_class: Any = module.Worker
    plain_init, plain_load = worker_class.init_process, worker_class.load_wsgi

    def init_process(self: Any, *arguments: Any, **named: Any) -> Any:
        guarded(_start, self)
        try:
            return plain_init(self, *arguments, **named)
        finally:
            guarded(_stop)

    def load_wsgi(self: Any, *arguments: Any, **named: Any) -> Any:
        result = plain_load(self, *arguments, **named)
        guarded(_loaded, self)
        return result

    worker_class.init_process = init_process
    worker_class.load_wsgi = load_wsgi


def _start(worker: Any) -> None:
    global _agent
    # Imported here: in the worker, after gevent has patched what it patches.
    import atexit

    from quayscope.agent.execs import around_exec
    from quayscope.agent.launch import find_socket
    from quayscope.agent.psycopg import patch_psycopg2
    from quayscope.agent.worker import WorkerAgent

    settings = read(os.environ)
    socket = guarded(find_socket, os.environ) or settings.socket
    agent = WorkerAgent(settings._replace(socket=socket), settings.role or _role(worker))
    after_import("psycopg2", lambda module: patch_psycopg2(module, agent.stalls))
    after_import("flask.app", _patch_flask)
    for name, worker_class in WORKERS.items():
        after_import(name, lambda module, found=worker_class: _patch_worker(module, found, agent))  # type: ignore[misc]
    around_exec(agent.before_exec, agent.after_exec)
    agent.start()
    atexit.register(lambda: guarded(_stop))
    _agent = agent


def _role(worker: Any) -> str:
    """Return Quay's name of the application that gunicorn was given, else web."""
    uri = str(getattr(getattr(worker, "app", None), "app_uri", None) or "")
    name = uri.partition(":")[0].rpartition(".")[2]
    return name if name in ROLES else "web"


def _loaded(worker: Any) -> None:
    if _agent is None:
        return
    if len(getattr(worker, "PIPE", ())) == 2:
        guarded(_agent.signals_go_to, tuple(worker.PIPE))
    if _speaks_wsgi(worker):
        _serve(worker, _agent)


def _speaks_wsgi(worker: Any) -> bool:
    """Whether this is one of gunicorn's WSGI workers: others are given an ASGI callable."""
    return any(base.__module__ in WORKERS for base in type(worker).__mro__)


def _serve(worker: Any, agent: WorkerAgent) -> None:
    application, plain_run = worker.wsgi, worker.run
    worker.wsgi = agent.border.around_application(application)

    def run(*arguments: Any, **named: Any) -> Any:
        # Only now: the application's own hooks have run, and may have set up tracing.
        guarded(agent.serve, application)
        return plain_run(*arguments, **named)

    worker.run = run


def _patch_worker(module: ModuleType, name: str, agent: WorkerAgent) -> None:
    worker_class: Any = getattr(module, name)
    worker_class.handle_request = agent.border.around_worker(worker_class.handle_request)


def _stop() -> None:
    if _agent is not None:
        _agent.stop()


def _patch_flask(module: ModuleType) -> None:
    """Note the route's rule when a request is dispatched: before that nobody knows it."""
    from quayscope.agent.context import CURRENT

    flask_class: Any = module.Flask
    plain = flask_class.full_dispatch_request

    def note_rule() -> None:
        running = CURRENT.get()
        rule = getattr(sys.modules["flask"].request, "url_rule", None)
        if running is not None and rule is not None:
            running.rule = rule.rule

    def full_dispatch_request(self: Any, *arguments: Any, **named: Any) -> Any:
        guarded(note_rule)
        return plain(self, *arguments, **named)

    flask_class.full_dispatch_request = full_dispatch_request
