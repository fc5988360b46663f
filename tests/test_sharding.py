"""Meshes, and what of a state lies where."""

from dataclasses import dataclass

import jax
import pytest
from jax.sharding import PartitionSpec

from seq2seq_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig
from seq2seq_jax.errors import UserError
from seq2seq_jax.sharding import FSDP, MODEL, grouped, make_mesh, specs_of
from seq2seq_jax.training.setup import _check_vocabulary_parts

DEVICE = jax.devices()[0]


@dataclass(frozen=True)
class Device:
    """As much of one as a mesh looks at."""

    id: int
    process_index: int
    platform: str = "cpu"


def test_a_mesh_takes_all_devices_unless_it_is_told():
    assert dict(make_mesh(MeshConfig(), [DEVICE] * 12).shape) == {"data": 12, "fsdp": 1, "model": 1}
    assert dict(make_mesh(MeshConfig(fsdp=2, model=3), [DEVICE] * 12).shape) == {"data": 2, "fsdp": 2, "model": 3}
    assert make_mesh(MeshConfig(data=2, fsdp=2), [DEVICE] * 12).size == 4


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 3}, "mesh.fsdp 3 does not divide the 8 devices here; use one of 1, 2, 4, 8."),
        ({"model": 3}, "mesh.model 3 does not divide the 8 devices here; use one of 1, 2, 4, 8."),
        ({"fsdp": 2, "model": 3}, "mesh.fsdp 2 times mesh.model 3 does not divide the 8 devices here; use one of"),
        ({"data": 9}, "mesh.data 9 is more than the 8 devices here; use at most 8."),
        ({"data": 4, "model": 4}, "mesh.data 4 times mesh.model 4 is more than the 8 devices here; use at most 8."),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(mesh, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**mesh), [DEVICE] * 8)


def test_every_process_has_a_device():
    devices = [Device(number, number // 2) for number in range(6)]
    assert make_mesh(MeshConfig(data=5), devices).size == 5
    with pytest.raises(UserError, match="a mesh of 4 of the 6 devices here, and none of them belongs to process 2"):
        make_mesh(MeshConfig(data=4), devices)


@pytest.mark.parametrize("axis", ["fsdp", "model"])
def test_devices_that_share_out_seeds_hold_whole_states(axis):
    with pytest.raises(UserError, match=f"mesh.{axis} 2 parts the state of one run.*set mesh.{axis} 1"):
        grouped(make_mesh(MeshConfig(**{axis: 2}), [DEVICE] * 4), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": OptimizerConfig(name="adafactor")}, "adafactor keeps sums .* mesh.model 2 .* set mesh.model 1"),
        ({"model": ModelConfig(copy=True)}, "not with model.copy True; set mesh.model 1"),
    ],
)
def test_what_cannot_share_a_vocabulary_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Config(mesh=MeshConfig(model=2), **settings)


def test_a_vocabulary_that_does_not_make_equal_parts_is_refused():
    config = Config(mesh=MeshConfig(model=4))
    _check_vocabulary_parts(config, (8, 12))
    with pytest.raises(UserError, match="target vocabulary has 10 entries.* mesh.model 4; use one of 1, 2, or another"):
        _check_vocabulary_parts(config, (8, 10))


def test_tables_lie_in_parts_by_word_and_large_arrays_by_their_longest_axis():
    table, small = jax.ShapeDtypeStruct((64, 128), float), jax.ShapeDtypeStruct((64,), float)
    state = {"mu": {"output": {"table": table, "bias": small}, "decoder": {"table": table, "bias": small}}}
    assert specs_of(state, 2, 4)["mu"] == {
        "output": {"table": PartitionSpec(MODEL, FSDP), "bias": PartitionSpec(MODEL)},
        "decoder": {"table": PartitionSpec(None, FSDP), "bias": PartitionSpec()},
    }
    assert specs_of({"source_table": table}, 1, 1) == {"source_table": PartitionSpec()}
