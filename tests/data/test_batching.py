import gzip
import itertools
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest

import seq2seq_jax.data.batching as module
from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.batching import Batching, BatchShape, choose_shapes
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.errors import UserError
from tests.data.pairs import Pairs


def lengths(count=2_000, seed=0, longest=60):
    """Lengths of pairs as text has them: skewed, and alike on both sides."""
    random = np.random.default_rng(seed)
    source = random.lognormal(2.3, 0.5, count)
    target = source * random.lognormal(0.1, 0.25, count)
    return tuple(np.clip(side, 1, longest).astype(np.int32) for side in (source, target))


def arranged(source, target, **changes):
    settings: dict[str, Any] = {"max_length": 60, "num_shapes": 6, "seed": 0}
    if "batch_tokens" not in changes:
        settings["batch_size"] = 32
    return Batching(source, target, **{**settings, **changes})


def epoch(batches, number):
    start = number * batches.num_batches
    return [batches.batch(step) for step in range(start, start + batches.num_batches)]


def padded_positions(shapes, source, target):
    """Positions when each pair takes the cheapest shape that holds it."""
    fitting = [[s.cost for s in shapes if s.source >= a and s.target >= b] for a, b in zip(source, target, strict=True)]
    return sum(map(min, fitting))


WAYS = pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 48, "batch_multiple": 8},
        {"batch_size": 5_000},
        {"num_shapes": 1},
        {"batch_tokens": 500},
        {"batch_tokens": 700, "batch_multiple": 4},
        {"batch_tokens": 10, "batch_multiple": 2},
    ],
    ids=str,
)


@WAYS
@pytest.mark.parametrize("count", [1, 7, 1_000])
def test_every_example_is_in_one_batch_of_an_epoch_and_fits_it(settings, count):
    source, target = lengths(count)
    batches = arranged(source, target, **settings)
    for number in range(3):
        seen = Counter()
        for shape, examples in epoch(batches, number):
            assert shape in batches.shapes
            assert 1 <= len(examples) <= shape.batch
            assert source[examples].max() <= shape.source and target[examples].max() <= shape.target
            seen.update(examples.tolist())
        assert seen == Counter(range(count))


@WAYS
def test_shapes_of_an_epoch_are_the_same_every_epoch(settings):
    batches = arranged(*lengths(), **settings)
    first, second = (Counter(shape for shape, _ in epoch(batches, number)) for number in (0, 5))
    assert first == second


@WAYS
def test_the_padded_share_is_that_of_the_batches(settings):
    source, target = lengths()
    batches = arranged(source, target, **settings)
    positions = sum(shape.batch * (shape.source + shape.target) for shape, _ in epoch(batches, 2))
    assert batches.padded_share == pytest.approx(1 - (source.sum() + target.sum()) / positions)


@WAYS
def test_few_batches_have_empty_rows(settings):
    batches = arranged(*lengths(), **settings)
    partial = [shape for shape, examples in epoch(batches, 1) if len(examples) < shape.batch]
    assert len(partial) <= (2 if "batch_tokens" in settings else 1)


