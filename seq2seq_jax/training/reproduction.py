"""Several seeds of one experiment, trained in one program, and what they say of a published score: `reproduce`."""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from seq2seq_jax import run_directory, signals
from seq2seq_jax.cache import existing_folder
from seq2seq_jax.checkpoint import Checkpoints, check_belongs, check_disk_space, check_trainable
from seq2seq_jax.config import SEED, Config, TrainConfig
from seq2seq_jax.console import ready_streams
from seq2seq_jax.data.pipeline import stacked_batches
from seq2seq_jax.errors import UserError
from seq2seq_jax.metrics import check_packages
from seq2seq_jax.sharding import by_run, grouped, make_mesh, num_shares
from seq2seq_jax.training import loop, report
from seq2seq_jax.training.costs.fits import check_fits, check_state_fits
from seq2seq_jax.training.loop import ASKED_BY, LoopState, Run, Status, Validation, take_steps, tested_splits
from seq2seq_jax.training.seeds import (
    SeedsState,
    abstract_seeds,
    initial_seeds,
    of_seed,
    restored,
    saved,
    seeds_of_places,
    settle,
)
from seq2seq_jax.training.setup import Material, begin, compile_steps, prepare
from seq2seq_jax.training.step import abstract_state, empty_window
from seq2seq_jax.training.trackers import check_trackers
from seq2seq_jax.training.verdict import (
    Outcome,
    Verdict,
    all_diverged,
    conclusion,
    lines_of_seed,
    lines_of_seeds,
    published_split,
    remove_results,
    summaries,
    write_results,
)
from seq2seq_jax.training.writer import Writer
from seq2seq_jax.translator import Translator, origin, vocab_sizes


class Reproduction(NamedTuple):
    """How it ended, as `loop.TrainResult`; what became of each seed; and the verdict, where there is one."""

    status: Status
    step: int
    outcomes: tuple[Outcome, ...] = ()
    verdict: Verdict | None = None


@ready_streams()
def reproduce(config: Config, num_seeds: int, workdir: Path) -> Reproduction:
    """Trains seeds `train.seed` and the following in one program, tests each, and compares with what was published.

    Seed i alone is `train` with that `train.seed` and the `train.shape_seed` of the
    first. It is validated, stopped early and tested by itself, and where it
    diverges it ends by itself. `workdir/seeds/I` becomes its run directory.
    Resumes what is there, and ends on a signal, as `train` does.

    Raises:
      UserError: as `train`; at the end only if all seeds have diverged.
    """
    workdir = Path(workdir)
    if num_seeds < 1:
        raise UserError(f"--num-seeds must be 1 or more, got {num_seeds}.")
    if config.train.seed + num_seeds - 1 > SEED.largest:
        raise UserError(
            f"train.seed {config.train.seed} and the {num_seeds - 1} seeds after it go beyond {SEED.largest:,.0f}; use"
            " a smaller train.seed."
        )
    if config.train.init_from is not None:
        raise UserError("train.init_from gives all seeds the same first values; use the command train instead.")
    check_packages(config)
    check_trackers(config)
    with run_directory.locked(workdir):
        return _reproduce(run_directory.with_absolute_paths(config), num_seeds, workdir)


