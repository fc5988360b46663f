"""The train step: a pure function of arrays, compiled once for each batch shape."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.stages import Wrapped as JitWrapped
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.build import abstract_params, build_model, frozen, model_graph
from seq2seq_jax.cells import drop_weights
from seq2seq_jax.config import Config
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.vectors import Vectors
from seq2seq_jax.errors import UserError, did_you_mean, shortened
from seq2seq_jax.padded import Padded
from seq2seq_jax.sharding import (
    ROWS,
    SHARES,
    WHOLE,
    add_up,
    add_up_parts,
    by_rows,
    gather,
    in_parts,
    norm,
    share_out,
    specs_here,
)
from seq2seq_jax.training import objectives
from seq2seq_jax.training.optimizer import Schedule, make_optimizer, make_schedule

Params = dict[str, Any]
NO_ROW = 2**32 - 1
"""Stands for what has a random key of its own beside the rows of a batch."""


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
    average: Params | None = None
    """The moving average of the parameters, where `train.ema` asks for one."""

    @property
    def evaluated(self) -> Params:
        """The parameters that are validated, tested and translated with."""
        return self.params if self.average is None else self.average

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps, by its names there."""
        return {name: value for name, value in self._asdict().items() if value is not None}


TrainStep = Callable[[TrainState, Padded, Padded], TrainState]


def initial_state(
    config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, vectors: Mapping[str, Vectors] = {}
) -> TrainState:
    """State before the first step, on the devices of the mesh; `vectors`, by side, take the place of random rows."""

    def initial(vectors: dict[str, Vectors]) -> TrainState:
        return first_state(config, vocab_sizes, jax.random.key(config.train.seed), vectors)

    shardings = _shardings(config, vocab_sizes, mesh)
    return jax.jit(initial, out_shardings=shardings, compiler_options=compiler_options(mesh))(dict(vectors))


def abstract_state(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to restore a checkpoint into."""
    shapes = jax.eval_shape(lambda: first_state(config, vocab_sizes, jax.random.key(config.train.seed), {}))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        in_parts(shapes, mesh),
    )


def _shardings(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh) -> TrainState:
    """Of each array of the state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, vocab_sizes, mesh))


def first_state(
    config: Config, vocab_sizes: tuple[int, ...], seed_key: Array, vectors: dict[str, Vectors]
) -> TrainState:
    """State before the first step of the run with this key, made of its seed; to be compiled."""
    model = build_model(config.model, vocab_sizes, jax.random.fold_in(seed_key, 0))
    for side, (ids, rows) in vectors.items():
        table = getattr(model, f"{side}_table")
        table[...] = table[...].at[ids].set(rows)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer_state = make_optimizer(config.optimizer).init(_divided(params, config)[0])
    zero = jnp.zeros((), jnp.int32)
    average = params if config.train.ema else None
    return TrainState(zero, params, optimizer_state, jnp.ones(()), zero, empty_window(), average)


def _divided(params: Params, config: Config) -> tuple[Params, Params]:
    """The parameters that are trained, and those that stay as they are.

    Raises:
      UserError: `train.freeze` names a part that the model has not, or all of them.
    """
    for name in config.train.freeze:
        if name not in params:
            hint = did_you_mean(name, [*params]) or f" There are {', '.join(params)}."
            raise UserError(f"train.freeze {shortened(name)}: the model has no such part.{hint}")
    fixed = {name: params[name] for name in frozen(config.model) | {*config.train.freeze}}
    if len(fixed) == len(params):
        raise UserError("train.freeze names all parts of the model; leave one to be trained.")
    return {name: param for name, param in params.items() if name not in fixed}, fixed


def empty_window() -> Window:
    """A window with nothing in it; no two of its arrays are one, for they are donated."""
    kinds = (np.float32, np.float32, np.float32, np.int32, np.int32)
    return Window(*(jnp.asarray(np.zeros((), kind)) for kind in kinds))  # NumPy's zeros: they need no compilation


def jit_train_step(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh) -> JitWrapped:
    """Returns the update: `(state, source, target) -> state`. The old state is consumed."""
    update = make_update(config, vocab_sizes)
    states = _shardings(config, vocab_sizes, mesh)
    specs = jax.tree.map(lambda sharding: sharding.spec, states)

    def step(state: TrainState, source: Padded, target: Padded) -> TrainState:
        return update(jax.random.key(config.train.seed), state, source, target)

    spread = share_out(step, mesh, in_specs=(specs, ROWS, ROWS), out_specs=specs)
    return jit_step(spread, mesh, states, by_rows(mesh))


def jit_step(step: Callable, mesh: Mesh, states: Any, batches: NamedSharding) -> JitWrapped:
    """Compiles `(state, source, target) -> state`, whose shardings are given. The old state is consumed."""
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(states, batches, batches),
        out_shardings=states,
        compiler_options=compiler_options(mesh),
    )


def make_update(config: Config, vocab_sizes: tuple[int, ...]) -> Callable:
    """Returns `(seed_key, state, source, target) -> state`, what each device does with its rows and its state.

    The key is made of a run's seed. The gradient is the sum over all rows divided
    by the number of terms in the whole batch, real target tokens or sentences, so that
    devices, accumulation and padding agree. An update whose loss or gradient is not finite
    leaves the parameters and their average as they were.
    """
    gradients_of = make_gradients(config, vocab_sizes)
    optimizer = make_optimizer(config.optimizer)
    schedule = make_schedule(config.optimizer, config.train.num_steps)

    def update(seed_key: Array, state: TrainState, source: Padded, target: Padded) -> TrainState:
        key = jax.random.fold_in(jax.random.fold_in(seed_key, 1), state.step)
        gradients, length, mean_loss, tokens = gradients_of(state.params, source, target, key, state.step)
        return _update(state, config, optimizer, schedule, gradients, length, mean_loss * tokens, tokens)

    return update


