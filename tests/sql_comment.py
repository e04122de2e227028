"""The comment in front of a statement, as the agent puts it together."""

from __future__ import annotations

from quayscope.profile.statement import comment_head, comment_pairs, comment_tail

FINGERPRINT = "0123456789abcdef"


def encode_comment(*, parameters: bool = False, **words: str) -> str:
    """Return the comment of a statement with `FINGERPRINT`, sent by a request of these words."""
    return comment_head(FINGERPRINT) + comment_tail(comment_pairs(**words), parameters=parameters)
