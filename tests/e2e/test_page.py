"""The page in a real browser, against a real collector that real pushes filled."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from e2e.filled_collector import HOSTILE, REPOSITORY, STATEMENT, UPLOAD, Collector, fill

pytestmark = pytest.mark.browser


@pytest.fixture(scope="session")
def built_page(checkout: Path) -> None:
    """Build the page where its sources are newer than what is built."""
    path = checkout / "collector/quayscope/collector/web/frontend/build_page.py"
    spec = importlib.util.spec_from_file_location("build_page", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build()


@pytest.fixture(scope="module")
def collector(built_page: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a collector that holds `fill`'s profiles."""
    running = Collector(tmp_path_factory.mktemp("collector"))
    try:
        fill(running.url)
        yield running.url
    finally:
        running.end()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser: the system's own, so that no driver is downloaded."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "these tests need Chromium; next: apt-get install chromium"
    with sync_playwright() as playwright:
        # Its sandbox does not start for root, as which containers run.
        browser = playwright.chromium.launch(executable_path=found, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def show(chromium: Browser, collector: str) -> Iterator[Open]:
    """Open the page with a query and wait until it is drawn; fails on anything the browser complains of."""
    complaints: list[str] = []
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB")
    context.set_default_timeout(10_000)

    def open_page(query: dict[str, str] | None = None, *, state: str = "shown", url: str = "") -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"{error}"))
        page.on(
            "console",
            lambda line: (
                complaints.append(f"{line.type}: {line.text}") if line.type in ("error", "warning") else None
            ),
        )
        page.goto(f"{url or collector}/" + (f"?{urlencode(query)}" if query else ""))
        expect(page.get_by_test_id("status")).to_have_text(state)
        return page

    yield open_page
    context.close()
    assert complaints == []


def frame(page: Page, name: str) -> Locator:
    """Return the drawn frame of exactly this name."""
    return page.locator(f'[data-testid="frame"][data-name={json.dumps(name)}]')


def query_of(page: Page) -> dict[str, list[str]]:
    """Return what the address says."""
    return parse_qs(urlsplit(page.url).query)


def add_filter(page: Page, name: str, value: str) -> None:
    """Add a filter through the form, as a reader would."""
    page.get_by_test_id("filter-name").select_option(name)
    page.get_by_test_id("filter-value").fill(value)
    page.get_by_test_id("filter-add").click()


def rows(page: Page, table: str = "top-row") -> list[list[str]]:
    """Return the cells of each row of a table."""
    return [row.locator("td").all_inner_texts() for row in page.get_by_test_id(table).all()]


def test_the_first_view_shows_the_registry_with_its_total_and_its_losses(show: Open) -> None:
    """Without a query the page shows the registry's CPU by its agent, and what is missing from it."""
    page = show()
    expect(page.get_by_test_id("service")).to_have_value("quay-app")
    expect(page.get_by_test_id("type").locator("option:checked")).to_have_text("CPU time")
    expect(page.get_by_test_id("total")).to_have_text("440 ms")
    expect(page.get_by_test_id("samples")).to_have_text("44")
    expect(page.get_by_test_id("samplers")).to_have_text("agent")
    for name, count in {"lost": 3, "late": 0, "truncated": 0, "unproven": 0, "unattributed": 4}.items():
        expect(page.get_by_test_id(f"loss-{name}")).to_have_text(f"{name} {count}")
    expect(page).to_have_title("CPU time · quay-app · Quayscope")


def test_a_click_zooms_and_a_link_reproduces_the_zoom(show: Open) -> None:
    """A clicked frame fills the width, over a refresh too, stands in the address; escape shows all."""
    page = show()
    expect(frame(page, "store_chunk")).to_be_visible()
    frame(page, "view_repository").click()
    expect(frame(page, "store_chunk")).to_have_count(0)
    expect(page.get_by_test_id("breadcrumb")).to_contain_text("view_repository")
    expect(page.get_by_test_id("details")).to_contain_text("/app/endpoints/api/repository.py:41")
    wide = frame(page, "view_repository").locator("rect")
    page.wait_for_function("row => row.getBoundingClientRect().width > 1000", arg=wide.element_handle())

    page.get_by_test_id("reload").click()
    expect(page.get_by_test_id("status")).to_have_text("shown")
    expect(frame(page, "store_chunk")).to_have_count(0)

    linked = show({name: values[0] for name, values in query_of(page).items()})
    expect(linked.get_by_test_id("breadcrumb")).to_contain_text("view_repository")
    expect(frame(linked, "store_chunk")).to_have_count(0)

    page.keyboard.press("Escape")
    expect(frame(page, "store_chunk")).to_be_visible()
    assert "zoom" not in query_of(page)
    page.go_back()
    expect(frame(page, "store_chunk")).to_have_count(0)


