import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seq2seq_jax.build import model_graph
from seq2seq_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from seq2seq_jax.data.vectors import Vectors
from seq2seq_jax.padded import Padded
from seq2seq_jax.sharding import make_mesh
from seq2seq_jax.training.step import TrainState, initial_state, jit_train_step

SIZES = (11, 13)
# The update of sgd is proportional to the gradient: Adam's would hide a wrong scale.
PLAIN = Config(
    model=ModelConfig(hidden_size=8, embed_size=8, dropout_rate=0.0),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.5, momentum=0.5, clip_norm=0.0),
)
DROPOUT = replace(PLAIN, model=replace(PLAIN.model, dropout_rate=0.3))


def pairs(rows: int = 8, width: int = 6, seed: int = 0) -> list[Padded]:
    """A batch of random ids, sequences of 2 to 6 tokens that end with an end id, padded to `width`."""
    random = np.random.default_rng(seed)
    batch = []
    for size in SIZES:
        ids, lengths = np.zeros((rows, width), np.int32), random.integers(2, 7, rows, np.int32)
        for row, length in zip(ids, lengths, strict=True):
            row[:length] = [*random.integers(4, size, length - 1), 2]
        batch.append(Padded(ids, lengths))
    return batch


@functools.cache
def compiled_step(config: Config, devices: int = 1):
    return jit_train_step(config, SIZES, make_mesh(MeshConfig(data=devices)))


@functools.cache
def first_state(config: Config) -> TrainState:
    return jax.device_get(initial_state(config, SIZES, make_mesh(MeshConfig(data=1))))


def run(config: Config, *batches, state: TrainState | None = None, devices: int = 1) -> TrainState:
    """The state after an update with each of the batches."""
    state = jax.tree.map(jnp.asarray, first_state(config) if state is None else state)
    for batch in batches:
        state = compiled_step(config, devices)(state, *jax.tree.map(jnp.asarray, batch))
    return jax.device_get(state)


def with_output(state: TrainState, **params: np.ndarray) -> TrainState:
    """The state with other parameters of the output layer."""
    return state._replace(params=state.params | {"output": state.params["output"] | params})


