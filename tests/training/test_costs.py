"""What a run will cost: counts found a second way, and the refusal of what does not fit."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.stages import Lowered

from seq2seq_jax import cli
from seq2seq_jax.config import ModelConfig, to_json
from seq2seq_jax.cpu import PEAK_FACTOR
from seq2seq_jax.data.batching import BatchShape
from seq2seq_jax.errors import UserError
from seq2seq_jax.sharding import make_mesh
from seq2seq_jax.training.costs.available import _group_room, _machine_room, available_bytes
from seq2seq_jax.training.costs.counts import footprint, parameters_by_part, products, size
from seq2seq_jax.training.costs.fits import check_fits, largest_that_fits
from seq2seq_jax.training.costs.planning import plan
from seq2seq_jax.training.loop import train
from seq2seq_jax.training.setup import abstract_sequences, compile_step, prepare
from seq2seq_jax.training.step import abstract_state, jit_train_step
from seq2seq_jax.translator import vocab_sizes
from tests.compiler import QUICK_COMPILE
from tests.models import tiny_config as tiny_model
from tests.tiny import tiny_config

# Whatever compiles quickly.
PLAIN = {"attention": "none", "input_feeding": False, "bidirectional": "none", "dropout_rate": 0.0}


@pytest.fixture(scope="module", autouse=True)
def quickly(compiled):
    """Leaves out of every compilation what only makes code faster, and probes for a moment only."""
    original = Lowered.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seq2seq_jax.training.costs.planning._PROBE_SECONDS", 0.01)
        patch.setattr(Lowered, "compile", lambda lowered, _=None: original(lowered, compiler_options=QUICK_COMPILE))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("costs") / "corpus"
    return tiny_config(corpus, model=PLAIN, data={"num_shapes": 2}, optimizer={"name": "sgd"}, train={"num_steps": 99})


@pytest.fixture(scope="module")
def mesh(config):
    return make_mesh(config.mesh)


@pytest.fixture(scope="module")
def material(config):
    return prepare(config, num_devices=1)


@pytest.fixture(scope="module")
def planned(config, quickly):
    """The costs of the run, and the lines about them."""
    lines: list[str] = []
    return plan(config, lines.append), lines


@pytest.fixture
def room(monkeypatch):
    """Says how many bytes there are on each device."""

    def room(count):
        for module in ("fits", "planning"):
            monkeypatch.setattr(f"seq2seq_jax.training.costs.{module}.available_bytes", lambda devices: count)

    return room


# the numbers


def test_the_parts_add_up_to_the_parameters_of_the_model(config, mesh):
    settings = replace(config.model, attention="additive", bridge="dense")
    params = abstract_state(replace(config, model=settings), (11, 13), mesh).params
    parts = parameters_by_part(params)
    assert list(parts) == ["embeddings", "encoder", "bridge", "decoder", "output layer"]
    assert sum(part.count for part in parts.values()) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert parts["embeddings"].count == (11 + 13) * settings.embed_size
    assert parts["output layer"].bytes == 4 * 13 * (settings.hidden_size + 1)


def test_the_training_state_counts_a_moving_average(config, mesh):
    plain = abstract_state(config, (11, 13), mesh)
    averaged = abstract_state(replace(config, train=replace(config.train, ema=0.9)), (11, 13), mesh)
    assert size(averaged).bytes == size(plain).bytes + size(plain.params).bytes


def test_shares_and_padding_are_those_of_the_epoch(planned, material):
    costs, found = planned[0], material.batching
    assert [row.shape for row in costs.shapes] == list(found.shapes) and len(costs.shapes) == 2
    assert costs.num_batches == found.num_batches
    assert costs.padded_share == pytest.approx(found.padded_share)
    tokens = int(material.train.source_lengths.sum() + material.train.target_lengths.sum())
    assert sum(row.source_tokens + row.target_tokens for row in costs.shapes) == tokens
    positions = sum(row.positions for row in costs.shapes)
    assert costs.padded_share == pytest.approx(
        sum(row.padded_share * row.positions / positions for row in costs.shapes)
    )


def test_the_speed_is_weighted_by_how_often_a_shape_occurs(planned):
    costs = planned[0]
    seconds = sum(row.num_batches * row.step_seconds for row in costs.shapes)
    assert all(row.step_seconds > 0 for row in costs.shapes)
    assert costs.target_tokens_per_second == pytest.approx(sum(row.target_tokens for row in costs.shapes) / seconds)
    assert costs.step_seconds == pytest.approx(seconds / costs.num_batches)


def test_every_number_is_printed(planned):
    costs, lines = planned
    text = "\n".join(lines)
    for row in costs.shapes:
        shape = f"{row.shape.batch}x{row.shape.source}x{row.shape.target}"
        assert re.search(rf"^ +{shape} +{row.num_batches} +{row.num_batches / costs.num_batches:.1%} ", text, re.M)
    assert re.search(rf"^ +epoch +{costs.num_batches} +100.0% +{costs.padded_share:.1%} ", text, re.M)
    assert f"Speed       {costs.target_tokens_per_second:,.0f} target tokens/s" in text
    assert re.search(r"^Memory  .* MB of .* MB available on each device", text, re.M)
    assert re.search(r"^Time  .* for 99 steps .*, evaluation not counted$", text, re.M)
    widths = {len(line) for line in lines[lines.index(next(line for line in lines if "Batch shape" in line)) :][:4]}
    assert len(widths) == 1


# operations


def step_products(config, shape: BatchShape):
    mesh = make_mesh(config.mesh)
    batch = (abstract_sequences(shape.batch, length, mesh) for length in (shape.source, shape.target))
    return products(jit_train_step(config, (11, 13), mesh).trace(abstract_state(config, (11, 13), mesh), *batch).jaxpr)


def multiplications(model: ModelConfig, shape: BatchShape, target_vocab_size: int) -> int:
    """Of the forward pass with input feeding and general attention, from the equations, layer by layer."""
    rows, source, target = shape.batch, shape.source, shape.target
    hidden, embed, directions = model.hidden_size, model.embed_size, 1 if model.bidirectional == "none" else 2
    size = hidden // directions
    first = source * rows * directions * (embed + size) * 4 * size
    deeper = source * rows * directions * (hidden + size) * 4 * size
    encoder = first + (model.num_layers - 1) * deeper
    keys = source * rows * hidden * hidden
    layers = (embed + hidden + hidden) * 4 * hidden + (model.num_layers - 1) * (hidden + hidden) * 4 * hidden
    attention = source * hidden + source * hidden + (hidden + hidden) * hidden
    return encoder + keys + target * rows * (layers + attention + hidden * target_vocab_size)


def biased_results(model: ModelConfig, shape: BatchShape, target_vocab_size: int) -> int:
    """Numbers to which a bias is added: their gradients are summed by a product with ones."""
    gates = model.num_layers * 4 * model.hidden_size
    return shape.batch * (shape.source * gates + shape.target * (gates + target_vocab_size))


SHAPE = BatchShape(4, 5, 7)


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": "none"}, {"compute_dtype": "bfloat16"}])
def test_operations_are_three_times_those_of_the_equations_forward(config, settings):
    model = tiny_model(attention="general", input_feeding=True, **settings)
    found = step_products(replace(config, model=model), SHAPE)
    # The backward pass takes two products for each one of the forward pass: for its left side and for its right.
    forward, biased = (count(model, SHAPE, target_vocab_size=13) for count in (multiplications, biased_results))
    assert found.flops == 3 * 2 * forward + 2 * biased


def test_operations_do_not_depend_on_how_a_batch_is_cut(config):
    model = tiny_model(attention="general", input_feeding=True)
    cut = replace(config, model=model, train=replace(config.train, accumulate_steps=2))
    assert step_products(cut, SHAPE).flops == step_products(replace(config, model=model), SHAPE).flops


def test_products_in_a_loop_count_as_often_as_they_are_taken():
    rows, weights = jnp.zeros((8, 16)), jnp.zeros((16, 16))

    def loop(unroll: int):
        return lambda rows, weights: jax.lax.scan(lambda x, _: (x @ weights, None), rows, length=5, unroll=unroll)[0]

    looped, unrolled = (jax.jit(loop(unroll)).trace(rows, weights) for unroll in (1, 5))
    assert products(looped.jaxpr).flops == unrolled.lower().compile().cost_analysis()["flops"]
    assert products(looped.jaxpr) == products(unrolled.jaxpr)
    assert products(looped.jaxpr).bytes == 5 * 4 * (8 * 16 + 16 * 16 + 8 * 16)


def test_of_a_conditional_the_dearest_branch_counts():
    square = jnp.zeros((4, 4))
    branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)  # noqa: E731
    assert products(jax.make_jaxpr(branches)(square)).flops == 2 * 2 * 4**3


# what does not fit


@pytest.fixture(scope="module")
def needed(config, material, mesh, quickly):
    """Gives the bytes that a step on so many rows of the largest shape needs."""
    sizes = vocab_sizes(material.vocabularies)
    step, abstract = jit_train_step(config, sizes, mesh), abstract_state(config, sizes, mesh)

    @functools.cache
    def needed(rows: int) -> int:
        found = footprint(compile_step(step, abstract, replace(material.batching.shapes[-1], batch=rows), mesh).update)
        assert found is not None
        return found.total

    return needed


def numbers(pattern: str, text: str) -> list[int]:
    """The groups of the one match in a text."""
    (found,) = re.finditer(pattern, text)
    return [int(group) for group in found.groups()]


def test_the_batch_size_that_a_refusal_names_fits_and_the_next_does_not(config, material, planned, needed, room):
    available = needed(5) + 100
    room(available)
    with pytest.raises(UserError) as refusal:
        plan(config, lambda line: None)
    message = str(refusal.value)
    shape = material.batching.shapes[-1]
    assert f"of {shape.batch} sentences, {shape.source} source and {shape.target} target positions needs" in message
    assert (
        f"{planned[0].shapes[-1].footprint.total / 1e6:.3g} MB, and {available / 1e6:.3g} MB are available" in message
    )
    assert "train.accumulate_steps (now 1)" in message
    fits, not_fits = numbers(r"data.batch_size (\d+) fits \(.*\), (\d+) does not", message)
    assert needed(fits) <= available < needed(not_fits)
    assert not_fits == fits + 1


def test_a_batch_of_tokens_is_refused_in_tokens(config, material, needed, room):
    available = needed(5) + 100
    room(available)
    tokens = replace(config, data=replace(config.data, batch_size=None, batch_tokens=100, num_shapes=1))
    with pytest.raises(UserError, match=r"data.batch_tokens \d+ fits") as refusal:
        plan(tokens, lambda line: None)
    (fits,) = numbers(r"data.batch_tokens (\d+) fits", str(refusal.value))
    rows = fits // material.batching.shapes[-1].target
    assert needed(rows) <= available < needed(rows + 1)


def test_training_is_refused_before_it_compiles_and_leaves_nothing_behind(config, room, tmp_path, monkeypatch):
    room(1)
    monkeypatch.setattr("seq2seq_jax.training.loop.compile_steps", None)  # there is nothing to compile for
    with pytest.raises(UserError, match="and 1e-06 MB are available, before any batch. Choose a smaller model"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_the_state_fits_but_no_batch_no_batch_size_is_advised(config, room, planned):
    room(planned[0].shapes[-1].footprint.fixed + 100)
    with pytest.raises(UserError, match="No data.batch_size fits: choose a smaller model or data.max_length. Or:"):
        plan(config, lambda line: None)


def test_nothing_is_refused_where_the_device_does_not_tell_its_memory(config, room, planned):
    room(None)
    lines: list[str] = []
    assert plan(config, lines.append).available is None
    assert any(re.fullmatch(r"Memory .* MB on each device.*", line) for line in lines)


@pytest.mark.parametrize("need", [lambda n: 100 + 7 * n, lambda n: 100 + n * n, lambda n: 50 + 8 * -(-n // 8)])
def test_the_largest_batch_is_found_with_few_questions(need):
    asked = []
    for available in (need(1), need(3), need(40), need(63) - 1):
        asked.clear()
        fit = largest_that_fits(lambda n: asked.append(n) or need(n), available, 64, need(64))
        assert fit is not None
        assert fit.need == need(fit.units) <= available < need(fit.too_many)
        assert len(asked) <= 8
        if need(2) == 114:  # a straight line
            assert fit.units == max(n for n in range(1, 64) if need(n) <= available) and len(asked) <= 3
    assert largest_that_fits(need, need(1) - 1, 64, need(64)) is None


def test_a_cpu_has_what_the_machine_and_its_control_groups_leave(tmp_path, monkeypatch):
    files = {
        "proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 500 kB\n",
        "proc/self/cgroup": "0::/outer/inner\n",
        "sys/fs/cgroup/outer/memory.max": "300000\n",
        "sys/fs/cgroup/outer/memory.current": "120000\n",
        "sys/fs/cgroup/outer/memory.stat": "anon 100000\ninactive_file 20000\n",
        "sys/fs/cgroup/outer/inner/memory.max": "max\n",
        "sys/fs/cgroup/outer/inner/memory.current": "90000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(_machine_room(tmp_path)) == [500 * 1024]
    assert list(_group_room(tmp_path)) == [200_000]
    for name, text in {
        "proc/self/cgroup": "5:cpu,memory:/job\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "70000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "30000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(_group_room(tmp_path)) == [40_000]
    assert list(_machine_room(tmp_path / "elsewhere")) == list(_group_room(tmp_path / "elsewhere")) == []


def test_devices_on_one_machine_share_its_memory():
    devices = jax.devices()[:1]
    whole = available_bytes(devices)
    assert whole is not None
    assert available_bytes(devices * 4) == pytest.approx(whole / 4, rel=0.2)  # others use the machine meanwhile


# the command


def test_the_command_prints_a_plan_and_leaves_no_run_directory(config, planned, tmp_path, monkeypatch, capfd):
    (tmp_path / "mine.json").write_text(to_json(config))
    program = "from pathlib import Path\nfrom seq2seq_jax.config import from_json\n"
    program += "def get_config():\n    return from_json(Path('mine.json').read_text())\n"
    (tmp_path / "mine.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["plan", "--config", "mine.py", "--train.num-steps", "50", "--workdir", "run"]) == 0
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)) == before
    out, err = capfd.readouterr()
    assert err == "" and "for 50 steps" in out and len(out.splitlines()) > 15


@pytest.mark.parametrize("times, kept", [(PEAK_FACTOR - 1, False), (PEAK_FACTOR, True)])
def test_freed_memory_is_kept_only_where_its_gaps_fit_too(
    times, kept, config, material, mesh, planned, room, monkeypatch
):
    sizes = vocab_sizes(material.vocabularies)
    step, abstract = jit_train_step(config, sizes, mesh), abstract_state(config, sizes, mesh)
    compiled = [compile_step(step, abstract, shape, mesh) for shape in material.batching.shapes]
    calls = []
    monkeypatch.setattr("seq2seq_jax.training.costs.fits.keep_freed_memory", lambda: calls.append("kept"))
    room(times * max(shape.footprint.total for shape in planned[0].shapes))
    check_fits(config, material, mesh, abstract, compiled)
    assert bool(calls) == kept


def test_a_plan_of_several_seeds_is_that_of_one_times_their_number(config, planned, quickly):
    (alone, _), lines = planned, []
    found = plan(config, lines.append, num_seeds=3)
    assert found.state.count == 3 * (alone.state.count + alone_parameters(alone)) + 3  # and who is trained
    assert [shape.products.flops for shape in found.shapes] == [3 * shape.products.flops for shape in alone.shapes]
    for several, one in zip(found.shapes, alone.shapes, strict=True):
        assert several.footprint and one.footprint and several.footprint.fixed > 3 * one.footprint.fixed
    tokens = 3 * sum(shape.target_tokens for shape in alone.shapes)
    assert found.target_tokens_per_second == pytest.approx(tokens / (found.num_batches * found.step_seconds))
    assert any("all devices and 3 seeds" in line for line in lines)


def alone_parameters(costs):
    """Those of one seed: what it was validated with at its best is kept beside them."""
    return sum(part.count for part in costs.parts.values())
