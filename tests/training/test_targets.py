"""What a run would cost on devices that are not here: `plan --target`."""

import importlib.util
import re
import subprocess
import sys

import jax
import pytest

from seq2seq_jax import cli
from seq2seq_jax.errors import UserError
from seq2seq_jax.training.costs.collectives import Collective, collectives
from seq2seq_jax.training.costs.counts import Products, loop_rounds
from seq2seq_jax.training.costs.planning import plan
from seq2seq_jax.training.costs.targets import CHIPS, Chip, Target, estimated_seconds, find_target
from tests.tiny import tiny_config

HERE = Chip("cpu", 10**9, 1e9, {"float32": 1e9}, 1e8)
TPU_COMPILER = importlib.util.find_spec("libtpu")

HLO = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %sum = f32[4,8]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %sum)
}

%condition (state: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body
  %both = (bf16[16]{0:T(128)}, f32[3,2]{1,0}, /*index=2*/pred[5]{0}) all-reduce(%a, %b, %c), to_apply=%add
  %gather = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%p), dimensions={0}
  %done = f32[8,8]{1,0} all-gather-done(%gather)
  %two = ((f32[4]{0}, f32[2]{0}), (f32[8]{0}, f32[4]{0})) all-gather-start(%p, %q), dimensions={0}
  %scattered = f32[2,8]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add
  %later = ((f32[4,8]{1,0}, f32[8]{0}), (f32[2,8]{1,0}, f32[4]{0})) reduce-scatter-start(%p, %q), dimensions={0}
  ROOT %name = f32[4,8]{1,0} copy(%all-reduce.3), metadata={op_name="all-reduce(x)"}
}
"""


def test_collectives_are_read_off_a_program():
    assert collectives(HLO) == [
        Collective("all-reduce", 4 * 8 * 4, True),
        Collective("all-reduce", 16 * 2 + 6 * 4 + 5, False),
        Collective("all-gather", 8 * 8 * 4, False),
        Collective("all-gather", 12 * 4, False),
        Collective("reduce-scatter", 2 * 8 * 4, False),
        Collective("reduce-scatter", (2 * 8 + 4) * 4, False),
    ]


def test_a_collective_that_runs_beside_a_loop_is_one_and_not_the_loops():
    link = '%all-gather.{} = f32[8,8]{{1,0}} all-gather(%x), frontend_attributes={{chain_id="4"}}'
    hlo = HLO.replace("  %sum =", f"  {link.format(1)}\n  %sum =").replace(
        "  %both =", f"  {link.format(2)}\n  %both ="
    )
    assert hlo.count("chain_id") == 2
    assert sorted(collectives(hlo)) == sorted([*collectives(HLO), Collective("all-gather", 256, False)])


def test_an_estimate_is_the_slower_of_operations_and_memory_and_the_collectives():
    def seconds(flops, bytes_, meetings=(), devices=4):
        target = Target("cpu", HERE, [None] * devices)
        return estimated_seconds(Products(flops, bytes_), meetings, target, "float32")

    assert seconds(3 * 10**9, 10**9) == pytest.approx(3)
    assert seconds(10**9, 5 * 10**9) == pytest.approx(5)
    # A ring of four: each device sends three quarters of the bytes, twice to add them up.
    assert seconds(0, 0, [Collective("all-reduce", 10**8, False)]) == pytest.approx(1.5)
    assert seconds(0, 0, [Collective("all-gather", 10**8, False)]) == pytest.approx(0.75)
    assert seconds(0, 0, [Collective("all-reduce", 10**8, False)], devices=1) == 0


def test_rounds_of_loops_that_follow_or_hold_one_another():
    def program(x):
        def inner(x, _):
            return jax.lax.scan(lambda x, _: (x + 1, None), x, length=4)[0], None

        x = jax.lax.scan(inner, x, length=3)[0]  # 12
        x = jax.lax.cond(x > 0, lambda x: jax.lax.scan(lambda x, _: (x * x, None), x, length=5)[0], jax.numpy.sin, x)
        return jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, x) + x

    assert loop_rounds(jax.make_jaxpr(program)(1.0).jaxpr) == 12 + 5 + 1
    assert loop_rounds(jax.make_jaxpr(jax.numpy.sin)(1.0).jaxpr) == 0


def test_gpus_of_several_hosts_meet_by_their_network():
    chip = CHIPS["h100"]
    assert Target("h100x8", chip, [None] * 8).links == chip.links
    assert Target("h100x16", chip, [None] * 16).links == 400e9


@pytest.mark.parametrize("name", ["", "v5e", "v5e:4y4", "h100", "h100:8", "v5ex8", "cpu:2", "v5e:", "x8"])
def test_a_name_that_is_no_target_is_refused(name):
    with pytest.raises(UserError, match=re.escape(f"--target {name}: give a TPU and its topology, such as v5e:4x4")):
        find_target(name)


def test_the_nearest_target_is_named():
    with pytest.raises(UserError, match="Did you mean v5[ep]"):
        find_target("v5:4x4")


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "tpu"), ("h200x8", "cuda")])
def test_without_the_compiler_it_is_said_what_to_install(monkeypatch, name, extra):
    monkeypatch.setattr("seq2seq_jax.training.costs.targets.find_spec", lambda module: None)
    with pytest.raises(UserError, match=re.escape(f"which is not installed: pip install 'seq2seq-jax[{extra}]'.")):
        find_target(name)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("targets") / "corpus", data={"num_shapes": 2})


def plan_for(config, chip):
    lines: list[str] = []
    return plan(config, lines.append, target=Target("here", chip, jax.devices()[:1])), "\n".join(lines)


def test_the_step_that_needs_most_is_compiled_and_none_is_done(config, monkeypatch):
    monkeypatch.setattr("seq2seq_jax.training.costs.planning._probe", None)
    monkeypatch.setattr("seq2seq_jax.training.costs.planning.initial_state", None)
    costs, said = plan_for(config, HERE)
    assert [bool(shape.footprint) for shape in costs.shapes] == [False, True]
    assert [shape.step_seconds for shape in costs.shapes] == [
        max(shape.products.flops, shape.products.bytes) / 1e9 for shape in costs.shapes
    ]
    assert costs.available == 10**9
    for words in (
        "Compiled the step that needs most for here in ",
        "est. ms",
        "outside loops: none",
        "in loops, a round",
        "Loops  ",
    ):
        assert words in said
    assert "at most about" in said and "at least about" in said


def test_what_does_not_fit_there_is_refused(config):
    costs, _ = plan_for(config, HERE)
    found = costs.shapes[-1].footprint
    assert found
    with pytest.raises(UserError, match=r"needs .* MB are available\. data\.batch_size \d+ fits"):
        plan_for(config, HERE._replace(memory=found.total - 1))
    with pytest.raises(UserError, match="before any batch"):
        plan_for(config, HERE._replace(memory=1_000))


def test_the_command_says_so_in_one_message(capsys):
    assert cli.main(["plan", "--target", "v5e:4y4"]) == 2
    assert capsys.readouterr().err.startswith("error: --target v5e:4y4: give a TPU")


@pytest.mark.skipif(not TPU_COMPILER, reason="needs XLA's compiler for TPUs: pip install '.[tpu]'")
def test_a_step_is_compiled_for_tpus(config, tmp_path):
    command = [sys.executable, "-m", "seq2seq_jax", "plan", "--target", "v5e:2x4"]
    command += ["--data.train-files", *config.data.train_files, "--data.validation-files"]
    command += [*config.data.validation_files, "--data.vocabulary", "words"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Devices     8 tpu (TPU v5 lite)" in done.stdout
    assert "outside loops: 2 all-reduces" in done.stdout and "in loops, a round: none" in done.stdout
