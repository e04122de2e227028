"""Workload files: what they may say, and how they are told what they may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quayscope.load import workload as format_description
from quayscope.load.errors import LoadError, MalformedWorkload, UnknownWorkload
from quayscope.load.schema import bundled, find, read_workload
from quayscope.load.template import BadTemplate, JsonTemplate, Scalar, Template
from quayscope.load.variables import Draw, Moment
from quayscope.load.workload import Workload


def read(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Workload:
    """Read a workload from a text."""
    file = tmp_path / "w.yaml"
    file.write_text(text)
    return read_workload(file, {} if environment is None else environment)


PHASE = """
phases:
  - name: p
    rate: 10
    mix:
      - {endpoint: "GET /x", path: "%s"}
"""

ONE = "name: w\nphases: [{name: p, rate: 1, mix: [%s]}]"

WRONG = {
    "an unknown key": (
        "name: w\nphase: []\nphases: []",
        r"line 2: phase: unknown key 'phase'; allowed are name, .*phases",
    ),
    "a missing key": ("name: w", r"the key 'phases' is missing"),
    "nothing": ("", "empty"),
    "no mapping": ("- a", "expected a mapping"),
    "no YAML": ("name: [", "not YAML: line 1"),
    "no text": ("name: w\n\x00", "not YAML"),
    "a rate of words": (
        "name: w\nphases:\n  - name: p\n    rate: fast\n    mix: []",
        r"line 4: phases\[0\].rate: expected a number, got 'fast'",
    ),
    "a rate of zero": ("name: w\nphases: [{name: p, rate: 0, mix: []}]", "expected a number above 0"),
    "an endless rate": ("name: w\nphases: [{name: p, rate: .inf, mix: []}]", "at most 1e"),
    "an empty mix": ("name: w\nphases: [{name: p, rate: 1, mix: []}]", r"phases\[0\].mix: the list is empty"),
    "no method": (
        ONE % '{endpoint: "/x", path: "/x"}',
        "expected METHOD, space, route",
    ),
    "a path without slash": ("name: w" + PHASE % "x", "expected to start with /"),
    "an unknown placeholder": (
        "name: w" + PHASE % "/{repo}",
        r"line 6: phases\[0\].mix\[0\].path: \{repo\} is not known here; there are phase, run",
    ),
    "a stray brace": ("name: w" + PHASE % "/{", "is no placeholder"),
    "an attribute access": (
        "name: w" + PHASE % "/{run.__class__}",
        "is no placeholder|has .digest and .size",
    ),
    "a status of words": (
        ONE % '{endpoint: "GET /", path: "/", expect: [ok]}',
        r"expect\[0\]: expected a whole number, got 'ok'",
    ),
    "a status out of range": (
        ONE % '{endpoint: "GET /", path: "/", expect: [99]}',
        "from 100 to 599",
    ),
    "two phases of a name": (
        "name: w\nphases:" + 2 * '\n- {name: p, rate: 1, mix: [{endpoint: "GET /", path: "/"}]}',
        "line 4: .*two phases called 'p'",
    ),
    "a key twice": ("name: w\nname: v\nphases: []", "line 2: name: the key stands there twice"),
    "an alias": ("name: &a w\nphases: [*a]", r"line 2: aliases .* are not supported"),
    "a flow that is not there": (
        ONE % "{flow: f}",
        "no such flow; there are none",
    ),
    "a flow with a path": (
        ONE % "{flow: f, path: /}" + '\nflows: {f: [{endpoint: "GET /", path: "/"}]}',
        "path: does not go with flow",
    ),
    "a capture nobody uses": (
        ONE % '{endpoint: "GET /", path: "/", capture: {a: {header: B}}}',
        "nothing follows",
    ),
    "a capture used too early": (
        ONE % "{flow: f}"
        + '\nflows:\n  f:\n  - {endpoint: "GET /", path: "/{a}"}'
        + '\n  - {endpoint: "GET /", path: "/", capture: {a: {header: B}}}',
        r"flows.f\[0\].path: \{a\} is not known",
    ),
    "a variable of two kinds": (
        "name: w\nvars: {a: {choices: 1, sequence: 0}}\nphases: []",
        "choices and sequence exclude each other",
    ),
    "a variable of none": (
        "name: w\nvars: {a: {first: 1}}\nphases: []",
        "one of choices, values, sequence, bytes or format",
    ),
    "a variable in itself": ('name: w\nvars: {a: {format: "{a}"}}\nphases: []', r"\{a\} is not known"),
    "bytes as text": (
        "name: w\nvars: {a: {bytes: {size: 1}}}" + PHASE % "/{a}",
        r"write \{a.digest\} or \{a.size\}",
    ),
    "too many bytes": (
        "name: w\nvars: {a: {bytes: {size: 16000000, choices: 100}}}\nphases: []",
        "size x choices",
    ),
    "our own header": (
        ONE % '{endpoint: "GET /", path: "/", headers: {Baggage: a}}',
        "the driver sends this header itself",
    ),
    "a secret that is not set": (
        "name: w" + PHASE % "/{env.NOT_SET}",
        "the environment variable NOT_SET is not set",
    ),
    "a body of bytes and JSON": (
        ONE % '{endpoint: "PUT /", path: "/", body: {a: 1}, bytes: {size: 1}}',
        "body and bytes exclude each other",
    ),
    "a binary body": (
        ONE % '{endpoint: "PUT /", path: "/", body: {a: !!binary aGk=}}',
        "only texts, numbers",
    ),
    "a tag of its own": (
        ONE % '{endpoint: "PUT /", path: "/", body: {a: !own b}}',
        "not a value",
    ),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_what_a_file_may_not_say_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    """The message has file, line and field, and what would be allowed; the exit code is that of usage."""
    with pytest.raises(MalformedWorkload) as caught:
        read(tmp_path, text)
    assert re.search(said, str(caught.value)), str(caught.value)
    assert "w.yaml" in str(caught.value)
    assert caught.value.exit_code == 2


@given(text=st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a file holds, the answer is a workload or a message."""
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(LoadError):
        read_workload(file, {})


