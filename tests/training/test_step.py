import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seq2seq_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
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
