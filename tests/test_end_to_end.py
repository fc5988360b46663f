"""The commands as a user types them, on two text files of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.measure import compilations
from seq2seq_jax import cli
from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig
from tests.compiler import users_environment
from tests.tiny import rows, sentences, write_pairs

CONFIG = """
from seq2seq_jax.config import *


def get_config():
    return Config(
        model=ModelConfig(hidden_size=32, embed_size=16, bidirectional="all", dropout_rate=0.0, init_scale=0.3),
        data=DataConfig(vocabulary="words", joint_vocabulary=False, batch_size=16, num_shapes=1, max_length=8),
        optimizer=OptimizerConfig(learning_rate=0.01),
        train=TrainConfig(num_steps=300, evaluate_every=150, checkpoint_every=100, log_every=50),
        decode=DecodeConfig(beam_size=2),
    )
"""


class Called(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: a config and a corpus."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "copy.py").write_text(CONFIG)
    for seed, (split, count) in enumerate({"train": 400, "validation": 20, "test": 20}.items()):
        write_pairs(folder, split, sentences(count, seed=seed))
    return folder


def program(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "seq2seq_jax", *map(str, arguments)]


def run(repository: Path, *arguments: str | Path, text: str = "") -> Called:
    """A command in a process of its own."""
    command = program(*arguments)
    environment = users_environment()
    done = subprocess.run(
        command, cwd=repository, env=environment, input=text, capture_output=True, text=True, timeout=300
    )
    return Called(done.returncode, done.stdout, done.stderr)


def files(folder: Path, *splits: str) -> list[str | Path]:
    """Options that name the files of these splits."""
    options: list[str | Path] = ["--config", folder / "copy.py"]
    for split in splits:
        options += [f"--data.{split}-files", folder / f"{split}.low", folder / f"{split}.up"]
    return options


@pytest.fixture(scope="module")
def trained_by_command(folder, repository) -> Called:
    splits = files(folder, "train", "validation", "test")
    return run(repository, "train", *splits, "--workdir", folder / "run")


@pytest.fixture
def workdir(folder, trained_by_command) -> Path:
    assert trained_by_command.code == 0, trained_by_command.err
    return folder / "run"


@pytest.fixture
def call(compiled, capfd):
    """A command in this process, which has imported JAX already."""

    def call(*arguments: str | Path) -> Called:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Called(code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(call):
    """A command that has to end with one message and the exit code of a user's mistake."""

    def refused(*arguments: str | Path) -> str:
        code, _, err = call(*arguments)
        assert code == 2 and err.startswith("error: ") and "Traceback" not in err
        return err

    return refused


def test_two_text_files_become_a_translator_with_a_test_score(trained_by_command, workdir):
    assert trained_by_command.err == ""
    scores = json.loads((workdir / "evaluations" / "test.json").read_text())
    assert scores["exact_match"] > 80 and scores["bleu"] > 80 and scores["sentences"] == 20
    losses = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert len(losses) == 6 and losses[-1] < 0.2 * losses[0]
    assert "Split test, 20 sentences, beam 2" in trained_by_command.out
    assert "\x1b" not in trained_by_command.out  # no control codes in a pipe