def make_gradients(config: Config, vocab_sizes: tuple[int, ...]) -> Callable:
    """Returns what a device does with its rows.

    That is `(params, source, target, key, step) -> (gradients, norm, loss, tokens)`.
    Gradients are those of the parameters that are trained. They and the loss are
    means over all terms of the batch, see `objectives`. The devices that share it
    (`share_out`) meet twice: to count tokens and terms, and to add up gradients and
    losses. Those that hold parts of the parameters meet before, to gather them,
    once for all steps in time, and afterwards, to add up the norm; of the gradients
    each keeps the parts that it holds.
    """
    graph, rate = model_graph(config.model, vocab_sizes), config.model.weight_dropout_rate
    whole = abstract_params(config.model, vocab_sizes)

    def on_a_device(
        params: Params, source: Padded, target: Padded, key: Array, step: Array
    ) -> tuple[Params, Array, Array, Array]:
        counts = jnp.stack([objectives.num_tokens(target), objectives.num_terms(target, config.objective)])
        tokens, terms = add_up(counts).astype(jnp.float32)
        rows = len(source.lengths)
        row = jax.lax.axis_index(SHARES) * rows + jnp.arange(rows)  # of the whole batch
        keys = jax.vmap(partial(jax.random.fold_in, key))(row)

        specs = specs_here(whole)
        trained, fixed = _divided(gather(params, specs), config)

        def mean_loss(trained: Params, source: Padded, target: Padded, keys: Array) -> Array:
            # Scaling the loss costs nothing; scaling its gradient would read and write every parameter's once more.
            model = nnx.merge(graph, trained | fixed)
            if rate:  # one mask for all rows, and so for all devices and all parts of the batch
                drop_weights(model, rate, jax.random.fold_in(key, NO_ROW))
            return objectives.loss(model, source, target, keys, step, config) / terms

        found = _gradients(mean_loss, trained, (source, target, keys), config.train.accumulate_steps)
        specs = _divided(specs, config)[0]
        loss, gradients = add_up_parts(found, (WHOLE, specs))
        return gradients, norm(gradients, specs), loss, tokens

    return on_a_device


def _gradients(loss: Callable, params: Params, batch: tuple[Any, ...], parts: int) -> tuple[Array, Params]:
    """Sum of losses and its gradient, `parts` slices of the batch one after another."""
    if parts == 1:
        return jax.value_and_grad(loss)(params, *batch)
    slices = jax.tree.map(lambda rows: rows.reshape(parts, -1, *rows.shape[1:]), batch)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

    start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, start, slices)[0]


def _update(
    state: TrainState,
    config: Config,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    gradients: Params,
    length: Array,
    loss: Array,
    tokens: Array,
) -> TrainState:
    finite = jnp.isfinite(length) & jnp.isfinite(loss)
    rate = schedule(state.step) * state.rate_factor

    def move(params: Params, optimizer_state: Any, average: Params | None) -> tuple[Params, Any, Params | None]:
        trained, fixed = _divided(params, config)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, trained, norm=length)
        params = fixed | jax.tree.map(lambda param, update: param + rate * update, trained, updates)
        if average is not None:
            average = moving_average(average, params, config.train.ema, state.step)
        return params, optimizer_state, average

    params, optimizer_state, average = _move_if(finite, move, state.params, state.optimizer_state, state.average)
    window = Window(
        loss=state.window.loss + jnp.where(finite, loss, 0),
        tokens=state.window.tokens + jnp.where(finite, tokens, 0),
        grad_norm=state.window.grad_norm + jnp.where(finite, length, 0),
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
        average=average,
    )


def moving_average(average: Params, params: Params, decay: float, step: Int[Array, ""]) -> Params:
    """`d average + (1 - d) params`, Kingma and Ba 2015, section 7.2, with d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps, that of TensorFlow's ExponentialMovingAverage
    with num_updates, takes the place of the paper's correction for the start: the
    first parameters are soon forgotten, and the average is always over about the
    last tenth of the steps or the last 1 / (1 - decay), whichever are fewer.
    """
    share = jnp.maximum(1 - decay, 9 / (10 + step))  # 1 - d, which float32 would round where d is near 1
    return jax.tree.map(lambda old, new: old + share * (new - old), average, params)


def _move_if(condition: Bool[Array, ""], move: Callable, *state: Any) -> Any:
    """Returns `move(*state)` where the condition holds, else the state; no copy of the state is made on the way.

    A CPU wants a branch: to choose between two results the old moments are read
    beside the new ones, and its compiler copies them first. Others want the
    choice: their compiler copies what goes into a branch, and forms the choice in
    the kernel that writes the result (L512-IF on an H100: 287 instead of 361 MB).
    """

    def branch(*state: Any) -> Any:
        return jax.lax.cond(condition, move, lambda *kept: kept, *state)

    def choice(*state: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(condition, new, old), move(*state), state)

    return jax.lax.platform_dependent(*state, cpu=branch, default=choice)