def assert_close(one, other, rtol=1e-5):
    """Parameters equal up to the order of float32 sums; atol for those that are all but zero."""
    for first, second in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(first, second, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(float(one.window.loss), float(other.window.loss), rtol=rtol)
    np.testing.assert_allclose(float(one.window.grad_norm), float(other.window.grad_norm), rtol=rtol)


def same_bits(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(first).tobytes() == np.asarray(second).tobytes() for first, second in leaves)


def test_two_halves_one_after_another_are_one_whole_batch():
    batch = pairs()
    batch[1].lengths[::2] = 2  # the halves have unequal numbers of tokens
    halves = replace(PLAIN, train=TrainConfig(accumulate_steps=2))
    assert_close(run(PLAIN, batch), run(halves, batch))


def test_padding_rows_and_columns_change_no_update():
    batch = pairs()
    wider = [Padded(np.pad(ids, ((0, 4), (0, 3))), np.pad(lengths, (0, 4))) for ids, lengths in batch]
    plain, padded = run(PLAIN, batch), run(PLAIN, wider)
    assert_close(plain, padded)
    assert float(plain.window.tokens) == float(padded.window.tokens) == batch[1].lengths.sum()


def test_activations_computed_again_give_the_same_update():
    again = replace(PLAIN, train=TrainConfig(rematerialize_every=4))  # of 6 positions
    assert_close(run(PLAIN, pairs()), run(again, pairs()))


def test_bfloat16_learns_as_float32_does():
    """Losses of 200 updates, averaged over ten each: the first within 1 %, all within 5 % of the first."""
    curves = {}
    for dtype in ("float32", "bfloat16"):
        model = replace(PLAIN.model, compute_dtype=dtype, init_scale=0.3)
        config = replace(PLAIN, model=model, optimizer=OptimizerConfig(learning_rate=0.01))
        state, losses = jax.tree.map(jnp.asarray, first_state(config)), []
        for number in range(200):
            batch = jax.tree.map(jnp.asarray, pairs(seed=number % 4))
            state = compiled_step(config)(state, *batch)
            losses.append(float(state.window.loss))
        sums = np.diff(losses[9::10], prepend=0)
        tokens = sum(pairs(seed=seed)[1].lengths.sum() for seed in (0, 1, 2, 3)) * 2.5
        curves[dtype] = sums / tokens
    assert curves["float32"][-1] < 0.6 * curves["float32"][0]  # it does learn
    np.testing.assert_allclose(curves["bfloat16"][0], curves["float32"][0], rtol=0.01)
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"], rtol=0, atol=0.05 * curves["float32"][0])


def test_the_same_step_gives_the_same_bits():
    assert same_bits(run(DROPOUT, pairs(), pairs(seed=1)), run(DROPOUT, pairs(), pairs(seed=1)))


def test_another_seed_starts_elsewhere():
    other = replace(PLAIN, train=TrainConfig(seed=1))
    assert not same_bits(first_state(PLAIN).params, first_state(other).params)


def test_dropout_differs_from_step_to_step():
    start = first_state(DROPOUT)
    losses = [run(DROPOUT, pairs(), state=start._replace(step=np.int32(step))).window.loss for step in (0, 1, 2)]
    assert len(set(map(float, losses))) == 3


def test_recurrent_weights_are_dropped_before_an_update_and_the_dropped_ones_stay():
    """Merity et al. 2018, section 2: the loss is that of a model with the others scaled up."""
    config = replace(PLAIN, model=replace(PLAIN.model, weight_dropout_rate=0.25))
    start = first_state(config)
    once, later = run(config, pairs()), run(config, pairs(), state=start._replace(step=np.int32(1)))

    def dropped(path, weights, gradient):
        return np.where(gradient == 0, 0, weights / 0.75) if "recurrent" in jax.tree_util.keystr(path) else weights

    gradients = optax.tree.get(once.optimizer_state, "trace")
    params = jax.tree.map_with_path(dropped, start.params, gradients)
    shares = [np.mean(kept != 0) for path, kept in jax.tree.leaves_with_path(params) if "recurrent" in str(path)]
    assert len(shares) == 3 and np.mean(shares) == pytest.approx(0.75, abs=0.05)
    assert once.window.loss == pytest.approx(run(PLAIN, pairs(), state=start._replace(params=params)).window.loss, 1e-6)
    assert once.window.loss != later.window.loss


def test_a_window_sums_loss_tokens_and_updates_and_the_loss_falls():
    batch = pairs()
    first, state = run(PLAIN, batch), run(PLAIN, *[batch] * 40)
    num_tokens = batch[1].lengths.sum()
    assert state.step == state.window.updates == 40 and state.window.nonfinite == 0
    assert state.window.tokens == 40 * num_tokens
    # A model that knows nothing gives each token about log(vocabulary) nats.
    assert first.window.loss / num_tokens == pytest.approx(np.log(SIZES[1]), rel=0.15)
    assert state.window.loss / 40 < 0.9 * first.window.loss


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
    before = with_output(run(PLAIN, pairs()), bias=np.full(SIZES[1], np.nan, np.float32))
    state = run(PLAIN, pairs(), state=before)
    assert same_bits(state.params, before.params) and same_bits(state.optimizer_state, before.optimizer_state)
    assert (state.step, state.nonfinite_in_a_row, state.window.nonfinite, state.window.updates) == (2, 1, 1, 1)
    assert state.window.loss == before.window.loss and state.window.tokens == before.window.tokens
    after = run(PLAIN, pairs(), state=with_output(state, bias=np.zeros(SIZES[1], np.float32)))
    assert (after.nonfinite_in_a_row, after.window.nonfinite, after.window.updates) == (0, 1, 2)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted_though_its_gradient_is_finite():
    bias = np.full(SIZES[1], -3e38, np.float32)  # a loss of 3e38 for each token but one; two are too many
    bias[3] = 0
    before = with_output(run(PLAIN, pairs()), bias=bias)
    state = run(PLAIN, pairs(), state=before)
    assert same_bits(state.params, before.params) and (state.nonfinite_in_a_row, state.window.updates) == (1, 1)
    assert state.window.loss == before.window.loss


def without_pairs(rows: int) -> list[Padded]:
    """A batch of nothing but padding."""
    return [Padded(np.zeros((rows, 6), np.int32), np.zeros(rows, np.int32)) for _ in SIZES]


@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_rows_of_padding_alone_change_neither_loss_nor_update(accumulate_steps):
    """Also where all rows of a part of the batch are such; of a device, see tests/training/test_devices.py."""
    config = replace(PLAIN, train=TrainConfig(accumulate_steps=accumulate_steps))
    few = pairs(rows=2)
    padded = [Padded(*map(np.concatenate, zip(*both, strict=True))) for both in zip(few, without_pairs(6), strict=True)]
    assert_close(run(PLAIN, few), run(config, padded))


def test_a_batch_of_nothing_but_padding_changes_nothing():
    before = run(PLAIN, pairs())
    state = run(PLAIN, without_pairs(8), state=before)
    assert same_bits(state.params, before.params) and same_bits(state.optimizer_state, before.optimizer_state)
    assert (state.window.loss, state.window.tokens) == (before.window.loss, before.window.tokens)


def test_the_plateau_factor_scales_the_update():
    start = first_state(PLAIN)
    whole, quarter = (
        run(PLAIN, pairs(), state=start._replace(rate_factor=np.float32(factor))).params["output"]["bias"]
        - start.params["output"]["bias"]
        for factor in (1.0, 0.25)
    )
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(quarter, whole / 4, rtol=1e-4, atol=1e-7)


def test_label_smoothing_is_in_the_training_loss():
    smooth = replace(PLAIN, train=TrainConfig(label_smoothing=0.5))
    start = first_state(PLAIN)
    # Every logit is 0 except that of token 5: the smoothed loss must see it in all positions.
    bias = 10.0 * (np.arange(SIZES[1]) == 5).astype(np.float32)
    start = with_output(start, bias=bias, table=np.zeros_like(start.params["output"]["table"]))
    _, target = batch = pairs()
    log_probs = bias - np.log(np.exp(bias).sum())
    expected = [-0.5 * log_probs[token] - 0.5 * log_probs.mean() for token in target.values[target.mask]]
    assert run(smooth, batch, state=start).window.loss == pytest.approx(sum(expected), rel=1e-5)


def test_the_average_follows_its_equation_from_the_first_step_on():
    """Against NumPy in float64; a decay of 0.6 takes over from (1 + t) / (10 + t) at step 13."""
    config = replace(PLAIN, train=TrainConfig(ema=0.6))
    state = first_state(config)
    expected = jax.tree.map(np.float64, state.params)
    for step in range(16):
        state = run(config, pairs(seed=step), state=state)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, state.params)
    for average, wanted in zip(jax.tree.leaves(state.average), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(average, wanted, rtol=1e-5, atol=1e-6)
    assert not same_bits(state.average, state.params)
    assert state.evaluated is state.average


def test_an_average_changes_no_update():
    averaged = replace(PLAIN, train=TrainConfig(ema=0.9))
    batches = [pairs(seed=seed) for seed in range(3)]
    assert_close(run(PLAIN, *batches), run(averaged, *batches))


def test_without_an_average_the_parameters_are_evaluated_and_nothing_more_is_saved():
    state = first_state(PLAIN)
    assert state.evaluated is state.params and "average" not in state.saved()
    assert set(first_state(replace(PLAIN, train=TrainConfig(ema=0.9))).saved()) == {*state.saved(), "average"}


def test_a_skipped_update_leaves_the_average_as_it_was():
    config = replace(PLAIN, train=TrainConfig(ema=0.9))
    before = with_output(run(config, pairs()), bias=np.full(SIZES[1], np.nan, np.float32))
    state = run(config, pairs(seed=1), state=before)
    assert state.window.nonfinite == 1 and same_bits(state.average, before.average)


def vectors_of(*ids: int, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((len(ids), 8), np.float32)
    return Vectors(np.array(ids, np.int32), rows)


def started(config: Config, vectors: dict[str, Vectors]) -> TrainState:
    return jax.device_get(initial_state(config, SIZES, make_mesh(MeshConfig(data=1)), vectors))


def test_tables_start_from_the_vectors_and_all_else_from_the_random_values():
    vectors = {"source": vectors_of(4, 7), "target": vectors_of(5, seed=1)}
    config = replace(PLAIN, train=TrainConfig(ema=0.9))
    state, plain = started(config, vectors), first_state(config)
    expected = dict(plain.params)
    for side, (ids, rows) in vectors.items():
        expected[f"{side}_table"] = plain.params[f"{side}_table"].copy()
        expected[f"{side}_table"][ids] = rows
    assert same_bits(state.params, expected) and same_bits(state.average, expected)
    assert not same_bits(plain.params, expected)


@pytest.mark.parametrize("ties", ["source_target", "target_output", "all"])
def test_a_tied_table_starts_from_the_vectors_wherever_it_is(ties):
    sizes = (13, 13)
    config = replace(PLAIN, model=replace(PLAIN.model, tied_embeddings=ties))
    found = vectors_of(4, 7)
    state = initial_state(config, sizes, make_mesh(MeshConfig(data=1)), {"target": found})
    model = nnx.merge(model_graph(config.model, sizes), state.params)
    np.testing.assert_array_equal(model.target_table[...][found.ids], found.rows)
    tied = model.output.table if ties == "target_output" else model.source_table
    np.testing.assert_array_equal(tied[...], model.target_table[...])


RULES = {
    "adamw": OptimizerConfig(name="adamw", weight_decay=0.1),
    "sgd": OptimizerConfig(name="sgd", momentum=0.5, clip_norm=0.1, learning_rate=0.5),
    "adafactor": OptimizerConfig(name="adafactor"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sides", [("source",), ("target",), ("source", "target")], ids="_".join)
def test_a_frozen_table_is_not_trained_and_the_optimizer_keeps_nothing_of_it(rule, sides):
    files = {f"{side}_vectors": "file" for side in sides}
    model = replace(PLAIN.model, freeze_vectors=True, **files)
    config = replace(PLAIN, model=model, optimizer=RULES[rule], train=TrainConfig(ema=0.9))
    state = run(config, *[pairs(seed=seed) for seed in range(3)])
    for side in ("source", "target"):
        name = f"{side}_table"
        frozen = same_bits(state.params[name], first_state(config).params[name])
        assert frozen == (side in sides) and same_bits(state.evaluated[name], state.params[name]) == frozen
        paths = map(
            jax.tree_util.keystr, (path for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer_state))
        )
        assert rule == "sgd" and not frozen or any(name in path for path in paths) != frozen
    assert state.window.updates == 3


def test_a_frozen_table_has_no_part_in_the_norm_of_the_gradient_and_changes_no_other_one():
    """By plain sgd, whose update is the gradient: without the tables the norm is that of the rest."""
    optimizer = OptimizerConfig(name="sgd", learning_rate=1.0, clip_norm=0.0)
    plain = replace(PLAIN, optimizer=optimizer, model=replace(PLAIN.model, init_scale=1.0))
    model = replace(plain.model, freeze_vectors=True, source_vectors="file", target_vectors="file")
    frozen, batch = replace(plain, model=model), pairs()
    start, free, kept = first_state(plain).params, run(plain, batch), run(frozen, batch)
    tables = {"source_table", "target_table"}
    moves = {name: jax.tree.map(np.subtract, free.params[name], start[name]) for name in start}
    rest = [leaf for name in moves if name not in tables for leaf in jax.tree.leaves(moves[name])]
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in rest))
    assert float(kept.window.grad_norm) == pytest.approx(norm, rel=1e-4)
    assert float(free.window.grad_norm) > 1.001 * norm
    for name in moves.keys() - tables:
        for one, other in zip(jax.tree.leaves(free.params[name]), jax.tree.leaves(kept.params[name]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_frozen_table_that_source_and_target_share_is_one():
    model = replace(PLAIN.model, freeze_vectors=True, target_vectors="file", tied_embeddings="source_target")
    config, sizes, mesh = replace(PLAIN, model=model), (13, 13), make_mesh(MeshConfig(data=1))
    state = initial_state(config, sizes, mesh, {"target": vectors_of(4, 7)})
    before = jax.device_get(state.params)
    after = jax.device_get(jit_train_step(config, sizes, mesh)(state, *pairs()).params)
    assert "target_table" not in after and same_bits(after["source_table"], before["source_table"])
    assert not same_bits(after["output"], before["output"])
