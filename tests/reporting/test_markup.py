"""Text stays text, whatever it holds."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.reporting.markup import document, element, readable


class Reader(HTMLParser):
    """Tags, text and attributes of a page as a browser would find them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.texts, self.values = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value for _, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


@given(st.text(st.characters(), max_size=40))
def test_no_text_becomes_markup(text):
    plain = Reader(document("t", element("p", "a", element("b", "b"), "c", title="d"))).tags
    found = Reader(document(text, element("p", text, element("b", text), text, title=text)))
    assert found.tags == plain
    assert "".join(found.texts).count(readable(text)) >= 4 and readable(text) in found.values


@given(st.text(st.characters(), max_size=40))
def test_no_character_is_left_that_hides_or_turns_others(text):
    shown = readable(text)
    shown.encode()
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]", shown)
    assert readable(shown) == shown


def test_ordinary_text_of_any_script_is_shown_as_it_is():
    text = "Zoë's <b>\t5 > 3 & наш 日本語 عربي \u200f👩\u200d👧 \ufffd ⁇"
    assert readable(text) == text
    assert readable("a\0b\u202ec\ud800") == "a\\u0000b\\u202ec\\ud800"


def test_the_policy_allows_the_style_sheet_of_the_page_and_nothing_else():
    page = document("t")
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (style,) = re.findall("<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "@import" not in style and "url(" not in style
