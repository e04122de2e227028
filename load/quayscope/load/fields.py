"""Reads YAML strictly, so that each complaint names file, line and field."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from quayscope.load.errors import MalformedWorkload

__all__ = ["Field", "read_fields"]

MAX_BYTES = 1_000_000
"""The largest workload file read: a typing error must not swallow a disk image."""


class Field:
    """One value of a YAML file together with where it stands (`path`: `phases[0].mix[2].expect`)."""

    def __init__(self, file: str, path: str, node: yaml.Node) -> None:
        self.file = file
        self.path = path
        self._node = node

    def reject(self, message: str) -> NoReturn:
        """Raise `MalformedWorkload` about this field."""
        line = self._node.start_mark.line + 1
        raise MalformedWorkload(
            f"{self.file}, line {line}: {self.path}: {message}" if self.path else f"{self.file}: {message}",
            next_step="the format is described in the docstring of quayscope.load.workload",
        )

    def mapping(self, allowed: Collection[str], required: Collection[str] = ()) -> dict[str, Field]:
        """Return the fields of a mapping, which may only have `allowed` keys and must have `required`."""
        fields = self.entries()
        for name, field in fields.items():
            if name not in allowed:
                field.reject(f"unknown key {name!r}; allowed are {', '.join(allowed)}")
        for name in required:
            if name not in fields:
                self.reject(f"the key {name!r} is missing; allowed are {', '.join(allowed)}")
        return fields

    def entries(self) -> dict[str, Field]:
        """Return the fields of a mapping with keys of the author's choice."""
        if not isinstance(self._node, yaml.MappingNode):
            self.reject(f"expected a mapping (key: value), got {self._kind()}")
        fields: dict[str, Field] = {}
        for key, value in self._node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.reject("keys must be plain text")
            name = key.value
            field = Field(self.file, f"{self.path}.{name}" if self.path else name, value)
            if name in fields:
                field.reject("the key stands there twice")
            fields[name] = field
        return fields

    def items(self) -> Iterator[Field]:
        """Iterate over the fields of a list, which must not be empty."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.reject(f"expected a list, got {self._kind()}")
        if not self._node.value:
            self.reject("the list is empty")
        for index, node in enumerate(self._node.value):
            yield Field(self.file, f"{self.path}[{index}]", node)

    @property
    def is_mapping(self) -> bool:
        """Whether this is a mapping."""
        return isinstance(self._node, yaml.MappingNode)

    def text(self) -> str:
        """Return a text, at least one character long. A number without quotes is not a text."""
        value = self.value()
        if not isinstance(value, str) or not value:
            self.reject(f"expected a text, got {self._kind()}")
        return value

    def scalar_text(self) -> str:
        """Return a text, or a number as text."""
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.reject(f"expected a text or a number, got {self._kind()}")
        return str(value)

    def number(self, *, above: float, at_most: float = math.inf) -> float:
        """Return a number in (above, at_most]."""
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.reject(f"expected a number, got {self._kind()}")
        if not above < value <= at_most:
            limit = "" if math.isinf(at_most) else f" and at most {at_most:g}"
            self.reject(f"expected a number above {above:g}{limit}, got {value:g}")
        return float(value)

    def integer(self, *, low: int, high: int) -> int:
        """Return a whole number in [low, high]."""
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, int):
            self.reject(f"expected a whole number, got {self._kind()}")
        if not low <= value <= high:
            self.reject(f"expected a whole number from {low} to {high}, got {value}")
        return value

    def value(self) -> Any:
        """Return the plain value: texts, numbers, booleans, None, lists and dictionaries of them."""
        if isinstance(self._node, yaml.MappingNode):
            return {name: field.value() for name, field in self.entries().items()}
        if isinstance(self._node, yaml.SequenceNode):
            return [Field(self.file, f"{self.path}[]", node).value() for node in self._node.value]
        if self._node.tag == "tag:yaml.org,2002:timestamp":
            return self._node.value  # JSON has no dates: `2026-01-01` is the text it looks like
        try:
            value = yaml.constructor.SafeConstructor().construct_object(self._node)
        except (yaml.YAMLError, ValueError) as error:
            self.reject(f"not a value: {str(error).splitlines()[0]}")
        if value is not None and not isinstance(value, str | int | float | bool):
            self.reject("only texts, numbers, booleans, lists and mappings")
        return value

    def _kind(self) -> str:
        if isinstance(self._node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self._node, yaml.SequenceNode):
            return "a list"
        return f"{self._node.value!r}" if self._node.value else "nothing"


def read_fields(file: Path) -> Field:
    """Return the root field of a YAML file; raises `MalformedWorkload`, `OSError`."""
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise MalformedWorkload(f"{file}: larger than {MAX_BYTES} bytes")
    try:
        text = content.decode()
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # A few lines of nested aliases stand for gigabytes once they are walked.
                line = 1 + (event.start_mark.line if event.start_mark else 0)
                raise MalformedWorkload(f"{file}, line {line}: aliases (*name) are not supported; use a flow")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedWorkload(f"{file}: not YAML: {_one_line(error)}") from error
    if node is None:
        raise MalformedWorkload(f"{file}: empty")
    return Field(str(file), "", node)


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]
