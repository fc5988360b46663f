"""A grid of settings: each point is a run of its own, and they are compared on validation."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax import run_directory
from seq2seq_jax.arguments import options_of
from seq2seq_jax.config import Config
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.errors import UserError
from seq2seq_jax.training import reproduction, sweep
from seq2seq_jax.training.loop import train
from seq2seq_jax.training.reproduction import Reproduction
from seq2seq_jax.training.sweep import folder_name
from seq2seq_jax.training.verdict import Outcome, all_diverged, summaries, write_results
from seq2seq_jax.translator import load
from tests.tiny import rows, tiny_config

pytestmark = pytest.mark.usefixtures("compiled")

RATE = "optimizer.learning_rate"


def with_rates(config: Config, *rates: float) -> list[Config]:
    return [replace(config, optimizer=replace(config.optimizer, learning_rate=rate)) for rate in rates]


def written(workdir: Path) -> dict:
    return json.loads((workdir / "sweep.json").read_text())


# whole runs


def test_a_sweep_of_one_seed_resumes_where_it_was_and_its_points_are_what_train_makes_of_them(
    tmp_path, monkeypatch, capfd
):
    config = tiny_config(tmp_path / "corpus", train={"num_samples": 0})
    configs, workdir, original = with_rates(config, 0.001, 0.02), tmp_path / "sweep", reproduction.stacked_batches
    calls = []

    def interrupting(*arguments):
        calls.append(1)
        for count, batch in enumerate(original(*arguments)):
            if len(calls) == 2 and count == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(reproduction, "stacked_batches", interrupting)
    assert sweep.sweep([RATE], configs, 1, workdir) == "terminated"
    assert "Asked to stop: saved at step 6. The same command resumes." in capfd.readouterr().out
    assert not (workdir / "sweep.json").exists()
    assert sweep.sweep([RATE], configs, 1, workdir) == "done" and len(calls) == 3
    out = capfd.readouterr().out
    assert f"Point       1 of 2: {RATE}=0.001\nDone        earlier, and not trained again\n" in out
    assert "Resuming at step 6." in out

    points = written(workdir)["points"]
    assert [point["values"] for point in points] == [{RATE: 0.001}, {RATE: 0.02}]
    validations = []
    for number, (point, own) in enumerate(zip(points, configs, strict=True)):
        alone = tmp_path / f"alone {number}"
        scores = train(own, alone).scores["test"]
        validations.append(min(row["validation_loss"] for row in rows(alone) if "validation_loss" in row))
        assert point["validation"]["mean"] == pytest.approx(validations[-1], rel=1e-5)
        assert point["validation"]["standard_deviation"] is None
        assert point["splits"]["test"]["loss"]["mean"] == pytest.approx(scores["loss"], rel=1e-5)
        assert load(workdir / point["workdir"]).translate(["ant bee"]) == load(alone).translate(["ant bee"])
    assert [point["best"] for point in points] == [validation == min(validations) for validation in validations]

    with pytest.raises(UserError, match="holds 1 seed, which the command reproduce trains"):
        train(configs[0], workdir / points[0]["workdir"])
    with pytest.raises(UserError, match="is of a run by itself, and not of 1 seed"):
        reproduction.reproduce(configs[0], 1, tmp_path / "alone 0")


# the table, and what is trained again, with runs that are made up


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny_config(tmp_path / "corpus")


@pytest.fixture
def trained(monkeypatch):
    """Has `reproduce` give the validation values and test losses that a function says; the list of rates it was given.

    It says a value for each seed, None for one that diverges; or raises.
    """
    rates = []

    def use(values):
        def reproduce(config, num_seeds, workdir):
            config = run_directory.with_absolute_paths(config)
            rates.append(config.optimizer.learning_rate)
            run_directory.check_is_free(workdir, config)
            found = values(config.optimizer.learning_rate)
            run_directory.write_fingerprint(workdir, load_corpus(config.data).fingerprint)
            run_directory.claim(workdir, config)
            outcomes = [
                Outcome(seed, None, {}, "Training has diverged.")
                if value is None
                else Outcome(seed, 5, {"test": {"loss": 10 * value, "bleu": 50.0, "perplexity": 2.0}}, "", value)
                for seed, value in enumerate(found)
            ]
            write_results(workdir, config, outcomes, summaries(outcomes), None, "")
            if all(value is None for value in found):
                raise UserError(all_diverged([outcome.trouble for outcome in outcomes]))
            return Reproduction("done", 5)

        monkeypatch.setattr(sweep, "reproduce", reproduce)
        return rates

    return use


def test_the_table_has_means_and_deviations_and_marks_the_best_by_validation(config, trained, tmp_path, capsys):
    found = {0.1: [3.0, 1.0], 0.2: [1.5, 1.7], 0.3: [9.0, None]}
    trained(found.get)
    configs = [*with_rates(config, 0.2, 0.1, 0.3)]
    assert sweep.sweep([RATE], configs, 2, tmp_path / "sweep") == "done"
    points = written(tmp_path / "sweep")["points"]
    assert [point["best"] for point in points] == [True, False, False]
    for point, values in zip(points, ([1.5, 1.7], [3.0, 1.0], [9.0]), strict=True):
        assert point["validation"]["mean"] == pytest.approx(np.mean(values))
        assert point["splits"]["test"]["loss"]["mean"] == pytest.approx(10 * np.mean(values))
    assert points[0]["validation"]["standard_deviation"] == pytest.approx(np.std([1.5, 1.7], ddof=1))
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line] == [
        [RATE, "validation loss", "test loss", "test bleu"],
        ["-" * 23, "-" * 22, "-" * 17, "-" * 16],
        ["0.2", "1.6000 ± 0.1414 (best)", "16.0000 ± 1.4142", "50.0000 ± 0.0000"],
        ["0.1", "2.0000 ± 1.4142", "20.0000 ± 14.1421", "50.0000 ± 0.0000"],
        ["0.3", "9.0000 (1 of 2 seeds)", "90.0000", "50.0000"],
    ]
    assert table.endswith(f"Best by validation loss, mean ± standard deviation of 2 seeds: {RATE}=0.2\n")
    assert table in capsys.readouterr().out


def test_the_best_of_a_score_is_the_highest_and_all_that_tie_are_marked(config, trained, tmp_path):
    trained({0.1: [3.0, 5.0], 0.2: [4.0, 4.0], 0.3: [3.9, 4.0]}.get)
    config = replace(config, train=replace(config.train, best_metric="bleu"))
    sweep.sweep([RATE], with_rates(config, 0.1, 0.2, 0.3), 2, tmp_path / "sweep")
    assert [point["best"] for point in written(tmp_path / "sweep")["points"]] == [True, True, False]
    assert f"{RATE}=0.1 and {RATE}=0.2\n" in (tmp_path / "sweep" / "sweep.md").read_text()


def test_a_point_that_fails_is_told_and_the_others_go_on(config, trained, tmp_path, capsys):
    def values(rate):
        if rate == 0.2:
            raise UserError("It does not fit.")
        return {0.1: [None, None], 0.3: [1.0, 2.0]}[rate]

    rates, workdir = trained(values), tmp_path / "sweep"
    for tried in ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.2]):  # what does not fit is tried again, and nothing else
        assert sweep.sweep([RATE], with_rates(config, 0.1, 0.2, 0.3), 2, workdir) == "done" and rates == tried
        points, diverged = written(workdir)["points"], "All 2 seeds have diverged. Training has diverged."
        assert [point["trouble"] for point in points] == [diverged, "It does not fit.", ""]
        assert [point["best"] for point in points] == [False, False, True]
        assert points[0]["validation"] is None and points[0]["splits"] == {}
        table = (workdir / "sweep.md").read_text()
        assert table.count("failed, see below") == 2 and f"* {RATE}=0.2: It does not fit.\n" in table
        assert f"Failed      {diverged}" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"All points of the sweep have failed. {RATE}=0.1: All 2 seeds have diverged"):
        sweep.sweep([RATE], with_rates(config, 0.1, 0.2), 2, workdir)
    assert [point["best"] for point in written(workdir)["points"]] == [False, False]


def test_what_is_done_is_not_trained_again_unless_it_is_no_longer_that(config, trained, tmp_path):
    rates, workdir = trained({0.1: [1.0], 0.2: [2.0]}.get), tmp_path / "sweep"
    folder = workdir / folder_name({RATE: 0.1})
    text = Path(config.data.train_files[0])

    def again(config: Config = config, num_seeds: int = 1) -> int:
        rates.clear()
        sweep.sweep([RATE], with_rates(config, 0.1, 0.2), num_seeds, workdir)
        return len(rates)

    assert again() == 2 and again() == 0
    results = json.loads((folder / "reproduction.json").read_text())
    del results["validation"]  # as by an earlier version
    for content in (json.dumps(results), "", "[]", "{"):
        (folder / "reproduction.json").write_text(content)
        assert again() == 1 and again() == 0
    (folder / "reproduction.json").unlink()
    assert again() == 1
    assert again(num_seeds=2) == 2  # which the real one refuses, for its checkpoints hold one
    text.write_text(text.read_text().replace("ant", "fox"))
    assert again() == 2
    with pytest.raises(UserError, match="holds a run of another configuration .*\n.*num_steps: 12 -> 13"):
        again(replace(config, train=replace(config.train, num_steps=13)))


# names, and what is refused


def test_folders_have_the_values_in_their_names_safe_and_distinct():
    assert folder_name({"model.cell": "gru", RATE: 0.001}) == f"model.cell=gru,{RATE}=0.001"
    assert folder_name({"model.decoder_cell": None, "train.ema": 1e-05}) == "model.decoder_cell=None,train.ema=1e-05"
    odd = ["a/b.vec", "a_b.vec", "a b.vec", "../x", "a\nb", "ß" * 300, "x" * 300, "x" * 301, "a,b", "."]
    names = [folder_name({"model.source_vectors": value}) for value in odd]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and len(name) < 200 and not set(name) & set("/ \n") for name in names)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("train.seed", "compares chances; give --num-seeds"),
        ("decode.beam_size", "evaluate --split validation --decode.beam-size VALUE"),
        ("published_score", "changes nothing in training and validation"),
        ("moses_language", "changes nothing in training and validation"),
        ("train.best_metric", "is part of what points are compared by"),
        ("bleu_tokenizer", "is part of what points are compared by"),
        ("data.corpus", "scores on different text cannot be compared"),
        ("data.lowercase", "scores on different text cannot be compared"),
        ("data.vocab_size", "Set --train.best-metric bleu, chrf or exact_match"),
        ("model.copy", "Set --train.best-metric bleu, chrf or exact_match"),
    ],
)
def test_what_validation_cannot_compare_is_not_swept(tmp_path, field, message):
    with pytest.raises(UserError, match=f"--sweep {field}.*{message}"):
        sweep.sweep([field], [Config()], 1, tmp_path / "sweep")
    assert list(tmp_path.iterdir()) == []


def test_vocabularies_are_compared_by_the_text_that_is_written(config, trained, tmp_path):
    trained(lambda _: [1.0])
    config = replace(config, train=replace(config.train, best_metric="bleu"))
    configs = [replace(config, data=replace(config.data, min_frequency=number)) for number in (1, 2)]
    assert sweep.sweep(["data.min_frequency"], configs, 1, tmp_path / "sweep") == "done"


def test_fields_that_are_not_swept_exist():
    """A typo in their list would let them through."""
    fields = [*sweep._TOKENS, *sweep._MEASURES, *sweep._AFTERWARDS, *(f"data.{name}" for name in sweep._TEXT)]
    assert {*fields, "train.seed", "decode.beam_size"} <= set(options_of(Config))


def test_the_same_point_twice_and_a_run_directory_are_refused(config, trained, tmp_path):
    rates = trained(lambda _: [1.0])
    with pytest.raises(UserError, match=f"--sweep: {RATE}=0.1 is there twice; give each value once."):
        sweep.sweep([RATE], with_rates(config, 0.2, 0.1, 0.1), 1, tmp_path / "sweep")
    run_directory.claim(tmp_path / "run", config)
    with pytest.raises(UserError, match="run is a run directory, and a sweep holds one for each point"):
        sweep.sweep([RATE], with_rates(config, 0.2), 1, tmp_path / "run")
    assert rates == [] and not (tmp_path / "sweep").exists()
    with run_directory.locked(tmp_path / "sweep"), pytest.raises(UserError, match="sweep is in use"):
        sweep.sweep([RATE], with_rates(config, 0.2), 1, tmp_path / "sweep")
