"""Texts with `{placeholders}`, as they stand in paths, headers and bodies of a workload."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["BadTemplate", "JsonTemplate", "Scalar", "Template"]

Scalar = str | int | float | bool
"""What a placeholder can stand for."""

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")


class BadTemplate(ValueError):
    """A text whose braces do not name a placeholder; the schema reader adds file and line."""


class Template:
    """A text with placeholders: `/v2/{repo}/tags/list`. `{{` and `}}` are literal braces."""

    __slots__ = ("_head", "_tail", "names")

    def __init__(self, text: str) -> None:
        self._head = ""
        self._tail: list[tuple[str, str]] = []
        literal, position = "", 0
        for piece in _PIECE.finditer(text):
            literal += text[position : piece.start()]
            position = piece.end()
            if piece[0] in ("{{", "}}"):
                literal += piece[0][0]
            elif piece[1] is not None and _NAME.fullmatch(piece[1]):
                self._close(literal)
                self._tail.append((piece[1], ""))
                literal = ""
            else:
                raise BadTemplate(f"{piece[0]!r} is no placeholder; write {{name}}, and {{{{ for a brace")
        self._close(literal + text[position:])
        self.names = tuple(name for name, _ in self._tail)

    def _close(self, literal: str) -> None:
        if self._tail:
            self._tail[-1] = (self._tail[-1][0], literal)
        else:
            self._head = literal

    def render(self, values: Mapping[str, Scalar]) -> str:
        """Return the text with each placeholder replaced."""
        text = self._head
        for name, literal in self._tail:
            text += f"{values[name]}{literal}"
        return text

    def value(self, values: Mapping[str, Scalar]) -> Scalar:
        """Return the rendered text; a lone placeholder (`"{size}"`) keeps its value's type."""
        if len(self._tail) == 1 and not self._head and not self._tail[0][1]:
            return values[self._tail[0][0]]
        return self.render(values)


class JsonTemplate:
    """A JSON document whose texts are templates. Keys are literal."""

    __slots__ = ("_constant", "_document", "names")

    def __init__(self, document: Any) -> None:
        self._document = _compiled(document)
        self.names = tuple(_names(self._document))
        self._constant = None if self.names else self._encoded({})

    def encode(self, values: Mapping[str, Scalar]) -> bytes:
        """Return the document as compact JSON, UTF-8."""
        return self._constant if self._constant is not None else self._encoded(values)

    def _encoded(self, values: Mapping[str, Scalar]) -> bytes:
        return json.dumps(_filled(self._document, values), separators=(",", ":"), ensure_ascii=False).encode()


def _compiled(document: Any) -> Any:
    if isinstance(document, str):
        return Template(document)
    if isinstance(document, dict):
        return {key: _compiled(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_compiled(value) for value in document]
    return document


def _names(document: Any) -> Iterator[str]:
    if isinstance(document, Template):
        yield from document.names
    elif isinstance(document, dict):
        for value in document.values():
            yield from _names(value)
    elif isinstance(document, list):
        for value in document:
            yield from _names(value)


def _filled(document: Any, values: Mapping[str, Scalar]) -> Any:
    if isinstance(document, Template):
        return document.value(values)
    if isinstance(document, dict):
        return {key: _filled(value, values) for key, value in document.items()}
    if isinstance(document, list):
        return [_filled(value, values) for value in document]
    return document