def test_a_python_without_the_package_is_told_what_to_do(repository):
    command = [sys.executable, "-S", "train.py"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert " is not installed in this Python (" in done.stderr and "pip install ." in done.stderr


def test_translate_answers_a_pipe_line_by_line(workdir, repository):
    done = run(repository, "translate", "--workdir", workdir, text="ant bee\n\ncat\nhen gnu fox\n")
    assert (done.code, done.out, done.err) == (0, "ANT BEE\n\nCAT\nHEN GNU FOX\n", "")


def test_translate_ends_quietly_when_its_reader_goes_away(workdir, folder, repository):
    (folder / "many").write_text("ant bee\n" * 20_000)
    command = program("translate", "--workdir", workdir, "--input", folder / "many")
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"ANT BEE\n"
        process.stdout.close()
        assert process.wait(timeout=300) == 141
        assert process.stderr.read() == b""


def test_evaluate_scores_a_split_as_training_did(call, workdir):
    trained = json.loads((workdir / "evaluations" / "test.json").read_text())
    code, out, _ = call("evaluate", "--workdir", workdir, "--split", "test")
    again = json.loads((workdir / "evaluations" / "test.json").read_text())
    assert code == 0
    for name in ("loss", "bleu", "chrf", "exact_match"):
        assert again[name] == pytest.approx(trained[name], rel=1e-4)
    *table, written = out.splitlines()
    assert dict(line.split() for line in table)["sentences"] == "20"
    assert written == f"written to {workdir}/evaluations/test.json, beam 2" and again["decode"]["beam_size"] == 2


def test_evaluate_scores_files_beside_the_splits(call, workdir, folder):
    source, target = write_pairs(folder, "mine", sentences(5, seed=9))
    code, out, _ = call("evaluate", "--workdir", workdir, "--source-file", source, "--target-file", target)
    assert code == 0
    written = Path(out.splitlines()[-1].removeprefix("written to ").partition(",")[0])
    assert written.parent == workdir / "evaluations" / "files" and written.name.startswith("mine.low-")
    assert json.loads(written.read_text())["sentences"] == 5
    assert len(written.with_suffix(".hypotheses.txt").read_text().splitlines()) == 5


def test_score_prefers_the_right_translation(call, workdir, tmp_path):
    (tmp_path / "source").write_text("ant bee\nant bee\n")
    (tmp_path / "target").write_text("ANT BEE\nBEE ANT\n")
    code, out, _ = call(
        "score", "--workdir", workdir, "--source-file", tmp_path / "source", "--target-file", tmp_path / "target"
    )
    right, wrong = map(float, out.split())
    assert code == 0 and right > -1 and wrong < right - 2


# mistakes


def test_files_of_different_line_counts_are_told_with_both_counts(refused, folder, tmp_path):
    write_pairs(tmp_path, "train", sentences(10, seed=0))
    with (tmp_path / "train.up").open("a") as file:
        file.write("EXTRA\n")
    told = refused("train", *files(folder)[:2], "--workdir", tmp_path / "run",
                   "--data.train-files", tmp_path / "train.low", tmp_path / "train.up")  # fmt: skip
    assert "train.up has 11 lines" in told and "train.low has 10" in told and "line 11" in told and "EXTRA" in told


def test_text_that_is_not_utf8_is_told_with_file_and_line(refused, folder, tmp_path):
    write_pairs(tmp_path, "train", sentences(10, seed=0))
    lines = (tmp_path / "train.low").read_bytes().split(b"\n")
    (tmp_path / "train.low").write_bytes(b"\n".join([*lines[:3], b"caf\xe9", *lines[4:]]))
    told = refused("train", *files(folder)[:2], "--workdir", tmp_path / "run",
                   "--data.train-files", tmp_path / "train.low", tmp_path / "train.up")  # fmt: skip
    assert "train.low, line 4" in told and "not UTF-8" in told


def test_an_empty_split_is_told(refused, folder, tmp_path):
    write_pairs(tmp_path, "train", [])
    told = refused("train", *files(folder)[:2], "--workdir", tmp_path / "run",
                   "--data.train-files", tmp_path / "train.low", tmp_path / "train.up")  # fmt: skip
    assert "train" in told and ("empty" in told or "no pairs" in told)


def test_a_folder_without_the_column_names_those_it_has(refused, folder, tmp_path):
    told = refused("train", *files(folder), "--workdir", tmp_path / "run", "--data.corpus", f"files:{folder}",
                   "--data.source", "low", "--data.target", "uq")  # fmt: skip
    assert "uq" in told and "low" in told and "up" in told


def test_an_unknown_corpus_is_answered_with_the_nearest(refused, folder, tmp_path):
    told = refused("train", *files(folder), "--workdir", tmp_path / "run", "--data.corpus", "scan/simpel")
    assert "simpel" in told and "Did you mean" in told and "simple" in told


def test_a_split_that_is_not_there_is_answered_with_those_that_are(refused, workdir):
    told = refused("evaluate", "--workdir", workdir, "--split", "tset")
    assert "tset" in told and "test" in told


def test_a_vocabulary_larger_than_the_text_supports_is_told_with_the_largest(refused, folder, tmp_path):
    told = refused("train", *files(folder, "train"), "--workdir", tmp_path / "run", "--data.vocabulary", "bpe",
                   "--data.vocab-size", "5000")  # fmt: skip
    assert "data.vocab_size 5000" in told and "or less" in told


def test_the_run_directory_of_another_configuration_is_refused_by_its_fields(refused, folder, workdir):
    before = (workdir / "metrics.jsonl").read_bytes()
    told = refused("train", *files(folder, "train", "validation", "test"), "--workdir", workdir,
                   "--optimizer.learning-rate", "0.5")  # fmt: skip
    assert "optimizer.learning_rate: 0.01 -> 0.5" in told and "data." not in told
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("below", [".", "run"])
def test_a_file_in_the_place_of_the_run_directory_is_told(refused, folder, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    told = refused("train", *files(folder, "train", "validation"), "--workdir", file / below)
    assert f"{file} is a file" in told and file.read_text() == "mine"


def test_an_empty_run_directory_is_not_the_current_folder(refused, folder):
    assert "--workdir is empty" in refused("train", *files(folder, "train", "validation"), "--workdir", "")


def test_a_mistake_in_a_process_of_its_own_is_one_message_and_exit_code_2(folder, repository, tmp_path):
    told = run(repository, "train", *files(folder), "--workdir", tmp_path / "run", "--data.train-files", "no.a", "no.b")
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: data.train_files: there is no file") and told.err.count("\n") == 1


@pytest.mark.filterwarnings("always:.*without the oldest turns")  # to be told, as it is where pytest is not
def test_a_dialogue_is_read_with_the_turns_before(call, folder, tmp_path):
    """In every dialogue the third utterance is the first one: what comes before the second tells, and nothing else."""
    openings = [line for line in dict.fromkeys(sentences(900, seed=3)) if len(line.split()) == 2]
    turns = [(line, "and", line) for line in openings]
    for split, dialogues in (("train", turns), ("validation", turns[:16]), ("test", turns[:20])):
        rows = [
            (each[place], each[place + 1], f"{name} {place}") for name, each in enumerate(dialogues) for place in (0, 1)
        ]
        for column, lines in zip(("source", "target", "turn"), zip(*rows, strict=True), strict=True):
            (tmp_path / f"{split}.{column}").write_text("".join(f"{line}\n" for line in lines))
    code, out, err = call("train", "--config", folder / "copy.py", "--workdir", tmp_path / "run",
                          "--data.corpus", f"files:{tmp_path}", "--data.turns", "turn", "--data.context-turns", "1",
                          "--data.joint-vocabulary", "True")  # fmt: skip
    assert code == 0, err
    assert "source: with up to 1 turn before it, by the column turn" in out
    scores = json.loads((tmp_path / "run" / "evaluations" / "test.json").read_text())
    assert scores["exact_match"] > 90
    (tmp_path / "in").write_text(f"{openings[0]}\tand\n{openings[1]}\n")
    options = ["--workdir", tmp_path / "run", "--input", tmp_path / "in"]
    assert call("translate", *options) == (0, f"{openings[0]}\nand\n", "")
    (tmp_path / "references").write_text(f"{openings[0]}\nand\n")
    told = call("evaluate", "--workdir", tmp_path / "run", "--source-file", tmp_path / "in",
                "--target-file", tmp_path / "references")  # fmt: skip
    assert told.code == 0 and "exact_match 100" in " ".join(told.out.split())
    (tmp_path / "in").write_text("a\tb\tc\n")
    assert "has 3 turns, with tabs between, and this model reads 2" in call("translate", *options).err
    (tmp_path / "in").write_text(f"ant ant ant ant\t{openings[0]} ant\n")
    told = call("translate", *options)
    assert told.code == 0
    assert "1 of 1 source line is read without the oldest turns, to fit data.max_length 8, as in training." in told.err


def test_an_epoch_of_real_text_teaches_and_compiles_nothing_once_every_part_has_run(corpora, compiled, tmp_path):
    """Ten thousand Japanese-English pairs, by a small model, with an evaluation every forty steps."""
    from seq2seq_jax.training import loop

    corpus = f"files:{corpora / 'tanaka10k-ja-en'}"
    data = DataConfig(corpus, "ja", "en", vocabulary="words", vocab_size=300, max_length=60, num_shapes=2)
    config = Config(
        model=ModelConfig(hidden_size=16, embed_size=16),
        data=data,
        optimizer=OptimizerConfig(learning_rate=0.01),
        train=TrainConfig(num_steps=160, evaluate_every=40, log_every=10, decode_sentences=4),
        decode=DecodeConfig(beam_size=1),
    )
    original, at_step = loop.training_batches, []

    def watched(train, batching, *arguments):
        assert batching.num_batches < 160  # an epoch and more
        for batch in original(train, batching, *arguments):
            at_step.append(len(compilations_so_far))
            yield batch

    with pytest.MonkeyPatch.context() as patch, compilations() as compilations_so_far:
        patch.setattr(loop, "training_batches", watched)
        loop.train(config, tmp_path)
    assert len(at_step) == 160 and at_step[0] > 0
    assert len(set(at_step[41:])) == 1  # until the first evaluation and log line have compiled theirs
    losses = [row["loss"] for row in rows(tmp_path) if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
