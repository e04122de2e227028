"""What a Python process runs, told by its command line: a gunicorn application, a module or a script.

Quay starts `gunicorn -c conf/gunicorn_web.py web:application` (web, registry, secscan), about thirty
`python -m workers.NAME` or `workers.NAME.NAME`, and with QUAY_HOTRELOAD these as
`gunicorn ... 'workers.NAME.NAME:create_gunicorn_worker()'`: quay/quay, conf/supervisord.conf.jnj.
setproctitle, where an application has it, leaves `gunicorn: worker [web:application]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

__all__ = ["PythonProgram", "is_interpreter", "python_program"]

_INTERPRETER = re.compile(r"(?:python|pypy)[0-9.]*[a-z]*")
_TITLE = re.compile(r"gunicorn: (master|worker) \[(.*)\]")
_APPLICATION = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*(?:\(.*\))?")
_CONFIGURATION = re.compile(r"gunicorn_(\w+)\.py")
_OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_UNFIT = re.compile(r"[^\w.@-]+")
_QUAY_APPLICATIONS = ("web", "registry", "secscan")
_WEB = "web"
_LONGEST_ROLE = 64


class PythonProgram(NamedTuple):
    """`role` is the application, background worker or script; `worker` None unless the title tells."""

    role: str
    gunicorn: bool = False
    worker: bool | None = None
    quay: bool = False


def is_interpreter(program: str) -> bool:
    """Whether an executable's name is a Python interpreter's."""
    return _INTERPRETER.fullmatch(program) is not None


def python_program(arguments: Sequence[str]) -> PythonProgram:
    """Return what a Python process runs."""
    title = _TITLE.match(" ".join(arguments))
    if title is not None:
        return _gunicorn([title[2]])._replace(worker=title[1] == "worker")
    module, script, rest = _started(arguments)
    if module == "gunicorn" or script in ("gunicorn", "gunicorn3"):
        return _gunicorn(rest)
    if module:
        return PythonProgram(_fit(_last(module)), quay=module.startswith(("workers.", "buildman.")))
    return PythonProgram(_fit(script) or "python")


def _started(arguments: Sequence[str]) -> tuple[str, str, Sequence[str]]:
    """Return the module after -m, the script's name, and the program's own arguments."""
    if not arguments:
        return "", "", ()
    if not is_interpreter(PurePosixPath(arguments[0]).name):
        return "", PurePosixPath(arguments[0].split(" ", 1)[0]).stem, arguments[1:]
    position = 1
    while position < len(arguments):
        argument = arguments[position]
        if argument in _OPTIONS_WITH_VALUE:
            position += 2
        elif argument.startswith("-") and not argument.startswith("--") and len(argument) > 1:
            for index, letter in enumerate(argument[1:], 2):
                if letter in "WX":
                    break
                if letter in "mc":
                    value = argument[index:] or "".join(arguments[position + 1 : position + 2])
                    after = arguments[position + (1 if argument[index:] else 2) :]
                    return (value, "", after) if letter == "m" else ("", "inline", after)
            position += 1
        elif argument.startswith("--"):
            position += 1
        else:
            return "", PurePosixPath(argument).stem, arguments[position + 1 :]
    return "", "", ()


def _gunicorn(arguments: Sequence[str]) -> PythonProgram:
    # The application is the last word of that form: addresses to bind have a number behind the colon.
    for argument in reversed(arguments):
        match = _APPLICATION.fullmatch(argument)
        if match is not None:
            return _application(match[1])
    for argument in arguments:
        match = _CONFIGURATION.search(argument)
        if match is not None and match[1] in _QUAY_APPLICATIONS:
            return _application(match[1])
    return PythonProgram(_WEB, gunicorn=True)


def _application(module: str) -> PythonProgram:
    background = module.startswith("workers.")
    name = _last(module)
    # As the agent names the role of its worker: what is none of Quay's three is web.
    role = name if background or name in _QUAY_APPLICATIONS else _WEB
    return PythonProgram(_fit(role), gunicorn=True, quay=background or name in _QUAY_APPLICATIONS)


def _last(module: str) -> str:
    parts = [part for part in module.split(".") if part and part != "__main__"]
    return parts[-1] if parts else ""


def _fit(role: str) -> str:
    return _UNFIT.sub("_", role)[:_LONGEST_ROLE]
