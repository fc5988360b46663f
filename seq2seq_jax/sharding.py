"""Devices: a mesh, batches spread over it, parameters everywhere or in parts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seq2seq_jax import processes
from seq2seq_jax.config import MeshConfig
from seq2seq_jax.errors import UserError

DATA, FSDP, MODEL, SEEDS = "data", "fsdp", "model", "seeds"
"""The axes of a mesh: along the first three the rows of a batch are spread, along the second the parts of parameters
and of what the optimizer keeps (Rajbhandari et al. 2020), along the third the words of a vocabulary
(`vocabulary_parts`), along the last several runs that are trained as one."""
SHARES = DATA, FSDP, MODEL
WHOLE, ROWS = PartitionSpec(), PartitionSpec(SHARES)
"""An array that every device holds, and one of whose rows each holds a share."""
RUNS, ROWS_OF_RUNS = PartitionSpec(SEEDS), PartitionSpec(SEEDS, SHARES)
"""The same of arrays that are stacked by run, of which each group of devices holds a share."""
LEAST = 2**12
"""Numbers in an array that is worth parting."""
BY_WORD = ("source_table",), ("target_table",), ("output", "table"), ("output", "bias")
"""Ends of the names of arrays with a row for each word of a vocabulary."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axes `SHARES`, over the first of `devices`, by default of those of all processes.

    Raises:
      UserError: there are not so many devices, or they do not make groups of `config.fsdp` times `config.model`.
    """
    devices = jax.devices() if devices is None else devices
    here, fsdp, model = len(devices), config.fsdp, config.model
    group = " times ".join(f"mesh.{name} {size}" for name, size in ((FSDP, fsdp), (MODEL, model)) if size > 1)
    if config.data is None and here % (fsdp * model):
        sizes = ", ".join(str(size) for size in range(1, here + 1) if here % size == 0)
        raise UserError(f"{group} does not divide the {here} devices here; use one of {sizes}.")
    data = here // (fsdp * model) if config.data is None else config.data
    if data * fsdp * model > here:
        names = f"mesh.data {data}" + (f" times {group}" if group else "")
        raise UserError(f"{names} is more than the {here} devices here; use at most {here}.")
    chosen = devices[: data * fsdp * model]
    if idle := {device.process_index for device in devices} - {device.process_index for device in chosen}:
        raise UserError(
            f"mesh.data {data} makes a mesh of {len(chosen)} of the {here} devices here, and none of them belongs to"
            f" process {min(idle)}; leave mesh.data out, or start fewer processes."
        )
    return _mesh(chosen, {DATA: data, FSDP: fsdp, MODEL: model})


def _mesh(devices: Any, axes: dict[str, int]) -> Mesh:
    return Mesh(np.array(devices).reshape(*axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def num_shares(mesh: Mesh) -> int:
    """Devices that share the rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in SHARES)


