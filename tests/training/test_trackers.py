"""Trackers against stand-ins of their packages, which say what they were told."""

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.training import trackers
from seq2seq_jax.training.loop import train
from seq2seq_jax.training.trackers import Trackers, check_trackers
from seq2seq_jax.training.writer import Writer
from tests.tiny import rows, tiny_config

pytestmark = pytest.mark.usefixtures("compiled")


class Told:
    """What the stand-ins were told."""

    def __init__(self):
        self.starts, self.rows, self.ends, self.fails_at = [], [], [], None

    def row(self, name, step, numbers):
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("no route to host\nand more")
        self.rows.append((name, step, numbers))


@pytest.fixture
def told(monkeypatch) -> Told:
    told = Told()

    def init(*, id, config, name, **_):
        told.starts.append(("wandb", id, name, config))
        return SimpleNamespace(
            id=id or "w1",
            define_metric=lambda *_, **__: None,
            log=lambda row: told.row("wandb", row["step"], {key: value for key, value in row.items() if key != "step"}),
            finish=lambda: told.ends.append("wandb"),
        )

    class Client:
        def create_run(self, experiment, *, run_name):
            told.starts.append(("mlflow", None, run_name, {}))
            return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

        def update_run(self, run_id, *, status):
            told.starts.append(("mlflow", run_id, status, {}))

        def log_param(self, run_id, name, value):
            told.starts[-1][3][name] = value

        def log_batch(self, run_id, *, metrics):
            told.row("mlflow", metrics[0].step, {metric.key: metric.value for metric in metrics})

        def set_terminated(self, run_id):
            told.ends.append("mlflow")

    def module(name, **content):
        found = ModuleType(name)
        vars(found).update(content)
        monkeypatch.setitem(sys.modules, name, found)

    metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)  # noqa: E731
    experiment = lambda name: SimpleNamespace(experiment_id=name)  # noqa: E731
    module("wandb", init=init, Settings=lambda **_: None)
    module("mlflow", MlflowClient=Client, set_experiment=experiment)
    module("mlflow.entities", Metric=metric)
    module("mlflow.utils")
    module("mlflow.utils.time", get_current_time_millis=lambda: 0)
    monkeypatch.setattr(trackers, "check_trackers", lambda _: None)
    monkeypatch.setattr("seq2seq_jax.training.loop.check_trackers", lambda _: None)
    return told


def config(folder, *names, num_steps=4):
    fields = {"num_steps": num_steps, "evaluate_every": 2, "checkpoint_every": 2, "log_every": 1, "trackers": names}
    return tiny_config(folder, train=fields)


def test_every_number_of_every_row_is_sent(told, tmp_path):
    train(config(tmp_path, "wandb", "mlflow"), tmp_path / "run")
    written = rows(tmp_path / "run", timed=True)
    for name in ("wandb", "mlflow"):
        sent = [(step, numbers) for sender, step, numbers in told.rows if sender == name]
        assert sent == [
            (row["step"], {key: value for key, value in row.items() if key != "step" and value is not None})
            for row in written
        ]
    assert sorted(told.ends) == ["mlflow", "wandb"]
    (_, known, name, fields), (_, _, other_name, other_fields) = told.starts
    assert known is None and name == other_name == "run"
    assert fields["model.hidden_size"] == other_fields["model.hidden_size"] == 16
    assert fields["train.trackers"] == ("wandb", "mlflow")


def test_a_run_that_goes_on_goes_on_there(told, tmp_path):
    train(config(tmp_path, "wandb", "mlflow"), tmp_path / "run")
    told.starts.clear()
    done = config(tmp_path, "wandb", "mlflow")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with Writer(tmp_path / "run", 4, done) as writer:
        writer.row({"step": 3, "loss": 1.0})
    assert [start[:2] for start in told.starts] == [("wandb", "w1"), ("mlflow", "m1")]


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(told, tmp_path, capsys):
    told.fails_at = 2
    assert train(config(tmp_path, "wandb", "mlflow"), tmp_path / "run").status == "done"
    said = capsys.readouterr().out
    for name in ("wandb", "mlflow"):
        line = f"{name} has failed and gets no more rows (no route to host); metrics.jsonl has them all."
        assert said.count(line) == 1
    assert {step for _, step, _ in told.rows} == {1} and len(rows(tmp_path / "run")) == 6


def test_nothing_is_sent_unless_it_is_asked_for(told, tmp_path):
    train(config(tmp_path, num_steps=2), tmp_path / "run")
    assert told.starts == told.rows == [] and not (tmp_path / "run" / "trackers.json").exists()


def test_trackers_may_change_when_a_run_goes_on(told, tmp_path):
    train(config(tmp_path), tmp_path / "run")
    assert train(config(tmp_path, "wandb"), tmp_path / "run").status == "done"


@pytest.mark.parametrize("content", ["", "[]", '{"wandb": 3}', "{"])
def test_a_damaged_note_of_ids_starts_anew(told, tmp_path, content):
    (tmp_path / "trackers.json").write_text(content)
    with_wandb = Trackers(config(tmp_path / "text", "wandb"), tmp_path, print)
    with_wandb.close()
    assert told.starts[0][1] is None and json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "w1"}


def test_a_package_that_is_missing_is_told_at_the_door(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=rf"train.trackers {name} needs .*pip install 'seq2seq-jax\[{name}\]'"):
            check_trackers(config(tmp_path, name))
