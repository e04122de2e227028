"""The agent as one artefact: `sitecustomize.py` and `agent.zip`, the same bytes each time.

Every way into a program delivers these two files and no more: a folder that held our whole installation
would bring its other packages into an application that has its own.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from quayscope.agent.errors import AgentError

__all__ = ["MAX_PYTHONPATH", "cached", "contents", "write"]

MAX_PYTHONPATH = 65_536
"""Bytes in the file `pythonpath`; a longer one is not read."""

INJECT = Path(__file__).parent / "inject"
ROOT = Path(__file__).parent.parent
PACKAGES = ("profile", "agent", "relay")
COMMAND_LINE = frozenset(("bundle.py", "commands.py"))
"""Modules of `quayscope.agent` that no worker imports."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SYSTEM_CACHE = Path("/var/cache")


def contents() -> dict[str, bytes]:
    """Return the files of a bundle by name."""
    return {"sitecustomize.py": (INJECT / "sitecustomize.py").read_bytes(), "agent.zip": _archive()}


def _archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        # Before CPython 3.13 a folder without an entry of its own is no namespace package.
        archive.writestr(zipfile.ZipInfo("quayscope/", _EPOCH), b"")
        for package in PACKAGES:
            for source in sorted((ROOT / package).rglob("*.py")):
                if source.parent == INJECT or (package == "agent" and source.name in COMMAND_LINE):
                    continue
                entry = zipfile.ZipInfo(str(Path("quayscope") / source.relative_to(ROOT)), _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, source.read_bytes())
    return file.getvalue()


def write(directory: Path, pythonpath: str | None = None) -> int:
    """Write a bundle to `directory`; returns its size in bytes. Raises `AgentError`.

    `pythonpath` goes into the file of that name; without it one that lies there stays.
    """
    files = contents()
    if pythonpath is not None:
        files["pythonpath"] = os.fsencode(pythonpath) + b"\n"
        if b"\n" in files["pythonpath"][:-1] or len(files["pythonpath"]) > MAX_PYTHONPATH:
            raise AgentError(
                f"this is no PYTHONPATH: it has more than one line or {MAX_PYTHONPATH} bytes",
                next_step="give what `printenv PYTHONPATH` prints in the application's image",
                exit_code=2,
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _replace(directory / name, content)
    except OSError as error:
        raise AgentError(f"the bundle cannot be written: {error}") from error
    return sum(map(len, files.values()))


def cached() -> Path:
    """Return a folder of this user's that holds the bundle, written there once. Raises `AgentError`.

    It is named by what it holds and checked each time: a damaged one is repaired. Nobody but this user and
    root can write to it; everybody may read it, since gunicorn's workers may run under another uid.
    """
    files = contents()
    digest = hashlib.sha256(b"\0".join(files.values())).hexdigest()[:16]
    for folder in _places():
        try:
            _own(folder)
            _own(folder / f"agent-{digest}")
            _fill(folder / f"agent-{digest}", files)
        except OSError:
            continue
        return folder / f"agent-{digest}"
    raise AgentError(
        "there is no folder to keep the agent in",
        next_step="set XDG_CACHE_HOME to a folder of your own, "
        "or write it with `quayscope agent bundle DIR` and put DIR on PYTHONPATH",
    )


def _places() -> Iterator[Path]:
    """Yield where a bundle may be kept, the best first."""
    home = os.environ.get("HOME", "")
    named = (os.environ.get("XDG_CACHE_HOME", ""), f"{home}/.cache" if home else "")
    bases = [Path(base) for base in named if base.startswith("/") and os.pathsep not in base]
    if os.geteuid() == 0:
        bases.append(_SYSTEM_CACHE)
    for base in bases:
        if _safe(base):
            yield base / "quayscope"
    try:
        temporary = Path(tempfile.gettempdir())
        if _safe(temporary):
            yield temporary / f"quayscope-agent-{os.geteuid()}"
        # Somebody else may have taken that name.
        yield Path(tempfile.mkdtemp(prefix="quayscope-"))
    except OSError:
        return


def _safe(base: Path) -> bool:
    """Whether none but us and root can replace what we put there, and whoever must can reach it."""
    resolved = Path(os.path.realpath(base))
    for folder in (resolved, *resolved.parents):
        try:
            found = folder.stat()
        except FileNotFoundError:
            continue  # will be made
        except OSError:
            return False
        if found.st_uid not in (0, os.geteuid()):
            return False
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
            return False
        # Only root's workers change their uid, and root's home is often closed to others.
        if os.geteuid() == 0 and not found.st_mode & stat.S_IXOTH:
            return False
    return True


def _own(folder: Path) -> None:
    """Make a folder, or make sure that the one there is ours: no symlink, nobody else's."""
    for parent in [parent for parent in reversed(folder.parents) if not parent.exists()]:
        parent.mkdir(exist_ok=True)
        parent.chmod(0o755)
    try:
        folder.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode) or folder.lstat().st_uid != os.geteuid():
            raise
    if stat.S_IMODE(folder.lstat().st_mode) != 0o755:
        folder.chmod(0o755)


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        try:
            found = path.lstat()
            if (
                stat.S_ISREG(found.st_mode)
                and found.st_uid == os.geteuid()
                and stat.S_IMODE(found.st_mode) == 0o644
                and path.read_bytes() == content
            ):
                continue
        except OSError:
            pass  # not there, or closed to us: written anew
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    """Put a whole file in place at once: a program that starts meanwhile reads the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)  # noqa: PTH105 - mkstemp gives a string
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108
        raise
