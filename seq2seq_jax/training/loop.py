"""A run from its configuration to its test scores, as one story: `train`."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from seq2seq_jax import processes, run_directory, signals, watchdog
from seq2seq_jax.checkpoint import Checkpoints, check_belongs, check_disk_space, check_trainable, restore_params
from seq2seq_jax.config import Config, TrainConfig, greedy
from seq2seq_jax.console import ready_streams
from seq2seq_jax.data.corpora import Corpus
from seq2seq_jax.data.pipeline import ALONE, Batch, training_batches
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluation import Items, evaluate_split, make_items, output_scores, teacher_forced
from seq2seq_jax.metrics import check_packages
from seq2seq_jax.sharding import by_rows, local_mesh, make_mesh, on_every_device, replicated
from seq2seq_jax.training import report
from seq2seq_jax.training.costs.fits import check_fits, check_state_fits
from seq2seq_jax.training.fine_tuning import start_from
from seq2seq_jax.training.optimizer import make_schedule
from seq2seq_jax.training.setup import CompiledStep, Material, begin, compile_steps, prepare
from seq2seq_jax.training.step import TrainState, abstract_state, empty_window, initial_state
from seq2seq_jax.training.trackers import check_trackers
from seq2seq_jax.training.writer import SilentWriter, Writer
from seq2seq_jax.translator import Params, Translator, origin, vocab_sizes

Status = Literal["done", "stopped", "terminated", "interrupted"]
ASKED_BY: dict[int, Status] = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
AGREE_EVERY = 10
"""Steps after which several processes tell each other of signals."""
ABSURD = 10
"""Times the loss of guessing every token evenly: a validation loss beyond it says that training has diverged."""


class TrainResult(NamedTuple):
    """How a run ended: all steps done, stopped early, or asked to by a signal; and its test scores by split."""

    status: Status
    step: int
    scores: dict[str, dict[str, Any]]


@dataclass
class LoopState:
    """What the loop knows beside the arrays; saved with every checkpoint. Older checkpoints lack the newer fields."""

    rows: int = 0
    """Rows of metrics.jsonl."""
    seconds: float = 0.0
    """Wall time of the run, over all its sessions."""
    evaluated_step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    """Of train.best_metric, turned so that larger is better."""
    best_loss: float | None = None
    """Validation loss of the best evaluation, which breaks ties."""
    stale: int = 0
    """Evaluations since the best one."""
    plateau: int = 0
    """Evaluations since the best one or the last cut of the learning rate."""
    stopped: bool = False
    """Whether training has stopped early."""
    diverged: bool = False
    """Whether the last validation loss was absurd."""

    def is_better(self, value: float, loss: float) -> bool:
        """Whether an evaluation beats the best one: by its value or, where that ties, by a lower loss.

        Where both tie, nothing has improved: the older one stays. What is not a
        number comes last.
        """
        if self.best_value is None:
            return True
        best_loss = math.inf if self.best_loss is None else self.best_loss
        return _last_if_nan(value, -loss) > _last_if_nan(self.best_value, -best_loss)


@ready_streams()
def train(config: Config, workdir: Path) -> TrainResult:
    """Trains `config` in the run directory `workdir`, resuming what is there, and evaluates on the test splits.

    SIGTERM and Ctrl-C end training after the step that is under way and a save;
    before and after it they act as they would in any program. Of several processes
    (`processes.start`) all call this alike; a signal to one of them stops all.

    Raises:
      UserError: whatever the user can mend, before the first step where possible; and at the end, if training
        has diverged.
    """
    workdir = Path(workdir)
    check_packages(config)
    check_trackers(config)
    with processes.in_first(run_directory.locked(workdir)):
        return _train(run_directory.with_absolute_paths(config), workdir)


def _train(config: Config, workdir: Path) -> TrainResult:
    check_trainable(workdir)
    run_directory.check_is_free(workdir, config)
    mesh = make_mesh(config.mesh)
    material = processes.first_before_others(partial(prepare, config, mesh.size, workdir))
    belongs = origin(config, material.vocabularies, material.corpus.fingerprint)
    check_belongs(workdir, belongs)
    sizes = vocab_sizes(material.vocabularies)
    abstract = abstract_state(config, sizes, mesh)
    check_state_fits(mesh, abstract)
    check_disk_space(workdir, abstract.saved(), config.train.keep_checkpoints)
    say = partial(print, flush=True) if processes.is_first() else _nothing
    for line in report.describe(config, material, abstract.params, mesh):
        say(line)
    for change in processes.by_first(partial(run_directory.free_changes, workdir, config)):
        say(f"Changed     {change}")
    compiled = compile_steps(config, material, mesh, abstract, say)
    check_fits(config, material, mesh, abstract, compiled)
    processes.by_first(partial(begin, config, material, workdir))  # only now: a mistake before leaves nothing behind
    with Writer(workdir, config.train.num_steps, config) if processes.is_first() else SilentWriter() as writer:
        with Checkpoints(workdir, belongs) as checkpoints:
            if restored := restore(checkpoints, abstract.saved(), writer.line):
                state, loop_state = TrainState(**restored[0]), LoopState(**restored[1])
            else:
                state, loop_state = initial_state(config, sizes, mesh, material.vectors), LoopState()
                if config.train.init_from is not None:
                    state, their_step = start_from(state, config, material.vocabularies, mesh)
                    writer.line(f"Starting from step {their_step:,} of {config.train.init_from}.")
            step = int(state.step)
            if restored:
                writer.line(f"Resuming at step {step:,}.")
            keep_rows(writer, loop_state, step)
            run = Run(config, mesh, writer, loop_state, Validation(config, material, mesh))
            with signals.noted() as notes:
                placed = _placed_batches(material, mesh, step, config.train.num_steps)
                with watchdog.watched(placed, step) as batches:
                    state, status = take_steps(run, state, batches, compiled, checkpoints, notes)
                checkpoints.close()
                heard = _heard(notes)
                status = ASKED_BY[heard[0]] if heard else status
        writer.close()  # it has all rows, whatever ends the test
        step = int(state.step)
        if status in ASKED_BY.values():
            writer.line(report.asked_to_stop(step))
            return TrainResult(status, step, {})
        processes.meet()  # the last checkpoint is there
        own = local_mesh(mesh)
        best, best_step = restore_params(workdir, on_every_device(abstract.params, own), belongs)
        writer.line(f"{report.ending(status, step, loop_state.seconds)} Best validation at step {best_step:,}.")
        run.check_best()
        translator = Translator(
            config, material.vocabularies, best, config.decode, own, best_step, share=processes.share()
        )
        scores = test(workdir, material, translator, writer.line)
        for line in report.farewell(config, workdir):
            writer.line(line)
        run.check_last(best_step)
    return TrainResult(status, step, scores)


def _nothing(*_: Any) -> None:
    pass


def _placed_batches(material: Material, mesh: Mesh, start_step: int, num_steps: int) -> Iterator[Batch]:
    """The batches of a run; of several processes each reads its rows, and what it gives names those of the others."""
    share = processes.share()
    batches = training_batches(material.train, material.batching, start_step, num_steps, share)
    if share == ALONE:
        return batches  # the step itself places the rows
    place = partial(jax.make_array_from_process_local_data, by_rows(mesh))
    return (jax.tree.map(place, batch) for batch in batches)


def restore(
    checkpoints: Checkpoints, abstract: dict[str, Any], say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Arrays, and what the loop knows, of the newest whole checkpoint, if there is one; damaged ones are told."""
    found = checkpoints.restore(abstract)
    if found is None:
        return None
    state, progress, complaints = found
    for complaint in complaints:
        say(complaint)
    return state, progress


