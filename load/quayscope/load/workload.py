"""What a run sends: the value types of a workload, and the YAML they are read from.

A workload file::

    name: example
    description: Browse repositories and push images.      # optional

    vars:                                    # drawn anew for each arrival, the same by the same --seed
      which: {choices: 200}                  # a whole number, 0 to 199 (`first: 1`: 1 to 200)
      repo: {format: "org{which}/repo{which}"}  # made of variables above it
      user: {choices: 50, format: "user{n}"} # `{n}` is the number drawn by this variable
      tag: {values: [latest, stable]}        # one of a list
      fresh: {sequence: 0, format: "new-{n}"}  # never the same twice: 0 + the arrival's number
      layer: {bytes: {size: 4096, choices: 20, seed: 1}}  # one of 20 contents to upload;
                                             # without `choices` a new content for each arrival

    setup:                                   # before the phases, one after the other, must all succeed
      - {endpoint: "GET /v2/auth", path: "/v2/auth", query: {service: registry},
         headers: {Authorization: "Basic {env.REGISTRY_BASIC}"}, capture: {token: {json: token}}}
      - {flow: push, repeat: 20}             # choices and sequences are taken in order here: 0, 1, ... 19

    flows:                                   # sequences of requests that one arrival sends
      push:
        - endpoint: "POST /v2/<namespace>/<repository>/blobs/uploads/"
          path: "/v2/{repo}/blobs/uploads/"
          expect: [202]
          capture: {upload: {header: Location}}
        - endpoint: "PUT /v2/<namespace>/<repository>/blobs/uploads/<upload_uuid>"
          path: "{upload}"
          query: {digest: "{layer.digest}"}
          bytes: layer
          expect: [201]

    phases:                                  # one after the other
      - name: browse
        share: 0.4                           # of --duration, relative to the other phases that run
        rate: 40                             # arrivals a second
        arrival: poisson                     # or constant (the default)
        mix:                                 # what an arrival sends, drawn by weight (default 1)
          - {weight: 5, endpoint: "GET /api/v1/repository/<path>", path: "/api/v1/repository/{repo}"}
          - {weight: 1, flow: push}

A request has

- `endpoint`: METHOD, space, the route template **verbatim as the application registers it**. It names the
  rows of the report and is never filled in; `path` is what is sent.
- `path`: appended to --url. A captured absolute URL keeps its path and query alone: a run never leaves
  its target. `query`: further parameters, percent-encoded and appended with `?` or `&`.
- `headers`; `body`: a mapping or list is sent as JSON, a text as it is; or `bytes`: the name of a content
  variable, or `{size: N, seed: N}` for one content.
- `expect`: the statuses that count as ok; without it any 2xx. Redirects are not followed.
- `capture` (flows and setup only): `{NAME: {header: NAME}}` or `{NAME: {json: "a.0.b"}}`. In a flow the value
  is known to the steps after it, in setup to everything after it. A missing value is an error.

Placeholders in `path`, `query`, `headers`, `body` and `format`: `{variable}`, `{content.digest}`,
`{content.size}`, captured names, `{run}`, `{phase}` (`setup` there) and `{env.NAME}`, the environment's:
secrets stand there and not in the file. Values are inserted as they are (percent-encoded in `query` alone).
In a JSON body a text that is nothing but a placeholder keeps its type: `size: "{layer.size}"` is a number.
`{{` is a brace.

An arrival is one arrival of its flow's first request; each later request is sent when the one before has
ended as asserted, and its latency is counted from then. When one fails the rest of the flow is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quayscope.load.template import JsonTemplate, Scalar, Template
from quayscope.load.variables import Variable

__all__ = [
    "Arrival",
    "Body",
    "Capture",
    "Choice",
    "ContentBody",
    "Flow",
    "Phase",
    "SetupEntry",
    "Step",
    "Workload",
]

Arrival = Literal["constant", "poisson"]
"""How arrivals are spread: at equal distances, or independent of each other at the same mean rate."""


@dataclass(frozen=True)
class Capture:
    """A value taken from an answer: of a header, or of JSON at a path of keys and list positions."""

    name: str
    header: str = ""
    json: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContentBody:
    """A body that is the bytes of a content variable."""

    variable: str


Body = JsonTemplate | Template | ContentBody


@dataclass(frozen=True)
class Step:
    """One request of a flow. `expect` None: any 2xx status is ok."""

    endpoint: str
    path: Template
    query: tuple[tuple[str, Template], ...] = ()
    headers: tuple[tuple[str, Template], ...] = ()
    body: Body | None = None
    expect: frozenset[int] | None = None
    captures: tuple[Capture, ...] = ()

    @property
    def method(self) -> str:
        """The request method, upper case."""
        return self.endpoint.split(" ", 1)[0]

    def accepts(self, status: int) -> bool:
        """Whether `status` is one that this request asserts."""
        return 200 <= status < 300 if self.expect is None else status in self.expect


@dataclass(frozen=True)
class Flow:
    """The requests that one arrival sends, in order. `name` is empty for a single request."""

    name: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class SetupEntry:
    """A flow sent `repeat` times, one after the other, before the phases."""

    flow: Flow
    repeat: int = 1


@dataclass(frozen=True)
class Choice:
    """A flow and how often it is drawn, relative to the phase's others."""

    weight: float
    flow: Flow


@dataclass(frozen=True)
class Phase:
    """A stretch of the run: one arrival rate (a second), one mix, and a relative share of the duration."""

    name: str
    share: float
    rate: float
    arrival: Arrival
    mix: tuple[Choice, ...]


@dataclass(frozen=True)
class Workload:
    """Everything that a run sends. `environment` holds the values of `{env.NAME}`: never print it."""

    name: str
    description: str
    variables: dict[str, Variable]
    environment: dict[str, Scalar] = field(repr=False)
    setup: tuple[SetupEntry, ...]
    phases: tuple[Phase, ...]

    def endpoints(self) -> list[str]:
        """Return each endpoint of the phases once, in order of appearance."""
        steps = (step for phase in self.phases for choice in phase.mix for step in choice.flow.steps)
        return list(dict.fromkeys(step.endpoint for step in steps))
