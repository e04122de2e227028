"""Found by Python through PYTHONPATH in every program of the pod; acts in gunicorn alone.

Prints nothing, shadows nothing: the agent's folder or archive is appended to sys.path, and an application's
own sitecustomize runs as it would have.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))


def _run_the_applications_own() -> None:
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    paths = [path for path in sys.path if os.path.abspath(path or os.curdir) != _here]
    spec = PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _arguments() -> "list[str]":
    arguments = getattr(sys, "orig_argv", None)
    if arguments is None:  # CPython 3.9
        with open("/proc/self/cmdline", "rb") as file:
            arguments = [os.fsdecode(argument) for argument in file.read().split(b"\0")[:-1]]
    return arguments


def _start() -> None:
    arguments = _arguments()
    if not any("gunicorn" in argument for argument in arguments) and not os.environ.get("QUAYSCOPE_PROGRAMS"):
        return  # most programs of a pod: nothing of ours is imported
    try:
        import quayscope.agent.bootstrap
    except ImportError:
        archive = os.path.join(_here, "agent.zip")
        # In a checkout or an installed package the agent's root is three folders up.
        root = (
            archive if os.path.exists(archive) else os.path.dirname(os.path.dirname(os.path.dirname(_here)))
        )
        sys.path.append(root)
        import quayscope.agent.bootstrap
    quayscope.agent.bootstrap.install(arguments)


try:
    _start()
except Exception:  # noqa: BLE001, S110 - there is no place yet where this could be said; the program must run
    pass
_run_the_applications_own()
