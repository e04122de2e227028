"""pprof in and out, held against the format's own schema."""

from __future__ import annotations

import contextlib
import gzip
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quayscope.profile import (
    BLOCK,
    KINDS,
    MEMORY,
    PROCESS_CPU,
    TYPES,
    Attributes,
    Frame,
    Losses,
    MalformedProfile,
    Profile,
    ProfileError,
    UnknownProfileType,
)
from quayscope.profile.pprof import decode, encode
from unit.profile.pprof_schema import PprofProfile, Table, UnpackedProfile

START = 1_790_000_000_000_000_000
ROOT = Frame("[root]", "", 0, "root")
VIEW = Frame("view", "/app/endpoints/api.py", 12, "python")
SELECT = Frame("select ? from t where id in (?)", "", 0, "sql")
WAIT = Frame("Lock:transactionid", "", 0, "wait")


def _sample_profile() -> Profile:
    profile = Profile(
        BLOCK, {"service_name": "quay-app"}, START, 10**10, 1, losses=Losses(lost=2, unproven=1)
    )
    request = Attributes(START + 10**9, "GET /api/v1/<path>", "run-1", "steady", 77, "ab" * 8, "cd" * 16)
    profile.add((ROOT, VIEW, SELECT, WAIT), request, (3, 7_000_000))
    profile.add((ROOT, VIEW), Attributes(), (1, 500))
    profile.add((ROOT, VIEW, VIEW), Attributes(START, pid=78), (1, 2**62))
    return profile


def _message(data: bytes) -> Any:
    message = PprofProfile()
    message.ParseFromString(gzip.decompress(data))
    return message


def test_protobuf_reads_what_we_write() -> None:
    """Frames, kinds, attributes, losses and times stand where docs/wire.md puts them."""
    message = _message(encode(_sample_profile()))
    text = list(message.string_table)
    assert text[0] == ""
    assert len(set(text)) == len(text)
    assert [(text[v.type], text[v.unit]) for v in message.sample_type] == [
        ("contentions", "count"),
        ("delay", "nanoseconds"),
    ]
    assert (message.time_nanos, message.duration_nanos, message.period) == (START, 10**10, 1)
    assert sorted(text[index] for index in message.comment) == ["quayscope.lost=2", "quayscope.unproven=1"]
    locations = {location.id: location for location in message.location}
    functions = {function.id: function for function in message.function}
    mappings = {mapping.id: text[mapping.filename] for mapping in message.mapping}
    assert list(locations) == list(range(1, 5))
    assert list(functions) == list(range(1, 5))
    assert list(mappings) == list(range(1, 5))
    first = message.sample[0]
    shown = []
    for location_id in first.location_id:
        location = locations[location_id]
        (line,) = location.line
        function = functions[line.function_id]
        shown.append((text[function.name], text[function.filename], line.line, mappings[location.mapping_id]))
    assert shown == [
        (WAIT.function, "", 0, "[wait]"),
        (SELECT.function, "", 0, "[sql]"),
        ("view", "/app/endpoints/api.py", 12, "[python]"),
        ("[root]", "", 0, "[root]"),
    ]
    assert list(first.value) == [3, 7_000_000]
    assert {
        text[label.key]: text[label.str] or (label.num, text[label.num_unit]) for label in first.label
    } == {
        "endpoint": "GET /api/v1/<path>",
        "run": "run-1",
        "phase": "steady",
        "span_id": "ab" * 8,
        "trace_id": "cd" * 16,
        "pid": (77, ""),
        "slot": (START + 10**9, "nanoseconds"),
    }
    assert not message.sample[1].label
    assert [len(sample.location_id) for sample in message.sample] == [4, 2, 3]


def test_equal_profiles_give_equal_bytes() -> None:
    """Encoding is deterministic: no clock and no hash order is in it."""
    assert encode(_sample_profile()) == encode(_sample_profile())


def _foreign(message_class: Any, *types: tuple[str, str]) -> tuple[Any, Table]:
    message = message_class()
    table = Table(message)
    for kind, unit in types:
        message.sample_type.add(type=table(kind), unit=table(unit))
    return message, table


def _one_frame(message: Any, table: Table, *, name: str = "main", file: str = "main.go") -> None:
    message.function.add(id=7, name=table(name), filename=table(file))
    message.location.add(id=9, address=16).line.add(function_id=7, line=3)


