"""Encoded text to padded batches, by Grain; a position is one number, the step."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int

from seq2seq_jax.data.batching import Batching, BatchShape, choose_shapes, round_up, similar_groups
from seq2seq_jax.data.encoded import EncodedSplit
from seq2seq_jax.padded import Padded

Share = tuple[int, int]
"""Which of how many equal parts."""
ALONE: Share = (0, 1)


class Batch(NamedTuple):
    """Pairs of sequences of ids; every one ends with an end id, and a row without an example is empty."""

    source: Padded
    target: Padded


def padded_batch(encoded: EncodedSplit, shape: BatchShape, indices: Int[np.ndarray, " n"]) -> Batch:
    """Returns the pairs `indices` as a batch of the given shape, int32."""
    return Batch(
        encoded.sources.padded(indices, shape.batch, shape.source),
        encoded.targets.padded(indices, shape.batch, shape.target),
    )


class _Batches:
    """The batches of a run as a Grain source: element i is the batch of step i."""

    def __init__(self, encoded: EncodedSplit, batching: Batching, num_steps: int, share: Share = ALONE) -> None:
        self._encoded, self._batching, self._num_steps, self._share = encoded, batching, num_steps, share

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> Batch:
        shape, examples = self._batching.batch(int(index))
        number, count = self._share
        rows = shape.batch // count
        own = dataclasses.replace(shape, batch=rows)
        return padded_batch(self._encoded, own, examples[number * rows : (number + 1) * rows])


def training_batches(
    encoded: EncodedSplit, batching: Batching, start_step: int, num_steps: int, share: Share = ALONE
) -> Iterator[Batch]:
    """Returns the batches of the steps from `start_step` up to, not including, `num_steps`.

    A batch depends on its step alone. One thread makes batches ahead of their use.
    Of several processes each reads its `share` of the rows.
    """
    return _prefetched(_Batches(encoded, batching, num_steps, share), start_step)


def _prefetched(source: Any, start_step: int) -> Iterator[Batch]:
    dataset = grain.MapDataset.source(source)
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))
    iterator.set_state({"next_index": start_step})
    return iterator


class _StackedBatches:
    """The batches of several runs as one Grain source: element i is those of step i, stacked."""

    def __init__(self, encoded: EncodedSplit, batchings: Sequence[Batching], num_steps: int) -> None:
        self._runs = [_Batches(encoded, batching, num_steps) for batching in batchings]

    def __len__(self) -> int:
        return len(self._runs[0])

    def __getitem__(self, index: int) -> Batch:
        sides = zip(*(run[index] for run in self._runs), strict=True)
        return Batch(*(Padded(*map(np.stack, zip(*side, strict=True))) for side in sides))


def stacked_batches(
    encoded: EncodedSplit, batchings: Sequence[Batching], start_step: int, num_steps: int
) -> Iterator[Batch]:
    """Returns `training_batches` of several runs, stacked; they have the same shape at every step, see `with_seed`."""
    return _prefetched(_StackedBatches(encoded, batchings, num_steps), start_step)


def evaluation_batches(
    encoded: EncodedSplit, batch_size: int, batch_multiple: int = 1, num_shapes: int = 8
) -> Iterator[tuple[Batch, Int[np.ndarray, " n"]]]:
    """Yields every pair once, in order of length, with the indices of the pairs.

    Pairs are sorted by source and then target length and cut into batches of
    `batch_size` rows, rounded up to a multiple of `batch_multiple`; only the
    last has empty rows. At most `num_shapes` different shapes occur.
    """
    rows = round_up(batch_size, batch_multiple)
    groups = similar_groups((encoded.source_lengths, encoded.target_lengths), rows)
    if not groups:
        return
    sources = np.array([encoded.source_lengths[group].max() for group in groups])
    targets = np.array([encoded.target_lengths[group].max() for group in groups])
    # To the choice of shapes a whole batch is one row.
    shapes = choose_shapes(sources, targets, num_shapes=num_shapes, batch_size=1)
    for group, source, target in zip(groups, sources, targets, strict=True):
        shape = next(shape for shape in shapes if shape.source >= source and shape.target >= target)
        yield padded_batch(encoded, dataclasses.replace(shape, batch=rows), group), group
