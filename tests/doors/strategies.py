"""What is tried at the doors: words, lines, files, values, options."""

import contextlib
import gzip
import os
import threading
import types
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

from tests.tiny import WORDS

# What text tools stumble over: ends of lines that are none, blanks that are none, marks of SentencePiece and of
# encodings, letters that change their number in lower case.
ODD = (
    *"\t\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u200b\u3000\ufeff\u2581\u2585\u2047",
    *("<s>", "</s>", "<unk>", "<pad>", "< begin >", "\u2581\u2581", "e\u0301", "İ", "ß", "\U0001f600", "本", "\ufffd"),
    *('"', "'", "\\", "%s", "{}", "$HOME", "#", "\x1b[31m", "\ud7ff", "\U0010ffff", "\x7f", "&amp;", "...", "。"),
)

one_word = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(WORDS),
    st.sampled_from(ODD),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1, max_size=6),
    st.text(st.characters(categories=["Cc", "Cf"], exclude_characters="\n\r\0"), min_size=1, max_size=6),  # controls
    st.text(st.characters(min_codepoint=0x10000, exclude_categories=["Cs"]), min_size=1, max_size=6),  # astral
    st.text(
        st.sampled_from("אבגשלוםمرحبا \u0640\u064b\u200e\u200f\u202b\u202e\u202c\u2067\u2069"), min_size=1, max_size=6
    ),  # right to left
)
blanks = st.sampled_from([" ", " ", " ", "  ", "\t", "", "\xa0", "\u3000", "\u2581"])


@st.composite
def one_line(draw: st.DrawFn, most: int = 6) -> str:
    """A line without an end; now and then empty or blank."""
    words = draw(st.lists(one_word, max_size=most))
    blank = draw(blanks)
    return draw(st.sampled_from(["", "", "", " ", "\t"])) + blank.join(words) + draw(st.sampled_from(["", "", " "]))


filled_line = one_line().filter(lambda line: bool(line.strip()))


def lines(least: int = 0, most: int = 12) -> st.SearchStrategy[list[str]]:
    """Lines, most of them filled."""
    return st.lists(st.one_of(filled_line, filled_line, one_line()), min_size=least, max_size=most)


# Files


@dataclass(frozen=True)
class File:
    """A text file, and what should be read from it.

    Attributes:
      content: the bytes.
      lines: its lines; None where it may be refused, or must be.
      place: file, missing, folder, dangling link, link, or pipe.
      gz: whether its name ends in .gz.
    """

    content: bytes
    lines: tuple[str, ...] | None
    place: str = "file"
    gz: bool = False

    def put(self, path: Path) -> Path:
        """Makes it at `path` (with .gz if need be) and returns its path."""
        path = path.with_name(path.name + ".gz") if self.gz else path
        if self.place == "file":
            path.write_bytes(self.content)
        elif self.place == "folder":
            path.mkdir()
        elif self.place == "dangling link":
            path.symlink_to("nowhere")
        elif self.place == "link":
            real = path.with_name(f"real-{path.name}")
            real.write_bytes(self.content)
            path.symlink_to(real)
        elif self.place == "pipe":
            os.mkfifo(path)
        return path

    @contextlib.contextmanager
    def flowing(self, path: Path) -> Generator[Path]:
        """`put`; for the block, a pipe has somebody who writes to it."""
        path = self.put(path)
        if self.place != "pipe":
            yield path
            return
        writer = threading.Thread(target=self._pour, args=(path,))
        writer.start()
        try:
            yield path
        finally:
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # lets the writer go, if nobody has read
            writer.join()
            os.close(reader)

    def _pour(self, pipe: Path) -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.write_bytes(self.content)

    @property
    def sound(self) -> bool:
        """Whether it has to be taken where a file is asked for."""
        return self.lines is not None and self.place in ("file", "link")

    @property
    def flows(self) -> bool:
        """Whether it has to be taken where a stream will do."""
        return self.sound or (self.lines is not None and self.place == "pipe")


def _told(content: bytes) -> tuple[str, ...] | None:
    """The lines of plain bytes by the rule of the house, or None where there is something to refuse."""
    found = content.split(b"\n")
    found = found[:-1] if not found[-1] else found
    try:
        decoded = tuple(line.removesuffix(b"\r").decode() for line in found)
    except UnicodeDecodeError:
        return None
    ends_in_returns = b"\n" not in content and b"\r" in content[:-1]
    return None if ends_in_returns or b"\0" in content else tuple(line.removeprefix("\ufeff") for line in decoded)


@st.composite
def text_file(draw: st.DrawFn, of: Sequence[str], odd: bool) -> File:
    """A file of these lines; `odd` ones differ from them in their bytes, number of lines or place."""
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    content = b"".join(line.encode() + end for line in of)
    if draw(st.booleans()) and not (of and of[-1] == ""):
        content = content.removesuffix(end)  # an end is not needed
    if draw(st.integers(0, 9)) == 9:
        content = b"\xef\xbb\xbf" + content
    gz = draw(st.integers(0, 4)) == 4
    if not odd:
        return File(gzip.compress(content, mtime=0) if gz else content, _told(content), gz=gz)
    place = draw(st.sampled_from(["file"] * 12 + ["missing", "folder", "dangling link", "link", "pipe"]))
    content = draw(odd_bytes(content, "\n".join(of)))
    if not gz:
        return File(content, _told(content), place)
    packed = gzip.compress(content, mtime=0)
    kind = draw(st.sampled_from(["whole", "members", "cut", "flipped", "plain", "trailing"]))
    if kind == "whole":
        return File(packed, _told(content), place, gz)
    if kind == "members":
        return File(packed + gzip.compress(content, mtime=0), _told(content + content), place, gz)
    at = draw(st.integers(0, len(packed) - 1))
    damaged = {
        "cut": packed[:at],
        "flipped": packed[:at] + bytes([packed[at] ^ 1 << draw(st.integers(0, 7))]) + packed[at + 1 :],
        "plain": content,
        "trailing": packed + b"trailing",
    }
    return File(damaged[kind], None, place, gz)