def test_a_search_highlights_and_counts_nested_matches_once(show: Open) -> None:
    """What is found is marked, with its share of the whole; a quoted name is that name alone."""
    page = show()
    page.get_by_test_id("search").fill("/app/")
    expect(page.get_by_test_id("search-result")).to_have_text("6 frames, 100 %")
    page.get_by_test_id("search").fill("VERIFY")
    expect(page.get_by_test_id("search-result")).to_have_text("1 frame, 56.8 %")
    expect(page.locator('[data-testid="frame"].match')).to_have_count(1)
    page.get_by_test_id("search").fill('"verify"')
    expect(page.get_by_test_id("search-result")).to_have_text("nothing found")
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("search")).to_have_value("")
    expect(page.locator('[data-testid="frame"].match')).to_have_count(0)


def test_the_table_lists_functions_and_sorts(show: Open) -> None:
    """The table has self and total with their shares, sorts by a click, and a function leads to the graph."""
    page = show()
    first, *_ = rows(page)
    assert first == ["SHA256_Update", "libcrypto.so.3", "native", "200 ms", "45.5 %", "200 ms", "45.5 %"]
    by_name = {row[0]: row for row in rows(page)}
    assert by_name["verify_password"][1:] == [
        "users/shared.py:17",
        "Python",
        "50.0 ms",
        "11.4 %",
        "250 ms",
        "56.8 %",
    ]
    page.get_by_test_id("sort-total").click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Total")
    assert [row[0] for row in rows(page)][:2] == ["run", "dispatch_request"]
    page.get_by_test_id("sort-total").click()
    assert [row[0] for row in rows(page)][-1] == "run"
    page.get_by_role("button", name="store_chunk").click()
    expect(page.get_by_test_id("search")).to_have_value('"store_chunk"')
    expect(frame(page, "store_chunk")).to_have_class(re.compile("match"))


def test_the_tooltip_says_all_about_a_frame(show: Open) -> None:
    """Beside the pointer: full name, place, value, and shares of the whole and of the caller."""
    page = show()
    frame(page, "verify_password").hover()
    tooltip = page.get_by_test_id("tooltip")
    expect(tooltip).to_be_visible()
    for text in (
        "verify_password",
        "Python · /app/data/users/shared.py:17",
        "250 ms · 56.8 % of all",
        "83.3 %",
        "50.0 ms",
    ):
        expect(tooltip).to_contain_text(text)
    page.mouse.move(5, 5)
    expect(tooltip).to_be_hidden()


def test_a_filter_by_endpoint_changes_the_total(show: Open) -> None:
    """A filter holds in the total, the graph and the table, stands in the address, and can be removed."""
    page = show()
    add_filter(page, "endpoint", UPLOAD)
    expect(page.get_by_test_id("total")).to_have_text("100 ms")
    expect(page.get_by_test_id("filter-chip")).to_contain_text(UPLOAD)
    expect(frame(page, "view_repository")).to_have_count(0)
    assert "verify_password" not in [row[0] for row in rows(page)]
    assert query_of(page)["match"] == [f"endpoint={UPLOAD}"]
    linked = show({name: values[0] for name, values in query_of(page).items()})
    expect(linked.get_by_test_id("total")).to_have_text("100 ms")
    page.get_by_test_id("filter-remove").click()
    expect(page.get_by_test_id("total")).to_have_text("440 ms")


def test_filters_are_suggested_from_the_data(show: Open) -> None:
    """Names come from the labels in the range, values from what the service sent under that name."""
    page = show()
    names = page.get_by_test_id("filter-name").locator("option").all_inner_texts()
    assert {"endpoint", "role", "run", "phase", "pid"} <= set(names)
    assert not {"service_name", "sampler"} & set(names)
    page.get_by_test_id("filter-value").focus()
    suggested = page.locator("#filter-values option")
    expect(suggested).to_have_count(2)
    assert [one.get_attribute("value") for one in suggested.all()] == [REPOSITORY, UPLOAD]


