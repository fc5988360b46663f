"""Invented training pairs for inflection with little text (Anastasopoulos and Neubig 2019, section 3.2).

What a word and its form have in common is taken for the stem. Some of its
characters are replaced, the same in both, by random ones: walk, walked becomes
wöhk, wöhked. A model then sees more stems than the text has, with the same
endings, and learns to copy what it does not know.

As in the authors' program, a stem is every run of at least three characters
that both sides share; of a run of six or more the first and the last stay; each
other character is replaced with probability 1/2 by one of all characters of the
training text, blanks left out. Other than there, runs are found by difflib's
matching blocks, not by a learnt alignment, and the characters of the validation
text are not used.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np

from seq2seq_jax.data.corpora.raw import TAB, Pair, RawCorpus, Stream
from seq2seq_jax.errors import UserError

LEAST = 3
"""Characters of a run that is taken for a stem."""
LONG = 6
"""Characters of a run whose first and last stay."""

_VERSION = 1  # of the rule: part of what tells prepared text apart
_RUN = re.compile(rf"\S{{{LEAST},}}")


def with_hallucinated(raw: RawCorpus, number: int, *, lowercase: bool = False) -> RawCorpus:
    """Returns `raw` with `number` invented pairs at the end of train, a function of its pairs and the arguments alone.

    Reads train once for its notes, which say how many pairs have no stem.

    Args:
      raw: the corpus.
      number: of pairs to invent.
      lowercase: whether text will be lowercased, so that Haus and haus are one stem; invented pairs then are.

    Raises:
      UserError: there is no validation split; one cut from train would have invented pairs.
    """
    if "validation" not in raw.splits:
        raise UserError(
            f"data.hallucinate {number} needs a validation split of its own, and there is none; add one, or set"
            " data.hallucinate 0."
        )
    train = raw.splits["train"]

    def models() -> list[Pair]:
        return [_lowercased(pair) for pair in train()] if lowercase else list(train())

    def stream() -> Iterator[Pair]:
        return itertools.chain(train(), hallucinated(models(), number))

    splits: dict[str, Stream] = raw.splits | {"train": stream}
    stemless = sum(not stem(_word(source), target) for source, target in models())
    note = f"train: {number:,} of its pairs are invented (data.hallucinate)"
    if stemless:
        note += f"; {stemless:,} of the others share no {LEAST} characters in a row and are no model for them"
    signature = [raw.signature, "hallucinated", _VERSION, number, *(["lowercase"] if lowercase else [])]
    return replace(raw, splits=splits, signature=signature, notes=(*raw.notes, note))


def hallucinated(pairs: Sequence[Pair], number: int) -> list[Pair]:
    """Returns `number` invented pairs, each pair with a stem in its turn; tags stay as they are.

    Raises:
      UserError: no pair has a stem.
    """
    models = [(source, target, found) for source, target in pairs if (found := stem(_word(source), target))]
    if not models:
        raise UserError(
            f"data.hallucinate {number}: no training pair shares {LEAST} characters in a row, so there is no stem to"
            " invent others for; set data.hallucinate 0."
        )
    words = (text for source, target in pairs for text in (_word(source), target))
    alphabet = sorted(character for character in set().union(*words) if not character.isspace())
    random = np.random.Philox(key=0)  # NumPy promises that its raw words never change
    return [
        _invent(source, target, found, alphabet, random)
        for source, target, found in itertools.islice(itertools.cycle(models), number)
    ]


def stem(word: str, form: str) -> list[tuple[int, int]]:
    """Returns where characters may be replaced: positions in the word and in its form that are one character."""
    positions = []
    for block in SequenceMatcher(None, word, form, autojunk=False).get_matching_blocks():
        for run in _RUN.finditer(word[block.a : block.a + block.size]):
            inner = range(run.start(), run.end())
            if len(inner) >= LONG:
                inner = inner[1:-1]
            positions += [(block.a + offset, block.b + offset) for offset in inner]
    return positions


def _invent(
    source: str, target: str, found: Sequence[tuple[int, int]], alphabet: Sequence[str], random: np.random.Philox
) -> Pair:
    """Returns the pair with other characters in its stem, at least one of them drawn anew."""
    word, form = list(_word(source)), list(target)
    draws = random.random_raw(2 * len(found)).reshape(-1, 2)
    chosen = draws[:, 0] >> np.uint64(63) == 1
    chosen[int(draws[0, 0] % len(found))] |= not chosen.any()
    for (here, there), (_, draw), is_chosen in zip(found, draws, chosen, strict=True):
        if is_chosen:
            word[here] = form[there] = alphabet[int(draw % len(alphabet))]
    return "".join(word) + source[len(word) :], "".join(form)


def _lowercased(pair: Pair) -> Pair:
    source, target = pair
    word = _word(source)
    return word.lower() + source[len(word) :], target.lower()


def _word(source: str) -> str:
    """The source without its tags."""
    word, tab, rest = source.rpartition(TAB)
    return word if tab else rest
