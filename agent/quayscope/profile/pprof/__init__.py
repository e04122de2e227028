"""Profiles as pprof: `encode` and `decode`.

Source of the format: google/pprof `proto/profile.proto`. How frame kinds, attributes and losses are
put into it is in docs/wire.md.
"""

from quayscope.profile.pprof.reader import MAX_BYTES, decode
from quayscope.profile.pprof.writer import encode

__all__ = ["MAX_BYTES", "decode", "encode"]
