"""Rows of a run sent to Weights & Biases or MLflow, where `train.trackers` asks for it."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from seq2seq_jax.cache import write_whole
from seq2seq_jax.config import Config, Tracking, flat
from seq2seq_jax.errors import UserError

PROJECT = "seq2seq_jax"
"""The project or experiment in which runs appear, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""
_IDS = "trackers.json"


class Tracker(Protocol):
    """What takes the rows of a run elsewhere."""

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends the numbers of a step."""

    def close(self) -> None:
        """Sends what is left."""


def check_trackers(config: Config) -> None:
    """Refuses a tracker whose package is not installed.

    Raises:
      UserError: names the extra.
    """
    for name in config.train.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers {name} needs the package {name}: pip install 'seq2seq-jax[{name}]'; or leave it out."
            )


class Trackers:
    """The trackers of a run, told of its rows. One that fails is told, and left out from then on.

    Where a run goes on, its rows go to the same places as before: `trackers.json`
    in the run directory knows them. Rows that a killed run writes a second time
    appear twice there.

    Args:
      config: of the run, which is sent, too.
      workdir: the run directory.
      say: prints a line.
    """

    def __init__(self, config: Config, workdir: Path, say: Callable[[str], None]) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}
        ids = _read_ids(workdir)
        for name in config.train.trackers:
            self._try(name, lambda name=name: self._start(name, config, workdir, ids))
        if self._open:
            write_whole(workdir / _IDS, json.dumps(ids) + "\n")

    def row(self, row: Mapping[str, Any]) -> None:
        """Sends the numbers of a row."""
        numbers = numbers_of(row)
        for name, tracker in [*self._open.items()]:
            self._try(name, lambda tracker=tracker: tracker.row(row["step"], numbers))

    def close(self) -> None:
        """Ends the runs there."""
        for name, tracker in [*self._open.items()]:
            self._try(name, tracker.close)
        self._open.clear()

    def _start(self, name: Tracking, config: Config, workdir: Path, ids: dict[str, str]) -> None:
        self._open[name], ids[name] = _STARTS[name](config, workdir, ids.get(name))

    def _try(self, name: str, do: Callable[[], None]) -> None:
        """A tracker is not worth a run: networks and services fail in ways of their own."""
        try:
            do()
        except Exception as error:
            self._open.pop(name, None)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self._say(f"{name} has failed and gets no more rows ({reason}); metrics.jsonl has them all.")


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, but for its step."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _read_ids(workdir: Path) -> dict[str, str]:
    try:
        found = json.loads((workdir / _IDS).read_text())
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


class _Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("*", step_metric="step")  # its own count of rows only ever grows, and a resumed run goes back

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


def _start_wandb(config: Config, workdir: Path, known: str | None) -> tuple[_Wandb, str]:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=workdir.name,
        id=known,
        resume="allow",
        dir=str(workdir),
        config=flat(config),
        settings=wandb.Settings(console="off", silent=True),
    )
    return _Wandb(run), run.id


class _Mlflow:
    """A run of MLflow."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._id = client, run_id

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _start_mlflow(config: Config, workdir: Path, known: str | None) -> tuple[_Mlflow, str]:
    import mlflow

    client = mlflow.MlflowClient()
    if known is None:
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        run = client.create_run(experiment.experiment_id, run_name=workdir.name)
        for name, value in flat(config).items():
            client.log_param(run.info.run_id, name, value)
        known = run.info.run_id
    else:
        client.update_run(known, status="RUNNING")
    return _Mlflow(client, known), known


_STARTS: dict[Tracking, Callable[[Config, Path, str | None], tuple[Tracker, str]]] = {
    "wandb": _start_wandb,
    "mlflow": _start_mlflow,
}
