"""Run directories of other versions: one of 0.1 is read and not trained on; what a newer version wrote is refused."""

import gc
import io
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seq2seq_jax
from seq2seq_jax import checkpoint, cli
from seq2seq_jax.build import abstract_params
from seq2seq_jax.checkpoint import Checkpoints, restore_params
from seq2seq_jax.config import Config
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import Vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import Origin, with_absolute_paths
from seq2seq_jax.symbols import BOS, EOS, PAD
from seq2seq_jax.training.loop import LoopState, train
from seq2seq_jax.training.setup import begin, prepare
from seq2seq_jax.translator import load, origin, output_limits, vocab_sizes
from tests.old_layout import Tree, old_log_prob, old_logits, old_parameters
from tests.tiny import sentences, tiny_config

# Where one array cannot be read, Orbax leaves the coroutines that read the others to the garbage collector, unfinished.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LINES = sentences(12, seed=3)  # of the split test
BEST, LAST = 4, 8  # steps


class OldRun(NamedTuple):
    """A run directory as 0.1 left it, never really trained. `params` are of the best step."""

    workdir: Path
    config: Config
    vocabularies: Vocabularies
    belongs: Origin
    params: Tree


@pytest.fixture(autouse=True)
def collected():
    """Has it find them here, not in another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def made(tmp_path_factory, compiled) -> OldRun:
    folder = tmp_path_factory.mktemp("old")
    config = with_absolute_paths(tiny_config(folder / "corpus", model={"num_layers": 2}))
    material, workdir = prepare(config, 1), folder / "run"
    begin(config, material, workdir)
    belongs = origin(config, material.vocabularies, material.corpus.fingerprint)
    params = {step: parameters(config, material.vocabularies, step) for step in (BEST, LAST)}
    with Checkpoints(workdir, belongs) as checkpoints:
        for step, tree in params.items():
            state = {"step": jnp.int32(step), "params": jax.tree.map(jnp.asarray, tree)}
            checkpoints.save(step, state, asdict(LoopState(best_step=BEST, evaluated_step=step)))
    for step in params:
        rewrite(workdir, step, version=None)
    return OldRun(workdir, config, material.vocabularies, belongs, params[BEST])


def parameters(config: Config, vocabularies: Vocabularies, seed: int) -> Tree:
    """Float32, large enough for each line to become another one."""
    tree = old_parameters(config.model, vocab_sizes(vocabularies), seed, scale=2.0)
    return jax.tree.map(np.float32, tree)


@pytest.fixture
def old_run(made, tmp_path) -> OldRun:
    """A copy of it."""
    return made._replace(workdir=Path(shutil.copytree(made.workdir, tmp_path / "run")))


def rewrite(workdir: Path, step: int, **changes: Any) -> None:
    """Writes a checkpoint's JSON with these entries, those of None left out, as its version would have written it."""
    path = workdir / "checkpoints" / str(step) / "progress" / "metadata"
    content = {name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(content | {"digest": checkpoint._digest(content)}))


def contents(workdir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def greedy(run: OldRun, line: str) -> str:
    """The likeliest token at every step, by the NumPy model."""
    source, output = ids(run, line)[0], []
    limit = output_limits(np.array([len(source)]), run.config.decode.max_length_ratio)[0]
    while EOS not in output and len(output) < limit - 1:  # the end mark counts
        logits = old_logits(run.config.model, run.params, source, [*output, EOS])[-1]
        logits[[PAD, BOS]] = -np.inf
        output.append(int(logits.argmax()))
    return run.vocabularies.target.decode([np.array(output)])[0]


def ids(run: OldRun, line: str) -> tuple[list[int], list[int]]:
    """Of a line and of what it should become."""
    encoded = encode_lines(run.vocabularies, [line], [line.upper()])
    return list(map(int, encoded.sources[0])), list(map(int, encoded.targets[0]))


def files(run: OldRun) -> tuple[str, str]:
    """Of the split test."""
    assert run.config.data.test_files
    return run.config.data.test_files


def log_probs(run: OldRun) -> list[float]:
    """Of the split test, by the NumPy model."""
    return [old_log_prob(run.config.model, run.params, *ids(run, line)) for line in LINES]


@pytest.fixture
def refused(capfd):
    """Runs a command that must fail with one message of the user's mistake; returns the message."""

    def refused(*arguments: object) -> str:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    return refused


# version 0.1


def test_a_model_of_0_1_gives_the_same_log_probabilities(old_run):
    before = contents(old_run.workdir)
    model = load(old_run.workdir)
    assert model.step == BEST
    assert model.score(LINES, [line.upper() for line in LINES]) == pytest.approx(log_probs(old_run), rel=1e-5)
    assert contents(old_run.workdir) == before


def test_a_model_of_0_1_writes_the_same_lines(old_run):
    model = load(old_run.workdir, replace(old_run.config.decode, beam_size=1))
    with pytest.warns(UserWarning, match="reached the limit"):
        outputs = model.translate(LINES)
    expected = [greedy(old_run, line) for line in LINES]
    assert len(set(expected)) == len(LINES)  # so they say much about the model
    assert [output.text for output in outputs] == expected


@pytest.mark.filterwarnings("default:.*reached the limit")
def test_the_commands_read_a_run_of_0_1(old_run, capfdbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in LINES).encode())))
    assert cli.main(["translate", "--workdir", str(old_run.workdir), "--decode.beam-size", "1"]) == 0
    assert capfdbinary.readouterr().out.decode().splitlines() == [greedy(old_run, line) for line in LINES]
    source, target = files(old_run)
    assert cli.main(["score", "--workdir", str(old_run.workdir), "--source-file", source, "--target-file", target]) == 0
    printed = capfdbinary.readouterr().out.split()
    assert [float(number) for number in printed] == pytest.approx(log_probs(old_run), abs=1e-4)  # four decimals