def _reproduce(config: Config, num_seeds: int, workdir: Path) -> Reproduction:
    check_trainable(workdir)
    run_directory.check_is_free(workdir, config)
    mesh = make_mesh(config.mesh)
    groups = grouped(mesh, num_seeds)
    material = prepare(config, num_shares(groups), workdir)
    split = published_split(config, tested_splits(material.corpus), material.corpus.name)
    belongs = origin(config, material.vocabularies, material.corpus.fingerprint)._replace(seeds_together=num_seeds)
    check_belongs(workdir, belongs)
    sizes = vocab_sizes(material.vocabularies)
    abstract = abstract_seeds(config, sizes, groups, num_seeds)
    check_state_fits(groups, abstract, num_seeds)
    kept = saved(abstract, num_seeds)
    check_disk_space(workdir, kept, config.train.keep_checkpoints)
    seeds = range(config.train.seed, config.train.seed + num_seeds)
    say = partial(print, flush=True)
    for line in report.describe(config, material, abstract_state(config, sizes, mesh).params, mesh):
        say(line)
    several = f"Seeds       {num_seeds}, {seeds[0]} to {seeds[-1]}, trained in one program"
    say(f"{several if num_seeds > 1 else f'Seed        {seeds[0]}'}, in {workdir}")
    compiled = compile_steps(config, material, groups, abstract, say, num_seeds)
    check_fits(config, material, groups, abstract, compiled, num_seeds)
    if not run_directory.is_claimed(workdir):
        remove_results(workdir)  # of a run whose other files have been removed since
    begin(config, material, workdir)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_SeedWriter(workdir, config, index)) for index in range(num_seeds)]
        with Checkpoints(workdir, belongs) as checkpoints:
            if found := loop.restore(checkpoints, kept, say):
                state = restored(found[0], groups)
            else:
                state = initial_seeds(config, sizes, groups, num_seeds, material.vectors)
            group = _Seeds(config, material, mesh, groups, writers, found[1] if found else {})
            step = int(state.step)
            if found:
                say(f"Resuming at step {step:,}.")
            group.keep_rows(step)
            batchings = list(map(material.batching.with_seed, seeds_of_places(config, num_seeds, groups)))
            with signals.noted() as notes:
                batches = stacked_batches(material.train, batchings, step, config.train.num_steps)
                state, status = take_steps(group, state, batches, compiled, checkpoints, notes)
                checkpoints.close()
                status = ASKED_BY[notes[0]] if notes else status
    step = int(state.step)
    if status in ASKED_BY.values():
        say(report.asked_to_stop(step))
        return Reproduction(status, step)
    say(report.ending(status, step, group.seconds))
    outcomes = []
    for outcome in group.test(state.best, workdir):
        for line in lines_of_seed(outcome):
            say(line)
        outcomes.append(outcome)
    scores = summaries(outcomes, config.published_metric)
    verdict, sentence = conclusion(config, split, scores)
    write_results(workdir, config, outcomes, scores, verdict, sentence)
    for line in lines_of_seeds(config, outcomes, scores):
        say(line)
    if not scores:
        raise UserError(all_diverged([outcome.trouble for outcome in outcomes]))
    tested = [index for index, outcome in enumerate(outcomes) if outcome.scores]
    for line in report.farewell_of_seeds(config, sentence, workdir, tested):
        say(line)
    return Reproduction(status, step, tuple(outcomes), verdict)


class _SeedWriter(Writer):
    """The writer of one seed, in the folder that becomes its run directory: it says whose its lines are."""

    def __init__(self, workdir: Path, config: Config, index: int):
        folder = _folder(workdir, index)
        existing_folder(folder)  # which refuses a file in its place
        folder.mkdir(parents=True, exist_ok=True)
        own = replace(config, train=replace(config.train, seed=config.train.seed + index))
        super().__init__(folder, config.train.num_steps, own)
        self._seed, self._index = config.train.seed + index, index

    def line(self, text: str = "") -> None:
        """Prints `text`, and before it the seed, unless it belongs to the line above."""
        super().line(text if text.startswith(" ") else f"Seed {self._seed}: {text}")

    def progress(self, step: int, *, loss: float, target_tokens_per_second: float) -> None:
        """Moves the bar, which is the first seed's."""
        if not self._index:
            super().progress(step, loss=loss, target_tokens_per_second=target_tokens_per_second)


