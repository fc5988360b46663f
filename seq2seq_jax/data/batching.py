"""Lengths to a few batch shapes, and to whole batches in an order.

Every batch has one of a few shapes, so that every step of a run is compiled
before the first. The shapes are chosen from the histogram of lengths to waste
the fewest positions, and the batches are a function of (lengths, seed, epoch): a
position among them is one number, the step.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seq2seq_jax.errors import UserError

_MAX_EDGES = 160  # lengths per side at which a shape may end
_NUM_STARTS = 16  # beginnings of the search for shapes; with _MAX_EDGES this keeps it near a second
_BLOCK = 1 << 18  # pairs looked at together: few enough for a processor's cache, whatever the number of all


@dataclass(frozen=True, order=True)
class BatchShape:
    """Rows, source positions and target positions of a batch, end ids included."""

    batch: int
    source: int
    target: int

    @property
    def cost(self) -> int:
        """Positions of a row."""
        return self.source + self.target

    @property
    def positions(self) -> int:
        """Positions of the batch, source and target."""
        return self.batch * self.cost

    def holds(self, other: "BatchShape") -> bool:
        """Whether a row of `other` fits this shape."""
        return self.source >= other.source and self.target >= other.target


Lengths = Int[np.ndarray, " N"]


def choose_shapes(
    source_lengths: Lengths,
    target_lengths: Lengths,
    *,
    num_shapes: int,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    batch_multiple: int = 1,
) -> tuple[BatchShape, ...]:
    """Returns at most `num_shapes` shapes that hold all pairs and pad them little.

    The shapes are ordered by cost, and the last one holds every other. They are
    found by exchange: from a greedy choice and from some random ones, each
    shape in turn is moved to where it saves the most positions, until none
    moves; the best end of these searches counts. Deterministic. On Multi30k it
    ends at the optimum, as Lagrangian bounds say: eight shapes cannot waste
    less than 12.9 % of the positions (joint unigram vocabulary of 8,000).

    Args:
      source_lengths: ids of each source, the end id included.
      target_lengths: ids of each target, the end id included.
      num_shapes: most shapes.
      batch_size: rows of every shape.
      batch_tokens: instead of `batch_size`, target positions of a batch.
      batch_multiple: what rows are a multiple of, such as the number of devices.

    Raises:
      UserError: `batch_size` is not a multiple of `batch_multiple`.
    """
    histogram = _Histogram(_Fitting(source_lengths, target_lengths))
    return _choose_shapes(histogram, num_shapes, batch_size, batch_tokens, batch_multiple)[0]


def _choose_shapes(
    histogram: "_Histogram", num_shapes: int, batch_size: int | None, batch_tokens: int | None, batch_multiple: int
) -> tuple[tuple[BatchShape, ...], list[int]]:
    """Returns the shapes, and how many pairs have each as the cheapest that holds them."""
    choices = []
    for cells in histogram.covers(num_shapes):
        unused = True
        while unused:
            shapes = tuple(
                BatchShape(_num_rows(target, batch_size, batch_tokens, batch_multiple), source, target)
                for source, target in histogram.rectangles(cells)
            )
            shares = histogram.shares(cells)
            flow = _settle(shapes, shares)
            unused = {cell for cell, step in zip(cells[:-1], flow, strict=False) if not step.num_batches}
            cells = [cell for cell in cells if cell not in unused]
        choices.append((_positions(shapes, flow), len(shapes), shapes, shares))
    *_, shapes, shares = min(choices)
    return shapes, shares


def _num_rows(target: int, batch_size: int | None, batch_tokens: int | None, multiple: int) -> int:
    if batch_size is not None:
        if batch_size % multiple:
            below = batch_size // multiple * multiple
            choices = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise UserError(
                f"data.batch_size {batch_size} cannot be shared evenly: it has to be a multiple of {multiple}"
                f" (devices times train.accumulate_steps); use {choices}."
            )
        return batch_size
    assert batch_tokens is not None
    rows = batch_tokens // target
    # Eights keep vector registers full, and batches the same on one device and on two, four or eight.
    unit = math.lcm(multiple, 8)
    unit = unit if rows >= unit else multiple
    return max(rows // unit * unit, multiple)


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below `number`."""
    return -(-number // multiple) * multiple


def similar_groups(lengths: Sequence[Lengths], rows: int) -> list[Int[np.ndarray, " n"]]:
    """Returns the indices of all examples in groups of `rows`, of similar length each; only the last may be smaller.

    Args:
      lengths: what to sort by, the first first.
      rows: examples of a group.
    """
    order = np.lexsort(lengths[::-1])
    return [order[start : start + rows] for start in range(0, len(order), rows)]


_Cell = tuple[int, int]  # a possible shape: index of its source edge, index of its target edge


class _Fitting:
    """Indices, source lengths and target lengths of the pairs that are not too long.

    They come a block at a time, so that lengths on disk are never in memory as a whole.
    """

    def __init__(self, source_lengths: Lengths, target_lengths: Lengths, max_length: int | None = None) -> None:
        self._sides, self._max_length = (source_lengths, target_lengths), max_length

    def __iter__(self) -> Iterator[tuple[np.ndarray, Lengths, Lengths]]:
        for start in range(0, len(self._sides[0]), _BLOCK):
            sources, targets = (lengths[start : start + _BLOCK] for lengths in self._sides)
            if self._max_length is None:
                yield np.arange(start, start + len(sources)), sources, targets
            else:
                places = np.flatnonzero(np.maximum(sources, targets) <= self._max_length)
                yield start + places, sources[places], targets[places]


class _Histogram:
    """Numbers of pairs by (source, target) length, on a grid of possible shape edges."""

    def __init__(self, pairs: _Fitting) -> None:
        totals = _count_lengths(pairs)
        self.num_pairs = int(totals[0].sum())
        self.num_tokens = sum(int(np.arange(len(total)) @ total) for total in totals)
        (self.sources, rows), (self.targets, columns) = map(_edges, totals)
        shape = (len(self.sources), len(self.targets))
        counts = np.zeros(shape[0] * shape[1], np.int64)
        for _, sources, targets in pairs:
            counts += np.bincount(rows[sources] * shape[1] + columns[targets], minlength=len(counts))
        self.counts = counts.reshape(shape)
        self.costs = self.sources[:, None] + self.targets[None, :]  # positions of a row of each possible shape

    def rectangles(self, cells: Sequence[_Cell]) -> list[tuple[int, int]]:
        """Returns the lengths at the edges of `cells`."""
        return [(int(self.sources[row]), int(self.targets[column])) for row, column in cells]

    def shares(self, cells: Sequence[_Cell]) -> list[int]:
        """Returns how many pairs have each of `cells`, ordered by cost, as the first that holds them."""
        left = self.counts.copy()
        shares = []
        for row, column in cells:
            shares.append(int(left[: row + 1, : column + 1].sum()))
            left[: row + 1, : column + 1] = 0
        return shares

    def covers(self, num_shapes: int) -> Iterator[list[_Cell]]:
        """Yields good choices of cells, ordered by cost; the last cell is the whole grid."""
        whole = (len(self.sources) - 1, len(self.targets) - 1)
        random = np.random.RandomState(0)
        ranks = np.cumsum(self.counts)
        starts = [self._greedy(num_shapes - 1, whole)]
        for _ in range(_NUM_STARTS - 1):
            pairs = random.randint(ranks[-1], size=len(starts[0]), dtype=np.int64)
            picks = np.searchsorted(ranks, pairs, side="right").tolist()
            starts.append([divmod(pick, self.counts.shape[1]) for pick in picks])
        for chosen in starts:
            self._exchange(chosen, whole)
            yield sorted({*chosen, whole}, key=lambda cell: (self.costs[cell], cell))

    def _greedy(self, count: int, whole: _Cell) -> list[_Cell]:
        chosen: list[_Cell] = []
        while len(chosen) < count:
            best, saved = self._best(self._row_costs([*chosen, whole]))
            if not saved:
                break
            chosen.append(best)
        return chosen

    def _exchange(self, chosen: list[_Cell], whole: _Cell) -> None:
        """Moves each of `chosen` to its best place, the others fixed, until none moves."""
        unmoved = place = 0
        while unmoved < len(chosen):
            costs = self._row_costs([*chosen[:place], *chosen[place + 1 :], whole])
            best, saved = self._best(costs)
            if saved > self._saved(costs, chosen[place]):
                chosen[place], unmoved = best, 0
            unmoved += 1
            place = (place + 1) % len(chosen)

    def _row_costs(self, cells: Sequence[_Cell]) -> np.ndarray:
        """Returns for each length pair the positions of the cheapest of `cells` that holds it."""
        costs = np.full(self.counts.shape, np.iinfo(np.int64).max)
        for row, column in cells:
            part = costs[: row + 1, : column + 1]
            np.minimum(part, self.costs[row, column], out=part)
        return costs

    def _best(self, costs: np.ndarray) -> tuple[_Cell, int]:
        """Returns the cell that saves most positions beside others that give `costs`, and how many."""
        saved = np.zeros(costs.shape, np.int64)
        # Pairs of equal cost gain equally by a new shape, so prefix sums of
        # their numbers give the savings of all possible shapes at once.
        for cost in np.unique(costs):
            held = np.where(costs == cost, self.counts, 0).cumsum(0).cumsum(1)
            saved += held * np.maximum(cost - self.costs, 0)
        row, column = divmod(int(saved.argmax()), costs.shape[1])
        return (row, column), int(saved[row, column])

    def _saved(self, costs: np.ndarray, cell: _Cell) -> int:
        part = np.s_[: cell[0] + 1, : cell[1] + 1]
        return int((np.maximum(costs[part] - self.costs[cell], 0) * self.counts[part]).sum())


def _count_lengths(pairs: _Fitting) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many sources, and how many targets, have each length from 0 on."""
    totals = [np.zeros(0, np.int64)] * 2
    for _, *sides in pairs:
        for side, lengths in enumerate(sides):
            counts = np.bincount(lengths, minlength=len(totals[side]))
            counts[: len(totals[side])] += totals[side]
            totals[side] = counts
    return totals[0], totals[1]


def _edges(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths at which a shape may end, rising, and for each length from 0 on the first that holds it.

    Args:
      total: how many sequences have each length.
    """
    edges = np.flatnonzero(total)
    counts = total[edges]
    if len(edges) > _MAX_EDGES:
        # Every n-th length of the corpus, so that edges are dense where pairs are.
        ranks = np.cumsum(counts) * _MAX_EDGES // counts.sum()
        edges = edges[np.append(np.flatnonzero(np.diff(ranks)), len(edges) - 1)]
    return edges, np.searchsorted(edges, np.arange(len(total)))


class _Epoch(NamedTuple):
    number: int
    shapes: np.ndarray  # of each batch, the index of its shape
    starts: np.ndarray  # of each batch, where it starts and ends in examples
    stops: np.ndarray
    examples: np.ndarray


class Batching:
    """Which examples make up the batch of every step.

    Every example that is not too long is in exactly one batch of an epoch, and
    every epoch has the same number of batches of each shape, in random order.
    Examples that fill no batch of their shape, others in every epoch, go to the
    cheapest shape that holds it, in the end to the largest one. With
    `batch_size` one batch of an epoch may have empty rows, with `batch_tokens` two.

    Attributes:
      shapes: the batch shapes, by cost.
      num_batches: batches of an epoch.
      num_examples: examples of an epoch.
      num_too_long: examples left out, source or target longer than `max_length`.
      padded_share: padding positions of an epoch over all, source and target, empty rows included.
    """

    def __init__(
        self,
        source_lengths: Lengths,
        target_lengths: Lengths,
        *,
        max_length: int,
        num_shapes: int,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        batch_multiple: int = 1,
        seed: int = 0,
        shape_seed: int | None = None,
    ) -> None:
        """Chooses the shapes and counts their batches.

        With a `shape_seed` the shapes follow one another as they do by that seed.

        Raises:
          UserError: every example is too long, or rows cannot be shared evenly.
        """
        fitting = _Fitting(source_lengths, target_lengths, max_length)
        histogram = _Histogram(fitting)
        self.num_examples = histogram.num_pairs
        self.num_too_long = len(source_lengths) - self.num_examples
        if not self.num_examples:
            shortest = np.maximum(source_lengths, target_lengths).min() if self.num_too_long else 0
            raise UserError(
                f"None of the {self.num_too_long:,} training pairs fits data.max_length {max_length} (tokens, end mark"
                f" included); the shortest needs {shortest}."
            )
        self.shapes, shares = _choose_shapes(histogram, num_shapes, batch_size, batch_tokens, batch_multiple)
        self.seed, self.shape_seed = seed, seed if shape_seed is None else shape_seed
        # Half of NumPy's own eight bytes an example, which are several gigabytes for a hundred million.
        dtype = np.int32 if len(source_lengths) < 2**31 else np.int64
        self._members = [np.empty(share, dtype) for share in shares]
        _fill(self._members, self.shapes, fitting)
        self._flow = _settle(self.shapes, shares)
        self.num_batches = sum(step.num_batches for step in self._flow)
        self.padded_share = 1.0 - histogram.num_tokens / _positions(self.shapes, self._flow)
        self._epoch: _Epoch | None = None

    def batch(self, step: int) -> tuple[BatchShape, Int[np.ndarray, " n"]]:
        """Returns the shape of the batch at `step`, counted over all epochs, and the indices of its examples."""
        number, position = divmod(step, self.num_batches)
        epoch = self._epoch
        if epoch is None or epoch.number != number:
            epoch = self._epoch = None  # two epochs of a large corpus would take twice the memory
            epoch = self._epoch = self._arrange(number)
        examples = epoch.examples[epoch.starts[position] : epoch.stops[position]]
        return self.shapes[epoch.shapes[position]], examples

    def with_seed(self, seed: int) -> "Batching":
        """Returns the same batches filled by another seed: of the same shape at every step."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_epoch": None}

    def _arrange(self, number: int) -> _Epoch:
        """Returns the batches of an epoch, in random order."""
        # Raw words of a counter-based generator: NumPy promises that they never change.
        random = np.random.Philox(key=np.array([self.seed, number], np.uint64))
        moved: list[list[np.ndarray]] = [[] for _ in self.shapes]
        examples = np.empty(self.num_examples, self._members[0].dtype)
        shapes, starts, stops = [], [], []
        num_drawn = filled = 0
        for index, (shape, step) in enumerate(zip(self.shapes, self._flow, strict=True)):
            members = np.concatenate([self._members[index], *moved[index]])
            num_drawn += len(members)
            members = members[_shuffled(random, len(members))]
            stay = len(members) - step.num_moved
            if step.num_moved:
                moved[step.destination].append(members[stay:])
            examples[filled : filled + stay] = members[:stay]
            edges = np.minimum(np.arange(step.num_batches + 1) * shape.batch, stay) + filled
            shapes.append(np.full(step.num_batches, index))
            starts.append(edges[:-1])
            stops.append(edges[1:])
            filled += stay
        if self.shape_seed != self.seed:
            random = np.random.Philox(key=np.array([self.shape_seed, number], np.uint64))
            random.random_raw(num_drawn, output=False)  # as many as that seed takes before it comes to the order
        order = _shuffled(random, self.num_batches)
        return _Epoch(number, *(np.concatenate(parts)[order] for parts in (shapes, starts, stops)), examples)


class _Flow(NamedTuple):
    """What becomes of the examples of one shape."""

    num_batches: int
    num_moved: int  # examples that go to `destination`
    destination: int


def _settle(shapes: Sequence[BatchShape], counts: Sequence[int]) -> list[_Flow]:
    """Returns how many batches each shape has, and where what fills no batch of it goes.

    The rows without an example that make the epoch come out even are counted
    among the examples of the smallest shape, where they cost least.
    """
    candidates = (0, -sum(counts) % shapes[0].batch)
    return min((_pass_on(shapes, counts, empty) for empty in candidates), key=lambda flow: _positions(shapes, flow))


def _pass_on(shapes: Sequence[BatchShape], counts: Sequence[int], empty: int) -> list[_Flow]:
    counts, empties = list(counts), [empty] + [0] * (len(shapes) - 1)
    flow = []
    for index, shape in enumerate(shapes[:-1]):
        num_batches, moved = divmod(counts[index] + empties[index], shape.batch)
        destination = next(later for later in range(index + 1, len(shapes)) if shapes[later].holds(shape))
        if not num_batches:
            moved = counts[index]
            empties[destination] += empties[index]
        counts[destination] += moved
        flow.append(_Flow(num_batches, moved, destination))
    last = len(shapes) - 1
    return [*flow, _Flow(-(-counts[last] // shapes[last].batch), 0, last)]


def _positions(shapes: Sequence[BatchShape], flow: Sequence[_Flow]) -> int:
    """Returns the positions of an epoch, source and target."""
    return sum(shape.positions * step.num_batches for shape, step in zip(shapes, flow, strict=True))


def _cheapest(shapes: Sequence[BatchShape], sources: Lengths, targets: Lengths) -> np.ndarray:
    """Returns for each pair the index of the cheapest shape that holds it; shapes are ordered by cost."""
    own = np.full(len(sources), -1, np.int16)
    for index in reversed(range(len(shapes))):
        own[(sources <= shapes[index].source) & (targets <= shapes[index].target)] = index
    return own


def _fill(members: Sequence[np.ndarray], shapes: Sequence[BatchShape], fitting: _Fitting) -> None:
    """Writes the indices of all pairs, each among the members of the cheapest shape that holds it."""
    filled = [0] * len(shapes)
    for indices, sources, targets in fitting:
        own = _cheapest(shapes, sources, targets)
        for index, all_of_shape in enumerate(members):
            some = indices[own == index]
            all_of_shape[filled[index] : filled[index] + len(some)] = some
            filled[index] += len(some)


def _shuffled(random: np.random.Philox, count: int) -> np.ndarray:
    return np.argsort(random.random_raw(count), kind="stable")