def test_a_split_is_evaluated_by_the_text_that_0_1_knew(old_run):
    assert cli.main(["evaluate", "--workdir", str(old_run.workdir), "--split", "test"]) == 0
    written = json.loads((old_run.workdir / "evaluations" / "test.json").read_text())
    tokens = sum(len(ids(old_run, line)[1]) for line in LINES)
    assert written["loss"] == pytest.approx(-sum(log_probs(old_run)) / tokens, rel=1e-5)
    assert (written["step"], written["sentences"]) == (BEST, 12)


def test_training_does_not_go_on_from_0_1_and_says_what_does(old_run, refused):
    before = contents(old_run.workdir)
    told = refused("train", "--workdir", old_run.workdir)
    assert f"Checkpoint {old_run.workdir / 'checkpoints' / str(LAST)} was written by version 0.1 " in told
    assert f"This version, {seq2seq_jax.__version__}, reads it for translate, score and evaluate" in told
    assert "Choose another --workdir, or train with version 0.1." in told
    with pytest.raises(UserError) as error:
        train(old_run.config, old_run.workdir)
    assert str(error.value) == told
    with Checkpoints(old_run.workdir, old_run.belongs) as checkpoints, pytest.raises(UserError, match="version 0.1"):
        checkpoints.restore({})
    assert contents(old_run.workdir) == before


def test_where_the_best_checkpoint_of_0_1_is_damaged_the_newest_takes_its_place(old_run):
    [largest] = sorted((old_run.workdir / "checkpoints" / str(BEST) / "state" / "d").iterdir(), key=size)[-1:]
    largest.write_bytes(largest.read_bytes()[: size(largest) // 2])
    with pytest.warns(UserWarning, match=rf"(?s)checkpoints/{BEST} is damaged .* step {LAST} takes its place"):
        assert load(old_run.workdir).step == LAST


def size(path: Path) -> int:
    return path.stat().st_size


def test_a_letter_changed_in_the_arrays_of_0_1_is_damage(old_run):
    for step in (BEST, LAST):
        path = old_run.workdir / "checkpoints" / str(step) / "progress" / "metadata"
        checksums = json.loads(path.read_text())["checksums"]
        rewrite(old_run.workdir, step, checksums=checksums | {"['params']['output_bias']": 1})
    with pytest.raises(UserError, match="checksums differ"):
        load(old_run.workdir)


@pytest.mark.parametrize("fields", [{"num_layers": 1}, {"hidden_size": 8}, {"attention": "dot"}])
def test_parameters_of_0_1_that_know_nothing_of_their_run_must_fit_its_model(old_run, fields):
    for step in (BEST, LAST):
        rewrite(old_run.workdir, step, origin=None)
    other = abstract_params(replace(old_run.config.model, **fields), vocab_sizes(old_run.vocabularies))
    with pytest.raises(UserError, match="parameters are those of another model"):
        restore_params(old_run.workdir, other, old_run.belongs)


# newer versions


def test_a_checkpoint_says_which_version_wrote_it(tmp_path):
    with Checkpoints(tmp_path, Origin(Config(), "source", "target", "text")) as checkpoints:
        checkpoints.save(1, {"params": jnp.zeros(3)}, {})
    written = json.loads((tmp_path / "checkpoints" / "1" / "progress" / "metadata").read_text())
    assert written["version"] == seq2seq_jax.__version__


MAJOR, MINOR = map(int, seq2seq_jax.__version__.split(".")[:2])


TEN = 10 ** len(str(MINOR))  # greater as a number, and before it in the alphabet


@pytest.mark.parametrize("newer", [f"{MAJOR}.{MINOR + 1}.0", f"{MAJOR}.{TEN}.0", f"{MAJOR + 1}.0.0rc1"])
def test_what_a_newer_version_wrote_is_refused_by_both_names_and_left_alone(old_run, refused, newer):
    rewrite(old_run.workdir, LAST, version=newer)  # the best is older, and could be read
    before, at, (source, target) = contents(old_run.workdir), ("--workdir", old_run.workdir), files(old_run)
    for command in (
        ("translate", *at, "--input", source),
        ("score", *at, "--source-file", source, "--target-file", target),
        ("evaluate", *at),
        ("train", *at),
    ):
        told = refused(*command)
        assert f"{old_run.workdir / 'checkpoints' / str(LAST)} was written by version {newer} " in told
        assert f"this is version {seq2seq_jax.__version__}," in told
    with Checkpoints(old_run.workdir, old_run.belongs) as checkpoints, pytest.raises(UserError, match=newer):
        checkpoints.restore({})
    assert contents(old_run.workdir) == before
