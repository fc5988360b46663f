"""The page in a browser: Chromium, where there is one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from seq2seq_jax import report
from seq2seq_jax.reporting.markup import document, element

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser's program; skips without one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"there is no browser here: none of {', '.join(NAMES)}")
    return found


def opened(browser: str, page: Path, width: int = 1200) -> tuple[str, list[str]]:
    """What a browser makes of a page, and what it complains of."""
    profile = page.parent / "profile"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    command = [browser, *options, f"--window-size={width},2000", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)


def test_the_page_of_a_run_is_shown_without_a_complaint(browser, trained, tmp_path):
    page = report(trained, tmp_path / "page.html")
    shown, complaints = opened(browser, page)
    assert complaints == []
    tags = re.compile(r"<(\w+)")
    assert sorted(tags.findall(shown)) == sorted(tags.findall(page.read_text()))  # nothing mended, moved or dropped


def test_what_the_policy_forbids_is_refused_by_the_browser(browser, tmp_path):
    script, style = element("script"), element("style")
    script.text, style.text = "document.title = 'owned'", "p { color: red }"
    page = tmp_path / "page.html"
    page.write_text(document("mine", script, style, element("p", "text", style="color: red")))
    shown, complaints = opened(browser, page)
    assert "<title>mine</title>" in shown
    assert len([each for each in complaints if "Content Security Policy" in each]) == 3