def test_an_epoch_has_as_few_batches_as_its_examples_need():
    for count in (1, 31, 32, 33, 1_999):
        assert arranged(*lengths(count)).num_batches == -(-count // 32)


def test_the_order_is_a_function_of_seed_and_epoch():
    source, target = lengths()
    one, same, other = arranged(source, target), arranged(source, target), arranged(source, target, seed=1)
    steps = range(3 * one.num_batches)
    orders = [[batches.batch(step)[1].tolist() for step in steps] for batches in (one, same, other)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][: one.num_batches] != orders[0][one.num_batches : 2 * one.num_batches]


def test_another_shape_seed_lends_its_shapes_and_the_examples_stay_the_seeds_own():
    source, target = lengths()
    plain = {seed: arranged(source, target, seed=seed) for seed in (3, 4)}
    assert [shape for shape, _ in epoch(plain[3], 0)] != [shape for shape, _ in epoch(plain[4], 0)]
    for batches in (arranged(source, target, seed=4, shape_seed=3), plain[3].with_seed(4)):
        for number in (0, 1):
            mixed, lent, own = epoch(batches, number), epoch(plain[3], number), epoch(plain[4], number)
            assert [shape for shape, _ in mixed] == [shape for shape, _ in lent]
            assert [len(examples) for _, examples in mixed] == [len(examples) for _, examples in lent]
            as_own = {(shape, tuple(examples)) for shape, examples in own}
            assert {(shape, tuple(examples)) for shape, examples in mixed} == as_own
    same = zip(epoch(arranged(source, target, seed=3, shape_seed=3), 1), epoch(plain[3], 1), strict=True)
    assert all(np.array_equal(one[1], other[1]) for one, other in same)


def test_a_batch_does_not_depend_on_what_was_read_before():
    batches = arranged(*lengths())
    steps = [0, 500, 3, 499, 100_000, 1, 500]
    jumped = [batches.batch(step)[1].tolist() for step in steps]
    assert jumped == [arranged(*lengths()).batch(step)[1].tolist() for step in steps]
    assert jumped == [pickle.loads(pickle.dumps(batches)).batch(step)[1].tolist() for step in steps]


def test_the_order_never_changes():
    # A stored number on purpose: what is resumed with another version of NumPy or of this file has to go on alike.
    batches = arranged(*lengths(100), batch_size=10)
    assert batches.batch(25)[1].tolist() == [48, 66, 47, 39, 74, 87, 79, 62, 46, 6]


@WAYS
def test_lengths_on_disk_are_read_in_blocks_that_change_nothing(settings, tmp_path, monkeypatch):
    sides = lengths()
    np.save(tmp_path / "lengths.npy", sides)
    whole = arranged(*sides, max_length=40, **settings)
    monkeypatch.setattr(module, "_BLOCK", 7)
    on_disk = arranged(*np.load(tmp_path / "lengths.npy", mmap_mode="r"), max_length=40, **settings)
    assert on_disk.shapes == whole.shapes == shapes_of(*short(*sides), settings)
    assert on_disk.num_too_long == whole.num_too_long > 0
    assert on_disk.padded_share == whole.padded_share
    for one, other in zip(epoch(whole, 1), epoch(on_disk, 1), strict=True):
        assert one[0] == other[0] and one[1].tolist() == other[1].tolist()


def shapes_of(source, target, settings):
    plain = {"num_shapes": 6} | ({} if "batch_tokens" in settings else {"batch_size": 32})
    return choose_shapes(source, target, **plain | settings)


def short(source, target, longest=40):
    """Lengths without those of pairs that are longer."""
    kept = np.maximum(source, target) <= longest
    return source[kept], target[kept]


def test_batches_mix_examples_and_shapes_over_epochs():
    source, target = lengths()
    batches = arranged(source, target)
    mates = [set(next(examples for _, examples in epoch(batches, number) if 0 in examples)) for number in range(4)]
    assert len(set.union(*mates)) > 100
    shapes = [shape for shape, _ in epoch(batches, 0)]
    assert shapes != sorted(shapes)


def test_long_examples_are_counted_and_left_out():
    source, target = lengths()
    batches = arranged(source, target, max_length=20)
    kept = np.flatnonzero((source <= 20) & (target <= 20))
    assert batches.num_too_long == len(source) - len(kept) > 0
    assert batches.num_examples == len(kept)
    assert sorted(np.concatenate([examples for _, examples in epoch(batches, 0)])) == kept.tolist()


def test_nothing_but_long_examples_is_refused():
    with pytest.raises(UserError, match=r"data\.max_length 5 .* shortest needs 8"):
        arranged(np.array([9, 8]), np.array([3, 8]), max_length=5)


def test_rows_that_devices_cannot_share_are_refused():
    with pytest.raises(UserError, match=r"batch_size 30 .* multiple of 8 .* use 24 or 32"):
        arranged(*lengths(), batch_size=30, batch_multiple=8)
    with pytest.raises(UserError, match=r"use 8\."):
        arranged(*lengths(), batch_size=3, batch_multiple=8)


@pytest.mark.parametrize("multiple", [1, 3])
def test_rows_follow_from_the_tokens(multiple):
    batches = arranged(*lengths(), batch_tokens=900, batch_multiple=multiple)
    for shape in batches.shapes:
        assert shape.batch % multiple == 0
        assert shape.batch * shape.target <= 900 < (shape.batch + 8 * multiple) * shape.target


def test_rows_by_tokens_are_the_same_on_up_to_eight_devices():
    one, *others = (arranged(*lengths(), batch_tokens=900, batch_multiple=number).shapes for number in (1, 2, 4, 8))
    assert all(shapes == one for shapes in others)


def test_there_are_at_most_num_shapes_and_the_last_holds_all():
    source, target = lengths()
    for num_shapes in (1, 2, 5, 9):
        shapes = choose_shapes(source, target, num_shapes=num_shapes, batch_size=32)
        assert len(shapes) == len(set(shapes)) == num_shapes
        assert shapes[-1] == BatchShape(32, int(source.max()), int(target.max()))
        assert [shape.cost for shape in shapes] == sorted(shape.cost for shape in shapes)


def test_as_many_shapes_as_lengths_pad_nothing():
    source, target = np.array([3, 5, 5, 9, 3]), np.array([4, 2, 2, 9, 4])
    shapes = choose_shapes(source, target, num_shapes=8, batch_size=1)
    assert shapes == (BatchShape(1, 3, 4), BatchShape(1, 5, 2), BatchShape(1, 9, 9))
    assert arranged(source, target, num_shapes=8, batch_size=1).padded_share == 0


@pytest.mark.parametrize("settings", [{"num_shapes": 16}, {"batch_size": 900}, {"batch_tokens": 2_000}], ids=str)
def test_every_shape_but_the_largest_has_a_batch(settings):
    batches = arranged(*lengths(200), **settings)
    occurring = {shape for shape, _ in epoch(batches, 0)}
    assert set(batches.shapes[:-1]) <= occurring


@pytest.mark.parametrize("seed", range(3))
def test_shapes_are_the_best_there_are(seed):
    source, target = lengths(60, seed, longest=8)
    edges = itertools.product(np.unique(source), np.unique(target))
    cells = [BatchShape(1, int(s), int(t)) for s, t in edges]
    whole = BatchShape(1, int(source.max()), int(target.max()))
    best = min(padded_positions([*pair, whole], source, target) for pair in itertools.combinations(cells, 2))
    shapes = choose_shapes(source, target, num_shapes=3, batch_size=1)
    assert padded_positions(shapes, source, target) == best


def test_more_shapes_pad_less():
    source, target = lengths()
    shares = [arranged(source, target, num_shapes=count).padded_share for count in (1, 2, 4, 8, 16)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < shares[0] / 4


def test_long_sequences_keep_the_search_small():
    source, target = lengths(3_000, longest=60)
    shapes = choose_shapes(source * 40, target * 35 + source, num_shapes=6, batch_size=8)
    assert len(shapes) == 6


def test_multi30k_wastes_little(corpora):
    sides = []
    for language in ("de", "en"):
        with gzip.open(corpora / "multi30k-de-en" / f"train.{language}.gz", "rt", encoding="utf-8") as file:
            sides.append(file.read().splitlines())
    vocabularies = build_vocabularies(DataConfig(vocabulary="bpe"), Pairs(*sides))
    encoded = encode_lines(vocabularies, *sides)
    sizes = encoded.source_lengths, encoded.target_lengths
    # 12.2 % is the least that eight rectangles can waste: the spread of one length given the other.
    for num_shapes, most in ((8, 0.13), (14, 0.09)):
        batches = arranged(*sizes, max_length=100, num_shapes=num_shapes, batch_size=64)
        assert batches.num_too_long == 0
        assert batches.padded_share < most
