"""SCAN, generated from its grammar: Lake and Baroni 2018, figures 6 and 7.

A command is a sentence of a small grammar and the actions are its meaning, so
nothing is downloaded. The published rule splits come out pair for pair:

* `length`: trained on sequences of at most 22 actions, tested on longer ones;
* `addprim_jump`: trained on every command without *jump* and on the bare
  primitive, tested on the other commands with it;
* `addprim_turn_left`: the same with *turn left*.

The primitive is repeated in train until it makes up a tenth of it, as in the
published files. The published `simple` split is a random draw that no rule
gives back; ours has its sizes (80 % train, 20 % test) and goes by the rank of
the commands' hashes.
"""

import hashlib
from collections.abc import Iterator

from seq2seq_jax.data.corpora.raw import Pair, RawCorpus
from seq2seq_jax.errors import UserError, did_you_mean

CONFIGS = ("simple", "length", "addprim_jump", "addprim_turn_left")

_PRIMITIVES = {"walk": ["I_WALK"], "look": ["I_LOOK"], "run": ["I_RUN"], "jump": ["I_JUMP"]}
_TURNS = {"left": ["I_TURN_LEFT"], "right": ["I_TURN_RIGHT"]}
_TIMES = {"": 1, " twice": 2, " thrice": 3}
_LONGEST_TRAINED = 22  # actions, section 4.2 of the paper
_PRIMITIVE_SHARE = 0.1  # of train, section 4.3


def find_scan_corpus(config: str) -> RawCorpus:
    """Returns the SCAN corpus of `config`, one of `CONFIGS`.

    Raises:
      UserError: there is no such configuration.
    """
    if config not in CONFIGS:
        names = [f"scan/{name}" for name in CONFIGS]
        wrong = f"scan/{config}".removesuffix("/")
        near = did_you_mean(wrong, names)
        raise UserError(f"data.corpus {wrong}: there is no such corpus; there are {', '.join(names)}.{near}")
    return RawCorpus(
        source="commands",
        target="actions",
        splits={name: lambda name=name: iter(scan_corpus_split(config, name)) for name in ("train", "test")},
        signature=f"scan/{config} 1",
    )


def scan_corpus_split(config: str, split: str) -> list[Pair]:
    """Returns the (command, actions) pairs of split train or test, in the order of the grammar."""
    pairs = list(_sentences())
    if config == "simple":
        ranked = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
        trained = set(ranked[: len(pairs) * 4 // 5])
        return [pair for pair in pairs if (pair in trained) == (split == "train")]
    if config == "length":
        return [pair for pair in pairs if (len(pair[1].split()) <= _LONGEST_TRAINED) == (split == "train")]
    primitive = config.removeprefix("addprim_").replace("_", " ")
    if split == "test":
        return [pair for pair in pairs if primitive in pair[0] and pair[0] != primitive]
    others = [pair for pair in pairs if primitive not in pair[0]]
    copies = round(len(others) * _PRIMITIVE_SHARE / (1 - _PRIMITIVE_SHARE))
    return [pair for pair in pairs if pair[0] == primitive] * copies + others


def _sentences() -> Iterator[Pair]:
    """Yields every sentence of the grammar with its meaning: C -> S | S and S | S after S."""
    clauses = [(verb + times, actions * count) for verb, actions in _verbs() for times, count in _TIMES.items()]
    for command, actions in clauses:
        yield command, " ".join(actions)
    for first, first_actions in clauses:
        for second, second_actions in clauses:
            yield f"{first} and {second}", " ".join(first_actions + second_actions)
            yield f"{first} after {second}", " ".join(second_actions + first_actions)


def _verbs() -> Iterator[tuple[str, list[str]]]:
    """Yields V -> U | D | D[1] opposite D[2] | D[1] around D[2] with their actions."""
    yield from _PRIMITIVES.items()
    for verb, actions in [("turn", []), *_PRIMITIVES.items()]:
        for direction, turn in _TURNS.items():
            yield f"{verb} {direction}", turn + actions
            yield f"{verb} opposite {direction}", turn * 2 + actions
            yield f"{verb} around {direction}", (turn + actions) * 4
