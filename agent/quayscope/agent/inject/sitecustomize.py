"""Found by Python through PYTHONPATH in every program of the pod; acts in gunicorn alone.

Prints nothing, shadows nothing: the agent's archive is appended to sys.path, and an application's own
sitecustomize runs as it would have. Where PYTHONPATH was set to reach this file, and so replaced the one of
the container's image, a file `pythonpath` beside it says what that was, and every program gets it back.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
_LONGEST = 65536


def _absolute(entry: str) -> str:
    """As the module `site` does it: an empty entry is the current folder."""
    try:
        return os.path.abspath(entry)
    except OSError:  # the current folder is gone
        return entry


def _put_back() -> None:
    """Put the image's PYTHONPATH where Python would have, and into the variable for child programs."""
    try:
        file = os.open(os.path.join(_here, "pythonpath"), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        content = os.read(file, _LONGEST + 1)
    finally:
        os.close(file)
    text = os.fsdecode(content.partition(b"\n")[0].rstrip(b"\r"))
    if not text or len(content) > _LONGEST or "\0" in text:
        return
    entries = text.split(os.pathsep)
    variable = os.environ.get("PYTHONPATH", "")
    there = variable.split(os.pathsep) if variable else []

    first = [_absolute(entry) for entry in there]
    place = 0
    while place < len(sys.path) and sys.path[place] in first:
        place += 1
    for path in map(_absolute, entries):
        if path in sys.path[:place]:
            continue
        if path in sys.path:  # a folder of packages that comes again behind the standard library
            sys.path.remove(path)
        sys.path.insert(place, path)
        place += 1

    for entry in entries:
        if entry not in there:
            there.append(entry)
    os.environ["PYTHONPATH"] = os.pathsep.join(there)


def _arguments() -> "list[str]":
    arguments = getattr(sys, "orig_argv", None)
    if arguments is None:  # CPython 3.9
        with open("/proc/self/cmdline", "rb") as file:
            arguments = [os.fsdecode(argument) for argument in file.read().split(b"\0")[:-1]]
    return arguments


def _root() -> str:
    """Where the agent's packages are: the archive, or the source tree that this file lies in."""
    archive = os.path.join(_here, "agent.zip")
    if os.path.exists(archive):
        return archive
    root = os.path.dirname(os.path.dirname(os.path.dirname(_here)))
    if os.path.basename(root) == "agent" and os.path.exists(os.path.join(root, "..", "pyproject.toml")):
        return root
    # An installation's folder holds other packages, which are not this application's.
    raise FileNotFoundError(archive)


def _start() -> None:
    if sys.version_info < (3, 9) or "quayscope.agent.bootstrap" in sys.modules:
        return  # another interpreter of the pod, or a second copy of this file on the path
    arguments = _arguments()
    if not any("gunicorn" in argument for argument in arguments) and not os.environ.get("QUAYSCOPE_PROGRAMS"):
        return  # most programs of a pod: nothing of ours is imported
    try:
        import quayscope.agent.bootstrap
    except ImportError:
        sys.path.append(_root())
        import quayscope.agent.bootstrap
    quayscope.agent.bootstrap.install(arguments, _here)


def _run_the_applications_own() -> None:
    """Import the `sitecustomize` that Python would have found without ours; what it raises is its own."""
    ours = sys.modules.pop(__name__)
    mine = [path for path in sys.path if _absolute(path) == _here]
    place = sys.path.index(mine[0]) if mine else 0
    for path in mine:
        sys.path.remove(path)
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
        sys.modules[__name__] = ours
    finally:
        sys.path[place:place] = mine


for _step in (_put_back, _start):
    try:
        _step()
    except Exception:  # noqa: BLE001, S110 - nobody to tell yet; the program must run
        pass
_run_the_applications_own()
