"""A page as a tree of elements: text and attributes are escaped by the library that writes it, whatever they hold."""

import base64
import hashlib
import re
from importlib import resources
from xml.etree.ElementTree import Element, tostring

from seq2seq_jax import __version__

__all__ = ["Content", "Element", "document", "element", "readable"]

Content = Element | str

# No page can hold some of these; others turn the text after them, or are not seen.
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def readable(text: str) -> str:
    """Returns text in which every control character, those of direction too, is shown by its number."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def element(tag: str, *children: Content, **attributes: str | float) -> Element:
    """Returns an element of a page.

    Args:
      tag: such as "p", or of SVG.
      children: elements, and text as it is.
      attributes: by name: `class_` is class, `stroke_width` is stroke-width.
    """
    made = Element(tag, {name.rstrip("_").replace("_", "-"): _plain(value) for name, value in attributes.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + readable(child)
        else:
            last.tail = (last.tail or "") + readable(child)
    return made


def document(title: str, *body: Content) -> str:
    """Returns a page of HTML that needs nothing beside it, and to which its browser lets nothing be added.

    Its policy allows one style sheet, the one in it, and no script, picture, form or
    request; so it allows no `style` attribute either.
    """
    style = resources.files("seq2seq_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sheet = element("style")
    sheet.text = style  # no text of others
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"seq2seq-jax {__version__}"),
        element("title", title),
        sheet,
    )
    page = element("html", head, element("body", element("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{tostring(page, encoding='unicode', method='html')}\n"


def _plain(value: str | float) -> str:
    return readable(value) if isinstance(value, str) else f"{value:.6g}"