def test_a_breakdown_row_becomes_a_filter(show: Open) -> None:
    """The total splits by endpoint to the last millisecond; a row narrows the view, the nameless one too."""
    page = show()
    page.get_by_test_id("breakdown-by").select_option("endpoint")
    expect(page.get_by_test_id("breakdown-row")).to_have_count(3)
    assert rows(page, "breakdown-row") == [
        [REPOSITORY, "300 ms", "68.2 %", "30"],
        [UPLOAD, "100 ms", "22.7 %", "10"],
        ["(none)", "40.0 ms", "9.09 %", "4"],
    ]
    page.get_by_role("button", name="(none)").click()
    expect(page.get_by_test_id("total")).to_have_text("40.0 ms")


def test_two_samplers_are_never_added_up(show: Open) -> None:
    """Where two samplers measured one service, the page shows one of them and lets the reader choose."""
    page = show()
    assert page.get_by_test_id("sampler").locator("option").all_inner_texts() == ["agent", "perf"]
    page.get_by_test_id("sampler").select_option("perf")
    expect(page.get_by_test_id("total")).to_have_text("900 ms")
    page.get_by_test_id("service").select_option("all services")
    expect(page.get_by_test_id("mixed")).to_contain_text("quay-app was measured by more than one sampler")
    page.get_by_role("button", name="sampler agent").click()
    expect(page.get_by_test_id("total")).to_have_text("440 ms")


def test_a_statement_is_whole_in_the_tooltip_and_waits_are_seen(show: Open) -> None:
    """A service without CPU opens with its blocked time; long statements are cut in the graph alone."""
    page = show({"service": "quay-database"})
    expect(page.get_by_test_id("type").locator("option:checked")).to_have_text("Blocked time")
    expect(page.get_by_test_id("sampler")).to_be_hidden()
    statement = page.locator('[data-testid="frame"][data-kind="sql"]')
    expect(statement).to_have_text(STATEMENT[:160])
    statement.hover()
    expect(page.get_by_test_id("tooltip").get_by_test_id("frame-name")).to_have_text(STATEMENT)
    expect(frame(page, "Lock:transactionid")).to_have_attribute("data-kind", "wait")


def test_an_endpoint_is_shown_through_all_tiers(show: Open) -> None:
    """The worker's CPU, its wait for a statement, and within that the database's: one graph, one total."""
    page = show()
    page.get_by_test_id("type").select_option("stitched")
    expect(page.get_by_test_id("total")).to_have_text("420 ms")
    expect(page.get_by_test_id("samplers")).to_have_text("activity, agent")
    expect(page).to_have_title("Endpoint, all tiers · quay-app · Quayscope")
    expect(frame(page, REPOSITORY)).to_be_visible()
    wait = frame(page, "Lock:transactionid")
    wait.hover()
    expect(page.get_by_test_id("tooltip")).to_contain_text("70.0 ms")
    table = {row[0]: row[3] for row in rows(page)}
    assert table["Lock:transactionid"] == "70.0 ms"
    assert next(self for name, self in table.items() if name.startswith(STATEMENT[:40])) == "50.0 ms"
    add_filter(page, "endpoint", UPLOAD)
    expect(page.get_by_test_id("total")).to_have_text("100 ms")


def test_names_of_frames_are_text_everywhere(show: Open) -> None:
    """A frame named like markup is shown as it is written, in the graph, tooltip, table and breadcrumb."""
    page = show()
    frame(page, HOSTILE).hover()
    expect(page.get_by_test_id("tooltip")).to_contain_text(HOSTILE)
    frame(page, HOSTILE).click()
    expect(page.get_by_test_id("breadcrumb")).to_contain_text(HOSTILE)
    expect(page.get_by_role("button", name=HOSTILE)).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    expect(page).to_have_title("CPU time · quay-app · Quayscope")


def test_the_graph_is_walked_by_keyboard(show: Open) -> None:
    """Arrow keys move through the tree and say where they are, enter zooms, escape shows all."""
    page = show()
    page.keyboard.press("/")
    expect(page.get_by_test_id("search")).to_be_focused()
    page.get_by_test_id("flamegraph").focus()
    details = page.get_by_test_id("details").get_by_test_id("frame-name")
    for key, name in (
        ("ArrowDown", "run"),
        ("ArrowDown", "dispatch_request"),
        ("ArrowRight", HOSTILE),
        ("ArrowLeft", "dispatch_request"),
        ("ArrowDown", "view_repository"),
        ("ArrowUp", "dispatch_request"),
    ):
        page.keyboard.press(key)
        expect(details).to_have_text(name)
    page.keyboard.press("Enter")
    expect(frame(page, HOSTILE)).to_have_count(0)
    page.keyboard.press("Escape")
    expect(frame(page, HOSTILE)).to_have_count(1)


