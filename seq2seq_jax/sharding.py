"""Devices: a mesh, batches spread over it, parameters everywhere."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.config import MeshConfig
from seq2seq_jax.errors import UserError

DATA, SEEDS = "data", "seeds"
"""The axes of a mesh along which the rows of a batch are spread, and several runs that are trained as one."""
WHOLE, ROWS = PartitionSpec(), PartitionSpec(DATA)
"""An array that every device holds, and one of whose rows each holds a share."""
RUNS, ROWS_OF_RUNS = PartitionSpec(SEEDS), PartitionSpec(SEEDS, DATA)
"""The same of arrays that are stacked by run, of which each group of devices holds a share."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the one axis `data`, over the first `config.data` of `devices`, by default of the local ones."""
    devices = jax.local_devices() if devices is None else devices
    num = len(devices) if config.data is None else config.data
    if num > len(devices):
        raise UserError(f"mesh.data {num} is more than the {len(devices)} devices here; use at most {len(devices)}.")
    return Mesh(np.array(devices[:num]), (DATA,), axis_types=(AxisType.Auto,))


def grouped(mesh: Mesh, num_runs: int) -> Mesh:
    """The devices of `mesh` in groups of one size, as many as there can be without more groups than runs.

    Runs need nothing from each other, so groups never meet; those of one group
    share the rows of every batch.
    """
    groups = max(number for number in range(1, num_runs + 1) if mesh.size % number == 0)
    return Mesh(mesh.devices.reshape(groups, -1), (SEEDS, DATA), axis_types=(AxisType.Auto,) * 2)


def one_device() -> Mesh:
    """Mesh with the first local device alone."""
    return make_mesh(MeshConfig(data=1))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, WHOLE)


def by_rows(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the rows of a batch."""
    return NamedSharding(mesh, ROWS)


def by_run(mesh: Mesh) -> NamedSharding:
    """Each group of devices holds its share of the runs that an array is stacked of."""
    return NamedSharding(mesh, RUNS)


def by_rows_of_runs(mesh: Mesh) -> NamedSharding:
    """Each group holds its share of the runs, and each of its devices a share of the rows of their batches."""
    return NamedSharding(mesh, ROWS_OF_RUNS)


def share_out(function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any) -> Callable:
    """Returns `function`, run by each device on its own rows: the program of one device, for a share of the batch.

    Devices meet only where `function` says so (`jax.lax.psum` over `DATA`). Left
    to the compiler they would meet before every product: it cannot spread the
    one axis that steps and rows are made into, so it gathers them, and each
    device takes the products of all rows.

    Args:
      function: of arrays, or pytrees of them.
      mesh: the devices.
      in_specs: `WHOLE` or `ROWS` for each argument, `RUNS` or `ROWS_OF_RUNS` of stacked ones.
      out_specs: likewise for the results; what is `WHOLE` must be the same on every device.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def add_up(tree: Any) -> Any:
    """Within `share_out`: the sums over the devices that share the rows of a batch."""
    # Where one device has them all, XLA would copy what it need not add, if there are other groups beside it.
    return jax.lax.psum(tree, DATA) if jax.lax.axis_size(DATA) > 1 else tree
