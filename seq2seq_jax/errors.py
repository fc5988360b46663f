"""Mistakes the user can mend, told in one message."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: what, where, the value, the way out.

    The command line prints the message alone and exits with code 2.
    """


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Returns the option nearest to `name`, or None where none is near."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns " Did you mean X?" for the option nearest to `name`, or ""."""
    match = nearest(name, options)
    return f" Did you mean {match}?" if match else ""