def test_custom_times_keep_the_stretch(show: Open) -> None:
    """Custom pins the stretch shown: the link is absolute; a stretch without profiles says what to do."""
    page = show()
    page.get_by_test_id("range-custom").click()
    expect(page.get_by_test_id("range-from")).to_be_visible()
    pinned = query_of(page)
    assert float(pinned["to"][0]) - float(pinned["from"][0]) == pytest.approx(900, abs=2)
    expect(page.get_by_test_id("total")).to_have_text("440 ms")
    page.get_by_test_id("range-from").fill("2026-01-01T00:00:00")
    page.get_by_test_id("range-to").fill("2026-01-01T01:00:00")
    page.get_by_test_id("range-apply").click()
    expect(page.get_by_test_id("empty")).to_contain_text("No profiles in this stretch of time")
    page.get_by_role("button", name="Last 1 h").click()
    expect(page.get_by_test_id("total")).to_have_text("440 ms")


def test_a_filter_that_matches_nothing_says_so(show: Open) -> None:
    """Where nothing matches, the page names the filters in force and offers to remove them."""
    page = show({"match": "endpoint=GET /nowhere"}, state="nothing matches")
    expect(page.get_by_test_id("empty")).to_contain_text("endpoint=GET /nowhere")
    page.get_by_test_id("clear-filters").click()
    expect(page.get_by_test_id("total")).to_have_text("440 ms")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(show: Open, scheme: str) -> None:
    """At 420 pixels everything fits the width, in both colour schemes."""
    page = show()
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_function("document.querySelector('.graph svg').getBoundingClientRect().width < 420")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 384) == (scheme == "light")


def test_an_empty_collector_fills_and_a_dead_one_is_reported(
    chromium: Browser, built_page: None, tmp_path: Path
) -> None:
    """The page waits for the first profiles by itself, and says so when the collector is gone."""
    running = Collector(tmp_path)
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.goto(running.url)
        expect(page.get_by_test_id("empty")).to_contain_text("quayscope demo")
        fill(running.url)
        expect(page.get_by_test_id("total")).to_have_text("440 ms", timeout=10_000)
        running.end()
        page.get_by_test_id("reload").click()
        expect(page.get_by_test_id("error")).to_contain_text("The collector does not answer.")
        expect(page.get_by_test_id("retry")).to_be_visible()
    finally:
        context.close()
        running.end()


def test_a_refusal_is_shown_with_its_next_step(chromium: Browser, collector: str) -> None:
    """A question that the collector refuses shows its words, and a way out that needs no editing."""
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.goto(f"{collector}/?type=nonsense")
        expect(page.get_by_test_id("error")).to_contain_text("nonsense")
        page.get_by_test_id("afresh").click()
        expect(page.get_by_test_id("total")).to_have_text("440 ms")
    finally:
        context.close()


def test_late_answers_never_replace_newer_ones(show: Open) -> None:
    """Of two questions in flight the page shows the last asked, whichever is answered first."""
    page = show()

    def slowly(route: Route) -> None:
        if UPLOAD in parse_qs(urlsplit(route.request.url).query).get("match", [""])[-1]:
            time.sleep(0.3)
        route.continue_()

    page.route("**/api/v1/flamegraph*", slowly)
    add_filter(page, "endpoint", UPLOAD)
    page.get_by_test_id("filter-remove").click()
    expect(page.get_by_test_id("status")).to_have_text("shown")
    expect(page.get_by_test_id("total")).to_have_text("440 ms")
    expect(page.get_by_test_id("filter-chip")).to_have_count(0)
    page.unroute_all()


STOCK_CLIENT = """
import sys, time
import pyroscope

pyroscope.configure(application_name="stock-app", server_address=sys.argv[1])

def burning():
    return sum(number * number for number in range(20_000))

end = time.monotonic() + 3
while time.monotonic() < end:
    burning()
pyroscope.shutdown()
"""


def test_a_stock_pyroscope_client_shows_on_the_page(show: Open, collector: str) -> None:
    """What an unchanged pyroscope-io pushes is picked by its name and drawn with its frames."""
    subprocess.run([sys.executable, "-c", STOCK_CLIENT, collector], check=True, timeout=60)
    page = show({"service": "stock-app"})
    expect(frame(page, "burning").first).to_be_visible()
    expect(page.get_by_test_id("sampler").or_(page.get_by_test_id("samplers")).first).to_contain_text(
        "pyroscope"
    )
    functions = [cells[0] for cells in rows(page)]
    assert any("burning" in name for name in functions), functions
