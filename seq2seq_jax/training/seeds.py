"""Several seeds of one run as one program: their states are stacked, and so are their batches."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Wrapped as JitWrapped
from jaxtyping import Array, Bool, Float, Int

from seq2seq_jax.config import Config
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.vectors import Vectors
from seq2seq_jax.padded import Padded
from seq2seq_jax.sharding import by_rows_of_each, replicated
from seq2seq_jax.training.step import Params, TrainState, first_state, jit_step, make_update


class SeedsState(NamedTuple):
    """The states of N seeds, stacked, and what validation has made of each."""

    runs: TrainState
    """Every array with a leading axis [N]."""
    best: Params
    """What each seed was validated with at its best."""
    active: Bool[Array, " N"]
    """The seeds that are trained. The others stay as they are."""

    @property
    def step(self) -> int:
        """Steps taken; seeds that have ended took fewer."""
        return int(np.max(self.runs.step))

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps, by its names there."""
        return self._asdict() | {"runs": self.runs.saved()}


def restored(saved: Mapping[str, Any]) -> SeedsState:
    """The state that `saved` was of."""
    return SeedsState(TrainState(**saved["runs"]), saved["best"], saved["active"])


def initial_seeds(
    config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, num_seeds: int, vectors: Mapping[str, Vectors] = {}
) -> SeedsState:
    """State before the first step, on every device: that of seed i is what `initial_state` gives train.seed + i."""
    initial = jax.jit(
        lambda vectors: _first_states(config, vocab_sizes, num_seeds, vectors),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(),
    )
    return initial(dict(vectors))


def abstract_seeds(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, num_seeds: int) -> SeedsState:
    """Shapes, dtypes and shardings of the state, to restore a checkpoint into."""
    shapes, sharding = jax.eval_shape(lambda: _first_states(config, vocab_sizes, num_seeds, {})), replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def _first_states(
    config: Config, vocab_sizes: tuple[int, ...], num_seeds: int, vectors: dict[str, Vectors]
) -> SeedsState:
    # One after another: an orthogonal matrix of several at once may have other bits.
    runs = jax.lax.map(lambda key: first_state(config, vocab_sizes, key, vectors), _keys(config, num_seeds))
    return SeedsState(runs, jax.tree.map(jnp.copy, runs.evaluated), jnp.ones(num_seeds, bool))


def _keys(config: Config, num_seeds: int) -> Array:
    return jnp.stack([jax.random.key(config.train.seed + number) for number in range(num_seeds)])


def jit_seeds_step(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, num_seeds: int) -> JitWrapped:
    """Returns the update of all active seeds: `(state, source, target) -> state`. The old state is consumed.

    That of each is what `jit_train_step` does with it: its keys, its batch, and
    where its gradient is not finite no move of its own.
    """
    update = make_update(config, vocab_sizes, mesh)

    def of_a_seed(key: Array, active: Array, state: TrainState, source: Padded, target: Padded) -> TrainState:
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), update(key, state, source, target), state)

    def step(state: SeedsState, source: Padded, target: Padded) -> SeedsState:
        runs = _over_seeds(of_a_seed, mesh)(_keys(config, num_seeds), state.active, state.runs, source, target)
        return state._replace(runs=runs)

    return jit_step(step, mesh, by_rows_of_each(mesh))


def _over_seeds(function: Callable, mesh: Mesh) -> Callable:
    """Returns `function` for stacked arguments: at once, or on a CPU one seed after another.

    Few rows and small matrices leave an accelerator idle, and it takes several
    seeds in little more time than one. A CPU is busy with one, and slower at the
    products of a batch of matrices than at as many single ones: eight seeds of the
    default experiment took 13 times the time of one at once, 9 times one after
    another (two busy cores).
    """
    if mesh.devices.flat[0].platform != "cpu":
        return jax.vmap(function)
    return lambda *stacked: jax.lax.map(lambda each: function(*each), stacked)


@jax.jit
def of_seed(stacked: Any, number: Int[Array, ""] | int) -> Any:
    """The arrays of one seed."""
    return jax.tree.map(lambda leaf: leaf[number], stacked)


@jax.jit
def settle(
    state: SeedsState, factors: Float[Array, " N"], improved: Bool[Array, " N"], active: Bool[Array, " N"]
) -> SeedsState:
    """Takes over what validation has decided: factors of the learning rate, who is at its best, who goes on."""

    def choose(new: Array, old: Array) -> Array:
        return jax.vmap(jnp.where)(improved, new, old)

    best = jax.tree.map(choose, state.runs.evaluated, state.best)
    return SeedsState(state.runs._replace(rate_factor=factors), best, active)
