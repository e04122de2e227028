"""Takes the documents' pictures of the page: from a live demo, or from a collector given by --url."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import expect, sync_playwright

SIZE = (1280, 1800)
STITCHED = {
    "stitched-n-plus-one.png": "GET /api/v1/repository",
    "stitched-without-index.png": "GET /api/v1/repository/<namespace>/<repository>/logs",
}
"""Endpoints of the demo through all tiers: one asks for each row of a list again, one reads a whole table."""
DURATION = "40s"


@contextmanager
def demo() -> Iterator[str]:
    """Run a demo that stays up after its load; yields the address of its page."""
    command = [sys.executable, "-m", "quayscope.cli.main", "demo", "--port=0", f"--duration={DURATION}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                found = re.match(r"flame graphs: (\S+)", line)
                if found:
                    yield found[1]
                    return
            raise SystemExit(
                "error: the demo ended without a page; next: run `quayscope demo` and read what it says"
            )
        finally:
            process.send_signal(signal.SIGTERM)


def take_all(url: str, folder: Path) -> None:
    """Write all pictures into `folder`."""
    take(url, folder / "page.png", SIZE)
    for name, endpoint in STITCHED.items():
        query = urlencode({"service": "quay-app", "type": "stitched", "match": f"endpoint={endpoint}"})
        take(f"{url}?{query}", folder / name, (1280, 1100))


def take(url: str, target: Path, size: tuple[int, int]) -> None:
    """Write a picture of the page at `url` to `target`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("error: there is no Chromium; next: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=os.geteuid() != 0)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(url)
        expect(page.get_by_test_id("status")).to_have_text("shown", timeout=20_000)
        expect(page.locator('[data-testid="frame"] .d3-flame-graph-label').first).not_to_be_empty()
        page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", help="the page of a running collector; without it a demo is started")
    arguments = parser.parse_args()
    if arguments.url:
        take_all(arguments.url, arguments.folder)
    else:
        with demo() as address:
            take_all(address, arguments.folder)
