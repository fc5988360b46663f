"""Devices: a mesh, batches spread over it, parameters everywhere."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from seq2seq_jax.config import MeshConfig
from seq2seq_jax.errors import UserError


def make_mesh(config: MeshConfig) -> Mesh:
    """Mesh with the one axis `data`, over the first `config.data` local devices."""
    devices = jax.local_devices()
    num = len(devices) if config.data is None else config.data
    if num > len(devices):
        raise UserError(f"mesh.data {num} is more than the {len(devices)} devices here; use at most {len(devices)}.")
    return Mesh(np.array(devices[:num]), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec("data"))
