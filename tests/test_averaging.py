"""The command average, on checkpoints whose parameters are known."""

import gc
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from seq2seq_jax import checkpoint, cli
from seq2seq_jax.checkpoint import Checkpoints
from seq2seq_jax.config import to_json
from seq2seq_jax.run_directory import with_absolute_paths
from seq2seq_jax.sharding import one_device
from seq2seq_jax.training.loop import LoopState
from seq2seq_jax.training.setup import begin, prepare
from seq2seq_jax.translator import load, origin, params_on
from tests.tiny import sentences, tiny_config, write_pairs

# Where one array cannot be read, Orbax leaves the coroutines that read the others to the garbage collector, unfinished.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STEPS, BEST, KEPT = (2, 4, 6, 8, 10), 2, 3


class Run(NamedTuple):
    """A run directory and the parameters of its steps."""

    workdir: Path
    params: dict[int, dict]


@pytest.fixture(autouse=True)
def collected():
    """Has it find them here, not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module", params=["params", "average"])
def made(request, tmp_path_factory, compiled) -> Run:
    """Never really trained. Where there is a moving average it is what is known, and the rest is something else."""
    folder = tmp_path_factory.mktemp("averaging")
    config = with_absolute_paths(tiny_config(folder / "corpus", train={"keep_checkpoints": KEPT}))
    material, workdir = prepare(config, 1), folder / "run"
    begin(config, material, workdir)
    shapes = params_on(one_device(), config, material.vocabularies)
    params = {step: drawn(shapes, step) for step in STEPS}
    with Checkpoints(workdir, origin(config, material.vocabularies, material.corpus.fingerprint)) as checkpoints:
        for step, tree in params.items():
            state = {"params": drawn(shapes, 100 + step)} | {request.param: tree}
            checkpoints.save(step, state, asdict(LoopState(best_step=BEST, evaluated_step=step)))
    return Run(workdir, params)


def drawn(shapes: dict, seed: int) -> dict:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), shapes)


@pytest.fixture
def run(made, tmp_path) -> Run:
    """A copy of it."""
    return made._replace(workdir=Path(shutil.copytree(made.workdir, tmp_path / "run")))


@pytest.fixture
def call(capfd):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_parameters_are_the_mean_of_the_last_checkpoints(run, call, last):
    before = contents(run.workdir)
    code, out, err = call("average", "--workdir", run.workdir, "--last", last)
    assert (code, err) == (0, "")
    output, steps = run.workdir / f"average-{last}", STEPS[-last:]
    assert f"of steps {', '.join(map(str, reversed(steps)))}\n" in out and f"translate --workdir {output}" in out
    mean = jax.tree.map(lambda *arrays: np.mean(np.stack(arrays).astype(np.float64), 0), *map(run.params.get, steps))
    model = load(output)
    assert model.step == STEPS[-1]
    for found, expected in zip(jax.tree.leaves(model.params), jax.tree.leaves(mean), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert before.items() <= contents(run.workdir).items()


@pytest.mark.filterwarnings("default:.*reached the limit")
def test_the_new_directory_is_read_by_all_commands_that_read_a_run(run, call, tmp_path):
    output = tmp_path / "elsewhere" / "averaged"
    source, target = write_pairs(tmp_path, "new", sentences(3, seed=5))
    assert call("average", "--workdir", run.workdir, "--last", 2, "--output", output)[0] == 0
    code, out, _ = call("translate", "--workdir", output, "--input", source)
    assert code == 0 and out.count("\n") == 3
    assert call("score", "--workdir", output, "--source-file", source, "--target-file", target)[0] == 0
    assert call("evaluate", "--workdir", output)[0] == 0
    assert json.loads((output / "evaluations" / "test.json").read_text())["step"] == STEPS[-1]


def test_the_new_directory_is_not_trained(run, call, tmp_path):
    assert call("average", "--workdir", run.workdir, "--last", 2)[0] == 0
    output, config = run.workdir / "average-2", tmp_path / "config.py"
    program = "from seq2seq_jax.config import from_json\n\n\ndef get_config():\n    return from_json({!r})\n"
    config.write_text(program.format(to_json(load(output).config)))
    before = contents(output)
    code, _, err = call("train", "--config", config, "--workdir", output)
    assert code == 2
    assert f"Checkpoint {output / 'checkpoints' / '10'} is the average of those of steps 10, 8: it is read by" in err
    assert contents(output) == before


def test_more_than_there_are_is_refused_with_their_number_and_the_setting(run, call):
    before = contents(run.workdir)
    code, _, err = call("average", "--workdir", run.workdir, "--last", 4)  # the best is older than those between
    assert code == 2
    assert f"{run.workdir} holds 3 latest checkpoints, and --last is 4" in err and "train.keep_checkpoints 3" in err
    assert contents(run.workdir) == before


@pytest.mark.parametrize(("last", "message"), [(0, "--last must be 1 or more, got 0"), ("x", "--last takes a whole")])
def test_a_number_that_is_none_is_refused(run, call, last, message):
    code, _, err = call("average", "--workdir", run.workdir, "--last", last)
    assert code == 2 and message in err


def test_what_is_there_is_not_replaced(run, call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    code, _, err = call("average", "--workdir", run.workdir, "--last", 2, "--output", tmp_path / "mine")
    assert code == 2 and f"{tmp_path / 'mine'} is there already; remove it, or choose another --output" in err
    code, _, err = call("average", "--workdir", run.workdir, "--last", 2, "--output", tmp_path / "mine" / "notes" / "x")
    assert code == 2 and "notes is a file" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_a_damaged_checkpoint_is_refused_by_name_and_nothing_is_made(run, call):
    arrays = (run.workdir / "checkpoints" / "8" / "state" / "d").iterdir()
    largest = max(arrays, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    before = contents(run.workdir)
    code, _, err = call("average", "--workdir", run.workdir, "--last", 3)
    assert code == 2 and f"{run.workdir / 'checkpoints' / '8'} is damaged" in err
    assert contents(run.workdir) == before
    assert call("average", "--workdir", run.workdir, "--last", 1)[0] == 0


def test_where_writing_fails_nothing_is_left(run, call, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    before = {*run.workdir.rglob("*")}
    monkeypatch.setattr(checkpoint.Checkpoints, "save", fail)
    code, _, err = call("average", "--workdir", run.workdir, "--last", 2)
    assert code == 2 and "No space left" in err
    assert {*run.workdir.rglob("*")} == before


def test_a_checkpoint_that_training_deletes_meanwhile_is_replaced_by_the_next(run, call, monkeypatch):
    original = checkpoint._read_params

    def read(path, *arguments):
        if path.name == "8" and path.exists():  # training saves step 12
            shutil.copytree(path.with_name("10"), path.with_name("12"))
            shutil.rmtree(path)
        return original(path, *arguments)

    monkeypatch.setattr(checkpoint, "_read_params", read)
    code, out, _ = call("average", "--workdir", run.workdir, "--last", 2)
    assert code == 0 and "of steps 12, 10" in out
