"""The train step: a pure function of arrays, compiled once for each batch shape."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.stages import Wrapped as JitWrapped
from jaxtyping import Array, Float, Int

from seq2seq_jax.config import Config, TrainConfig
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.losses import cross_entropy
from seq2seq_jax.model import Seq2Seq, build_model, model_graph
from seq2seq_jax.symbols import PAD
from seq2seq_jax.training.optimizer import Schedule, make_optimizer, make_schedule
from seq2seq_jax.training.sharding import by_rows, replicated

Params = dict[str, Any]


class Window(NamedTuple):
    """Sums since the last log line. Part of the state, so that a resumed run logs the same rows."""

    loss: Float[Array, ""]
    tokens: Float[Array, ""]
    grad_norm: Float[Array, ""]
    updates: Int[Array, ""]
    nonfinite: Int[Array, ""]


class TrainState(NamedTuple):
    """Everything that an update reads and writes, and a checkpoint keeps."""

    step: Int[Array, ""]
    params: Params
    optimizer_state: Any
    rate_factor: Float[Array, ""]
    """What the plateau schedule has multiplied the learning rate by."""
    nonfinite_in_a_row: Int[Array, ""]
    window: Window


TrainStep = Callable[[TrainState, Int[Array | np.ndarray, "B S"], Int[Array | np.ndarray, "B T"]], TrainState]


def initial_state(config: Config, vocab_sizes: tuple[int, int], mesh: Mesh) -> TrainState:
    """State before the first step, on every device of the mesh."""
    initial = partial(_initial_state, config, vocab_sizes)
    return jax.jit(initial, out_shardings=replicated(mesh), compiler_options=compiler_options())()


def abstract_state(config: Config, vocab_sizes: tuple[int, int], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to restore a checkpoint into."""
    shapes = jax.eval_shape(partial(_initial_state, config, vocab_sizes))
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def _initial_state(config: Config, vocab_sizes: tuple[int, int]) -> TrainState:
    model = build_model(config.model, vocab_sizes, jax.random.fold_in(jax.random.key(config.train.seed), 0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer_state = make_optimizer(config.optimizer).init(params)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer_state, jnp.ones(()), zero, empty_window())


def empty_window() -> Window:
    """A window with nothing in it; no two of its arrays are one, for they are donated."""
    kinds = (np.float32, np.float32, np.float32, np.int32, np.int32)
    return Window(*(jnp.asarray(np.zeros((), kind)) for kind in kinds))  # NumPy's zeros: they need no compilation


def jit_train_step(config: Config, vocab_sizes: tuple[int, int], mesh: Mesh) -> JitWrapped:
    """Returns the update: `(state, source, target) -> state`. The old state is consumed.

    The gradient is the sum over all rows divided by the number of real target
    tokens in the whole batch, so that devices, accumulation and padding agree.
    An update whose gradient is not finite leaves the parameters as they were.
    """
    optimizer = make_optimizer(config.optimizer)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    scaled_loss = partial(_scaled_loss, model_graph(config.model, vocab_sizes), config.train)
    seed = config.train.seed

    def step(state: TrainState, source: Array, target: Array) -> TrainState:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        tokens = jnp.sum(target != PAD).astype(jnp.float32)
        # Scaling the loss costs nothing; scaling its gradient would read and write every parameter's once more.
        loss = partial(scaled_loss, 1 / tokens)
        mean_loss, gradients = _gradients(loss, state.params, source, target, key, config.train.accumulate_steps)
        return _update(state, optimizer, schedule, gradients, mean_loss * tokens, tokens)

    shardings = replicated(mesh), by_rows(mesh), by_rows(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=shardings,
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(),
    )


def _scaled_loss(
    graph: nnx.GraphDef,
    train: TrainConfig,
    scale: Array,
    params: Params,
    source: Array,
    target: Array,
    key: Array,
) -> Array:
    model: Seq2Seq = nnx.merge(graph, params)

    def read(logits: Array, labels: Array) -> Array:
        return cross_entropy(logits, labels, labels != PAD, train.label_smoothing)

    return scale * model.total(read, source, target, key=key, segment=train.rematerialize_every)


def _gradients(loss: Callable, params: Params, source: Array, target: Array, key: Array, parts: int):
    """Sum of losses and its gradient, `parts` slices of the batch one after another."""
    if parts == 1:
        return jax.value_and_grad(loss)(params, source, target, key)
    # Neighbouring rows go to different parts, so that every device has a share of each.
    slices = tuple(rows.reshape(-1, parts, rows.shape[1]).swapaxes(0, 1) for rows in (source, target))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

    start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, start, (*slices, jax.random.split(key, parts)))[0]


def _update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    gradients: Params,
    loss: Array,
    tokens: Array,
) -> TrainState:
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm)
    rate = schedule(state.step) * state.rate_factor

    def move(params: Params, optimizer_state: Any) -> tuple[Params, Any]:
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return jax.tree.map(lambda param, update: param + rate * update, params, updates), optimizer_state

    # A branch, not a choice between two results: that would read the old moments beside the new ones, and the
    # compiler would copy them first.
    stay = lambda params, optimizer_state: (params, optimizer_state)  # noqa: E731
    params, optimizer_state = jax.lax.cond(finite, move, stay, state.params, state.optimizer_state)
    window = Window(
        loss=state.window.loss + jnp.where(finite, loss, 0),
        tokens=state.window.tokens + jnp.where(finite, tokens, 0),
        grad_norm=state.window.grad_norm + jnp.where(finite, norm, 0),
        updates=state.window.updates + finite,
        nonfinite=state.window.nonfinite + ~finite,
    )
    return TrainState(
        step=state.step + 1,
        params=params,
        optimizer_state=optimizer_state,
        rate_factor=state.rate_factor,
        nonfinite_in_a_row=jnp.where(finite, 0, state.nonfinite_in_a_row + 1),
        window=window,
    )