def test_the_format_described_is_the_format_read(tmp_path: Path) -> None:
    """The example in the module's description is a valid workload."""
    documented = format_description.__doc__ or ""
    example = documented.split("A workload file::")[1].split("A request has")[0]
    workload = read(tmp_path, example, {"REGISTRY_BASIC": "secret"})
    assert [phase.name for phase in workload.phases] == ["browse"]
    assert workload.endpoints()[0] == "GET /api/v1/repository/<path>"
    assert "secret" not in repr(workload)


@pytest.mark.parametrize("name", bundled())
def test_bundled_workloads_are_valid(name: str) -> None:
    """Each is found by its name, has a description and is called what its file is."""
    workload = read_workload(find(name))
    assert workload.name == name
    assert workload.description


def test_an_unknown_name_says_which_there_are() -> None:
    """The next step lists the bundled workloads; a path that is not there is told apart."""
    with pytest.raises(UnknownWorkload) as caught:
        find("nonesuch")
    assert "registry" in caught.value.next_step
    with pytest.raises(UnknownWorkload, match="there is no workload file"):
        find("./nonesuch.yaml")


VARIABLES = """
name: v
vars:
  which: {choices: 200, first: 1}
  repo: {format: "org{which}/repo{which}"}
  user: {choices: 50, format: "user{n}"}
  tag: {values: [latest, 1.5]}
  fresh: {sequence: 10, format: "new-{n}"}
  some: {bytes: {size: 100, choices: 3}}
  own: {bytes: {size: 100}}
phases: [{name: p, rate: 1, mix: [{endpoint: "GET /", path: "/"}]}]
"""


def test_draws_depend_on_seed_and_arrival_alone(tmp_path: Path) -> None:
    """Not on the order of asking; within an arrival every use sees the same value."""
    variables = read(tmp_path, VARIABLES).variables
    names = ["which", "repo", "user", "tag", "fresh", "some.digest", "own.digest"]
    one = Draw(variables, Moment(1, 7), {})
    other = Draw(variables, Moment(1, 7), {})
    assert [one[name] for name in names] == [other[name] for name in reversed(names)][::-1]
    assert one["repo"] == f"org{one['which']}/repo{one['which']}"
    assert [one[name] for name in names] != [Draw(variables, Moment(2, 7), {})[name] for name in names]


def test_draws_cover_their_range_evenly(tmp_path: Path) -> None:
    """All of 200 choices within 4,000 arrivals, none outside, two variables independent of each other."""
    variables = read(tmp_path, VARIABLES).variables
    draws = [Draw(variables, Moment(1, index), {}) for index in range(4000)]
    numbers = [draw["which"] for draw in draws]
    assert set(numbers) == set(range(1, 201))
    assert max(numbers.count(number) for number in set(numbers)) < 50
    assert len({(draw["which"], draw["user"]) for draw in draws}) > 3000


def test_sequences_never_repeat_and_setup_goes_in_order(tmp_path: Path) -> None:
    """An arrival's number is in the value; in setup choices are 0, 1, 2, ..."""
    variables = read(tmp_path, VARIABLES).variables
    assert [Draw(variables, Moment(1, index), {})["fresh"] for index in range(3)] == [
        "new-10",
        "new-11",
        "new-12",
    ]
    setup = [Draw(variables, Moment(1, index, in_setup=True), {})["user"] for index in range(51)]
    assert setup[:2] == ["user0", "user1"]
    assert setup[50] == "user0"


def test_contents_are_few_or_all_their_own(tmp_path: Path) -> None:
    """With choices, so many; without, one for each arrival. Size and digest are those of the bytes."""
    import hashlib

    variables = read(tmp_path, VARIABLES).variables
    draws = [Draw(variables, Moment(1, index), {}) for index in range(30)]
    assert len({draw["some.digest"] for draw in draws}) == 3
    assert len({draw["own.digest"] for draw in draws}) == 30
    content = draws[0].content("own")
    assert len(content) == draws[0]["own.size"] == 100
    assert draws[0]["own.digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_templates_fill_placeholders_and_keep_lone_types() -> None:
    """Literal braces are doubled; a JSON text that is one placeholder keeps its type."""
    values: dict[str, Scalar] = {"a": 1, "b": "x"}
    assert Template("{{{a}}}/{b}{a}").render(values) == "{1}/x1"
    document = JsonTemplate({"n": "{a}", "t": "{a}{b}", "l": ["{b}", 2, None, True]})
    assert document.encode(values) == b'{"n":1,"t":"1x","l":["x",2,null,true]}'
    assert JsonTemplate({"k": "v"}).encode({}) == b'{"k":"v"}'


@pytest.mark.parametrize("text", ["{", "}", "{}", "{A}", "{a b}", "{a.b.c}", "{a!r}", "{a:>9}", "{0}"])
def test_braces_that_name_nothing_are_refused(text: str) -> None:
    """No conversion, format or access of Python's own is understood."""
    with pytest.raises(BadTemplate):
        Template(text)