def keep_rows(writer: Writer, loop_state: LoopState, step: int) -> None:
    """Drops the rows that will be written again; says where others are lost."""
    known, kept = loop_state.rows, writer.keep_rows(step, loop_state.evaluated_step)
    if kept < known:
        writer.line(f"metrics.jsonl: {known - kept} of the {known} rows up to step {step:,} are lost.")
    loop_state.rows = kept


@runtime_checkable
class Trainee(Protocol):
    """What `take_steps` trains: one run, or several as one."""

    @property
    def train(self) -> TrainConfig:
        """How long, and what happens along the way."""

    @property
    def evaluated_step(self) -> int:
        """The last step at which all was validated."""

    @property
    def stopped(self) -> bool:
        """Whether training has stopped early."""

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the arrays."""

    def saved(self, state: Any) -> dict[str, Any]:
        """The arrays that a checkpoint keeps, by their names there."""

    def evaluate(self, state: Any, step: int) -> Any:
        """Validates and decides what follows from it; returns the state to go on with."""

    def log(self, state: Any, step: int, seconds: float) -> Any:
        """Writes about the steps since the last time; returns the state with an empty window."""


def take_steps(
    trainee: Trainee,
    state: Any,
    batches: Iterator[Batch],
    compiled: Iterable[CompiledStep],
    checkpoints: Checkpoints,
    notes: Sequence[int],
) -> tuple[Any, Status]:
    """Takes all steps that are left: evaluate, save, stop or step, log, in this order. A signal in `notes` ends it."""
    updates = {(step.shape.source, step.shape.target): step.update for step in compiled}
    train, step = trainee.train, int(state.step)
    saved, window_start = step, time.perf_counter()
    together = processes.count() > 1
    heard: Sequence[int] = [] if together else notes  # of several processes all know of a signal at the same step
    while True:
        finished = step == train.num_steps
        due = step % train.evaluate_every == 0 or finished
        if together and (due or step % AGREE_EVERY == 0):
            heard = _heard(notes)
        if due and not heard and trainee.evaluated_step < step:
            pause = time.perf_counter()
            state = trainee.evaluate(state, step)
            saved = -1 if trainee.evaluated_step == step else saved
            window_start += time.perf_counter() - pause
        asked = bool(heard)
        ending = finished or asked or trainee.stopped
        if saved != step and (due or ending or step % train.checkpoint_every == 0):
            checkpoints.save(step, trainee.saved(state), trainee.progress)
            saved = step
        if ending:
            break
        batch = next(batches)
        update = updates[batch.source.values.shape[-1], batch.target.values.shape[-1]]
        state = update(state, *batch)  # which places the rows, sooner than device_put would
        step += 1
        if step % train.log_every == 0 or step == train.num_steps:
            state = trainee.log(state, step, time.perf_counter() - window_start)
            window_start = time.perf_counter()
    return state, "done" if finished else "stopped"


def _heard(notes: Sequence[int]) -> list[int]:
    """The signals that any of the processes has noted. All have to call it."""
    return [number for each in processes.gathered(list(notes)) for number in each]


class Validation:
    """Scores of the validation split, for parameters as they come."""

    def __init__(self, config: Config, material: Material, mesh: Mesh):
        self._config, self._material, self._mesh = config, material, mesh
        self._greedy: Translator | None = None

    def __call__(self, params: Params) -> tuple[dict[str, float], list[tuple[str, list[str], str]]]:
        """Scores, and what was decoded: source, references, hypothesis."""
        if self._greedy is None:
            decode, share = greedy(self._config.decode), processes.share()
            own = local_mesh(self._mesh)
            self._greedy = Translator(self._config, self._material.vocabularies, {}, decode, own, share=share)
        self._greedy.params = params if processes.count() == 1 else processes.on_host(params)
        scores = teacher_forced(self._greedy, self._material.validation)
        if not self._config.train.decode_sentences:
            return scores, []
        items = self._items
        outputs = self._greedy.translate_ids(items.ids, items.sources)
        self._greedy.forget_tables()  # training needs the room
        found = output_scores(self._greedy, outputs, items)
        scores |= {name: value for name, value in found.items() if not name.endswith("_signature")}
        return scores, list(zip(items.sources, items.references, (output.text for output in outputs), strict=True))

    @cached_property
    def _items(self) -> Items:
        """What is decoded of the split."""
        most, encoded = self._config.train.decode_sentences, self._material.validation
        if not self._config.data.group_references:  # otherwise more references may come to the end
            encoded = encoded.first(most)
        lines = self._material.corpus.split("validation").read(0, len(encoded))
        return make_items(self._config, self._material.vocabularies, encoded, *lines, most)

    @property
    def guessing(self) -> float:
        """Loss of guessing every token evenly."""
        return math.log(self._material.vocabularies.target.size)


class Run:
    """One run to `take_steps`: what it logs, and what it makes of a validation."""

    def __init__(self, config: Config, mesh: Mesh, writer: Writer, loop_state: LoopState, validation: Validation):
        self._config, self._mesh, self._writer = config, mesh, writer
        self._validation, self._guessing = validation, validation.guessing
        self.loop_state = loop_state
        self._schedule = jax.jit(make_schedule(config.optimizer, config.train.num_steps))
        self._clock = time.perf_counter()

    @property
    def train(self) -> TrainConfig:
        """How long, and what happens along the way."""
        return self._config.train

    @property
    def evaluated_step(self) -> int:
        """Step of the last validation."""
        return self.loop_state.evaluated_step

    @property
    def stopped(self) -> bool:
        """Whether training has stopped early."""
        return self.loop_state.stopped

    @property
    def best_validation(self) -> float | None:
        """Best value of train.best_metric so far."""
        value = self.loop_state.best_value
        return -value if value is not None and self._config.train.best_metric == "loss" else value

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the arrays."""
        return asdict(self.loop_state)

    def saved(self, state: TrainState) -> dict[str, Any]:
        """The arrays that a checkpoint keeps, by name; UserError where they may not take the place of a good one's."""
        self._check_params(state.params, int(state.step))
        return state.saved()

    def log(self, state: TrainState, step: int, seconds: float) -> TrainState:
        """Writes a row about the steps since the last one; returns the state with an empty window."""
        self.tell(state, step, seconds)
        return state._replace(window=processes.everywhere(empty_window(), replicated(self._mesh)))

    def tell(self, state: TrainState, step: int, seconds: float) -> None:
        """Writes a row about the steps since the last one."""
        window = jax.device_get(state.window)
        updates = max(int(window.updates), 1)
        loss, rate = float(window.loss) / max(float(window.tokens), 1.0), float(window.tokens) / seconds
        row = {
            "step": step,
            "loss": loss,
            "grad_norm": float(window.grad_norm) / updates,
            "learning_rate": float(self._schedule(np.int32(step - 1))) * float(state.rate_factor),
            "nonfinite_steps": int(window.nonfinite),
            "target_tokens_per_second": rate,
        }
        self._row(row)
        self._writer.progress(step, loss=loss, target_tokens_per_second=rate)
        if window.nonfinite:
            self._check_finite(step, int(window.nonfinite), int(state.nonfinite_in_a_row))

    def _check_finite(self, step: int, skipped: int, in_a_row: int) -> None:
        self._writer.line(f"Step {step:,}: {skipped} updates skipped, their losses or gradients were not finite.")
        if in_a_row >= self._config.train.max_nonfinite_steps:
            raise UserError(
                f"The last {in_a_row} losses or gradients up to step {step:,} were not finite. {self._what_to_try()}"
            )

    def _what_to_try(self) -> str:
        """What keeps training from diverging."""
        optimizer = self._config.optimizer
        clip = f"a smaller optimizer.clip_norm ({optimizer.clip_norm:g})"
        clip = clip if optimizer.clip_norm else "clipping by optimizer.clip_norm (now 0, which is none)"
        float32 = "" if self._config.model.compute_dtype == "float32" else ", model.compute_dtype float32"
        return (
            f"Try, in another --workdir, a lower optimizer.learning_rate (now {optimizer.learning_rate:g}), a longer"
            f" optimizer.warmup_steps ({optimizer.warmup_steps}), {clip}{float32}."
        )

    def evaluate(self, state: TrainState, step: int) -> TrainState:
        """Validates, says so, and decides on the best checkpoint, the plateau schedule and an early stop.

        A signal ends it before anything is decided: it is done again when the run resumes.
        """
        self._check_params(state.params, step)
        try:
            # Where others would wait for this process's share, it is done to the end.
            with signals.stoppable() if processes.count() == 1 else contextlib.nullcontext():
                scores, samples = self._validation(state.evaluated)
        except signals.Stopped:
            return state
        self._row({"step": step} | {f"validation_{name}": value for name, value in scores.items()})
        shown = samples[: self._config.train.num_samples]
        for line in report.validation(step, scores, shown, self.loop_state.seconds):
            self._writer.line(line)
        loop_state, metric, loss = self.loop_state, self._config.train.best_metric, scores["loss"]
        loop_state.evaluated_step = step
        loop_state.diverged = self._is_absurd(loss)
        if loop_state.diverged:
            self._writer.line(f"Step {step:,}: {self._absurd(loss)}")
        value = -loss if metric == "loss" else scores[metric]
        if loop_state.is_better(value, loss):
            loop_state.best_step, loop_state.best_value, loop_state.best_loss = step, value, loss
            loop_state.stale = loop_state.plateau = 0
            return state
        loop_state.stale += 1
        loop_state.plateau += 1
        if self._config.train.early_stopping and loop_state.stale >= self._config.train.early_stopping:
            self._writer.line(f"Validation {metric} has not improved for {loop_state.stale} evaluations: stopping.")
            loop_state.stopped = True
        return self._cut_rate(state)

    def _check_params(self, params: Params, step: int) -> None:
        """UserError where a parameter is not finite, which no later step would mend."""
        parts = [part for leaf in jax.tree.leaves(params) for part in processes.parts_here(leaf)]
        if not all(processes.gathered(all(bool(np.isfinite(part).all()) for part in parts))):
            raise UserError(
                f"Training has diverged: at step {step:,} there are parameters that are not finite."
                f" {self._what_to_try()}"
            )

    def _is_absurd(self, loss: float) -> bool:
        """Whether a loss, nats a token, is far beyond that of guessing."""
        return not loss <= ABSURD * self._guessing

    def _absurd(self, loss: float) -> str:
        return (
            f"Training has diverged: a validation loss of {loss:.3g}, where guessing every token evenly would have"
            f" {self._guessing:.3g}. {self._what_to_try()}"
        )

    def check_best(self) -> None:
        """UserError where training has diverged before it was ever good: nothing is worth a test."""
        loss = self.loop_state.best_loss
        if loss is not None and self._is_absurd(loss):
            raise UserError(self._absurd(loss))

    def check_last(self, best_step: int) -> None:
        """UserError where training has diverged since its best step."""
        if self.loop_state.diverged:
            raise UserError(
                f"Training has diverged after step {best_step:,}, whose parameters the scores above are of."
                f" {self._what_to_try()}"
            )

    def _cut_rate(self, state: TrainState) -> TrainState:
        optimizer = self._config.optimizer
        if optimizer.schedule != "plateau" or self.loop_state.plateau < optimizer.plateau_patience:
            return state
        self.loop_state.plateau = 0
        factor = state.rate_factor * optimizer.plateau_factor
        self._writer.line(f"Learning rate cut to {optimizer.learning_rate * float(factor):.3g}.")
        return state._replace(rate_factor=factor)

    def _row(self, values: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.loop_state.seconds += now - self._clock
        self._clock = now
        self._writer.row(values | {"seconds": round(self.loop_state.seconds, 3)})
        self.loop_state.rows += 1


def tested_splits(corpus: Corpus) -> list[str]:
    """Names of the test splits, or of the validation split where there is none."""
    return [name for name in corpus.splits if name.startswith("test")] or ["validation"]


def test(
    workdir: Path, material: Material, translator: Translator, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Decodes and scores every test split, or the validation split where there is none."""
    results = {}
    for name in tested_splits(material.corpus):
        split = material.corpus.split(name)
        sources, targets = split.read(0, len(split))
        results[name] = evaluate_split(translator, workdir, name, sources, targets)
        for line in report.test(name, results[name], translator.decode):
            say(line)
    return results


def _last_if_nan(*values: float) -> tuple[float, ...]:
    """Values to compare, the largest the best, with what is not a number below every other."""
    return tuple(-math.inf if math.isnan(value) else value for value in values)
