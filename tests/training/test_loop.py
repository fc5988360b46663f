"""Whole runs on the tiny task: what is said, kept and resumed."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.measure import compilations
from seq2seq_jax import run_directory
from seq2seq_jax.config import to_json
from seq2seq_jax.data import pipeline
from seq2seq_jax.data.vocabulary import TokenVocabulary
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluation import teacher_forced
from seq2seq_jax.run_directory import claim, is_sealed, read_config
from seq2seq_jax.sharding import one_device
from seq2seq_jax.training import loop
from seq2seq_jax.training.loop import train
from seq2seq_jax.training.setup import prepare
from seq2seq_jax.translator import load
from seq2seq_jax.troubles import machine_trouble
from tests.tiny import rows, tiny_config, write_pairs

pytestmark = pytest.mark.usefixtures("compiled")

FAST = {"num_steps": 12, "evaluate_every": 4, "checkpoint_every": 3, "log_every": 2, "decode_sentences": 0}

PROGRAM = """
import sys
from pathlib import Path
from seq2seq_jax.cli import _configure_jax
from seq2seq_jax.config import from_json
from seq2seq_jax.training.loop import train
_configure_jax()
result = train(from_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
sys.exit(143 if result.status == "terminated" else 0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("loop")


def steps_kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def same_params(one: Path, other: Path) -> bool:
    """Whether two runs' best parameters have the same bits."""
    pairs = zip(*(jax.tree.leaves(load(workdir).params) for workdir in (one, other)), strict=True)
    return all(np.asarray(first).tobytes() == np.asarray(second).tobytes() for first, second in pairs)


# exact resume; a run long enough to be killed within


@pytest.fixture(scope="module")
def long_config(folder):
    return tiny_config(folder / "corpus", train=FAST | {"num_steps": 60, "evaluate_every": 20, "checkpoint_every": 5})


@pytest.fixture(scope="module")
def unbroken(folder, long_config) -> Path:
    train(long_config, folder / "unbroken")
    return folder / "unbroken"


def start(config, workdir: Path, repository: Path) -> subprocess.Popen:
    config_file = workdir.with_suffix(".json")
    config_file.write_text(to_json(config))
    command = [sys.executable, "-c", PROGRAM, str(config_file), str(workdir)]
    return subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns as soon as a checkpoint of `step` or a later one is there."""
    while not (steps_kept(workdir) and steps_kept(workdir)[-1] >= step):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def test_a_run_killed_in_the_middle_of_a_save_ends_with_the_bits_and_rows_of_an_unbroken_one(
    folder, repository, long_config, unbroken
):
    workdir = folder / "killed"
    with start(long_config, workdir, repository) as process:
        wait_for_step(process, workdir, 10)
        while not any("orbax" in path.name for path in (workdir / "checkpoints").iterdir()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.0005)
        process.kill()
    assert steps_kept(workdir)[-1] < 60
    assert train(long_config, workdir).status == "done"
    assert rows(workdir) == rows(unbroken)
    assert same_params(workdir, unbroken)


def test_sigterm_saves_and_exits_143_and_the_run_resumes_to_the_same_bits(folder, repository, long_config, unbroken):
    workdir = folder / "terminated"
    with start(long_config, workdir, repository) as process:
        wait_for_step(process, workdir, 5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    last = steps_kept(workdir)[-1]
    assert f"Asked to stop: saved at step {last}. The same command resumes." in out
    assert not (workdir / "evaluations").exists()
    assert train(long_config, workdir).status == "done"
    assert rows(workdir) == rows(unbroken)
    assert same_params(workdir, unbroken)


def test_ctrl_c_saves_too_and_a_second_one_ends_at_once(folder, long_config, unbroken, monkeypatch, capfd):
    workdir, original = folder / "interrupted", loop.training_batches

    def interrupting(*arguments):
        for step, batch in enumerate(original(*arguments)):
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_batches", interrupting)
        assert train(long_config, workdir).status == "interrupted"
    out, err = capfd.readouterr()
    assert "Asked to stop: saved at step 8. The same command resumes." in out and "Ctrl-C again" in err
    assert train(long_config, workdir).status == "done"
    assert rows(workdir) == rows(unbroken)
    assert same_params(workdir, unbroken)


def test_a_signal_before_the_first_step_leaves_a_run_to_begin_again(folder, long_config, monkeypatch, capfd):
    original = loop.training_batches

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "training_batches", interrupted)
    assert train(long_config, folder / "early").status == "terminated"
    assert "before the first step" in capfd.readouterr().out


def test_a_signal_ends_a_validation_which_is_done_again_when_the_run_resumes(
    folder, long_config, unbroken, monkeypatch, capfd
):
    workdir, original, steps = folder / "validating", loop.Validation.__call__, []

    def interrupted(self, params):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, params)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Validation, "__call__", interrupted)
        assert train(long_config, workdir).status == "terminated"
    assert "Asked to stop: saved at step 40." in capfd.readouterr().out
    assert not any("validation_loss" in row for row in rows(workdir) if row["step"] == 40)
    assert train(long_config, workdir).status == "done"
    assert rows(workdir) == rows(unbroken)
    assert same_params(workdir, unbroken)


def test_ctrl_c_ends_the_final_test_which_the_same_command_does_again(folder, monkeypatch):
    workdir, original = folder / "testing", loop.test
    config = tiny_config(folder / "corpus", train=FAST)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "test", interrupted)
        train(config, workdir)
    assert steps_kept(workdir)[-1] == 12 and not (workdir / "evaluations").exists()
    assert "test" in train(config, workdir).scores


def test_two_trainings_in_one_directory_are_one_and_a_message(folder, long_config, unbroken):
    with run_directory.locked(unbroken), pytest.raises(UserError, match="unbroken is in use: process"):
        train(long_config, unbroken)


def test_a_run_that_could_not_begin_leaves_its_directory_free(folder):
    config = tiny_config(folder / "corpus", data={"vocabulary": "bpe", "vocab_size": 5000}, train=FAST)
    with pytest.raises(UserError, match="vocab_size 5000"):
        train(config, folder / "corrected")
    config = tiny_config(folder / "corpus", train=FAST)
    assert train(config, folder / "corrected").status == "done"


def test_a_damaged_latest_checkpoint_costs_steps_and_no_bits(folder, repository, long_config, unbroken, capfd):
    workdir = folder / "damaged"
    with start(long_config, workdir, repository) as process:
        wait_for_step(process, workdir, 15)
        process.kill()
    older, latest = steps_kept(workdir)[-2:]
    for path in (workdir / "checkpoints" / str(latest) / "progress").iterdir():
        path.write_bytes(b"")
    assert train(long_config, workdir).status == "done"
    out = capfd.readouterr().out
    assert f"checkpoints/{latest} is damaged" in out and f"Resuming at step {older}." in out
    assert rows(workdir) == rows(unbroken)
    assert same_params(workdir, unbroken)


def test_a_finished_run_started_again_trains_nothing_and_scores_alike(unbroken, long_config):
    before = rows(unbroken, timed=True), steps_kept(unbroken)
    scores = (unbroken / "evaluations" / "test.hypotheses.txt").read_text()
    result = train(long_config, unbroken)
    assert (result.status, result.step) == ("done", 60)
    assert (rows(unbroken, timed=True), steps_kept(unbroken)) == before
    assert (unbroken / "evaluations" / "test.hypotheses.txt").read_text() == scores


def test_rows_are_cut_by_their_steps_and_a_damaged_one_is_told(folder, long_config, unbroken, capfd):
    workdir = Path(shutil.copytree(unbroken, folder / "damaged rows"))
    for step in (step for step in steps_kept(workdir) if step > 55):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_bytes(b"".join([*lines[:3], lines[3][:9] + b"\xff" + lines[3][10:], *lines[4:]]))
    assert train(long_config, workdir).status == "done"
    assert "metrics.jsonl: 1 of the 29 rows up to step 55 are lost." in capfd.readouterr().out
    assert rows(workdir) == rows(unbroken)[:3] + rows(unbroken)[4:]


# what the machine does


def test_a_batch_that_cannot_be_read_ends_the_run_which_resumes_to_the_same_bits(
    folder, long_config, unbroken, monkeypatch
):
    """The error comes from the thread that makes batches ahead of their use."""
    workdir, original = folder / "unreadable", pipeline._Batches.__getitem__

    def failing(self, index):
        if index == 33:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "ids")
        return original(self, index)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error: 'ids'") as told:
        patch.setattr(pipeline._Batches, "__getitem__", failing)
        train(long_config, workdir)
    assert machine_trouble(told.value) and steps_kept(workdir)[-1] == 30
    assert train(long_config, workdir).status == "done"
    assert rows(workdir) == rows(unbroken)
    assert same_params(workdir, unbroken)


def test_a_clock_that_jumps_changes_nothing(folder, long_config, unbroken, monkeypatch):
    """By hours, forth and back, also during a save; durations are those of a clock that does not."""
    workdir, clock, offset, original = folder / "jumping", time.time, [0.0], loop.training_batches
    monkeypatch.setattr(time, "time", lambda: clock() + offset[0])
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))

    def jumping(*arguments):
        for step, batch in enumerate(original(*arguments)):
            if step in (21, 36, 51):
                saved = step // 5 * 5
                while not list((workdir / "checkpoints").glob(f"{saved}*")):  # whole or begun
                    time.sleep(0.001)
                offset[0] += {21: 5, 36: -9, 51: 11}[step] * 3600
            yield batch

    monkeypatch.setattr(loop, "training_batches", jumping)
    begin = time.perf_counter()
    assert train(long_config, workdir).status == "done"
    most = time.perf_counter() - begin
    assert rows(workdir) == rows(unbroken) and same_params(workdir, unbroken)
    timed = rows(workdir, timed=True)
    seconds = [row["seconds"] for row in timed]
    assert seconds == sorted(seconds) and 0 < seconds[0] <= seconds[-1] <= most
    rates = [row["target_tokens_per_second"] for row in timed if "target_tokens_per_second" in row]
    assert 1 < min(rates) <= max(rates) < 1e7


# files that do not belong together


@pytest.fixture
def copied(unbroken, tmp_path) -> Path:
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


def test_without_config_json_the_run_is_not_another_ones(copied, long_config, unbroken):
    (copied / "config.json").unlink()
    longer = replace(long_config, train=replace(long_config.train, num_steps=70))
    with pytest.raises(UserError, match=r"(?s)not what .*checkpoints/60 was trained with.*train.num_steps: 60 -> 70"):
        train(longer, copied)
    assert not (copied / "config.json").exists()
    assert train(long_config, copied).status == "done"
    assert read_config(copied) == read_config(unbroken)


def test_a_changed_config_json_is_refused(copied, long_config):
    config = read_config(copied)
    claim(copied, replace(config, model=replace(config.model, dropout_rate=0.2)))
    with pytest.raises(UserError, match=r"(?s)config.json or the command is not what .*model.dropout_rate: 0.1 -> 0.2"):
        load(copied)
    claim(copied, config)
    assert load(copied, replace(config.decode, beam_size=7)).decode.beam_size == 7
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text(text.replace('"beam_size": 2', '"beam_size": 3'))
    for use in (lambda: load(copied), lambda: train(long_config, copied)):
        with pytest.raises(UserError, match="config.json: it is not what was written there: something in it has"):
            use()


def test_a_config_json_of_an_older_version_is_held_to_the_checkpoints(copied, long_config):
    """It has no checksum; a run that goes on gives it one."""
    config = read_config(copied)
    (copied / "config.json").write_text(to_json(replace(config, decode=replace(config.decode, beam_size=3))))
    with pytest.raises(UserError, match=r"(?s)config.json or the command is not what .*decode.beam_size: 2 -> 3"):
        load(copied)
    (copied / "config.json").write_text(to_json(config))
    load(copied)
    train(long_config, copied)
    assert is_sealed(copied) and read_config(copied) == config


def test_what_changes_nothing_of_the_run_may_change_and_is_said(copied, long_config, unbroken, capsys):
    config = replace(
        long_config,
        decode=replace(long_config.decode, beam_size=3),
        train=replace(long_config.train, log_every=3, num_samples=0),
    )
    train(config, copied)
    said = capsys.readouterr().out
    for change in ("decode.beam_size: 2 -> 3", "train.log_every: 2 -> 3", "train.num_samples: 1 -> 0"):
        assert f"Changed     {change}\n" in said
    assert read_config(copied).decode.beam_size == load(copied).decode.beam_size == 3
    assert json.loads((copied / "evaluations" / "test.json").read_text())["decode"]["beam_size"] == 3
    train(config, copied)
    assert "Changed" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"(?s)another configuration.*train.seed: 0 -> 5"):
        train(replace(config, train=replace(config.train, seed=5)), copied)


def test_the_vocabulary_of_the_other_side_is_refused_by_its_files(copied, long_config):
    for suffix in ("json", "txt"):
        shutil.copy(copied / "vocabulary" / f"target.{suffix}", copied / "vocabulary" / f"source.{suffix}")
    for use in (lambda: load(copied), lambda: train(long_config, copied)):
        with pytest.raises(UserError, match=r"vocabulary/source.\* is not the vocabulary that .*checkpoints/.* was"):
            use()


def test_a_lost_note_of_the_text_is_written_again_by_training(copied, long_config):
    note = copied / "vocabulary" / "corpus.txt"
    text = note.read_text()
    note.unlink()
    with pytest.raises(UserError, match="note of it in .*corpus.txt, is not what"):
        load(copied)
    train(long_config, copied)
    assert note.read_text() == text


def test_the_same_text_elsewhere_is_the_same_run_which_is_found_there_from_any_folder(
    copied, long_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    moved = replace(tiny_config(Path("elsewhere")), train=long_config.train)
    assert train(moved, copied).status == "done"
    assert read_config(copied).data.train_files == tuple(
        str(tmp_path / "elsewhere" / f"train.{end}") for end in ("low", "up")
    )
    load(copied)
    write_pairs(tmp_path / "elsewhere", "test", ["ant"])
    with pytest.raises(UserError, match=r"(?s)no longer the one that .*run was trained on; choose another --workdir"):
        train(moved, copied)


def test_a_run_of_an_older_version_resumes(copied, long_config, unbroken):
    """Its checkpoints know nothing of the run that they belong to, nor of all that the loop knows today."""
    for step in steps_kept(copied):
        path = copied / "checkpoints" / str(step) / "progress" / "metadata"
        content = json.loads(path.read_text())
        del content["origin"], content["digest"], content["progress"]["best_loss"], content["progress"]["diverged"]
        path.write_text(json.dumps(content))
    load(copied)
    shutil.rmtree(copied / "checkpoints" / "60")
    assert train(long_config, copied).status == "done"
    assert rows(copied) == rows(unbroken)
    assert same_params(copied, unbroken)


def test_a_run_with_a_moving_average_validates_and_loads_it_and_resumes_to_the_same_bits(folder):
    config = tiny_config(folder / "corpus", train=FAST | {"ema": 0.8})
    unbroken, resumed = folder / "averaged", folder / "averaged-resumed"
    train(config, unbroken)
    shutil.copytree(unbroken, resumed)
    shutil.rmtree(resumed / "checkpoints" / "12")
    shutil.rmtree(resumed / "evaluations")
    train(config, resumed)
    assert rows(resumed) == rows(unbroken) and same_params(resumed, unbroken)
    translator, validation = load(unbroken), prepare(config, 1, unbroken).validation
    losses = {row["step"]: row["validation_loss"] for row in rows(unbroken) if "validation_loss" in row}
    assert teacher_forced(translator, validation)["loss"] == pytest.approx(losses[translator.step], rel=1e-6)
    progress = json.loads((unbroken / "checkpoints" / str(translator.step) / "progress" / "metadata").read_text())
    found = zlib.crc32(np.asarray(translator.params["source_table"]).tobytes())
    assert progress["checksums"]["['average']['source_table']"] == found
    assert progress["checksums"]["['params']['source_table']"] != found


def write_vectors(path: Path, size: int = 16) -> dict[str, np.ndarray]:
    """Writes vectors of some of the tiny task's words; returns them."""
    random = np.random.default_rng(0)
    vectors = {word: random.standard_normal(size).astype(np.float32) for word in ("ant", "gnu", "yak")}
    path.write_text("".join(f"{word} {' '.join(map(str, row.tolist()))}\n" for word, row in vectors.items()))
    return vectors


def test_a_run_starts_from_vectors_and_needs_their_file_no_more_once_there_is_a_checkpoint(folder, monkeypatch, capfd):
    vectors, (unbroken, resumed) = write_vectors(folder / "vectors"), (folder / "vectored", folder / "vectored-resumed")
    model = {"source_vectors": "vectors", "freeze_vectors": True}
    config = tiny_config(folder / "corpus", model=model, train=FAST)
    monkeypatch.chdir(folder)
    train(config, unbroken)
    assert f"Vectors     {folder / 'vectors'}: 2 of 12 source entries\n" in capfd.readouterr().out
    translator = load(unbroken)
    ids = translator.vocabularies.source.entry_ids()
    for word in ("ant", "gnu"):
        np.testing.assert_array_equal(translator.params["source_table"][ids[word]], vectors[word])
    shutil.copytree(unbroken, resumed)
    shutil.rmtree(resumed / "checkpoints" / "12")
    shutil.rmtree(resumed / "evaluations")
    (folder / "vectors").unlink()
    train(config, resumed)
    assert "Vectors" not in capfd.readouterr().out
    assert rows(resumed) == rows(unbroken) and same_params(resumed, unbroken)
    shutil.rmtree(resumed / "checkpoints")
    with pytest.raises(UserError, match=f"There is no file {folder / 'vectors'}"):
        train(config, resumed)


def test_vectors_of_another_width_are_refused_before_anything_is_written(folder):
    write_vectors(folder / "wide", size=17)
    config = tiny_config(folder / "corpus", model={"target_vectors": str(folder / "wide")}, train=FAST)
    with pytest.raises(UserError, match="wide, line 1: 17 numbers for a word, and model.embed_size is 16"):
        train(config, folder / "refused")
    assert not (folder / "refused").exists()


# one finished run


def test_a_run_logs_evaluates_and_ends_with_test_scores(unbroken, long_config):
    found = rows(unbroken)
    logged = [row["step"] for row in found if "loss" in row]
    evaluated = [row["step"] for row in found if "validation_loss" in row]
    assert logged == list(range(2, 61, 2)) and evaluated == [20, 40, 60]
    assert all(
        row["learning_rate"] == pytest.approx(0.02) and row["nonfinite_steps"] == 0 for row in found if "loss" in row
    )
    losses = [row["loss"] for row in found if "loss" in row]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert {path.name for path in (unbroken / "evaluations").iterdir()} == {"test.json", "test.hypotheses.txt"}


def test_nothing_is_compiled_after_the_first_step(folder, capfd):
    """Two batch shapes, all of them compiled beforehand; only the evaluation at the end compiles anything more."""
    config = tiny_config(
        folder / "corpus", data={"num_shapes": 2}, train=FAST | {"num_steps": 12, "evaluate_every": 12}
    )
    original, at_step = loop.training_batches, []

    def watched(*arguments):
        for batch in original(*arguments):
            at_step.append((len(compiled), batch.source.values.shape[1]))
            yield batch

    with pytest.MonkeyPatch.context() as patch, compilations() as compiled:
        patch.setattr(loop, "training_batches", watched)
        train(config, folder / "watched")
    assert "Compiled 2 batch shapes" in capfd.readouterr().out
    counts, widths = zip(*at_step, strict=True)
    assert len(counts) == 12 and len(set(widths)) == 2
    assert len(compiled) > 0
    assert len(set(counts[2:])) == 1  # the first log line and the first step may compile their trifles


def test_many_gradients_in_a_row_that_are_not_finite_stop_the_run_with_what_to_try(folder, monkeypatch):
    monkeypatch.setattr(
        "seq2seq_jax.training.step.make_schedule", lambda *_: lambda step: 3e38
    )  # far beyond what a configuration may say
    options = {"name": "sgd", "learning_rate": 1000.0, "clip_norm": 0.0}
    train_options = FAST | {"max_nonfinite_steps": 4, "evaluate_every": 12}
    config = tiny_config(folder / "corpus", optimizer=options, train=train_options)
    with pytest.raises(
        UserError,
        match=r"gradients up to step .* were not finite. Try, .* optimizer.learning_rate \(now 1000\), .*now 0",
    ):
        train(config, folder / "exploded")
    assert sum(row.get("nonfinite_steps", 0) for row in rows(folder / "exploded")) >= 4


def test_validation_translates_the_ids_there_are(trained, monkeypatch):
    translator = load(trained)
    validation = loop.Validation(translator.config, prepare(translator.config, 1, trained), one_device())
    monkeypatch.setattr(TokenVocabulary, "encode", lambda *_: pytest.fail("text was encoded again"))
    scores, ((source, references, _), *_) = validation(translator.params)
    assert scores["exact_match"] > 50 and [source.upper()] == references


# what evaluations decide


@pytest.fixture
def scripted(monkeypatch):
    """Makes validation give these losses, one after another, and an exact match of theirs or one that stays."""

    def scripted(*losses: float, **same: float) -> None:
        remaining = iter(losses)
        scores = lambda *_: (fake_scores(next(remaining)) | same, [])  # noqa: E731
        monkeypatch.setattr(loop.Validation, "__call__", scores)

    return scripted


def fake_scores(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": 1.0, "token_accuracy": 0.0, "exact_match": 100 - 10 * (loss - 3) ** 2}


def test_training_stops_early_and_keeps_the_best_beside_the_two_latest(folder, scripted, capfd):
    scripted(5.0, 2.0, 3.0, 2.5, 2.1)
    config = tiny_config(folder / "corpus", train=FAST | {"num_steps": 100, "early_stopping": 3, "evaluate_every": 4})
    result = train(config, folder / "stopped")
    assert (result.status, result.step) == ("stopped", 20)
    assert steps_kept(folder / "stopped") == [8, 18, 20]
    out = capfd.readouterr().out
    assert "has not improved for 3 evaluations: stopping" in out and "Best validation at step 8." in out
    again = train(config, folder / "stopped")
    assert (again.status, again.step) == ("stopped", 20)


def test_a_loss_that_is_not_a_number_is_never_the_best(folder, scripted, capfd):
    scripted(float("nan"), 4.0, 5.0)
    config = tiny_config(folder / "corpus", train=FAST)
    train(config, folder / "nan")
    assert "Best validation at step 8." in capfd.readouterr().out


def test_the_best_metric_decides_which_checkpoint_is_best(folder, scripted, capfd):
    scripted(4.0, 3.1, 2.0)  # by loss the last, by exact match the second
    config = tiny_config(
        folder / "corpus", train=FAST | {"best_metric": "exact_match", "decode_sentences": 1, "evaluate_every": 4}
    )
    train(config, folder / "best")
    assert "Best validation at step 8." in capfd.readouterr().out


def test_where_the_best_metric_ties_the_lower_loss_is_better_for_checkpoint_plateau_and_stopping(
    folder, scripted, capfd
):
    scripted(4.0, 3.0, 3.0, 2.5, 2.5, 2.5, exact_match=0.0)
    options = {"best_metric": "exact_match", "decode_sentences": 1, "evaluate_every": 2, "early_stopping": 2}
    schedule = {"schedule": "plateau", "plateau_patience": 2}
    config = tiny_config(folder / "corpus", optimizer=schedule, train=FAST | options | {"num_steps": 20})
    result = train(config, folder / "tied")
    assert (result.status, result.step) == ("stopped", 12)
    out = capfd.readouterr().out
    assert "Best validation at step 8." in out and out.count("Learning rate cut") == 1


@pytest.mark.parametrize(
    ("best", "new", "better"),
    [
        ((50.0, 2.0), (60.0, 9.0), True),
        ((50.0, 2.0), (50.0, 1.9), True),
        ((50.0, 2.0), (50.0, 2.0), False),
        ((50.0, 2.0), (50.0, math.nan), False),
        ((50.0, 2.0), (math.nan, 1.0), False),
        ((math.nan, 2.0), (0.0, 9.0), True),
        ((0.0, math.nan), (0.0, 9.0), True),
        ((0.0, math.inf), (0.0, math.nan), False),
        ((50.0, None), (50.0, 2.0), True),  # of an older version, which kept no loss
        ((None, None), (math.nan, math.nan), True),
    ],
)
def test_better_is_a_larger_value_and_at_a_tie_a_lower_loss(best, new, better):
    assert loop.LoopState(best_value=best[0], best_loss=best[1]).is_better(*new) == better


# training that has come to nothing


def test_parameters_that_are_not_finite_end_the_run_at_the_next_validation(folder, monkeypatch):
    original = loop.initial_state

    def infinite(*arguments):
        state = original(*arguments)
        return state._replace(params=jax.tree.map(lambda leaf: leaf.at[0].set(np.inf), state.params))

    monkeypatch.setattr(loop, "initial_state", infinite)
    config = tiny_config(folder / "corpus", train=FAST | {"checkpoint_every": 12})
    with pytest.raises(
        UserError, match="at step 4 there are parameters that are not finite. Try, in another --workdir"
    ):
        train(config, folder / "not finite")


def test_parameters_that_are_not_finite_take_no_good_checkpoints_place(folder, monkeypatch):
    """Nor does the run go on to the next validation."""
    original = loop.Run.log

    def spoiling(self, state, step, seconds):
        state = original(self, state, step, seconds)
        return state if step < 6 else state._replace(params=jax.tree.map(lambda leaf: leaf + np.inf, state.params))

    monkeypatch.setattr(loop.Run, "log", spoiling)
    config = tiny_config(folder / "corpus", train=FAST | {"evaluate_every": 12, "checkpoint_every": 1})
    with pytest.raises(UserError, match="at step 6 there are parameters that are not finite. Try, in another"):
        train(config, folder / "spoiled")
    assert steps_kept(folder / "spoiled") == [4, 5]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load(folder / "spoiled").params))


def test_a_run_that_was_never_better_than_absurd_is_not_tested(folder, scripted, capfd):
    scripted(math.nan, 24.9, math.inf)  # an even guess among 12 entries costs 2.485 nats
    config = tiny_config(folder / "corpus", train=FAST)
    with pytest.raises(UserError, match="diverged: a validation loss of 24.9, where guessing .* have 2.48. Try"):
        train(config, folder / "absurd")
    out = capfd.readouterr().out
    assert all(f"Step {step}: Training has diverged" in out for step in (4, 8, 12))
    assert not (folder / "absurd" / "evaluations").exists()


def test_a_run_that_diverges_after_its_best_step_scores_that_and_says_so(folder, scripted, capfd):
    scripted(2.0, 24.8, 24.9)
    config = tiny_config(folder / "corpus", train=FAST)
    with pytest.raises(UserError, match="diverged after step 4, whose parameters the scores above are of"):
        train(config, folder / "late")
    out = capfd.readouterr().out
    assert "Step 8: " not in out and "Step 12: Training has diverged" in out and "Split test" in out


def test_the_plateau_schedule_cuts_the_rate_when_validation_stands_still(folder, scripted):
    scripted(3.0, 3.0, 3.5, 2.0, 3.0, 3.0)
    schedule = {"schedule": "plateau", "plateau_patience": 2, "plateau_factor": 0.5}
    config = tiny_config(folder / "corpus", optimizer=schedule, train=FAST | {"evaluate_every": 2})
    train(config, folder / "plateau")
    rates = [row["learning_rate"] for row in rows(folder / "plateau") if "loss" in row]
    # Evaluations after steps 2, 4, ...: two without improvement after step 6; the third cut would come after the end.
    np.testing.assert_allclose(rates, [0.02, 0.02, 0.02, 0.01, 0.01, 0.01], rtol=1e-6)


def test_a_corpus_that_has_changed_is_refused(folder, unbroken, long_config):
    """The same files, another text: the configuration alone does not show it."""
    before = [Path(name).read_text() for name in long_config.data.train_files]
    try:
        write_pairs(folder / "corpus", "train", ["ant bee"] * 50)
        with pytest.raises(UserError, match="The text of files:.* is no longer the one that .*unbroken was trained on"):
            train(long_config, unbroken)
    finally:
        for name, text in zip(long_config.data.train_files, before, strict=True):
            Path(name).write_text(text)
