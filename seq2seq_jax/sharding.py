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

DATA, FSDP, SEEDS = "data", "fsdp", "seeds"
"""The axes of a mesh: along the first two the rows of a batch are spread, along the second the parts of parameters and
of what the optimizer keeps (Rajbhandari et al. 2020), along the third several runs that are trained as one."""
SHARES = DATA, FSDP
WHOLE, ROWS = PartitionSpec(), PartitionSpec(SHARES)
"""An array that every device holds, and one of whose rows each holds a share."""
RUNS, ROWS_OF_RUNS = PartitionSpec(SEEDS), PartitionSpec(SEEDS, SHARES)
"""The same of arrays that are stacked by run, of which each group of devices holds a share."""
LEAST = 2**12
"""Numbers in an array that is worth parting."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axes `data` and `fsdp`, over the first of `devices`, by default of those of all processes.

    Raises:
      UserError: there are not so many devices, or they do not make groups of `config.fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    here, fsdp = len(devices), config.fsdp
    if config.data is None and here % fsdp:
        sizes = ", ".join(str(size) for size in range(1, here + 1) if here % size == 0)
        raise UserError(f"mesh.fsdp {fsdp} does not divide the {here} devices here; use one of {sizes}.")
    data = here // fsdp if config.data is None else config.data
    if data * fsdp > here:
        names = f"mesh.data {data}" if fsdp == 1 else f"mesh.data {data} times mesh.fsdp {fsdp}"
        raise UserError(f"{names} is more than the {here} devices here; use at most {here}.")
    return _mesh(devices[: data * fsdp], {DATA: data, FSDP: fsdp})


def _mesh(devices: Any, axes: dict[str, int]) -> Mesh:
    return Mesh(np.array(devices).reshape(*axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def num_shares(mesh: Mesh) -> int:
    """Devices that share the rows of a batch."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def grouped(mesh: Mesh, num_runs: int) -> Mesh:
    """The devices of `mesh` in groups of one size, as many as there can be without more groups than runs.

    Runs need nothing from each other, so groups never meet; those of one group
    share the rows of every batch.

    Raises:
      UserError: the devices hold parts of the parameters.
    """
    if mesh.shape[FSDP] > 1:
        raise UserError(
            f"mesh.fsdp {mesh.shape[FSDP]} parts the state of one run, and here devices share out {num_runs} of them;"
            " set mesh.fsdp 1."
        )
    groups = max(number for number in range(1, num_runs + 1) if mesh.size % number == 0)
    return _mesh(mesh.devices, {SEEDS: groups, DATA: mesh.size // groups, FSDP: 1})


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


def spec_of(shape: Sequence[int], parts: int) -> PartitionSpec:
    """How an array of the state lies on the devices of a group, by its shape.

    Of an array that is worth it each device holds a part along the longest axis
    that so many parts divide. What the optimizer keeps of a parameter has its
    shape, and so lies as it does.
    """
    sizes = [size if size % parts == 0 else 0 for size in shape]
    if parts == 1 or math.prod(shape) < LEAST or not any(sizes):
        return WHOLE
    return PartitionSpec(*[None] * sizes.index(max(sizes)), FSDP)


def in_parts(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each (abstract) array of a tree, by `spec_of`."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf.shape, mesh.shape[FSDP])), tree)


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


def _part_axes(whole: Any) -> Any:
    """Within `share_out`: for each array of a tree, of which `whole` has the shapes, the axis of its parts or -1."""
    parts = jax.lax.axis_size(FSDP)
    return jax.tree.map(lambda leaf: len(spec_of(leaf.shape, parts)) - 1, whole)


def gather(tree: Any, whole: Any) -> Any:
    """Within `share_out`: the whole arrays of which each device of a group holds a part; `whole` has their shapes."""

    def of_array(part: jax.Array, axis: int) -> jax.Array:
        return part if axis < 0 else jax.lax.all_gather(part, FSDP, axis=axis, tiled=True)

    return jax.tree.map(of_array, tree, _part_axes(whole))


def add_up_parts(tree: Any, whole: Any) -> Any:
    """Within `share_out`: of the sums of `add_up` the parts that the device holds; `whole` has all shapes."""
    axes = _part_axes(whole)

    def scatter(leaf: jax.Array, axis: int) -> jax.Array:
        return leaf if axis < 0 else jax.lax.psum_scatter(leaf, FSDP, scatter_dimension=axis, tiled=True)

    leaves, structure = jax.tree.flatten(jax.tree.map(scatter, tree, axes))
    ways = [SHARES if axis < 0 else (DATA,) for axis in jax.tree.leaves(axes)]
    for way in set(ways):  # one meeting for all arrays that are added up over the same devices
        some = [number for number, other in enumerate(ways) if other == way]
        for number, total in zip(some, _sum([leaves[number] for number in some], way), strict=True):
            leaves[number] = total
    return jax.tree.unflatten(structure, leaves)


def norm(tree: Any, whole: Any) -> jax.Array:
    """Within `share_out`: the Euclidean norm of all numbers of a tree of which each device holds the parts it does."""
    axes = jax.tree.leaves(_part_axes(whole))
    if max(axes, default=-1) < 0:
        return optax.tree.norm(tree)
    leaves = jax.tree.leaves(tree)
    parts = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis >= 0]
    rest = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis < 0]
    return jnp.sqrt(jax.lax.psum(optax.tree.norm(parts, squared=True), FSDP) + optax.tree.norm(rest, squared=True))
