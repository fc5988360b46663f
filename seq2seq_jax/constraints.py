"""What is asked of single outputs, how they begin and phrases that they must have: from text to what a search takes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seq2seq_jax.data.batching import round_up
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import Vocabularies
from seq2seq_jax.decoding.phrases import make_phrases
from seq2seq_jax.decoding.rules import Asked
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import PAD

_MULTIPLE = 4
"""Lengths of prefixes and phrases are padded to a multiple of this, so that few searches are compiled."""


class Constraints(NamedTuple):
    """Of each source, token ids; None where nothing is asked of any.

    Attributes:
      prefixes: how its output begins.
      phrases: that appear in it.
    """

    prefixes: list[list[int]] | None = None
    phrases: list[list[list[int]]] | None = None

    def num_tokens(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Tokens that what is asked of some outputs takes at most."""
        total = np.zeros(len(indices), np.int64)
        for row, index in enumerate(indices):
            total[row] += len(self.prefixes[index]) if self.prefixes else 0
            total[row] += sum(map(len, self.phrases[index])) if self.phrases else 0
        return total

    def asked(self, indices: Int[np.ndarray, " n"], num_rows: int) -> Asked:
        """What is asked of some outputs, with rows that ask for nothing after them."""
        prefix = phrases = None
        empty = [[]] * (num_rows - len(indices))
        if self.prefixes:
            rows = [self.prefixes[index] for index in indices] + empty
            values = np.full((num_rows, round_up(max(map(len, rows)) or 1, _MULTIPLE)), PAD, np.int32)
            for row, ids in enumerate(rows):
                values[row, : len(ids)] = ids
            prefix = Padded(values, np.array(list(map(len, rows)), np.int32))
        if self.phrases:
            of_each = [self.phrases[index] for index in indices] + empty
            longest = max((len(phrase) for row in of_each for phrase in row), default=1)
            most = 1 << (max(1, *map(len, of_each)) - 1).bit_length()
            phrases = make_phrases(of_each, most, round_up(longest, _MULTIPLE))
        return Asked(prefix, phrases)


NO_CONSTRAINTS = Constraints()


def read_constraints(
    vocabularies: Vocabularies,
    lines: Sequence[str],
    prefixes: Sequence[str] | None,
    required: Sequence[Sequence[str]] | None,
    first_line: int = 1,
) -> Constraints:
    """The token ids of what is asked, cut into tokens as the target vocabulary cuts text.

    Args:
      vocabularies: of both sides; with copies, what a line has may be asked for, too.
      lines: sources.
      prefixes: how the output of each begins; empty for anyhow.
      required: phrases that appear in the output of each.
      first_line: number of the first one, for messages.

    Raises:
      ValueError: they are not as many as the lines.
      UserError: one has a symbol that the vocabulary lacks, by its line; or has no text.
    """
    for name, given in (("prefixes", prefixes), ("required", required)):
        if given is not None and len(given) != len(lines):
            raise ValueError(f"{len(given)} {name} and {len(lines)} lines; there must be one for each.")
    beginnings = phrases = None
    if prefixes is not None:
        whats = [f"the prefix of line {number}" for number in range(first_line, first_line + len(lines))]
        beginnings = _ids(vocabularies, lines, prefixes, whats)
    if required is not None:
        each = zip(lines, required, range(first_line, first_line + len(lines)), strict=True)
        phrases = [
            _of_line(vocabularies, line, of_line, f"a phrase for line {number}") for line, of_line, number in each
        ]
    return Constraints(beginnings, phrases)


def _of_line(vocabularies: Vocabularies, line: str, phrases: Sequence[str], what: str) -> list[list[int]]:
    found = _ids(vocabularies, [line] * len(phrases), phrases, [what] * len(phrases))
    if not all(found):
        raise UserError(f"{what.capitalize()} has no text; leave it out.")
    return found


def _ids(
    vocabularies: Vocabularies, lines: Sequence[str], texts: Sequence[str], whats: Sequence[str]
) -> list[list[int]]:
    rows = encode_lines(vocabularies, lines, texts).targets
    for index in rows.with_unknown():
        raise UserError(
            f"{whats[index].capitalize()}, {texts[index][:60]!r}, has symbols that the vocabulary lacks, so that it"
            " cannot be written."
        )
    return [rows[index].tolist()[:-1] for index in range(len(texts))]
