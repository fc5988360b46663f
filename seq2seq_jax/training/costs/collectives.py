"""Where devices meet in a compiled program, read off its text (XLA's HLO)."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from jax.stages import Compiled

_KINDS = r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_INSTRUCTION = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_CHAIN = re.compile(r'chain_id="(\w+)"')
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")


class Collective(NamedTuple):
    """One meeting of the devices."""

    kind: str
    """all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute."""
    bytes: int
    """Of its result on one device."""
    in_loop: bool
    """Whether a loop repeats it."""


def collectives(program: Compiled | str) -> list[Collective]:
    """Returns every collective of a compiled program, or of its text, in the order of the text.

    A compiler for TPUs may let one run beside a loop: begun before it, moved on a
    little in every round, ended after it. It stands in the text several times, as
    links of a chain. It is counted once, and is no collective of the loop.
    """
    hlo = program if isinstance(program, str) else program.as_text() or ""
    bodies = computations(hlo)
    repeated = set().union(*(reached(body, bodies) for body in loop_bodies(hlo)))
    found, chains = [], set()
    for name, text in bodies.items():
        for kind, size, chain in _collectives(text):
            if chain is None or chain not in chains:
                found.append(Collective(kind, size, chain is None and name in repeated))
            chains.add(chain)
    return found


def computations(hlo: str) -> dict[str, str]:
    """The text of every computation of a program by its name."""
    return dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", hlo, re.M | re.S))


def reached(name: str, bodies: dict[str, str]) -> set[str]:
    """Names of all computations that the one of this name calls, itself included."""
    inner = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)", bodies[name])
    return {name}.union(*(reached(other, bodies) for other in inner))


def loop_bodies(hlo: str) -> list[str]:
    """Names of the bodies of all loops of a program."""
    return re.findall(r"\bwhile\(.*?body=%?([\w.-]+)", hlo)


def _collectives(text: str) -> Iterator[tuple[str, int, str | None]]:
    """Kind, bytes, and the chain that one is a link of."""
    for line in text.splitlines():
        if found := _INSTRUCTION.search(line):
            arrays, chain = found["type"], _CHAIN.search(line)
            if found["start"] and found["kind"] != "all-reduce":
                arrays = _result_of_start(arrays)  # which names its operands too
            yield found["kind"], sum(map(_num_bytes, _ARRAY.findall(arrays))), chain and chain[1]


def _result_of_start(arrays: str) -> str:
    """The second of the two parts of a tuple's type, each an array or a tuple itself."""
    parts = re.findall(r"\([^()]*\)|(?:pred|[a-z]+\d+)[a-z0-9]*\[[\d,]*\]", arrays[1:])
    return parts[1]


def _num_bytes(array: tuple[str, str]) -> int:
    kind, shape = array
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
    return bits * math.prod(int(length) for length in shape.split(",") if length) // 8