@pytest.mark.parametrize("message_class", [PprofProfile, UnpackedProfile])
@pytest.mark.parametrize("packing", [gzip.compress, bytes])
def test_a_go_profile_decodes(message_class: Any, packing: Any) -> None:
    """Inlined calls become frames, sparse ids and foreign labels are fine, packed or not, gzipped or not."""
    message, table = _foreign(message_class, ("samples", "count"), ("cpu", "nanoseconds"))
    message.mapping.add(id=3, memory_start=0x400000, memory_limit=0x900000, filename=table("/usr/bin/clair"))
    message.function.add(id=50, name=table("inner"), filename=table("inner.go"))
    message.function.add(id=51, name=table("outer"), filename=table("outer.go"))
    message.function.add(id=52, name=table("runtime.goexit"), filename=table("asm.s"))
    inlined = message.location.add(id=1000, mapping_id=3, address=0x401000)
    inlined.line.add(function_id=50, line=5)
    inlined.line.add(function_id=51, line=6)
    message.location.add(id=77, mapping_id=3, address=0x402000).line.add(function_id=52, line=1)
    message.location.add(id=78, mapping_id=3, address=0x401234)
    message.location.add(id=79, address=0xDEAD)
    sample = message.sample.add(location_id=[79, 78, 1000, 77], value=[4, 40_000_000])
    sample.label.add(key=table("pid"), str=table("123"))
    sample.label.add(key=table("goroutine"), num=5)
    sample.label.add(key=table("span_id"), str=table("0123456789abcdef"))
    message.time_nanos, message.duration_nanos, message.period = START, 10**9, 10**7
    profile = decode(packing(message.SerializeToString()), {"service_name": "clair-app"})
    assert profile.type is PROCESS_CPU
    assert profile.labels == {"service_name": "clair-app"}
    assert (profile.start_ns, profile.duration_ns, profile.period) == (START, 10**9, 10**7)
    ((stack, attributes),) = profile.samples
    assert stack == (
        Frame("runtime.goexit", "asm.s", 1),
        Frame("outer", "outer.go", 6),
        Frame("inner", "inner.go", 5),
        Frame("clair+0x1234", "/usr/bin/clair"),
        Frame("[0xdead]"),
    )
    assert attributes == Attributes(pid=123, span_id="0123456789abcdef")
    assert profile.totals() == (4, 40_000_000)


def test_python_files_make_python_frames() -> None:
    """Without a kind of ours the function's file decides."""
    message, table = _foreign(PprofProfile, ("cpu", "nanoseconds"))
    _one_frame(message, table, file="/app/web.py")
    message.sample.add(location_id=[9], value=[5])
    profile = decode(message.SerializeToString(), name="process_cpu")
    assert list(profile.samples) == [((Frame("main", "/app/web.py", 3, "python"),), Attributes())]
    assert profile.totals() == (0, 5)


@pytest.mark.parametrize(
    ("unit", "period", "cpu"),
    [("nanoseconds", 10**7, 3 * 10**7), ("microseconds", 10**4, 3 * 10**7), ("", 5, 15), ("count", 100, 0)],
)
def test_counted_samples_get_their_nominal_cpu(unit: str, period: int, cpu: int) -> None:
    """A CPU profile of counts alone gets samples x period, where the period is a time."""
    message, table = _foreign(PprofProfile, ("samples", "count"))
    _one_frame(message, table)
    message.sample.add(location_id=[9], value=[3])
    message.period_type.type, message.period_type.unit = table("cpu"), table(unit)
    message.period = period
    assert decode(message.SerializeToString(), name="process_cpu").totals() == (3, cpu)


def test_columns_are_matched_by_name() -> None:
    """Columns in another order, missing or unknown ones find their places."""
    message, table = _foreign(
        PprofProfile, ("inuse_space", "bytes"), ("odd", "things"), ("alloc_objects", "count")
    )
    _one_frame(message, table)
    message.sample.add(location_id=[9], value=[100, 5, 7])
    profile = decode(message.SerializeToString())
    assert (profile.type, profile.totals()) == (MEMORY, (7, 0, 0, 100))


def test_equal_samples_are_summed() -> None:
    """Samples that differ only in labels we do not keep become one."""
    message, table = _foreign(PprofProfile, ("samples", "count"), ("cpu", "nanoseconds"))
    _one_frame(message, table)
    for thread in ("a", "b"):
        sample = message.sample.add(location_id=[9], value=[1, 10])
        sample.label.add(key=table("thread"), str=table(thread))
    profile = decode(message.SerializeToString())
    assert list(profile.samples.values()) == [(2, 20)]


def test_unknown_types_are_refused() -> None:
    """A profile whose columns no registered type has, or a name outside the registry, is named so."""
    message, _ = _foreign(PprofProfile, ("wall", "nanoseconds"))
    data = message.SerializeToString()
    for name in (None, "process_cpu", "wall"):
        with pytest.raises(UnknownProfileType):
            decode(data, name=name)
    with pytest.raises(UnknownProfileType):
        decode(b"")


def _broken(change: Any) -> bytes:
    message, table = _foreign(PprofProfile, ("samples", "count"), ("cpu", "nanoseconds"))
    _one_frame(message, table)
    message.sample.add(location_id=[9], value=[1, 2])
    change(message)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.sample.add(location_id=[10], value=[1, 2]),  # an undefined location
        lambda m: m.sample.add(location_id=[9], value=[1]),  # too few values
        lambda m: m.sample.add(location_id=[9], value=[1, 2, 3]),  # too many
        lambda m: m.function.add(id=8, name=400),  # a string that is not there
        lambda m: m.sample[0].label.add(key=-1),
        lambda m: m.comment.append(99),
        lambda m: m.string_table.insert(0, "first"),
        lambda m: m.sample.add(location_id=[9], value=[2**63 - 1, 0]),  # the sum overflows
    ],
)
def test_inconsistent_profiles_are_malformed(change: Any) -> None:
    """References to nothing, wrong counts and sums past 64 bits are `MalformedProfile`."""
    with pytest.raises(MalformedProfile):
        decode(_broken(change))


