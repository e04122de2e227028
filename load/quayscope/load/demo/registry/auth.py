"""Bearer tokens, kept as password-style hashes: as in Quay, each check costs a worker real CPU."""

from __future__ import annotations

import hashlib
import hmac

from quayscope.load.demo.registry.database import Database

__all__ = ["DEMO_TOKEN", "Authenticator", "hash_token", "token_name"]

DEMO_TOKEN = "demo.of-a-registry-that-ends-with-the-demo"  # noqa: S105 - opens nothing but the demo's own tables
"""The one token that the tables are seeded with, of user `user1`."""
ROUNDS = 160_000
"""About 40 ms of CPU a check; Quay's own take 0.4 to 0.7 s."""


def token_name(token: str) -> str:
    """Return the part of a token that it is found by."""
    return token.partition(".")[0]


def hash_token(token: str, salt: bytes) -> bytes:
    """Return what is stored of a token."""
    return hashlib.pbkdf2_hmac("sha256", token.encode(), salt, ROUNDS)


class Authenticator:
    """Checks tokens. With `remember`, a token that was right once is not hashed again."""

    def __init__(self, database: Database, *, remember: bool) -> None:
        self._database = database
        self._known: dict[str, str] | None = {} if remember else None

    def user(self, authorization: str) -> str | None:
        """Return the user's name for an Authorization header's value, or None where it proves nobody."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > 200:
            return None
        if self._known is not None and token in self._known:
            return self._known[token]
        with self._database.transaction() as cursor:
            cursor.execute(
                "SELECT t.token_salt, t.token_hash, u.username FROM oauthaccesstoken t"
                ' JOIN "user" u ON u.id = t.authorized_user_id WHERE t.token_name = %s AND u.enabled',
                (token_name(token),),
            )
            row = cursor.fetchone()
        if row is None or not hmac.compare_digest(hash_token(token, bytes(row[0])), bytes(row[1])):
            return None
        if self._known is not None:
            self._known[token] = row[2]
        return str(row[2])
