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


def sequences(batch):
    """The rows without padding, and without empty ones; nothing but padding is checked to follow them."""
    assert all((row[length:] == PAD).all() for row, length in zip(*batch, strict=True))
    return [row[:length].tolist() for row, length in zip(*batch, strict=True) if length]


def pair_list(encoded, indices):
    return [encoded.source(i).tolist() for i in indices], [encoded.target(i).tolist() for i in indices]


def test_every_step_has_the_pairs_and_the_shape_that_the_batching_gives_it(encoded, batching):
    batches = list(training_batches(encoded, batching, 0, 2 * batching.num_batches))
    assert len(batches) == 2 * batching.num_batches
    for step, batch in enumerate(batches):
        shape, examples = batching.batch(step)
        assert batch.source.values.shape == (shape.batch, shape.source)
        assert batch.target.values.shape == (shape.batch, shape.target)
        assert all(array.dtype == np.int32 for array in (*batch.source, *batch.target))
        assert (sequences(batch.source), sequences(batch.target)) == pair_list(encoded, examples)
        assert all(row[-1] == EOS for row in sequences(batch.source) + sequences(batch.target))


def test_a_start_in_the_middle_continues_the_same_batches(encoded, batching):
    whole = list(training_batches(encoded, batching, 0, 40))
    for start in (0, 1, batching.num_batches, 39, 40):
        rest = list(training_batches(encoded, batching, start, 40))
        assert len(rest) == 40 - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert all(map(np.array_equal, (*one.source, *one.target), (*other.source, *other.target)))


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
        assert all(len(array) == rows for array in (*batch.source, *batch.target))
        assert (sequences(batch.source), sequences(batch.target)) == pair_list(encoded, indices)
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(encoded)))
    assert encoded.source_lengths[seen].tolist() == sorted(encoded.source_lengths)


def test_evaluation_has_few_shapes_and_one_batch_with_empty_rows(encoded):
    batches = list(evaluation_batches(encoded, 16, num_shapes=3))
    assert len({(batch.source.values.shape, batch.target.values.shape) for batch, _ in batches}) <= 3
    assert all(len(indices) == 16 for _, indices in batches[:-1])
    assert len(batches) == -(-len(encoded) // 16)


def test_nothing_to_evaluate_gives_no_batch(encoded):
    pairs = toy_pairs(5)
    vocabularies = build_vocabularies(DataConfig(vocabulary="words"), pairs)
    assert list(evaluation_batches(encode_lines(vocabularies, []), 8)) == []
