"""The pages in a real browser, by what a user sees and does. Skipped where there is none."""

import asyncio
import contextlib
import re
import shutil
import threading
from collections.abc import Generator
from typing import Any

import pytest

from seq2seq_jax.serving.app import Service
from seq2seq_jax.serving.door import Door, listen, open_door
from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.serving.model import Model
from seq2seq_jax.serving.server import answer

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[dev]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs a Chromium: none of {', '.join(names)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def hosted(model: Model, token: str | None = None) -> Generator[str]:
    """The address of a server of this process."""
    door, place = open_door("127.0.0.1", 0, token)
    listen(place, "127.0.0.1", 0)
    notes = list[int]()
    service = Service(model, Door(door.host, token), Limits())
    thread = threading.Thread(target=lambda: asyncio.run(answer(service, place, notes)))
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}/"
    finally:
        notes.append(15)
        thread.join()
        place.close()


@pytest.fixture
def page(browser: Any) -> Generator[Any]:
    """A tab; nothing may be complained of in its console, but answers that are refused."""
    tab, said = browser.new_page(), list[str]()
    tab.set_default_timeout(30_000)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    yield tab
    tab.close()
    assert not [text for text in said if "status of 4" not in text]


def test_what_is_typed_is_translated_with_hypotheses_and_attention(model, page):
    with hosted(model) as address:
        page.goto(address)
        page.get_by_label("Text, a sentence a line").fill("ant bee\n\ncat")
        page.get_by_label("hypotheses").fill("2")
        page.get_by_label("attention").check()
        page.get_by_role("button", name="Translate").click()
        page.wait_for_selector("article:nth-of-type(2) table")
        assert page.locator(".best").all_inner_texts() == ["ANT BEE", "CAT"]
        first = page.locator("article").first
        expected = model.translator.translate(["ant bee"], num_best=2, details=True)[0]
        assert first.locator(".hypotheses li > span:first-child").all_inner_texts() == [each.text for each in expected]
        table = first.locator("table").first
        assert table.locator("thead th").all_inner_texts() == ["ant", "bee", "</s>"]
        assert table.locator("tbody th").all_inner_texts() == list(expected[0].details.tokens)
        shown = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
        for row, weights in zip(shown, expected[0].details.weights, strict=True):
            assert [float(text or 0) for text in row] == pytest.approx([100 * weight for weight in weights], abs=0.6)


def test_a_stream_grows_and_text_is_never_markup(model, page):
    with hosted(model) as address:
        page.goto(address)
        hostile = "ant <img src=x onerror=document.title='broken'><b>bee</b>"
        page.get_by_label("Text, a sentence a line").fill(hostile)
        page.get_by_label("word by word").check()
        assert page.get_by_label("attention").is_disabled()
        page.keyboard.press("Tab")
        page.get_by_label("Text, a sentence a line").press("Control+Enter")
        page.wait_for_selector(".score")
        assert page.locator(".source").inner_text() == hostile
        assert page.locator("#results b, #results img").count() == 0 and page.title() == "Translate"
        assert "symbols that the vocabulary lacks" in page.locator(".warning").inner_text()


def test_what_is_wrong_is_said_and_the_next_text_is_translated(model, page):
    with hosted(model) as address:
        page.goto(address)
        for text, expected in (("ant " * 9, "has 10 tokens, and at most 8 are read"), ("cat", "")):
            page.get_by_label("Text, a sentence a line").fill(text)
            page.get_by_role("button", name="Translate").click()
            page.wait_for_selector("#form button:not([disabled])")
            page.wait_for_selector(".score" if not expected else "#error:not(:empty)")
            assert expected in page.get_by_role("alert").inner_text()
        assert page.locator(".best").inner_text() == "CAT"


def test_a_token_is_asked_for_once(model, page):
    with hosted(model, TOKEN) as address:
        page.goto(address)
        page.get_by_label("This server wants its token").fill(TOKEN)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#about:not(:empty)")
        page.reload()
        page.wait_for_selector("#about:not(:empty)")
        assert page.locator("#token").is_hidden()
        page.get_by_label("Text, a sentence a line").fill("cat")
        page.get_by_role("button", name="Translate").click()
        page.wait_for_selector(".score")
        assert page.locator(".best").inner_text() == "CAT"


@pytest.mark.filterwarnings("ignore:.*(reached the limit|oldest turns)")
@pytest.mark.parametrize("streamed", [False, True])
def test_a_chat_reads_the_last_turns(dialogue, page, streamed):
    """Against the model's own answers: what was said and answered before stands before the third line."""
    with hosted(dialogue) as address:
        page.goto(address)
        page.wait_for_selector("#about:not(:empty)")
        if streamed:
            page.get_by_label("word by word").check()
        said = list[str]()
        for line in ("ant", "cat", "dog"):
            page.get_by_label("You", exact=True).fill(line)
            page.get_by_role("button", name="Send").click()
            page.wait_for_selector("#form button:not([type]):not([disabled])")
            before = said[-2:]
            if streamed:
                stream = dialogue.stream("\t".join([*before, line]), 7)
                while not stream.done:
                    stream.advance()
                answered = stream.hypothesis().text
            else:
                answered = dialogue.translator.translate(["\t".join([*before, line])])[0].text
            said += [line, answered]
            spoken = page.locator("#turns li > span:nth-child(2)").all_inner_texts()
            assert [text.split() for text in spoken] == [text.split() for text in said]
        page.get_by_role("button", name="New dialogue").click()
        assert page.locator("#turns li").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["model", "dialogue"])
def test_words_stand_out_from_their_paper_by_day_and_night(request, browser, name, scheme):
    """WCAG 2.1, success criterion 1.4.3: a contrast of 4.5 or more."""
    tab = browser.new_page(color_scheme=scheme)
    with hosted(request.getfixturevalue(name)) as address:
        tab.goto(address)
        tab.wait_for_selector("#about:not(:empty)")
        for selector in ("h1", "#about", "label", "#form button:not([type])"):
            assert contrast(*colours(tab.locator(selector).last)) >= 4.5, selector
        if name == "model":
            tab.get_by_label("Text, a sentence a line").fill("ant bee cat")
            tab.get_by_label("attention").check()
            tab.get_by_role("button", name="Translate").click()
            tab.wait_for_selector("tbody td")
            for cell in tab.locator("tbody td").all():
                assert contrast(*colours(cell)) >= 4.5, cell.inner_text()
    tab.close()


def colours(element: Any) -> tuple[str, str]:
    """The colour of an element's words, and of what is behind them."""
    ink = element.evaluate("e => getComputedStyle(e).color")
    behind = element.evaluate(
        "e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;"
        " if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; }"
    )
    return ink, behind


def contrast(*pair: str) -> float:
    def luminance(colour: str) -> float:
        scale = 1 if colour.startswith("color(srgb") else 255
        parts = [float(part) / scale for part in re.findall(r"[0-9.]+(?:e-?\d+)?", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted(map(luminance, pair), reverse=True)
    return (light + 0.05) / (dark + 0.05)
