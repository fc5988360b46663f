"""Devices share the work of a batch: read off the programs for eight of them, and off their losses."""

import json
import os
import subprocess
import sys

import pytest

DEVICES = 8
MODELS = ("L512-IF", "G")

PROGRAM = """
import json
import sys

import jax
import numpy as np

from benchmarks.task import MODELS, Task
from seq2seq_jax.config import (
    Config, DataConfig, DecodeConfig, MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
)
from seq2seq_jax.data.vocabulary import TokenVocabulary, Vocabularies
from seq2seq_jax.decoding.rules import Asked
from seq2seq_jax.padded import Padded
from seq2seq_jax.programs import Limits
from seq2seq_jax.sharding import DATA, MODEL, ROWS, WHOLE, make_mesh, share_out, spec_of
from seq2seq_jax.training.costs.collectives import collectives as all_collectives
from seq2seq_jax.training.costs.counts import footprint, products, size, size_on_a_device
from seq2seq_jax.training.setup import abstract_sequences
from seq2seq_jax.training.step import abstract_state, initial_state, jit_train_step
from seq2seq_jax.translator import Translator
from tests.hlo import collectives, flops_of_products
from tests.compiler import QUICK_COMPILE
from tests.models import everything

BATCH, LENGTH = 64, 25
NAMES = sys.argv[1:]
meshes = {number: make_mesh(MeshConfig(data=number)) for number in (1, 2, 8)}
GROUPS = (1, 8, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2)
meshes |= {"x".join(map(str, group)): make_mesh(MeshConfig(*group)) for group in GROUPS}
PARTED = [name for name in meshes if isinstance(name, str)]

def look(traced):
    program = traced.lower().compile(compiler_options=QUICK_COMPILE)
    hlo = program.as_text()
    return {
        "flops": program.cost_analysis()["flops"],
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "collectives": collectives(hlo),
        "gathered": sum(each.bytes for each in all_collectives(hlo) if each.kind == "all-gather"),
        "products": flops_of_products(hlo),
        "planned": [products(traced.jaxpr).flops, footprint(program).temporary],
    }

def train_step(name, mesh):
    task = Task(MODELS[name], BATCH, LENGTH)
    config, sizes = task.train_config(), task.vocab_sizes
    state, batch = abstract_state(config, sizes, mesh), abstract_sequences(BATCH, LENGTH, mesh)
    found = look(jit_train_step(config, sizes, mesh).trace(state, batch, batch))
    tables = [leaf for path, leaf in jax.tree.leaves_with_path(state) if MODEL in spec_of(path, leaf.shape, 1, 2)]
    return found | {
        "gradients": size(state.params).bytes,
        "state": [size(state).bytes, size_on_a_device(state).bytes],
        "tables": size(tables).bytes,
    }

def use(beam_size, mesh):
    model = MODELS["L512-IF"]
    words = TokenVocabulary([f"w{n}" for n in range(model.vocab_size - 4)], "words", False)
    config, decode = Config(model=model.config), DecodeConfig(beam_size=beam_size or 1)
    state = abstract_state(config, (model.vocab_size,) * 2, mesh)
    translator = Translator(config, Vocabularies(words, words), {}, decode, mesh)
    batch = abstract_sequences(BATCH, LENGTH, mesh)
    if not beam_size:
        return look(translator._token_scores.trace(state.params, batch, batch))
    tables = jax.eval_shape(translator._search_tables, state.params)
    limits = Limits(batch.lengths, batch.lengths)
    return look(translator._search.trace(state.params, tables, batch, limits, Asked(), 60, 1))

OBJECTIVES = (
    ObjectiveConfig("scheduled_sampling", half_right_step=2, unlikelihood=0.5),
    ObjectiveConfig("minimum_risk", num_candidates=3),
)

def losses(number, regularizers={}, objective=ObjectiveConfig(), **train):
    config = Config(
        model=ModelConfig(**dict(hidden_size=8, embed_size=8, dropout_rate=0.3) | regularizers),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.5, momentum=0.5, clip_norm=0.0),
        train=TrainConfig(**train),
        objective=objective,
    )
    return losses_of(config, number)

def clipped_losses(number, tied="none"):
    config = Config(
        model=ModelConfig(hidden_size=64, embed_size=64, dropout_rate=0.3, word_dropout_rate=0.2, tied_embeddings=tied),
        data=DataConfig(joint_vocabulary=True),
        optimizer=OptimizerConfig(learning_rate=0.05, clip_norm=0.3),
        train=TrainConfig(ema=0.9, label_smoothing=0.1),
    )
    return losses_of(config, number, (64, 64))

def losses_of(config, number, sizes=(11, 13)):
    mesh, random = meshes[number], np.random.default_rng(0)
    step, state, found = None, initial_state(config, sizes, mesh), []
    for update in range(4):
        lengths = random.integers(2, 7, (2, 16), np.int32)
        if update == 2:
            lengths[:, 5:] = 0  # a last batch: some devices have empty rows only
        batch = [Padded(random.integers(4, n, (16, 6), np.int32), rows) for n, rows in zip(sizes, lengths)]
        if step is None:
            step = jit_train_step(config, sizes, mesh).lower(state, *batch).compile(compiler_options=QUICK_COMPILE)
        state = step(state, *batch)
        found += [float(state.window.loss), float(state.window.grad_norm)]
    return found

def meeting_in_a_loop(mesh):
    function = lambda x: jax.lax.scan(lambda x, _: (jax.lax.psum(x, DATA), None), x, length=3)[0]
    return look(jax.jit(share_out(function, mesh, in_specs=ROWS, out_specs=WHOLE)).trace(np.zeros((8, 2))))

print(json.dumps({
    "meeting in a loop": meeting_in_a_loop(meshes[8]),
    "train": {name: {n: train_step(name, meshes[n]) for n in (1, 8)} for name in NAMES},
    "parted": {n: train_step("L512-IF", meshes[n]) for n in PARTED},
    "clipped": {n: clipped_losses(n) for n in (1, 2, *PARTED)},
    "tied": {n: clipped_losses(n, "all") for n in (1, PARTED[-1])},
    "use": {str(beam): {n: use(beam, meshes[n]) for n in (1, 8)} for beam in (0, 1, 5)},
    "losses": {n: [losses(n), losses(n, accumulate_steps=2)] for n in (1, 2, 8)},
    "objectives": {
        n: [[losses(n, objective=objective, accumulate_steps=k) for objective in OBJECTIVES] for k in (1, 2)]
        for n in (1, 8)
    },
    "regularized": {
        n: [losses(n, everything("lstm")), losses(n, everything("lstm"), accumulate_steps=2)] for n in (1, 8)
    },
}))
"""


