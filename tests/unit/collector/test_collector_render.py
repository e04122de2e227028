"""The files that a capture can be had as: their figures, and what hostile names can do to them."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from quayscope.collector.render import FORMATS
from quayscope.profile import BLOCK, PROCESS_CPU, Attributes, Frame, Profile, folded, pprof

HOSTILE = '</script><script>alert(1)</script>{{data}}<b onload="x">&\x00\x1b]\ud800'
ROOT, MAIN, BAD = (
    Frame("quay-app", kind="root"),
    Frame("main", "a.py", 3, "python"),
    Frame(HOSTILE, HOSTILE, 1, "sql"),
)


@pytest.fixture
def profile() -> Profile:
    """Some CPU, under names of every sort."""
    made = Profile(PROCESS_CPU, {"service_name": "quay-app"}, 10**18, 10**10)
    made.add((ROOT, MAIN), Attributes(pid=1), (1, 30_000_000))
    made.add((ROOT, MAIN), Attributes(pid=2), (1, 10_000_000))
    made.add((ROOT, MAIN, BAD), Attributes(), (2, 60_000_000))
    made.add((ROOT, Frame("nothing")), Attributes(), (0, 0))
    made.losses.truncated = 2
    return made


def test_speedscope_holds_every_stack(profile: Profile) -> None:
    """Samples refer to frames, weights sum up, equal stacks are one."""
    document = json.loads(FORMATS["speedscope"].render(profile, 1, "title"))
    (shown,) = document["profiles"]
    names = [frame["name"] for frame in document["shared"]["frames"]]
    assert sum(shown["weights"]) == shown["endValue"] == 100_000_000
    stacks = [[names[place] for place in stack] for stack in shown["samples"]]
    assert [stack[:2] for stack in stacks] == [["quay-app", "main"], ["quay-app", "main"]]
    assert shown["weights"] == [40_000_000, 60_000_000]
    assert shown["unit"] == "nanoseconds"


def test_svg_is_a_picture_whatever_the_names(profile: Profile) -> None:
    """It parses, has no script, and a call's width is its share."""
    picture = ElementTree.fromstring(FORMATS["svg"].render(profile, 1, HOSTILE))
    assert not [one for one in picture.iter() if one.tag.endswith("script")]
    assert not [one for one in picture.iter() for name in one.attrib if name.startswith("on")]
    widths = {
        group[0].text.split(" ")[0]: float(group[1].attrib["width"])
        for group in picture
        if group.tag.endswith("g") and group[0].text
    }
    assert widths["all"] == pytest.approx(1200, abs=1)
    assert "nothing" not in widths
    (bad,) = [width for name, width in widths.items() if name.startswith("</script>")]
    assert bad == pytest.approx(720, abs=1)


def test_html_holds_its_data_and_one_script(profile: Profile) -> None:
    """Names end no element and are no template; the policy lets the file's own script run alone."""
    text = FORMATS["html"].render(profile, 1, HOSTILE).decode()
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    data = json.loads(scripts[0])
    assert data["losses"] == {"truncated": 2}
    assert [row[2] for row in data["rows"]] == [100_000_000, 100_000_000, 100_000_000, 60_000_000]
    assert data["rows"][3][4].startswith("</script><script>alert(1)</script>{{data}}")
    assert "default-src &#x27;none&#x27;; script-src &#x27;sha256-" in text
    assert "<b onload" not in text


def test_pprof_and_folded_are_what_the_codecs_write(profile: Profile) -> None:
    """pprof keeps all columns, whichever is asked for."""
    assert pprof.decode(FORMATS["pprof"].render(profile, 0, "")).totals() == profile.totals()
    assert FORMATS["folded"].render(profile, 0, "") == folded.render(profile, 0).encode("utf-8", "replace")


@pytest.mark.parametrize("name", list(FORMATS))
def test_an_empty_profile_is_a_file_too(name: str) -> None:
    """Nothing was seen: no picture fails over it."""
    FORMATS[name].render(Profile(BLOCK, {}, 1, 1), 1, "nothing")


def test_deep_and_wide_stacks_are_bounded() -> None:
    """Calls deeper than 400 and narrower than a five-thousandth are left out of pictures."""
    deep = Profile(PROCESS_CPU, {}, 1, 1)
    deep.add(tuple(Frame(f"f{n}") for n in range(2000)), Attributes(), (1, 10**9))
    for n in range(3000):
        deep.add((Frame(f"leaf{n}"),), Attributes(), (1, 1))
    for name in ("svg", "html"):
        assert FORMATS[name].render(deep, 1, "deep").count(b"leaf") == 0
