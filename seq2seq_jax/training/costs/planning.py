"""What a run will cost, before it costs it: `plan`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from seq2seq_jax.build import model_graph
from seq2seq_jax.config import Config
from seq2seq_jax.data.batching import BatchShape
from seq2seq_jax.data.pipeline import Batch, padded_batch
from seq2seq_jax.data.progress import progress_bar
from seq2seq_jax.metrics import check_packages
from seq2seq_jax.padded import Padded
from seq2seq_jax.recurrence import Plan
from seq2seq_jax.seq2seq import Seq2Seq
from seq2seq_jax.sharding import grouped, make_mesh, num_shares
from seq2seq_jax.training import report
from seq2seq_jax.training.costs.available import available_bytes
from seq2seq_jax.training.costs.collectives import collectives
from seq2seq_jax.training.costs.counts import Size, footprint, loop_rounds, parameters_by_part, products, size
from seq2seq_jax.training.costs.fits import check_fits, check_state_fits
from seq2seq_jax.training.costs.summary import Costs, Meetings, ShapeCosts, cost_lines, parameter_lines, step_lines
from seq2seq_jax.training.costs.targets import Target, compile_for, estimated_seconds
from seq2seq_jax.training.seeds import SeedsState, abstract_seeds, initial_seeds, seeds_of_places
from seq2seq_jax.training.setup import CompiledStep, Material, compile_steps, make_step, prepare, trace_step
from seq2seq_jax.training.step import TrainState, abstract_state, initial_state
from seq2seq_jax.translator import vocab_sizes

_PROBE_BATCHES = 3  # of each shape, different ones
_PROBE_SECONDS = 0.5  # at least, on each shape


def plan(
    config: Config, say: Callable[[str], None], num_seeds: int | None = None, target: Target | None = None
) -> Costs:
    """Says what training `config` will cost, by compiling its steps and doing a few of them; writes no run directory.

    With `num_seeds` it is what `reproduce` will cost: a step is one of each seed.
    With a `target` it is what it will cost there: the step that needs most is
    compiled for it, none is done, and its time is an estimate.

    What is prepared on the way (corpus, ids, compiled programs) stays in the
    caches, and the run starts the sooner for it.

    Raises:
      UserError: whatever would stop the run before its first step, too little memory included.
    """
    check_packages(config)
    mesh = make_mesh(config.mesh, target and target.devices)
    groups = mesh if num_seeds is None else grouped(mesh, num_seeds)
    material = prepare(config, num_shares(groups))
    sizes = vocab_sizes(material.vocabularies)
    alone = abstract_state(config, sizes, mesh)
    abstract = alone if num_seeds is None else abstract_seeds(config, sizes, groups, num_seeds)
    parts, state_size = parameters_by_part(alone.params), size(abstract)
    largest = material.batching.shapes[-1]
    step = _decoder_plan(config, sizes, alone.params, replace(largest, batch=largest.batch // num_shares(groups)))
    described = report.describe(config, material, alone.params, mesh)
    for line in (*described, *parameter_lines(parts, state_size), *step_lines(step)):
        say(line)
    if target is not None:
        costs = _on_target(config, say, target, material, groups, abstract, parts, num_seeds)
        for line in cost_lines(costs):
            say(line)
        return costs
    check_state_fits(groups, abstract, num_seeds)
    compiled = compile_steps(config, material, groups, abstract, say, num_seeds)
    available = available_bytes(mesh.devices.flat)
    check_fits(config, material, groups, abstract, compiled, num_seeds)
    if num_seeds is None:
        places, state = None, initial_state(config, sizes, mesh)
    else:
        places = len(seeds_of_places(config, num_seeds, groups))
        state = initial_seeds(config, sizes, groups, num_seeds)
    shapes = []
    for step, share in zip(compiled, _epoch(material), strict=True):
        batches = share.batches(material)
        if places is not None:  # the same for every seed: the shape is what costs
            batches = [jax.tree.map(lambda rows: np.stack([rows] * places), batch) for batch in batches]
        state, seconds = _probe(step, state, batches)
        shapes.append(
            ShapeCosts(
                step.shape,
                share.num_batches,
                share.source_tokens,
                share.target_tokens,
                products(step.jaxpr),
                footprint(step.update),
                step.seconds,
                seconds,
            )
        )
    costs = Costs(parts, state_size, tuple(shapes), available, config.train.num_steps, num_seeds or 1)
    for line in cost_lines(costs):
        say(line)
    return costs


def _on_target(
    config: Config,
    say: Callable[[str], None],
    target: Target,
    material: Material,
    mesh: Mesh,
    abstract: TrainState | SeedsState,
    parts: dict[str, Size],
    num_seeds: int | None,
) -> Costs:
    """Costs on devices that are not here."""
    check_state_fits(mesh, abstract, num_seeds, target)
    step = make_step(config, vocab_sizes(material.vocabularies), mesh, num_seeds)
    needed = {shape: products(trace_step(step, abstract, shape, mesh).jaxpr) for shape in material.batching.shapes}
    dearest = max(needed, key=lambda shape: needed[shape].bytes)  # bytes of products grow as what they leave behind
    with progress_bar() as progress:
        progress(f"compiling for {target.name}", 0, 1)
        compiled = compile_for(target, step, abstract, dearest, mesh)
    say(f"Compiled the step that needs most for {target.name} in {compiled.seconds:.1f} s.")
    check_fits(config, material, mesh, abstract, [compiled], num_seeds, target)
    found = collectives(compiled.update)
    shapes = tuple(
        ShapeCosts(
            share.shape,
            share.num_batches,
            share.source_tokens,
            share.target_tokens,
            needed[share.shape],
            footprint(compiled.update) if share.shape == dearest else None,
            compiled.seconds if share.shape == dearest else None,
            estimated_seconds(needed[share.shape], found, target, config.model.compute_dtype),
        )
        for share in _epoch(material)
    )
    memory, steps = target.chip.memory, config.train.num_steps
    return Costs(
        parts,
        size(abstract),
        shapes,
        memory,
        steps,
        num_seeds or 1,
        Meetings(found, loop_rounds(compiled.jaxpr)),
    )


def _decoder_plan(config: Config, sizes: tuple[int, ...], params: Any, shape: BatchShape) -> Plan:
    """What of a decoder's step runs where, on one device."""
    found: list[Plan] = []

    def look(params: Any, source: Padded, target: Padded) -> None:
        model: Seq2Seq = nnx.merge(model_graph(config.model, sizes), params)
        found.append(model.plan(source, target))

    ids = partial(jax.ShapeDtypeStruct, dtype=np.int32)
    batch = (Padded(ids((shape.batch, width)), ids((shape.batch,))) for width in (shape.source, shape.target))
    jax.eval_shape(look, params, *batch)
    return found[0]


