"""Pairs of a dialogue, and what was said before them.

A corpus of dialogues has, beside an utterance and the reply to it, a column
that says where the utterance stands: the name of its dialogue and its position
among the utterances, counted from 0, with a tab or blanks between. The reply is
the utterance after it. So a dialogue of four utterances is the pairs 0 to 2, or
0 and 2 where one side's replies are wanted alone.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora.raw import TAB, Pair, as_pair
from seq2seq_jax.errors import UserError, shown
from seq2seq_jax.wording import counted


def as_pairs(rows: Iterator[Sequence[str]], config: DataConfig, place: Callable[[int], str]) -> Iterator[Pair]:
    """Yields the pairs of rows whose columns `resolve_columns` chose: with tags, or with the turns before, if wanted.

    Args:
      rows: of the split, in their order.
      config: says what is wanted.
      place: names a row by its number, counted from 1, for messages.

    Raises:
      UserError: as `with_turns_before` says.
    """
    return with_turns_before(rows, config.context_turns, place) if config.context_turns else map(as_pair, rows)


def with_turns_before(rows: Iterator[Sequence[str]], most: int, place: Callable[[int], str]) -> Iterator[Pair]:
    """Yields sources with up to `most` turns before them, the oldest first and tabs between, and their targets.

    Args:
      rows: source, target, and what the module says of where the source stands.
      most: turns put before a source; a dialogue's first ones have fewer before them.
      place: names a row by its number, counted from 1, for messages.

    Raises:
      UserError: a position is none, or skips turns; an utterance has a tab; or it is another one than the reply before.
    """
    dialogue, turns = "", []
    for number, (source, target, turn) in zip(count(1), rows, strict=False):
        if not (source or target or turn):  # an empty line
            yield "", ""
            continue
        name, position = _read(turn, place, number)
        if position == 0:
            dialogue, turns = name, []
        if name != dialogue or not max(len(turns) - 1, 0) <= position <= len(turns):
            before = f"turn {len(turns) - 2} of dialogue {shown(dialogue)}" if turns else "nothing"
            raise UserError(
                f"{place(number)} is turn {position} of dialogue {shown(name)}, and what comes before it is {before}."
                " data.turns counts all utterances of a dialogue, from 0; its pairs follow one another in their order,"
                " and the target of each is the turn after its source."
            )
        if turns[position:] not in ([], [source]):
            raise UserError(
                f"{place(number)}: turn {position} of dialogue {shown(name)} is {shown(source)}, and as the target"
                f" before it is {shown(turns[position])}. data.turns says where the source stands; the target is the"
                " turn after it."
            )
        if TAB in source or TAB in target:
            raise UserError(f"{place(number)}: an utterance has a tab, which stands between turns; make it a blank.")
        turns = [*turns[:position], source, target]
        filled = bool(source) and not source.isspace()  # without it a pair is empty, whatever was said before
        yield (TAB.join(turns[max(position - most, 0) : -1]) if filled else ""), target


def turns_signature(config: DataConfig) -> tuple[int, ...]:
    """What `RawCorpus.signature` says of the turns before a source; nothing where there are none."""
    return (config.context_turns,) if config.context_turns else ()


def turns_notes(config: DataConfig) -> tuple[str, ...]:
    """What the user should be told of the turns before a source."""
    if not config.context_turns:
        return ()
    return (f"source: with up to {counted(config.context_turns, 'turn')} before it, by the column {config.turns}",)


def _read(turn: str, place: Callable[[int], str], number: int) -> tuple[str, int]:
    """Returns the name of a dialogue and a position in it."""
    name, position = ["", "", *turn.rsplit(None, 1)][-2:]
    if not name or not (position.isascii() and position.isdigit()):
        raise UserError(
            f"{place(number)}: data.turns has {shown(turn)}, which should be a dialogue and the position of the source"
            " in it, counted from 0, with a tab or a blank between."
        )
    return name, int(position)