def test_nominal_cpu_cannot_overflow() -> None:
    """A huge period does not make a number that no store can hold."""
    message, table = _foreign(PprofProfile, ("samples", "count"))
    _one_frame(message, table)
    message.sample.add(location_id=[9], value=[2**40])
    message.period = 2**40
    with pytest.raises(MalformedProfile):
        decode(message.SerializeToString())


def test_numbers_as_text_are_bounded() -> None:
    """A pid or a loss of thousands of digits is passed over, not converted."""

    def change(message: Any) -> None:
        table = Table(message)
        message.sample[0].label.add(key=table("pid"), str=table("9" * 5000))
        message.comment.extend(
            [table("quayscope.lost=" + "9" * 5000), table("quayscope.late=-4"), table("quayscope.x=1")]
        )

    profile = decode(_broken(change))
    assert next(iter(profile.samples))[1] == Attributes()
    assert profile.losses == Losses()


def test_bombs_are_refused() -> None:
    """Neither gzip nor many-line locations nor empty parts make a small message large."""
    with pytest.raises(MalformedProfile, match="unpacks to more than"):
        decode(gzip.compress(bytes(3 << 20)), max_bytes=1 << 20)
    with pytest.raises(MalformedProfile, match="more than"):
        decode(bytes(2 << 20), max_bytes=1 << 20)
    with pytest.raises(MalformedProfile, match="parts"):
        decode(b"\x12\x00" * 1_000_001)

    def deep(message: Any) -> None:
        location = message.location.add(id=11)
        for _ in range(5000):
            location.line.add(function_id=7)
        message.sample.add(location_id=[11] * 5000, value=[1, 1])

    with pytest.raises(MalformedProfile, match="frames"):
        decode(_broken(deep))


def test_a_cut_message_is_malformed_or_valid() -> None:
    """Truncation at every byte, packed and unpacked, raises nothing but the package's exceptions."""
    data = encode(_sample_profile())
    for end in range(len(data)):
        with pytest.raises((MalformedProfile, UnknownProfileType)):
            decode(data[:end])
    raw = gzip.decompress(data)
    for end in range(len(raw)):
        try:
            profile = decode(raw[:end])
        except ProfileError:
            continue
        assert isinstance(profile, Profile)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_malformed_or_valid(data: st.DataObject) -> None:
    """Corruption anywhere raises nothing but the package's exceptions."""
    raw = bytearray(gzip.decompress(encode(_sample_profile())))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProfileError):
        decode(bytes(raw))


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FRAMES = st.builds(
    Frame,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    NAMES,
    st.integers(0, 10**6),
    st.sampled_from(KINDS),
)
ATTRIBUTES = st.builds(
    Attributes,
    st.integers(0, 2**62),
    NAMES,
    NAMES,
    NAMES,
    st.integers(0, 2**22),
    st.text("0123456789abcdef", max_size=16),
    st.text("0123456789abcdef", max_size=32),
)
LOSSES = st.builds(Losses, *[st.integers(0, 10**12)] * 5)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Profiles of every registered type."""
    kind = draw(st.sampled_from(sorted(TYPES.values())))
    profile = Profile(
        kind,
        draw(st.dictionaries(NAMES, NAMES, max_size=3)),
        draw(st.integers(0, 2**62)),
        draw(st.integers(0, 2**40)),
        draw(st.integers(0, 10**9)),
        losses=draw(LOSSES),
    )
    frames = draw(st.lists(FRAMES, min_size=1, max_size=6))
    for _ in range(draw(st.integers(0, 6))):
        stack = tuple(draw(st.lists(st.sampled_from(frames), max_size=8)))
        values = tuple(draw(st.integers(-(2**40), 2**40)) for _ in kind.values)
        profile.add(stack, draw(ATTRIBUTES), values)
    return profile


@settings(max_examples=150, deadline=None)
@given(profiles())
def test_profiles_survive_the_round_trip(profile: Profile) -> None:
    """What is encoded decodes to the same profile, losses and attributes included."""
    assert decode(encode(profile), profile.labels, name=profile.type.name) == profile


def test_names_that_are_no_text_do_not_stop_a_profile() -> None:
    """Lone surrogates, as undecodable file names have them, become question marks."""
    profile = Profile(PROCESS_CPU, {}, START, 1)
    profile.add((Frame("f\udcff", "dir\udc80.py", 1, "python"),), Attributes(), (1, 2))
    ((stack, _),) = decode(encode(profile)).samples
    assert stack == (Frame("f?", "dir?.py", 1, "python"),)
