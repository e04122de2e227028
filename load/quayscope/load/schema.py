"""Reads a workload file into the types of `workload`; every complaint names file, line and field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import cast

from quayscope.load.errors import UnknownWorkload
from quayscope.load.fields import Field, read_fields
from quayscope.load.template import BadTemplate, JsonTemplate, Scalar, Template
from quayscope.load.variables import Variable
from quayscope.load.workload import (
    Arrival,
    Body,
    Capture,
    Choice,
    ContentBody,
    Flow,
    Phase,
    SetupEntry,
    Step,
    Workload,
)

__all__ = ["bundled", "find", "read_workload"]

_WORKLOAD = ("name", "description", "vars", "setup", "flows", "phases")
_PHASE = ("name", "share", "rate", "arrival", "mix")
_REQUEST = ("endpoint", "path", "query", "headers", "body", "bytes", "expect", "capture")
_VARIABLE = ("choices", "first", "values", "sequence", "bytes", "format")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_VARIABLE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ENDPOINT = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) /[^\s]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_OURS = ("traceparent", "baggage")
MAX_CONTENT_BYTES = 16_000_000
MAX_CONTENTS_BYTES = 256_000_000
"""What one content, and all choices of one content variable, may take: they are kept in memory."""


def bundled() -> dict[str, Path]:
    """Return the workloads that come with the package, by name."""
    directory = Path(str(files("quayscope.load") / "workloads"))
    return {file.stem: file for file in sorted(directory.glob("*.yaml"))}


def find(name: str) -> Path:
    """Return the file of a workload given by path or bundled name; raises `UnknownWorkload`."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UnknownWorkload(f"there is no workload file {name}", next_step="quayscope load list")
        return path
    names = bundled()
    if name not in names:
        raise UnknownWorkload(
            f"no workload {name!r} is bundled",
            next_step=f"use one of {', '.join(names)}, or a path that ends in .yaml",
        )
    return names[name]


def read_workload(file: Path, environment: Mapping[str, str] | None = None) -> Workload:
    """Return the workload in `file`. Raises `MalformedWorkload`, `OSError`.

    `environment` gives the `{env.NAME}` placeholders their values; without it they are not looked up,
    and the workload can be shown but not sent.
    """
    return _Reader(environment).workload(read_fields(file))