@pytest.fixture(scope="module")
def found(repository):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-c", PROGRAM, *MODELS]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", MODELS)
def test_each_of_eight_devices_does_an_eighth_of_a_training_step(found, model):
    """But for the update of the parameters, which each does itself."""
    one, eight = found["train"][model]["1"], found["train"][model]["8"]
    assert eight["flops"] <= 1.05 * one["flops"] / DEVICES
    assert eight["products"] == pytest.approx(one["products"] / DEVICES, rel=0.001)


@pytest.mark.parametrize("model", MODELS)
def test_devices_meet_twice_in_a_training_step_and_never_in_a_loop(found, model):
    """To count the tokens, and to add up the gradients and the loss."""
    assert found["train"][model]["8"]["collectives"] == {"inside": {}, "outside": {"all-reduce": 2}}
    assert found["meeting in a loop"]["collectives"]["inside"] == {"all-reduce": 1}  # so they are seen


@pytest.mark.parametrize("model", MODELS)
def test_activations_are_divided_too(found, model):
    """A device holds its share of them, and its gradients beside their sum, which a CPU does not form in place."""
    one, eight = found["train"][model]["1"], found["train"][model]["8"]
    rest = max(one["temporary"] - one["gradients"], 0)
    assert eight["temporary"] <= 2.05 * one["gradients"] + rest / 5


