"""Formal languages, drawn at random: four tasks of Delétang et al. 2023, Neural Networks and the Chomsky Hierarchy.

    parity              a b b a     True             whether the number of b is even (regular)
    modular_arithmetic  1 + 2 - 4   4                value modulo 5, products before sums (regular)
    reverse             a a b       b a a            (deterministic context-free)
    duplicate           a a b       a a b a a b      (context-sensitive)

Every symbol of a string, and its length, is drawn uniformly; an expression has
the odd length at or below the one that is drawn. Strings of train have 1 to 40
symbols and are repeated as they are drawn, so that there are many copies of the
shortest. Those of the other splits, named by their lengths, are drawn until
they are new: none is in train or twice in a split, and of the shortest, which
train has all, none is left for them.

All is a function of the names of task and split: the numbers are those of
Python's `random.random` with the two for a seed, which are the same in every
version.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from seq2seq_jax.data.corpora.raw import Pair, RawCorpus
from seq2seq_jax.errors import UserError, did_you_mean

MODULUS = 5

Draw = Callable[[int, Random], list[str]]
"""Makes a string of a length."""


class FormalSplit(NamedTuple):
    """Lengths of the strings of a split, and their number."""

    shortest: int
    longest: int
    count: int


SPLITS = {
    "train": FormalSplit(1, 40, 20_000),
    "validation": FormalSplit(1, 40, 1_000),
    "test_1_40": FormalSplit(1, 40, 1_000),
    "test_41_100": FormalSplit(41, 100, 1_000),
    "test_101_500": FormalSplit(101, 500, 1_000),
}


class _Task(NamedTuple):
    draw: Draw
    solve: Callable[[list[str]], list[str]]


def find_formal_corpus(task: str) -> RawCorpus:
    """Returns the corpus of `task`, one of `TASKS`.

    Raises:
      UserError: there is no such task.
    """
    if task not in TASKS:
        names = [f"formal/{name}" for name in TASKS]
        wrong = f"formal/{task}".removesuffix("/")
        near = did_you_mean(wrong, names)
        raise UserError(f"data.corpus {wrong}: there is no such corpus; there are {', '.join(names)}.{near}")
    return RawCorpus(
        source="input",
        target="output",
        splits={name: lambda name=name: iter(formal_corpus_split(task, name)) for name in SPLITS},
        signature=f"formal/{task} 1",
    )


def formal_corpus_split(task: str, split: str) -> list[Pair]:
    """Returns the (input, output) pairs of a split of `SPLITS`, in the order in which they are drawn."""
    draw, solve = _TASKS[task]
    drawn = _strings(draw, f"{task}/{split}", SPLITS[split])
    if split == "train":
        strings = [next(drawn) for _ in range(SPLITS[split].count)]
    else:
        known = {source for source, _ in formal_corpus_split(task, "train")}
        strings = []
        for string in drawn:
            if " ".join(string) not in known:
                known.add(" ".join(string))
                strings.append(string)
            if len(strings) == SPLITS[split].count:
                break
    return [(" ".join(string), " ".join(solve(string))) for string in strings]


def _strings(draw: Draw, seed: str, split: FormalSplit) -> Iterator[list[str]]:
    random = Random(seed)
    while True:
        # `randrange` may draw others in another version of Python.
        yield draw(split.shortest + int(random.random() * (split.longest - split.shortest + 1)), random)


def _letters(length: int, random: Random) -> list[str]:
    return ["ab"[int(random.random() * 2)] for _ in range(length)]


def _expression(length: int, random: Random) -> list[str]:
    """Numbers with operators between them: `length` symbols, or one less."""
    return [
        "+-*"[int(random.random() * 3)] if position % 2 else str(int(random.random() * MODULUS))
        for position in range(length - 1 + length % 2)
    ]


def _parity(string: list[str]) -> list[str]:
    return [str(string.count("b") % 2 == 0)]


def _value(expression: list[str]) -> list[str]:
    """The value, read from left to right with two numbers for a memory: the sum so far, and the product after it."""
    total, product = 0, int(expression[0])
    for operator, number in zip(expression[1::2], map(int, expression[2::2]), strict=True):
        if operator == "*":
            product = product * number % MODULUS
        else:
            total, product = (total + product) % MODULUS, number if operator == "+" else -number
    return [str((total + product) % MODULUS)]


_TASKS = {
    "parity": _Task(_letters, _parity),
    "modular_arithmetic": _Task(_expression, _value),
    "reverse": _Task(_letters, lambda string: string[::-1]),
    "duplicate": _Task(_letters, lambda string: string * 2),
}
TASKS = tuple(_TASKS)
