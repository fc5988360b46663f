"""What a run needs before its first step: text as ids in batches, and every step compiled."""

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh
from jax.stages import Compiled, Traced
from jax.stages import Wrapped as JitWrapped

from seq2seq_jax import run_directory
from seq2seq_jax.cache import cache_dir
from seq2seq_jax.checkpoint import has_checkpoint
from seq2seq_jax.config import Config
from seq2seq_jax.data.batching import Batching, BatchShape
from seq2seq_jax.data.corpora import Corpus, load_corpus
from seq2seq_jax.data.encoded import EncodedSplit, encode_split
from seq2seq_jax.data.progress import progress_bar
from seq2seq_jax.data.vectors import Vectors, load_vectors
from seq2seq_jax.data.vocabulary import Vocabularies, build_vocabularies, load_vocabularies, save_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.sharding import by_rows, by_rows_of_runs
from seq2seq_jax.symbols import NUM_SPECIAL
from seq2seq_jax.training.fine_tuning import start_vocabularies
from seq2seq_jax.training.seeds import SeedsState, jit_seeds_step
from seq2seq_jax.training.step import TrainState, jit_train_step
from seq2seq_jax.translator import vocab_sizes


class Material(NamedTuple):
    """What a run trains on."""

    corpus: Corpus
    vocabularies: Vocabularies
    train: EncodedSplit
    validation: EncodedSplit
    batching: Batching
    vectors: dict[str, Vectors]
    """What tables of embeddings start from, by side; nothing where the run goes on from a checkpoint."""


def prepare(config: Config, num_devices: int, workdir: Path | None = None) -> Material:
    """Corpus, vocabularies (those of the run in `workdir`, once it has begun), vectors, ids and batches."""
    corpus = load_corpus(config.data)
    vocabularies = _vocabularies(config, corpus, workdir)
    _check_vocabulary_parts(config, vocab_sizes(vocabularies)[:2])
    resumed = workdir is not None and has_checkpoint(workdir)
    vectors = {} if resumed else load_vectors(config.model, vocabularies)
    train, validation = (
        encode_split(corpus.split(name), vocabularies, cache_dir(), f"{corpus.fingerprint}/{name}")
        for name in ("train", "validation")
    )
    if config.model.copy:
        _check_something_to_copy(train)
    return Material(corpus, vocabularies, train, validation, arrange_batches(config, train, num_devices), vectors)


def _check_vocabulary_parts(config: Config, sizes: Sequence[int]) -> None:
    parts = config.mesh.model
    for side, size in zip(("source", "target"), sizes, strict=True):
        if size % parts:
            common = math.gcd(*sizes)
            fitting = ", ".join(str(number) for number in range(1, 129) if common % number == 0)
            raise UserError(
                f"The {side} vocabulary has {size:,} entries, which do not make {parts} equal parts for mesh.model"
                f" {parts}; use one of {fitting}, or another data.vocab_size."
            )


def _check_something_to_copy(train: EncodedSplit) -> None:
    special = np.arange(NUM_SPECIAL)
    for pair in range(len(train)):
        if len(np.setdiff1d(np.intersect1d(train.source(pair), train.target(pair)), special)):
            return
    raise UserError(
        "model.copy True: no target of the training split has a token of its source, so there is nothing to copy; set"
        " model.copy False."
    )


def arrange_batches(config: Config, train: EncodedSplit, num_devices: int) -> Batching:
    """Which pairs make up which batch."""
    return Batching(
        train.source_lengths,
        train.target_lengths,
        max_length=config.data.max_length,
        num_shapes=config.data.num_shapes,
        batch_size=config.data.batch_size,
        batch_tokens=config.data.batch_tokens,
        batch_multiple=num_devices * config.train.accumulate_steps,
        seed=config.train.seed,
        shape_seed=config.train.shape_seed,
    )


