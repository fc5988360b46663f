"""Several seeds of one run as one program: their states are stacked, and so are their batches.

Each group of devices (`sharding.grouped`) takes its share of the seeds. Where
that is uneven, the places that are left are filled with copies of the first
seed, which are never trained and never saved.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Wrapped as JitWrapped
from jaxtyping import Array, Bool, Float

from seq2seq_jax.config import Config
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.vectors import Vectors
from seq2seq_jax.padded import Padded
from seq2seq_jax.sharding import ROWS_OF_RUNS, RUNS, SEEDS, WHOLE, by_rows_of_runs, by_run, replicated, share_out
from seq2seq_jax.training.step import Params, TrainState, first_state, jit_step, make_update


class SeedsState(NamedTuple):
    """The states of all places, stacked, and what validation has made of each."""

    runs: TrainState
    """Every array with a leading axis [places]."""
    best: Params
    """What each seed was validated with at its best."""
    active: Bool[Array, " places"]
    """The seeds that are trained. The others stay as they are."""

    @property
    def step(self) -> int:
        """Steps taken; seeds that have ended took fewer."""
        return int(np.max(self.runs.step))


def seeds_of_places(config: Config, num_seeds: int, mesh: Mesh) -> list[int]:
    """The seed of each place: train.seed and those after it, then the first one where a place is left."""
    first, groups = config.train.seed, mesh.shape[SEEDS]
    left = -num_seeds % groups
    return [*range(first, first + num_seeds), *[first] * left]


def saved(state: SeedsState, num_seeds: int) -> dict[str, Any]:
    """What a checkpoint keeps, by its names there: the seeds alone, whatever devices there are; a copy, or abstract."""
    content = state._asdict() | {"runs": state.runs.saved()}

    def of_seeds(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((num_seeds, *leaf.shape[1:]), leaf.dtype)
        return np.array(leaf)[:num_seeds]

    return jax.tree.map(of_seeds, content)


def restored(content: Mapping[str, Any], mesh: Mesh) -> SeedsState:
    """The state that was saved, with all places of these devices filled."""
    num_seeds = len(content["active"])
    left = -num_seeds % mesh.shape[SEEDS]
    filled = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[:1], left, 0)]), dict(content))
    active = np.arange(num_seeds + left) < num_seeds
    state = SeedsState(TrainState(**filled["runs"]), filled["best"], filled["active"] & active)
    return jax.device_put(state, by_run(mesh))


def initial_seeds(
    config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, num_seeds: int, vectors: Mapping[str, Vectors] = {}
) -> SeedsState:
    """State before the first step: that of seed i is what `initial_state` gives train.seed + i."""

    keys = _key_data(config, num_seeds, mesh)
    active = np.arange(len(keys)) < num_seeds

    def of_a_group(keys: Array, active: Array, vectors: dict[str, Vectors]) -> SeedsState:
        def of_a_seed(key: Array) -> TrainState:
            return first_state(config, vocab_sizes, jax.random.wrap_key_data(key), vectors)

        runs = jax.lax.map(of_a_seed, keys)  # at once an orthogonal matrix of each may have other bits than alone
        return SeedsState(runs, jax.tree.map(jnp.copy, runs.evaluated), active)

    spread = share_out(of_a_group, mesh, in_specs=(RUNS, RUNS, WHOLE), out_specs=RUNS)
    initial = jax.jit(
        lambda vectors: spread(keys, active, vectors),
        out_shardings=by_run(mesh),
        compiler_options=compiler_options(mesh),
    )
    return initial(dict(vectors))


def abstract_seeds(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, num_seeds: int) -> SeedsState:
    """Shapes, dtypes and shardings of the state."""
    places, sharding = len(seeds_of_places(config, num_seeds, mesh)), by_run(mesh)

    def initial() -> SeedsState:
        alone = first_state(config, vocab_sizes, jax.random.key(0), {})
        runs = jax.tree.map(lambda leaf: jnp.stack([leaf] * places), alone)
        return SeedsState(runs, runs.evaluated, jnp.ones(places, bool))

    shapes = jax.eval_shape(initial)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)


def _key_data(config: Config, num_seeds: int, mesh: Mesh) -> np.ndarray:
    """The words of each place's random key: constants, for XLA shares out what is computed by having devices meet."""
    return np.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds_of_places(config, num_seeds, mesh)])


def jit_seeds_step(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, num_seeds: int) -> JitWrapped:
    """Returns the update of all active seeds: `(state, source, target) -> state`. The old state is consumed.

    That of each is what `jit_train_step` does with it: its keys, its batch, and
    where its gradient is not finite no move of its own. The groups of devices do
    not meet.
    """
    update = make_update(config, vocab_sizes)
    over_seeds, keys = _over_seeds(mesh), _key_data(config, num_seeds, mesh)

    def of_a_seed(active: Array, key: Array, *arguments: Any) -> TrainState:
        return jax.lax.cond(active, update, lambda _, state, *batch: state, jax.random.wrap_key_data(key), *arguments)

    def of_a_group(*stacked: Any) -> TrainState:
        return over_seeds(of_a_seed, stacked)

    specs = (RUNS, RUNS, RUNS, ROWS_OF_RUNS, ROWS_OF_RUNS)
    spread = share_out(of_a_group, mesh, in_specs=specs, out_specs=RUNS)

    def step(state: SeedsState, source: Padded, target: Padded) -> SeedsState:
        return state._replace(runs=spread(state.active, keys, state.runs, source, target))

    return jit_step(step, mesh, by_run(mesh), by_rows_of_runs(mesh))


def _over_seeds(mesh: Mesh) -> Callable[[Callable, tuple[Any, ...]], Any]:
    """Returns what applies a function to stacked arguments: to all at once, or on a CPU to one after another.

    Few rows and small matrices leave an accelerator idle, and it takes several
    seeds in little more time than one. A CPU is busy with one, and slower at the
    products of a batch of matrices than at as many single ones: eight seeds of the
    default experiment took 13 times the time of one at once, 9 times one after
    another (two busy cores, one device). Only there a seed that has ended costs nothing.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return lambda function, stacked: jax.vmap(function)(*stacked)
    return lambda function, stacked: jax.lax.map(lambda each: function(*each), stacked)


def of_seed(stacked: Any, number: int, mesh: Mesh) -> Any:
    """The arrays of one seed, on every device of `mesh`.

    They go by way of the host: a program for it would have the devices exchange all seeds.
    """

    def take(leaf: jax.Array) -> np.ndarray:
        for shard in leaf.addressable_shards:
            start, stop, _ = shard.index[0].indices(len(leaf))
            if start <= number < stop:
                return np.array(np.asarray(shard.data)[number - start])
        raise IndexError(number)

    return jax.device_put(jax.tree.map(take, stacked), replicated(mesh))


def settle(
    state: SeedsState,
    factors: Float[Array, " places"],
    improved: Bool[Array, " places"],
    active: Bool[Array, " places"],
) -> SeedsState:
    """Takes over what validation has decided: factors of the learning rate, who is at its best, who goes on."""

    def choose(new: Array, old: Array) -> Array:
        return jax.vmap(jnp.where)(improved, new, old)

    best = jax.tree.map(choose, state.runs.evaluated, state.best)
    return SeedsState(state.runs._replace(rate_factor=factors), best, active)
