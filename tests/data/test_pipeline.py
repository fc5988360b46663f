import threading

import numpy as np
import pytest

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.batching import Batching
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.pipeline import evaluation_batches, training_batches
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.symbols import EOS, PAD
from tests.data.pairs import toy_pairs


@pytest.fixture(scope="module")
def encoded():
    pairs = toy_pairs(205)
    vocabularies = build_vocabularies(DataConfig(vocabulary="characters", vocab_size=40), pairs)
    return encode_lines(vocabularies, pairs.sources, pairs.targets)


@pytest.fixture(scope="module")
def batching(encoded):
    return Batching(encoded.source_lengths, encoded.target_lengths, max_length=100, num_shapes=4, batch_size=16, seed=3)


def sequences(ids):
    """The rows without padding; the padding is checked to be at the end only."""
    rows = [row[row != PAD].tolist() for row in ids]
    assert all((row[len(kept) :] == PAD).all() for row, kept in zip(ids, rows, strict=True))
    return [row for row in rows if row]


def pair_list(encoded, indices):
    return [encoded.source(i).tolist() for i in indices], [encoded.target(i).tolist() for i in indices]


def test_every_step_has_the_pairs_and_the_shape_that_the_batching_gives_it(encoded, batching):
    batches = list(training_batches(encoded, batching, 0, 2 * batching.num_batches))
    assert len(batches) == 2 * batching.num_batches
    for step, batch in enumerate(batches):
        shape, examples = batching.batch(step)
        assert batch.source.shape == (shape.batch, shape.source) and batch.target.shape == (shape.batch, shape.target)
        assert batch.source.dtype == batch.target.dtype == np.int32
        assert (sequences(batch.source), sequences(batch.target)) == pair_list(encoded, examples)
        assert all(row[-1] == EOS for row in sequences(batch.source) + sequences(batch.target))


def test_a_start_in_the_middle_continues_the_same_batches(encoded, batching):
    whole = list(training_batches(encoded, batching, 0, 40))
    for start in (0, 1, batching.num_batches, 39, 40):
        rest = list(training_batches(encoded, batching, start, 40))
        assert len(rest) == 40 - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert np.array_equal(one.source, other.source) and np.array_equal(one.target, other.target)


def test_a_reader_that_stops_early_leaves_no_thread(encoded, batching):
    before = threading.active_count()
    batches = training_batches(encoded, batching, 0, 1_000)
    next(batches)
    del batches
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize("batch_size, multiple, rows", [(16, 1, 16), (10, 4, 12), (500, 1, 500), (1, 1, 1)])
def test_evaluation_reads_every_pair_once(encoded, batch_size, multiple, rows):
    seen = []
    for batch, indices in evaluation_batches(encoded, batch_size, multiple):
        assert len(batch.source) == len(batch.target) == rows
        assert (sequences(batch.source), sequences(batch.target)) == pair_list(encoded, indices)
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(encoded)))
    assert encoded.source_lengths[seen].tolist() == sorted(encoded.source_lengths)


def test_evaluation_has_few_shapes_and_one_batch_with_empty_rows(encoded):
    batches = list(evaluation_batches(encoded, 16, num_shapes=3))
    assert len({(batch.source.shape, batch.target.shape) for batch, _ in batches}) <= 3
    assert all(len(indices) == 16 for _, indices in batches[:-1])
    assert len(batches) == -(-len(encoded) // 16)


def test_nothing_to_evaluate_gives_no_batch(encoded):
    pairs = toy_pairs(5)
    vocabularies = build_vocabularies(DataConfig(vocabulary="words"), pairs)
    assert list(evaluation_batches(encode_lines(vocabularies, []), 8)) == []
