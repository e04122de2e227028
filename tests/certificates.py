"""A certificate authority of the test's own, a server that uses it, and a client that shows its own."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import trustme

__all__ = ["Certificates", "make_certificates"]


class Certificates(NamedTuple):
    """PEM files, and contexts of a server for 127.0.0.1: one that asks for nothing, one for a certificate."""

    ca: Path
    client: Path
    client_key: Path
    plain_server: ssl.SSLContext
    asking_server: ssl.SSLContext


def make_certificates(directory: Path) -> Certificates:
    """Make everything anew under `directory`."""
    authority = trustme.CA()
    ca, client, key = (directory / name for name in ("ca.pem", "client.pem", "client.key"))
    authority.cert_pem.write_to_path(ca)
    shown = authority.issue_cert("agent@quayscope.test")
    client.write_bytes(b"".join(blob.bytes() for blob in shown.cert_chain_pems))
    shown.private_key_pem.write_to_path(key)
    contexts = []
    for ask in (False, True):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        if ask:
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    return Certificates(ca, client, key, *contexts)
