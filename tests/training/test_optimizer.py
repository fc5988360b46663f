import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.config import OptimizerConfig
from seq2seq_jax.training.optimizer import make_optimizer, make_schedule


def rates(steps: range, num_steps: int = 100, **fields) -> list[float]:
    schedule = make_schedule(OptimizerConfig(learning_rate=0.4, **fields), num_steps)
    return [float(schedule(jnp.int32(step))) for step in steps]


@pytest.mark.parametrize("name", ["constant", "inverse_sqrt", "cosine", "plateau", "halving"])
def test_the_rate_rises_linearly_over_the_warm_up_and_never_is_zero_in_it(name):
    fields = {"halving_start": 5, "halving_every": 1} if name == "halving" else {}
    found = rates(range(5), schedule=name, warmup_steps=4, **fields)
    # Step 0 is the first update: 1/5 of the peak, then evenly up to it.
    np.testing.assert_allclose(found, [0.08, 0.16, 0.24, 0.32, 0.4], rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_and_plateau_stay_at_the_peak(name):
    np.testing.assert_allclose(rates(range(4, 100, 7), schedule=name, warmup_steps=4), 0.4, rtol=1e-6)
    np.testing.assert_allclose(rates(range(3), schedule=name), 0.4, rtol=1e-6)


def test_inverse_square_root_halves_the_rate_at_four_times_the_warm_up():
    found = rates(range(20, 100), schedule="inverse_sqrt", warmup_steps=20)
    np.testing.assert_allclose(found, [0.4 * math.sqrt(20 / step) for step in range(20, 100)], rtol=1e-6)
    assert found[80 - 20] == pytest.approx(0.2)


def test_cosine_ends_at_zero_and_is_half_way_down_in_the_middle():
    found = rates(range(20, 101), schedule="cosine", warmup_steps=20)
    np.testing.assert_allclose(found, [0.2 * (1 + math.cos(math.pi * step / 80)) for step in range(81)], atol=1e-7)
    assert found[40] == pytest.approx(0.2) and found[80] == 0


@pytest.mark.parametrize("warmup", [0, 4, 30])
def test_halving_halves_at_its_start_and_at_every_interval_after_it(warmup):
    found = rates(range(30, 200), schedule="halving", halving_start=40, halving_every=15, warmup_steps=warmup)
    expected = [0.4 * 0.5 ** (1 + (step - 40) // 15) if step >= 40 else 0.4 for step in range(30, 200)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[39 - 30] == pytest.approx(0.4) and found[40 - 30] == pytest.approx(0.2)


def test_halving_goes_on_to_zero_and_no_further():
    assert rates(range(10**9, 10**9 + 1), schedule="halving", halving_start=1, halving_every=1) == [0.0]


def first_update(config: OptimizerConfig, params, gradients):
    optimizer = make_optimizer(config)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


@pytest.mark.parametrize(("clip_norm", "length"), [(5.0, 5.0), (0.0, 13.0), (20.0, 13.0)])
def test_a_gradient_longer_than_clip_norm_is_shortened_to_it_and_keeps_its_direction(clip_norm, length):
    gradients = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([12.0])}  # of length 13
    updates = first_update(OptimizerConfig(name="sgd", clip_norm=clip_norm), gradients, gradients)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(updates[name], -gradient * length / 13, rtol=1e-6)


def test_weight_decay_of_adamw_pulls_at_matrices_only_and_whatever_the_gradient():
    params = {"layer": {"kernel": jnp.array([[2.0, -4.0]]), "bias": jnp.array([2.0, -4.0])}, "output_bias": jnp.ones(1)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = first_update(OptimizerConfig(name="adamw", weight_decay=0.1), params, zeros)
    np.testing.assert_allclose(updates["layer"]["kernel"], [[-0.2, 0.4]], rtol=1e-6)
    assert not np.any(updates["layer"]["bias"]) and not np.any(updates["output_bias"])


def test_adam_follows_its_paper():
    """Two steps of Kingma and Ba 2015, algorithm 1, by hand."""
    optimizer = make_optimizer(OptimizerConfig(name="adam", beta1=0.8, beta2=0.9, clip_norm=0.0))
    params, first, second = jnp.array([1.0]), 0.0, 0.0
    state = optimizer.init(params)
    for step, gradient in enumerate((0.5, -2.0), 1):
        updates, state = optimizer.update(jnp.array([gradient]), state, params)
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        expected = -(first / (1 - 0.8**step)) / (math.sqrt(second / (1 - 0.9**step)) + 1e-8)
        assert float(jax.tree.leaves(updates)[0][0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(name="adam"),
        OptimizerConfig(name="adamw", weight_decay=0.01),
        OptimizerConfig(name="sgd"),
        OptimizerConfig(name="sgd", momentum=0.5),
        OptimizerConfig(name="adafactor"),
    ],
    ids=lambda config: f"{config.name}{config.momentum or ''}",
)
def test_every_update_rule_goes_down_a_bowl(config):
    optimizer, schedule = make_optimizer(config), make_schedule(replace(config, learning_rate=0.1), 60)
    target = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.5])}

    def loss(params):
        return sum(jnp.sum((params[name] - target[name]) ** 2) for name in target)

    @jax.jit
    def step(params, state, rate):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda param, update: param + rate * update, params, updates), state

    params = jax.tree.map(jnp.ones_like, target)
    state, first = optimizer.init(params), float(loss(params))
    for number in range(60):
        params, state = step(params, state, schedule(jnp.int32(number)))
    assert float(loss(params)) < 0.1 * first