def grouped(mesh: Mesh, num_runs: int) -> Mesh:
    """The devices of `mesh` in groups of one size, as many as there can be without more groups than runs.

    Runs need nothing from each other, so groups never meet; those of one group
    share the rows of every batch.

    Raises:
      UserError: the devices hold parts of the parameters.
    """
    for axis in (FSDP, MODEL):
        if mesh.shape[axis] > 1:
            raise UserError(
                f"mesh.{axis} {mesh.shape[axis]} parts the state of one run, and here devices share out {num_runs} of"
                f" them; set mesh.{axis} 1."
            )
    groups = max(number for number in range(1, num_runs + 1) if mesh.size % number == 0)
    return _mesh(mesh.devices, {SEEDS: groups, DATA: mesh.size // groups, FSDP: 1, MODEL: 1})


def local_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process, which compute what needs no other; all of `mesh`, where it is alone."""
    if processes.count() == 1:
        return mesh
    return make_mesh(
        MeshConfig(), [device for device in mesh.devices.flat if device.process_index == processes.index()]
    )


def one_device() -> Mesh:
    """Mesh with the first local device alone."""
    return make_mesh(MeshConfig(data=1), jax.local_devices())


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, WHOLE)


def on_every_device(tree: Any, mesh: Mesh) -> Any:
    """Abstract arrays as those of a tree, of which each device of `mesh` holds all."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def by_rows(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the rows of a batch."""
    return NamedSharding(mesh, ROWS)


def by_run(mesh: Mesh) -> NamedSharding:
    """Each group of devices holds its share of the runs that an array is stacked of."""
    return NamedSharding(mesh, RUNS)


def by_rows_of_runs(mesh: Mesh) -> NamedSharding:
    """Each group holds its share of the runs, and each of its devices a share of the rows of their batches."""
    return NamedSharding(mesh, ROWS_OF_RUNS)


def spec_of(path: Sequence[Any], shape: Sequence[int], fsdp: int, model: int) -> PartitionSpec:
    """How an array of the state lies on the devices of a group, by its place in the state and its shape.

    Of what has a row for each word (`BY_WORD`) the `model` devices each hold some
    rows. Of any array that is worth it the `fsdp` devices each hold a part along
    the longest axis that is not parted yet and that so many parts divide. What the
    optimizer keeps of a parameter has its name and shape, and so lies as it does.
    """
    axes: list[str | None] = [None] * len(shape)
    if model > 1 and is_by_word(path):
        axes[0] = MODEL
    sizes = [size if axis is None and size % fsdp == 0 else 0 for axis, size in zip(axes, shape, strict=True)]
    if fsdp > 1 and math.prod(shape) >= LEAST and any(sizes):
        axes[sizes.index(max(sizes))] = FSDP
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def is_by_word(path: Sequence[Any]) -> bool:
    """Whether the array of this name has a row for each word of a vocabulary."""
    return any(_names(path)[-len(end) :] == end for end in BY_WORD)


def _names(path: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(getattr(key, "key", None) for key in path)


def in_parts(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each (abstract) array of a tree, by `spec_of`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs_of(tree, mesh.shape[FSDP], mesh.shape[MODEL]))


def specs_of(tree: Any, fsdp: int, model: int) -> Any:
    """Of each (abstract) array of a tree `spec_of` it."""
    return jax.tree.map_with_path(lambda path, leaf: spec_of(path, leaf.shape, fsdp, model), tree)


def share_out(function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Callable:
    """Returns `function`, run by each device on its own rows: the program of one device, for a share of the batch.

    Devices meet only where `function` says so (`jax.lax.psum` over `DATA`). Left
    to the compiler they would meet before every product: it cannot spread the
    one axis that steps and rows are made into, so it gathers them, and each
    device takes the products of all rows.

    Args:
      function: of arrays, or pytrees of them.
      mesh: the devices.
      in_specs: `WHOLE` or `ROWS` for each argument, `RUNS` or `ROWS_OF_RUNS` of stacked ones, or what `spec_of` says.
      out_specs: likewise for the results; what is `WHOLE` must be the same on every device.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def add_up(tree: Any) -> Any:
    """Within `share_out`: the sums over the devices that share the rows of a batch."""
    return _sum(tree, SHARES)


def _sum(tree: Any, axes: tuple[str, ...]) -> Any:
    # Where one device has all rows, XLA would copy what it need not add, if there are other groups beside it.
    return jax.lax.psum(tree, axes) if math.prod(jax.lax.axis_size(axis) for axis in axes) > 1 else tree


def specs_here(tree: Any) -> Any:
    """Within `share_out`: of each whole (abstract) array of a tree how it lies on the devices."""
    return specs_of(tree, jax.lax.axis_size(FSDP), jax.lax.axis_size(MODEL))


def gather(tree: Any, specs: Any) -> Any:
    """Within `share_out`: arrays as all devices of `FSDP` together hold them."""

    def of_array(part: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.all_gather(part, FSDP, axis=spec.index(FSDP), tiled=True) if FSDP in spec else part

    return jax.tree.map(of_array, tree, specs)


def add_up_parts(tree: Any, specs: Any) -> Any:
    """Within `share_out`: sums over the devices that share the rows of a batch, of each array the part held here.

    Args:
      tree: as `gather` returns arrays; parts along `MODEL` are of the rows of all devices along it already.
      specs: how the sums are to lie.
    """

    def scatter(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        if FSDP not in spec:
            return leaf
        return jax.lax.psum_scatter(leaf, FSDP, scatter_dimension=spec.index(FSDP), tiled=True)

    leaves, structure = jax.tree.flatten(jax.tree.map(scatter, tree, specs))
    ways = [tuple(axis for axis in SHARES if axis not in spec) for spec in jax.tree.leaves(specs)]
    for way in set(ways):  # one meeting for all arrays that are added up over the same devices
        some = [number for number, other in enumerate(ways) if other == way]
        for number, total in zip(some, _sum([leaves[number] for number in some], way), strict=True):
            leaves[number] = total
    return jax.tree.unflatten(structure, leaves)


def norm(tree: Any, specs: Any) -> jax.Array:
    """Within `share_out`: the Euclidean norm of all numbers of a tree of which each device holds the parts it does."""
    spread: dict[tuple[str, ...], list[jax.Array]] = {}
    for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(specs), strict=True):
        spread.setdefault(tuple(axis for axis in SHARES if axis in spec), []).append(leaf)
    squares = [_sum(optax.tree.norm(leaves, squared=True), axes) for axes, leaves in spread.items()]
    return jnp.sqrt(sum(squares, jnp.zeros(())))
