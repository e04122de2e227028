"""The security report of a manifest: its packages against all advisories, in plain Python."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from flask import Blueprint, jsonify

from quayscope.load.demo.registry.repositories import find
from quayscope.load.demo.registry.services import refuse, services

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue

__all__ = ["Advisory", "Package", "blueprint", "match_all", "match_by_name", "packages_of"]

blueprint = Blueprint("security", __name__, url_prefix="/api/v1/repository")

PACKAGES = 180


class Package(NamedTuple):
    """A package of an image."""

    name: str
    version: str


class Advisory(NamedTuple):
    """What is known of a package's versions before `fixed_in`."""

    name: str
    package: str
    fixed_in: str
    severity: str


def packages_of(digest: str) -> list[Package]:
    """Return the packages of an image. The demo's layers hold none: they follow from the digest."""
    noise = hashlib.shake_128(digest.encode()).digest(PACKAGES * 2)
    return [
        Package(f"package{number}", f"{noise[2 * number] % 5}.{noise[2 * number + 1] % 20}.0")
        for number in range(PACKAGES)
    ]


def match_all(packages: Iterable[Package], advisories: Sequence[Advisory]) -> list[tuple[Package, Advisory]]:
    """Weak spot `cpu_heavy`: take every version apart again for every pair, then look at the names."""
    return [
        (package, advisory)
        for package in packages
        for advisory in advisories
        if _version(package.version) < _version(advisory.fixed_in) and package.name == advisory.package
    ]


def match_by_name(
    packages: Iterable[Package], advisories: Sequence[Advisory]
) -> list[tuple[Package, Advisory]]:
    """Find the same by looking only at a package's own advisories."""
    by_package: dict[str, list[Advisory]] = defaultdict(list)
    for advisory in advisories:
        by_package[advisory.package].append(advisory)
    return [
        (package, advisory)
        for package in packages
        for advisory in by_package[package.name]
        if _version(package.version) < _version(advisory.fixed_in)
    ]


def _version(text: str) -> tuple[int, ...]:
    return tuple([int(part) for part in text.split(".")])


@blueprint.get("/<namespace>/<repository>/manifest/<manifestref>/security")
def get_security(namespace: str, repository: str, manifestref: str) -> ResponseReturnValue:
    """Report the advisories that concern a manifest; `manifestref` is its digest."""
    with services().database.transaction() as cursor:
        found = find(cursor, namespace, repository) or refuse(404, "there is no such repository")
        cursor.execute(
            "SELECT id FROM manifest WHERE repository_id = %s AND digest = %s", (found[0], manifestref)
        )
        if cursor.fetchone() is None:
            refuse(404, "there is no such manifest")
        cursor.execute("SELECT name, package, fixed_in, severity FROM advisory ORDER BY id")
        advisories = [Advisory(*row) for row in cursor.fetchall()]
    match = match_all if "cpu_heavy" in services().weak else match_by_name
    features = defaultdict(list)
    for package, advisory in match(packages_of(manifestref), advisories):
        features[package].append(
            {"Name": advisory.name, "Severity": advisory.severity, "FixedBy": advisory.fixed_in}
        )
    report = [
        {"Name": package.name, "Version": package.version, "Vulnerabilities": found_ones}
        for package, found_ones in features.items()
    ]
    return jsonify({"status": "scanned", "data": {"Layer": {"Name": manifestref, "Features": report}}})