class _Share(NamedTuple):
    """What one shape has of an epoch."""

    shape: BatchShape
    num_batches: int
    source_tokens: int
    target_tokens: int
    samples: list[Int[np.ndarray, " n"]]
    """Examples of its first batches."""

    def batches(self, material: Material) -> list[Batch]:
        return [padded_batch(material.train, self.shape, examples) for examples in self.samples]


def _epoch(material: Material) -> list[_Share]:
    """Each shape's share of the first epoch. In others a few examples go to batches of another shape."""
    train, batching = material.train, material.batching
    batches = [batching.batch(step) for step in range(batching.num_batches)]
    shares = []
    for shape in batching.shapes:
        own = [examples for other, examples in batches if other == shape]
        examples = np.concatenate([np.zeros(0, np.int64), *own])
        source, target = (
            int(lengths[examples].sum(dtype=np.int64)) for lengths in (train.source_lengths, train.target_lengths)
        )
        shares.append(_Share(shape, len(own), source, target, own[:_PROBE_BATCHES]))
    return shares


def _probe(
    step: CompiledStep, state: TrainState | SeedsState, batches: Sequence[Batch]
) -> tuple[TrainState | SeedsState, float]:
    """Trains on some batches of one shape for a moment; the state afterwards and the seconds of an update."""
    if not batches:
        return state, 0.0
    state = jax.block_until_ready(step.update(state, *batches[0]))  # the first one also finds its memory
    start, num_updates = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < _PROBE_SECONDS:
        for batch in batches:
            state = step.update(state, *batch)
        jax.block_until_ready(state)
        num_updates += len(batches)
    return state, seconds / num_updates