class _Seeds:
    """The runs of the seeds as one to `take_steps`."""

    def __init__(
        self,
        config: Config,
        material: Material,
        mesh: Mesh,
        groups: Mesh,
        writers: Sequence[Writer],
        progress: dict[str, Any],
    ):
        self._config, self._material, self._mesh, self._writers = config, material, mesh, writers
        kept = [LoopState(**values) for values in progress.get("seeds", [{}] * len(writers))]
        self._troubles: list[str] = progress.get("troubles", [""] * len(writers))
        quiet = replace(config, train=replace(config.train, num_samples=0))  # the samples are the first seed's
        validation = Validation(config, material, mesh)
        self._runs = [
            Run(quiet if index else config, mesh, writer, loop_state, validation)
            for index, (writer, loop_state) in enumerate(zip(writers, kept, strict=True))
        ]
        self._places = len(seeds_of_places(config, len(writers), groups))
        self._by_run = by_run(groups)
        self._settle = jax.jit(settle, donate_argnums=0, out_shardings=self._by_run)

    @property
    def train(self) -> TrainConfig:
        """How long, and what happens along the way."""
        return self._config.train

    @property
    def evaluated_step(self) -> int:
        """The last step at which every seed that still trains was validated."""
        active = [run.evaluated_step for run in self._runs if not run.stopped]
        return min(active) if active else max(run.evaluated_step for run in self._runs)

    @property
    def stopped(self) -> bool:
        """Whether every seed has ended."""
        return all(run.stopped for run in self._runs)

    @property
    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the arrays."""
        return {"seeds": [asdict(run.loop_state) for run in self._runs], "troubles": self._troubles}

    @property
    def seconds(self) -> float:
        """Wall time of training."""
        return max(run.loop_state.seconds for run in self._runs)

    def saved(self, state: SeedsState) -> dict[str, Any]:
        """The arrays that a checkpoint keeps, by their names there."""
        return saved(state, len(self._runs))

    def keep_rows(self, step: int) -> None:
        """Drops the rows that will be written again."""
        for writer, run in zip(self._writers, self._runs, strict=True):
            loop.keep_rows(writer, run.loop_state, step)

    def evaluate(self, state: SeedsState, step: int) -> SeedsState:
        """Validates every seed that is trained, unless that was done before a signal, and decides on each."""
        factors = np.array(state.runs.rate_factor)
        for index, run in enumerate(self._runs):
            if run.stopped or run.evaluated_step == step:
                continue
            try:
                factors[index] = run.evaluate(of_seed(state.runs, index, self._mesh), step).rate_factor
            except UserError as error:
                self._end(index, error)
        improved = self._of_places([run.loop_state.best_step == step for run in self._runs])
        return self._settle(state, factors, improved, self._active())

    def log(self, state: SeedsState, step: int, seconds: float) -> SeedsState:
        """Writes a row of every seed that is trained; returns the state with empty windows."""
        numbers = jax.device_get(state.runs._replace(params={}, optimizer_state=(), average=None))
        for index, run in enumerate(self._runs):
            if run.stopped:
                continue
            try:
                run.tell(jax.tree.map(lambda leaf, index=index: leaf[index], numbers), step, seconds)
            except UserError as error:
                self._end(index, error)
        zeros = jax.tree.map(lambda leaf: np.zeros(self._places, leaf.dtype), empty_window())
        window, active = jax.device_put((zeros, self._active()), self._by_run)
        return state._replace(runs=state.runs._replace(window=window), active=active)

    def _active(self) -> np.ndarray:
        return self._of_places([not run.stopped for run in self._runs])

    def _of_places(self, of_seeds: Sequence[bool]) -> np.ndarray:
        return np.pad(np.array(of_seeds), (0, self._places - len(of_seeds)))  # with False

    def _end(self, index: int, error: UserError) -> None:
        """A seed that has diverged ends, and the others go on."""
        self._troubles[index], self._runs[index].loop_state.stopped = str(error), True
        self._writers[index].line(str(error))

    def test(self, best: Any, workdir: Path):
        """Makes the run directory of each seed in turn, tests it there, and yields what came of it."""
        translator: Translator | None = None
        for index, run in enumerate(self._runs):
            seed = self._config.train.seed + index
            try:
                if self._troubles[index]:
                    raise UserError(self._troubles[index])
                run.check_best()
            except UserError as error:
                yield Outcome(seed, None, {}, str(error))
                continue
            params, best_step = of_seed(best, index, self._mesh), run.loop_state.best_step
            assert best_step is not None  # every run is validated at its end
            self._make_run(workdir, index, params, best_step)
            if translator is None:
                decode = self._config.decode
                translator = Translator(self._config, self._material.vocabularies, params, decode, self._mesh)
            translator.params, translator.step = params, best_step
            scores = loop.test(_folder(workdir, index), self._material, translator, lambda _: None)
            try:
                run.check_last(best_step)
            except UserError as error:
                yield Outcome(seed, best_step, scores, str(error), run.best_validation)
            else:
                yield Outcome(seed, best_step, scores, validation=run.best_validation)

    def _make_run(self, workdir: Path, index: int, params: Any, best_step: int) -> None:
        """Makes the folder of a seed a run directory, which is read like any other; last of all its config.json.

        What it was before, by a run whose own files have been removed since, goes first.
        """
        folder, shape_seed = _folder(workdir, index), self._material.batching.shape_seed
        train = replace(self._config.train, seed=self._config.train.seed + index, shape_seed=shape_seed)
        config = replace(self._config, train=train)
        belongs = origin(config, self._material.vocabularies, self._material.corpus.fingerprint)
        (folder / "config.json").unlink(missing_ok=True)
        for name in (run_directory.VOCABULARY, "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)
        with Checkpoints(folder, belongs) as checkpoints:
            checkpoints.save(best_step, {"params": params}, {"best_step": best_step, "reproduced": True})
        begin(config, self._material, folder)


def _folder(workdir: Path, index: int) -> Path:
    """The run directory of a seed, counted from 0."""
    return workdir / run_directory.SEEDS / str(index)
