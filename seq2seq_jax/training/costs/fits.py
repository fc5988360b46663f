"""Whether a run fits: what its steps need, what there is, and which batch would fit if this one does not."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from jax.sharding import Mesh

from seq2seq_jax.config import Config
from seq2seq_jax.cpu import PEAK_FACTOR, keep_freed_memory
from seq2seq_jax.data.batching import BatchShape
from seq2seq_jax.data.progress import ProgressCallback, progress_bar
from seq2seq_jax.errors import UserError
from seq2seq_jax.sharding import num_shares
from seq2seq_jax.training.costs.available import available_bytes
from seq2seq_jax.training.costs.counts import Footprint, footprint, size_on_a_device
from seq2seq_jax.training.costs.targets import Target
from seq2seq_jax.training.seeds import SeedsState
from seq2seq_jax.training.setup import CompiledStep, Material, arrange_batches, compile_step, make_step
from seq2seq_jax.training.step import TrainState
from seq2seq_jax.translator import vocab_sizes
from seq2seq_jax.wording import megabytes

_MAX_TRIES = 8  # batch sizes looked at, each of which may take a compilation


def check_fits(
    config: Config,
    material: Material,
    mesh: Mesh,
    abstract: TrainState | SeedsState,
    compiled: Sequence[CompiledStep],
    num_seeds: int | None = None,
    target: Target | None = None,
) -> None:
    """Refuses a run whose dearest step needs more memory than a device has; to be asked before there is a state.

    A step is that of one run, or of `num_seeds` at once. With a `target` it is
    one on devices that are not here, and `compiled` has the dearest alone.

    Where a step on a CPU fits together with what `keep_freed_memory` may cost,
    freed memory is kept from now on.

    Nothing is refused where the compiler or the device does not tell its numbers,
    or where compilation was broken off.

    Raises:
      UserError: what is needed, what there is, and the largest batch that fits.
    """
    available = _available(mesh, target)
    needs = {step.shape: need for step in compiled if (need := footprint(step.update))}
    if available is None or len(needs) < (1 if target else len(material.batching.shapes)):
        return
    worst = max(needs, key=lambda shape: needs[shape].total)
    if needs[worst].total <= available:
        if mesh.devices.flat[0].platform == "cpu" and PEAK_FACTOR * needs[worst].total <= available:
            keep_freed_memory()
        return
    each = "" if mesh.size == 1 else " on each device"
    if needs[worst].fixed > available:
        raise _state_too_large(needs[worst].fixed, available, each, num_seeds)
    with progress_bar() as progress:
        trial = _Trial(config, material, mesh, abstract, needs, progress, num_seeds, target)
        fit = largest_that_fits(trial.need, available, trial.units, needs[worst].total)
    seeds = "" if num_seeds is None else f" for each of {num_seeds} seeds"
    fewer = "" if num_seeds is None else " Or train fewer: a smaller --num-seeds."
    raise UserError(
        f"A training step of {worst.batch} sentences{seeds}, {worst.source} source and {worst.target} target positions"
        f" needs {megabytes(needs[worst].total)} MB{each}, and {megabytes(available)} MB are available."
        f" {trial.advice(fit)}{fewer}"
    )


def check_state_fits(
    mesh: Mesh, abstract: TrainState | SeedsState, num_seeds: int | None = None, target: Target | None = None
) -> None:
    """Refuses a model that no device can hold even without a batch; to be asked before anything is compiled.

    Raises:
      UserError: what is needed, and what there is.
    """
    available, needed = _available(mesh, target), size_on_a_device(abstract).bytes
    if available is not None and needed > available:
        raise _state_too_large(needed, available, "" if mesh.size == 1 else " on each device", num_seeds)


def _available(mesh: Mesh, target: Target | None) -> int | None:
    """Bytes of each device, by what its maker says of one that is not here."""
    return target.chip.memory if target else available_bytes(mesh.devices.flat)


def _state_too_large(needed: int, available: int, each: str, num_seeds: int | None) -> UserError:
    seeds, fewer = ("", "") if num_seeds is None else (f" for {num_seeds} seeds", ", or a smaller --num-seeds")
    return UserError(
        f"Parameters and what the optimizer keeps of them need {megabytes(needed)} MB{each}{seeds}, and"
        f" {megabytes(available)} MB are available, before any batch. Choose a smaller model or vocabulary{fewer}."
    )


class Fit(NamedTuple):
    """A number of units that fits, what it needs, and a larger one that does not fit."""

    units: int
    need: int
    too_many: int


def largest_that_fits(need: Callable[[int], int], available: int, units: int, need_of_units: int) -> Fit | None:
    """Looks for the largest number whose need is available, between 1 and `units`, whose need is not.

    Needs are taken for rising and nearly a straight line, so that few are asked
    for: two where they are one.

    Returns:
      The largest number if it was found within the tries (then `too_many` is the
      next one), else one that fits; None if not even 1 fits.
    """
    if units == 1 or (least := need(1)) > available:
        return None
    fit, excess = Fit(1, least, units), need_of_units
    for _ in range(_MAX_TRIES - 1):
        if fit.too_many == fit.units + 1:
            break
        reach = (available - fit.need) * (fit.too_many - fit.units) // (excess - fit.need)
        guess = min(max(fit.units + reach, fit.units + 1), fit.too_many - 1)
        found = need(guess)
        if found <= available:
            fit = Fit(guess, found, fit.too_many)
        else:
            fit, excess = fit._replace(too_many=guess), found
    return fit


class _Trial:
    """Smaller batches than the configured ones, counted in the smallest units that devices can share evenly."""

    def __init__(
        self,
        config: Config,
        material: Material,
        mesh: Mesh,
        abstract: TrainState | SeedsState,
        needs: dict[BatchShape, Footprint],
        progress: ProgressCallback,
        num_seeds: int | None,
        target: Target | None,
    ) -> None:
        self._config, self._material, self._mesh = config, material, mesh
        self._needs, self._progress = needs, progress
        step = make_step(config, vocab_sizes(material.vocabularies), mesh, num_seeds)
        options = target and target.compiler_options
        self._compile = functools.cache(
            lambda shape: footprint(compile_step(step, abstract, shape, mesh, options).update)
        )
        self.field = "batch_size" if config.data.batch_size is not None else "batch_tokens"
        self._given: int = getattr(config.data, self.field)
        self._unit = num_shares(mesh) * config.train.accumulate_steps
        if self.field == "batch_tokens":
            self._unit *= material.batching.shapes[-1].target
        self.units = -(-self._given // self._unit)

    def need(self, units: int) -> int:
        """Bytes that a step on the dearest shape of such batches needs, from its compilation."""
        data = replace(self._config.data, **{self.field: units * self._unit})
        batching = arrange_batches(replace(self._config, data=data), self._material.train, num_shares(self._mesh))
        self._progress("compiling smaller batches", self._compile.cache_info().misses, None)
        found = self._compile(max(batching.shapes, key=self._temporary))
        assert found is not None
        return found.total

    def advice(self, fit: Fit | None) -> str:
        """What to do."""
        train, data = self._config.train, f"data.{self.field}"
        others = f"train.accumulate_steps (now {train.accumulate_steps}) cuts a batch into parts, one after another"
        others += f"; train.rematerialize_every (now {train.rematerialize_every}) keeps less of long sequences."
        if fit is None:
            return f"No {data} fits: choose a smaller model or data.max_length. Or: {others}"
        too_many = min(fit.too_many * self._unit, self._given)
        fits = f"{data} {fit.units * self._unit} fits ({megabytes(fit.need)} MB), {too_many} does not."
        return f"{fits} Or keep it: {others}"

    def _temporary(self, shape: BatchShape) -> float:
        """Temporary bytes of a shape, by those of a row of the compiled shapes that hold it."""
        return shape.batch * min(
            need.temporary / known.batch for known, need in self._needs.items() if known.holds(shape)
        )
