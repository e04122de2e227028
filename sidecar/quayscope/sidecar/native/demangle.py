"""C++ and Rust names as their sources have them, by LLVM's demangler.

Grammar: the Itanium C++ ABI's "External Names", and Rust's RFC 2603. LLVM's demangler bounds neither its
output nor its depth: a name of 200 bytes can stand for gigabytes, one of 100,000 ends the process. So
what a name can grow to is estimated first.
"""

from __future__ import annotations

import math
import re

import pycxxfilt

__all__ = ["demangle"]

_MAX_MANGLED = 2048
_MAX_LOG2 = 24.0
"""Names that may become longer than 2**24 characters stay mangled: 0.07 % of the real ones."""
_MAX_SHOWN = 1024
_MANGLED = re.compile(r"_{1,3}(?:Z|R[A-Z])")
_CXX_REFERENCE = re.compile(r"[ST][0-9A-Z]*_")
_RUST_REFERENCE = re.compile(r"B[0-9a-zA-Z]*_")
_PACK = re.compile(r"Dp|s[pPZ]")
# Longest for its number of references is what names the thing before it e times at each step: e ** (r / e).
_LOG2_PER_REFERENCE = 0.54
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}(?= |$)")


def demangle(name: str) -> str:
    """Return the source's name of a function; the name itself where it is not mangled or may not be undone.

    Names are cut at 1024 characters. Of Rust's the hash at the end is left out.
    """
    if not _MANGLED.match(name):
        return name
    if len(name) > _MAX_MANGLED or _log2_size(name) > _MAX_LOG2:
        return name[:_MAX_SHOWN]
    try:
        found = pycxxfilt.demangle(name)
    except ValueError:
        found = None
    if not found:
        return name[:_MAX_SHOWN]
    if "17h" in name:
        found = _RUST_HASH.sub("", found, count=1)
    return found[:_MAX_SHOWN]


def _log2_size(name: str) -> float:
    if name.lstrip("_").startswith("R"):
        references, packs = len(_RUST_REFERENCE.findall(name)), 0
    else:
        references, packs = len(_CXX_REFERENCE.findall(name)), len(_PACK.findall(name))
    return math.log2(len(name)) * (1 + packs) + _LOG2_PER_REFERENCE * references