def odd_bytes(content: bytes, text: str) -> st.SearchStrategy[bytes]:
    """Bytes that are near `content` but not quite text, or far from it."""
    more = [content, content + b"\n", content + b"x\n", b"\n" + content, b"", b"\n", b"\n\n\n", b"\xef\xbb\xbf"]
    more += [
        text.encode(code, "replace") for code in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "gb18030")
    ]
    more += [content.replace(b"\n", b"\r"), content.replace(b"\n", b"\n\r"), content.replace(b"\n", b"\r\r\n")]
    more += [content.replace(b" ", mark) for mark in (b"\0", b"\r", b"\xff", b"\xed\xa0\x80", "\ufeff".encode())]
    more += [content.rpartition(b"\n")[0], content + b"\xe6\x9c", b"x" * 10_000 + b"\n" + content]
    more += [b"y " * 10_000 + b"\n" + content, gzip.compress(content, mtime=0), b"\t" + content]
    return st.one_of(st.sampled_from(more), st.binary(max_size=60))


# Values of options


def _text(size: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_characters="/"), max_size=size)  # lone surrogates too


HOSTILE = (
    *("", " ", "0", "-1", "1", "2", "3", "-0", "0.5", "1e3", "1e9", "1e23", "1e400", "-1e400", "nan", "-nan", "inf"),
    *("-inf", "infinity", "3000000000", str(2**31), str(2**31 - 1), str(2**32), str(2**63), str(2**64), "9" * 400),
    *("1_000", "٣", "½", "0x10", "1,5", "True", "true", "False", "None", "none", "null", "[]", "(1, 2)", "()", "{}"),
    *("a\0b", "\0", "\udc80", "\ud800", "x" * 300, "y" * 10_000, "本", "\u2028", "a\nb", "\r", "=", "--", "-", "-x"),
    *("..", ".", "~", "~nobody", "a b", "'", '"', "`id`", "$(id)", "%s%n", "configs", "corpus.py", "CON", "a/b", "a/"),
)
"""Values of every wrong kind; those that are paths lead nowhere outside the current folder."""

_PLAIN = {int: ("1", "2", "8", "64"), float: ("0.5", "1", "0", "2.5"), bool: ("True", "False"), type(None): ("None",)}


def right_values(hint: Any) -> st.SearchStrategy[list[str]]:
    """The words of a value that fits the type of an option."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inner).map(lambda choice: [str(choice)])
    if origin in (Union, types.UnionType):
        return st.one_of([right_values(part) for part in inner])
    if origin is tuple and inner[-1] is not Ellipsis:
        return st.tuples(*map(right_values, inner)).map(lambda parts: [word for part in parts for word in part])
    if origin is tuple:
        return st.lists(st.sampled_from(["a", "b", "low", "up"]), max_size=3)
    return st.sampled_from(_PLAIN.get(hint, ("low", "up", "words", "missing", "corpus"))).map(lambda word: [word])


def _inside(words: list[str]) -> bool:
    """Whether no word leads out of the current folder."""
    return not any(word.startswith(("/", "~")) or ".." in word for word in words)


def values(hint: Any) -> st.SearchStrategy[list[str]]:
    """The words after an option: right, hostile, too many, too few."""
    hostile = st.one_of(st.sampled_from(HOSTILE), _text(8))
    paths = "Path" in str(hint) or "str" in str(hint)
    wrong = st.one_of(hostile.map(lambda word: [word]), st.lists(hostile, max_size=3))
    return st.one_of(right_values(hint), wrong.filter(_inside) if paths else wrong)


@st.composite
def option(draw: st.DrawFn, options: dict[str, Any]) -> list[str]:
    """The words of one option of a command, by its name or nearly so."""
    name = draw(st.sampled_from(sorted(options)))
    words = draw(values(options[name]))
    spelled = name.replace("_", "-") if draw(st.booleans()) else name
    dashes = draw(st.sampled_from(["--"] * 20 + ["-", "---", ""]))
    if draw(st.integers(0, 15)) == 15:
        at = draw(st.integers(0, len(spelled) - 1))
        spelled = draw(
            st.sampled_from([spelled[:at] + spelled[at + 1 :], spelled.upper(), spelled + "x", spelled[:at]])
        )
    if words and draw(st.integers(0, 3)) == 3:
        return [f"{dashes}{spelled}={words[0]}", *words[1:]]
    return [dashes + spelled, *words]


help_words = st.sampled_from(["-h", "--help", "--h", "-help", "-H", "--help=1", "-h=", "--he"])
