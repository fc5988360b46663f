"""The searches that are compiled, and which of them a batch takes.

A program is of one kind and one shape: rows, and ids of a source. The first of
each kind fits every request within the limits, so none ever waits for a compiler.
The others are for fewer rows and shorter sources, and a batch takes the smallest
that is there.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from seq2seq_jax.data.batching import round_up

Kind = Literal["best", "several", "details", "several with details", "stream"]
"""The best hypothesis alone; as many as the beam has; either with details; one token after another."""
NARROWEST = 16
"""Ids of the shortest sources; each next width is twice as large, as is each next number of rows."""


class Shape(NamedTuple):
    """Of a batch: its rows, and ids of each source."""

    rows: int
    width: int

    @property
    def size(self) -> int:
        """Ids of all rows."""
        return self.rows * self.width


class Programs:
    """Which programs there are to be, and which there are.

    Args:
      compile: makes the program of a kind and a shape.
      kinds: all of them.
      most_rows: lines that are searched at once.
      widest: ids of the longest source.
      num_devices: which the rows are shared out to.
    """

    def __init__(
        self,
        compile: Callable[[Kind, Shape], None],
        kinds: Sequence[Kind],
        most_rows: int,
        widest: int,
        num_devices: int = 1,
    ) -> None:
        self._compile = compile
        rows = [round_up(number, num_devices) for number in ladder(1, most_rows)]
        widths = ladder(NARROWEST, widest)
        self._planned = {kind: _shapes(_rows(kind, rows), widths) for kind in kinds}
        self._compiled: dict[Kind, list[Shape]] = {kind: [] for kind in kinds}

    @property
    def num_planned(self) -> int:
        """How many there are to be."""
        return sum(map(len, self._planned.values()))

    @property
    def num_compiled(self) -> int:
        """How many there are."""
        return sum(map(len, self._compiled.values()))

    def most_rows(self, kind: Kind) -> int:
        """Lines that are searched at once."""
        return self._planned[kind][0].rows

    def compile_first(self, told: Callable[[], None]) -> None:
        """Compiles a program of each kind that fits every request; `told` is called after each."""
        for kind, shapes in self._planned.items():
            self._add(kind, shapes[0])
            told()

    def compile_rest(self, stop: threading.Event) -> None:
        """Compiles all others, the likeliest kind first, until `stop` is set."""
        for kind, shapes in self._planned.items():
            for shape in shapes[1:]:
                if stop.is_set():
                    return
                self._add(kind, shape)

    def _add(self, kind: Kind, shape: Shape) -> None:
        self._compile(kind, shape)
        self._compiled[kind] = [*self._compiled[kind], shape]  # a new list: another thread may be reading the old one

    def fitting(self, kind: Kind, num_lines: int, length: int) -> Shape:
        """Returns the shape of the smallest program that is there for so many lines, the longest of so many ids."""
        fit = [shape for shape in self._compiled[kind] if shape.rows >= num_lines and shape.width >= length]
        return min(fit, key=lambda shape: shape.size)


def ladder(least: int, most: int) -> list[int]:
    """Returns `least`, twice that and so on, as far as it is below `most`; and `most`."""
    doubled = (least * 2**power for power in itertools.count())
    return [*itertools.takewhile(lambda value: value < most, doubled), most]


def _rows(kind: Kind, rows: Sequence[int]) -> Sequence[int]:
    """Which numbers of rows a kind has: few where it is asked for at a page, and not by the thousand."""
    few = rows[:3:2]  # 1 and 4
    return {"several": (*few, rows[-1]), "details": few, "several with details": few, "stream": rows[:1]}.get(
        kind, rows
    )


def _shapes(rows: Sequence[int], widths: Sequence[int]) -> list[Shape]:
    """All shapes: first the one that fits all, then the smallest ones."""
    shapes = sorted(
        (Shape(*each) for each in itertools.product(dict.fromkeys(rows), widths)), key=lambda each: each.size
    )
    return [shapes[-1], *shapes[:-1]]
