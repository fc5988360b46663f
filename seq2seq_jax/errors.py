"""Mistakes the user can mend, told in one message."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: what, where, the value, the way out.

    The command line prints the message alone and exits with code 2.
    """


LONGEST_NAME = 255  # bytes, as file systems have it
LONGEST_SHOWN = 200  # characters


def shown(value: object) -> str:
    """Returns a value as Python writes it, cut where it is long, whatever the value does when asked."""
    try:
        text = repr(value)
    except Exception:  # a `__repr__` of a user's own, or a number of too many digits
        return f"a value of type {type(value).__name__} that cannot be shown"
    return shortened(text)


def shortened(text: str) -> str:
    """Returns text cut to what fits a message."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def not_plain(text: str) -> str:
    """Returns what keeps text from being written to a file or given to the system, or "" where nothing does."""
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return ""


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Returns the option nearest to `name`, one that begins with it before others; None where none is near.

    Overlong text is no name, and none is near.
    """
    if len(name) > LONGEST_NAME:
        return None
    options = list(options)
    longer = sorted((option for option in options if len(name) > 2 and option.startswith(name)), key=len)
    same = [option for option in options if option.lower() == name.lower()]
    matches = same or longer or difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns " Did you mean X?" for the option nearest to `name`, which is another one, or ""."""
    match = nearest(name, [option for option in options if option != name])
    return f" Did you mean {match}?" if match else ""