class _Reader:
    """Holds what is known so far while one file is read: variables, flows, captured names."""

    def __init__(self, environment: Mapping[str, str] | None) -> None:
        self._environment = environment
        self._used: dict[str, Scalar] = {}
        self._variables: dict[str, Variable] = {}
        self._flows: dict[str, Field] = {}
        self._captured: set[str] = set()

    def workload(self, root: Field) -> Workload:
        fields = root.mapping(_WORKLOAD, ("name", "phases"))
        name = _matching(fields["name"], _NAME, "letters, digits, _ . -")
        if "vars" in fields:
            self._read_variables(fields["vars"])
        if "flows" in fields:
            self._flows = fields["flows"].entries()
        setup = [self._setup(item) for item in fields["setup"].items()] if "setup" in fields else []
        phases: dict[str, Phase] = {}
        for item in fields["phases"].items():
            phase = self._phase(item)
            if phase.name in phases:
                item.reject(f"there are two phases called {phase.name!r}")
            phases[phase.name] = phase
        for field in self._flows.values():
            self._steps(field)  # also those that no phase uses: a typing error there is one, too
        return Workload(
            name=name,
            description=fields["description"].text() if "description" in fields else "",
            variables=self._variables,
            environment=self._used,
            setup=tuple(setup),
            phases=tuple(phases.values()),
        )

    # Variables

    def _read_variables(self, field: Field) -> None:
        for name, entry in field.entries().items():
            if not _VARIABLE_NAME.fullmatch(name) or name in ("n", "run", "phase", "env"):
                entry.reject(
                    "a variable's name is lower case letters, digits and _; not n, run, phase or env"
                )
            # In order: a format may name the variables above it, so that none needs itself.
            self._variables[name] = self._variable(name, entry)

    def _variable(self, name: str, field: Field) -> Variable:
        fields = field.mapping(_VARIABLE)
        kinds = [kind for kind in ("choices", "values", "sequence", "bytes") if kind in fields]
        if len(kinds) > 1:
            field.reject(f"{' and '.join(kinds)} exclude each other")
        if not kinds and "format" not in fields:
            field.reject("one of choices, values, sequence, bytes or format is needed")
        kind = kinds[0] if kinds else "format"
        for key, needs in (("first", ("choices",)), ("format", ("choices", "sequence", "format"))):
            if key in fields and kind not in needs:
                fields[key].reject(f"does not go with {kind}")
        variable = Variable(name, len(self._variables))
        if kind == "choices":
            variable.choices = fields["choices"].integer(low=1, high=1_000_000_000)
            variable.first = fields["first"].integer(low=0, high=1_000_000_000) if "first" in fields else 0
        elif kind == "values":
            variable.values = tuple(item.scalar_text() for item in fields["values"].items())
        elif kind == "sequence":
            variable.sequence = fields["sequence"].integer(low=0, high=1_000_000_000)
        elif kind == "bytes":
            self._content(variable, fields["bytes"])
        if "format" in fields:
            variable.format = self._template(fields["format"], {"n"} if kind != "format" else set())
        return variable

    @staticmethod
    def _content(variable: Variable, field: Field) -> None:
        fields = field.mapping(("size", "choices", "seed"), ("size",))
        variable.size = fields["size"].integer(low=0, high=MAX_CONTENT_BYTES)
        if "choices" in fields:
            variable.choices = fields["choices"].integer(low=1, high=1_000_000)
            if variable.choices * variable.size > MAX_CONTENTS_BYTES:
                field.reject(f"size x choices is more than {MAX_CONTENTS_BYTES} bytes")
        if "seed" in fields:
            variable.content_seed = fields["seed"].integer(low=0, high=1 << 32)

    # Requests

    def _setup(self, field: Field) -> SetupEntry:
        fields = field.mapping((*_REQUEST, "flow", "repeat"))
        repeat = fields["repeat"].integer(low=1, high=1_000_000) if "repeat" in fields else 1
        return SetupEntry(self._flow(field, fields, keep=True), repeat)

    def _phase(self, field: Field) -> Phase:
        fields = field.mapping(_PHASE, ("name", "rate", "mix"))
        arrival = fields["arrival"].text() if "arrival" in fields else "constant"
        if arrival not in ("constant", "poisson"):
            fields["arrival"].reject(f"expected constant or poisson, got {arrival!r}")
        return Phase(
            name=_matching(fields["name"], _NAME, "letters, digits, _ . -"),
            share=fields["share"].number(above=0) if "share" in fields else 1.0,
            rate=fields["rate"].number(above=0, at_most=1_000_000),
            arrival=cast(Arrival, arrival),
            mix=tuple(self._choice(item) for item in fields["mix"].items()),
        )

    def _choice(self, field: Field) -> Choice:
        fields = field.mapping(("weight", *_REQUEST, "flow"))
        weight = fields["weight"].number(above=0) if "weight" in fields else 1.0
        return Choice(weight, self._flow(field, fields))

    def _flow(self, field: Field, fields: Mapping[str, Field], *, keep: bool = False) -> Flow:
        """Read a flow's name or a single request; with `keep`, what it captures is known to all after it."""
        captured: set[str] = set()
        if "flow" in fields:
            for key in _REQUEST:
                if key in fields:
                    fields[key].reject("does not go with flow: the flow's own requests have it")
            name = fields["flow"].text()
            if name not in self._flows:
                fields["flow"].reject(f"no such flow; there are {', '.join(self._flows) or 'none'}")
            flow = Flow(name, self._steps(self._flows[name], captured))
        else:
            flow = Flow("", (self._request(field, fields, captured),))
            if not keep and flow.steps[0].captures:
                fields["capture"].reject("nothing follows in which the value could be used; make it a flow")
        if keep:
            self._captured |= captured
        return flow

    def _steps(self, field: Field, captured: set[str] | None = None) -> tuple[Step, ...]:
        known = set() if captured is None else captured
        return tuple(self._request(item, item.mapping(_REQUEST), known) for item in field.items())

    def _request(self, field: Field, fields: Mapping[str, Field], captured: set[str]) -> Step:
        for key in ("endpoint", "path"):
            if key not in fields:
                field.reject(f"the key {key!r} is missing")
        endpoint = _matching(fields["endpoint"], _ENDPOINT, "METHOD, space, route template")
        path = self._template(fields["path"], captured)
        if not (fields["path"].text().startswith(("/", "{"))):
            fields["path"].reject("expected to start with / or a placeholder")
        step = Step(
            endpoint=endpoint,
            path=path,
            query=self._pairs(fields.get("query"), captured),
            headers=self._headers(fields.get("headers"), captured),
            body=self._body(fields, captured),
            expect=_statuses(fields["expect"]) if "expect" in fields else None,
            captures=self._captures(fields.get("capture")),
        )
        captured |= {capture.name for capture in step.captures}
        return step

    def _pairs(self, field: Field | None, captured: set[str]) -> tuple[tuple[str, Template], ...]:
        if field is None:
            return ()
        return tuple((name, self._template(entry, captured)) for name, entry in field.entries().items())

    def _headers(self, field: Field | None, captured: set[str]) -> tuple[tuple[str, Template], ...]:
        for name, entry in field.entries().items() if field else ():
            if not _HEADER.fullmatch(name):
                entry.reject("not a header name")
            if name.lower() in _OURS:
                entry.reject("the driver sends this header itself: it joins requests to the run")
        return self._pairs(field, captured)

    def _body(self, fields: Mapping[str, Field], captured: set[str]) -> Body | None:
        if "bytes" in fields:
            if "body" in fields:
                fields["bytes"].reject("body and bytes exclude each other")
            return ContentBody(self._content_name(fields["bytes"]))
        if "body" not in fields:
            return None
        field = fields["body"]
        value = field.value()
        if isinstance(value, str):
            return self._template(field, captured)
        try:
            document = JsonTemplate(value)
        except BadTemplate as error:
            field.reject(str(error))
        self._check(field, document.names, captured)
        return document

    def _content_name(self, field: Field) -> str:
        if not field.is_mapping:
            name = field.text()
            if name not in self._variables or self._variables[name].size is None:
                field.reject(f"{name!r} is no variable with bytes")
            return name
        variable = Variable(f"bytes at {field.path}", len(self._variables))
        fields = field.mapping(("size", "seed"), ("size",))
        self._content(variable, field)
        variable.choices = 1
        name = f"bytes {variable.size} {fields['seed'].value() if 'seed' in fields else 0}"
        # A name that no file can write, and the same for the same bytes.
        variable.name = name
        self._variables.setdefault(name, variable)
        return name

    def _captures(self, field: Field | None) -> tuple[Capture, ...]:
        captures = []
        for name, entry in field.entries().items() if field else ():
            if not _VARIABLE_NAME.fullmatch(name) or name in ("n", "run", "phase", "env"):
                entry.reject("a captured name is lower case letters, digits and _; not n, run, phase or env")
            if name in self._variables:
                entry.reject(f"{name!r} is a variable already")
            source = entry.mapping(("header", "json"))
            if len(source) != 1:
                entry.reject("expected one of header: NAME or json: PATH")
            if "header" in source:
                captures.append(Capture(name, header=source["header"].text().lower()))
            else:
                captures.append(Capture(name, json=tuple(source["json"].scalar_text().split("."))))
        return tuple(captures)

    # Placeholders

    def _template(self, field: Field, captured: Iterable[str]) -> Template:
        text = field.scalar_text()
        try:
            template = Template(text)
        except BadTemplate as error:
            field.reject(str(error))
        self._check(field, template.names, captured)
        return template

    def _check(self, field: Field, names: Iterable[str], captured: Iterable[str]) -> None:
        known = {"run", "phase", *self._captured, *captured}
        for name in names:
            base, _, attribute = name.partition(".")
            if base == "env" and attribute:
                self._look_up(field, attribute)
            elif attribute:
                if attribute not in ("digest", "size"):
                    field.reject(f"{{{name}}}: a content has .digest and .size")
                if base not in self._variables or self._variables[base].size is None:
                    field.reject(f"{{{name}}}: {base!r} is no variable with bytes")
            elif name in self._variables and self._variables[name].size is not None:
                field.reject(
                    f"{{{name}}}: write {{{name}.digest}} or {{{name}.size}}, or send it by `bytes: {name}`"
                )
            elif name not in known and name not in self._variables:
                there = ", ".join(sorted(known | {v for v in self._variables if " " not in v}))
                field.reject(f"{{{name}}} is not known here; there are {there}")

    def _look_up(self, field: Field, name: str) -> None:
        if self._environment is None:
            return
        value = self._environment.get(name)
        if not value:
            field.reject(f"the environment variable {name} is not set")
        self._used[f"env.{name}"] = value


def _matching(field: Field, pattern: re.Pattern[str], words: str) -> str:
    text = field.text()
    if not pattern.fullmatch(text):
        field.reject(f"expected {words}, got {text!r}")
    return text


def _statuses(field: Field) -> frozenset[int]:
    return frozenset(item.integer(low=100, high=599) for item in field.items())