@pytest.mark.parametrize("model", MODELS)
def test_a_plan_says_operations_and_memory_of_a_device_as_the_program_has_them(found, model):
    for devices in found["train"][model].values():
        assert devices["planned"] == pytest.approx([devices["products"], devices["temporary"]], rel=0.001)


@pytest.mark.parametrize(("mesh", "parts"), [("1x8x1", 8), ("2x4x1", 4)])
def test_devices_of_a_group_hold_parts_of_the_state_and_gather_them_outside_of_loops(found, mesh, parts):
    """Of small arrays, such as biases, each holds all."""
    step = found["parted"][mesh]
    whole, held = step["state"]
    assert whole / parts <= held < 1.02 * whole / parts
    assert step["collectives"]["inside"] == {}
    assert {*step["collectives"]["outside"]} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert step["products"] == pytest.approx(found["train"]["L512-IF"]["8"]["products"], rel=0.001)


@pytest.mark.parametrize(("mesh", "fsdp", "parts"), [("2x1x4", 1, 4), ("2x2x2", 2, 2)])
def test_devices_that_share_a_vocabulary_hold_parts_of_its_tables_and_never_gather_them(found, mesh, fsdp, parts):
    step = found["parted"][mesh]
    whole, held = step["state"]
    rest = whole - step["tables"]
    assert held == pytest.approx(rest / fsdp + step["tables"] / (fsdp * parts), rel=0.02)
    assert step["collectives"]["inside"] == {}
    parameters = (rest + step["tables"] / parts) / 3 if fsdp > 1 else 0  # a third of the state
    assert step["gathered"] < parameters + step["tables"] / 3 / parts  # ids and vectors beside them, no table
    assert step["products"] == pytest.approx(found["train"]["L512-IF"]["8"]["products"], rel=0.001)


@pytest.mark.parametrize("mesh", ["2", "1x8x1", "2x4x1", "2x1x4", "2x2x2"])
def test_losses_and_norms_do_not_depend_on_who_holds_what(found, mesh):
    """With clipping, moments, a moving average, label smoothing and dropped words."""
    assert found["clipped"][mesh] == pytest.approx(found["clipped"]["1"], rel=1e-5)


def test_nor_do_those_of_one_table_for_source_target_and_output(found):
    assert found["tied"]["2x2x2"] == pytest.approx(found["tied"]["1"], rel=1e-5)


@pytest.mark.parametrize("beam_size", ["0", "1", "5"], ids=["scores", "greedy", "beam"])
def test_devices_share_evaluation_and_search_and_never_meet(found, beam_size):
    one, eight = found["use"][beam_size]["1"], found["use"][beam_size]["8"]
    assert eight["collectives"] == {"inside": {}, "outside": {}}
    assert eight["products"] <= 1.05 * one["products"] / DEVICES
    assert eight["temporary"] <= one["temporary"] / 3


@pytest.mark.parametrize("accumulation", [0, 1], ids=["whole", "in two parts"])
def test_losses_do_not_depend_on_the_number_of_devices(found, accumulation):
    """With dropout: what is dropped does not either."""
    one, two, eight = (found["losses"][number][accumulation] for number in ("1", "2", "8"))
    assert one == pytest.approx(two, rel=1e-5) and one == pytest.approx(eight, rel=1e-5)
    assert one == pytest.approx(found["losses"]["1"][0], rel=1e-5)


@pytest.mark.parametrize("number", [0, 1], ids=["scheduled_sampling", "minimum_risk"])
def test_what_the_model_writes_in_training_does_not_depend_on_devices_or_parts_of_a_batch(found, number):
    first, *others = [of_objectives[number] for n in ("1", "8") for of_objectives in found["objectives"][n]]
    assert all(losses == pytest.approx(first, rel=1e-5) for losses in others)


def test_regularized_losses_do_not_depend_on_devices_or_parts_of_a_batch(found):
    """Recurrent weights are dropped once an update: the same ones on all devices and in all parts."""
    first, *others = [losses for number in ("1", "8") for losses in found["regularized"][number]]
    assert all(losses == pytest.approx(first, rel=1e-5) for losses in others)
