"""Update rules and learning rate schedules, from Optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from seq2seq_jax.config import OptimizerConfig

Schedule = optax.Schedule
"""From the number of the step, counted from 0, to the learning rate."""


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Clipping and update rule at learning rate 1: the step multiplies by the rate itself.

    Of gradients of which a device holds a part, `update` is given the `norm` of all.
    """
    clip = _clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, _update_rule(config))


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """What `optax.clip_by_global_norm` does, by one multiplication.

    That one divides, and XLA writes a quotient that has several readers out: a
    gradient more to write and read.
    """

    def clip(updates: Any, state: Any, params: Any = None, *, norm: Array | None = None, **_: Any) -> tuple[Any, Any]:
        norm = optax.tree.norm(updates) if norm is None else norm
        factor = max_norm / jnp.maximum(norm, max_norm)
        return jax.tree.map(lambda gradient: factor * gradient, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), clip)


def _update_rule(config: OptimizerConfig) -> optax.GradientTransformation:
    match config.name:
        case "adam":
            return optax.adam(1.0, b1=config.beta1, b2=config.beta2)
        case "adamw":
            return optax.adamw(1.0, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=_is_matrix)
        case "sgd":
            return optax.sgd(1.0, momentum=config.momentum or None)
        case "adafactor":
            return optax.adafactor(1.0)


def _is_matrix(params: dict) -> dict:
    """Weight decay pulls at matrices, not at biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" not in jax.tree_util.keystr(path), params)


def make_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """Learning rate of each step, counted from 0.

    constant and plateau (whose factor the training loop keeps) stay at the peak;
    inverse_sqrt falls as `sqrt(warmup / step)` (Vaswani et al. 2017, section
    5.3, scaled to the peak); cosine falls to zero at `num_steps` (Loshchilov and
    Hutter 2017); halving halves at `halving_start` and every `halving_every` steps
    after it (Sutskever et al. 2014, section 3.4). Before that, the rate rises
    linearly over `warmup_steps`.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    match config.schedule:
        case "constant" | "plateau":
            after = optax.constant_schedule(peak)
        case "inverse_sqrt":
            offset = max(warmup, 1)
            after = lambda step: peak * jnp.sqrt(offset / (step + offset))  # noqa: E731
        case "cosine":
            after = optax.cosine_decay_schedule(peak, num_steps - warmup)
        case "halving":
            assert config.halving_start and config.halving_every
            start, every = config.halving_start - warmup, config.halving_every
            after = lambda step: jnp.ldexp(peak, -jnp.maximum(1 + (step - start) // every, 0))  # noqa: E731
    # The first update would be lost at a rate of 0.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup) if warmup else after
    return optax.join_schedules([rise, after], [warmup])