def begin(config: Config, material: Material, workdir: Path) -> None:
    """Makes `workdir` the directory of a run on `material`, if it is not already: from here on it is resumed."""
    if not run_directory.is_claimed(workdir):
        save_vocabularies(material.vocabularies, workdir / run_directory.VOCABULARY)
    if run_directory.read_fingerprint(workdir) != material.corpus.fingerprint:
        run_directory.write_fingerprint(workdir, material.corpus.fingerprint)
    claimed = run_directory.is_claimed(workdir) and run_directory.is_sealed(workdir)
    if not claimed or run_directory.read_config(workdir) != config:  # the text has moved, or what may change has
        run_directory.claim(workdir, config)


def _vocabularies(config: Config, corpus: Corpus, workdir: Path | None) -> Vocabularies:
    """The run's vocabularies, or new ones; a run whose corpus has changed since is refused."""
    if workdir is None or not run_directory.is_claimed(workdir):
        if config.train.init_from is not None:
            return start_vocabularies(config, corpus.split("train"))
        return replace(build_vocabularies(config.data, corpus.split("train")), copy=config.model.copy)
    run_directory.check_text(workdir, config, corpus.name, corpus.fingerprint, "choose another --workdir.")
    return load_vocabularies(workdir / run_directory.VOCABULARY, copy=config.model.copy)


class CompiledStep(NamedTuple):
    """The train step for the batches of one shape."""

    shape: BatchShape
    update: Compiled
    """A `TrainStep`."""
    jaxpr: ClosedJaxpr
    """What it was compiled from."""
    seconds: float
    """That its compilation took, beside others; little where a cache had it."""


def make_step(config: Config, vocab_sizes: tuple[int, ...], mesh: Mesh, num_seeds: int | None) -> JitWrapped:
    """The train step, of one run or of as many seeds."""
    if num_seeds is None:
        return jit_train_step(config, vocab_sizes, mesh)
    return jit_seeds_step(config, vocab_sizes, mesh, num_seeds)


def compile_step(
    step: JitWrapped,
    abstract: TrainState | SeedsState,
    shape: BatchShape,
    mesh: Mesh,
    options: dict[str, int] | None = None,
) -> CompiledStep:
    """Compiles the train step for the batches of one shape, none of which is needed for it.

    `options` are those of the compiler that the step has not of its own.
    """
    start = time.perf_counter()
    traced = trace_step(step, abstract, shape, mesh)
    update = traced.lower().compile(options)
    return CompiledStep(shape, update, traced.jaxpr, time.perf_counter() - start)


def trace_step(step: JitWrapped, abstract: TrainState | SeedsState, shape: BatchShape, mesh: Mesh) -> Traced:
    """The train step as JAX sees it for the batches of one shape."""
    places = len(abstract.active) if isinstance(abstract, SeedsState) else None
    source, target = (abstract_sequences(shape.batch, n, mesh, places) for n in (shape.source, shape.target))
    return step.trace(abstract, source, target)


def abstract_sequences(batch: int, width: int, mesh: Mesh, places: int | None = None) -> Padded:
    """Shape of one side of a batch, or of those of as many seeds, stacked; spread over devices."""
    stacked, sharding = ((), by_rows(mesh)) if places is None else ((places,), by_rows_of_runs(mesh))
    array = partial(jax.ShapeDtypeStruct, dtype=np.int32, sharding=sharding)
    return Padded(array((*stacked, batch, width)), array((*stacked, batch)))


def compile_steps(
    config: Config,
    material: Material,
    mesh: Mesh,
    abstract: TrainState | SeedsState,
    say: Callable[[str], None],
    num_seeds: int | None = None,
) -> list[CompiledStep]:
    """The train step compiled for every batch shape, side by side: nothing compiles after step 1."""
    start, shapes = time.perf_counter(), material.batching.shapes
    step = make_step(config, vocab_sizes(material.vocabularies), mesh, num_seeds)
    compiled: list[CompiledStep] = []
    # No more at once than cores: they would only take each other's time.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with progress_bar() as progress:
            for future in [pool.submit(compile_step, step, abstract, shape, mesh) for shape in shapes]:
                compiled.append(future.result())
                progress("compiling", len(compiled), len(shapes))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for those under way
    plural = "shape" if len(compiled) == 1 else "shapes"
    say(f"Compiled {len(compiled)} batch {plural} in {time.perf_counter() - start:.1f} s.")
    return compiled
