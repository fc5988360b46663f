"""What a run needs before its first step: text as ids in a plan of batches, and every step compiled."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from seq2seq_jax import run_directory
from seq2seq_jax.cache import cache_dir, write_whole
from seq2seq_jax.config import Config
from seq2seq_jax.data.batching import BatchPlan, BatchShape
from seq2seq_jax.data.corpora import Corpus, load_corpus
from seq2seq_jax.data.encoded import EncodedSplit, encode_split
from seq2seq_jax.data.progress import progress_bar
from seq2seq_jax.data.vocabulary import Vocabularies, build_vocabularies, load_vocabularies, save_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.training.sharding import by_rows
from seq2seq_jax.training.step import TrainState, TrainStep, jit_train_step
from seq2seq_jax.translator import vocab_sizes


class Material(NamedTuple):
    """What a run trains on."""

    corpus: Corpus
    vocabularies: Vocabularies
    train: EncodedSplit
    validation: EncodedSplit
    plan: BatchPlan


def prepare(config: Config, workdir: Path, num_devices: int) -> Material:
    """Corpus, vocabularies (the run's own, once it has them), ids and batching plan."""
    corpus = load_corpus(config.data)
    vocabularies = _vocabularies(config, workdir, corpus)
    train, validation = (
        encode_split(corpus.split(name), vocabularies, cache_dir(), f"{corpus.fingerprint}/{name}")
        for name in ("train", "validation")
    )
    plan = BatchPlan(
        train.source_lengths,
        train.target_lengths,
        max_length=config.data.max_length,
        num_shapes=config.data.num_shapes,
        batch_size=config.data.batch_size,
        batch_tokens=config.data.batch_tokens,
        batch_multiple=num_devices * config.train.accumulate_steps,
        seed=config.train.seed,
    )
    return Material(corpus, vocabularies, train, validation, plan)


def _vocabularies(config: Config, workdir: Path, corpus: Corpus) -> Vocabularies:
    """The run's vocabularies; a run whose corpus has changed since is refused."""
    directory, note = workdir / "vocabulary", workdir / "vocabulary" / "corpus.txt"
    if run_directory.is_claimed(workdir) and note.exists():
        if note.read_text().strip() != corpus.fingerprint:
            raise UserError(
                f"The text of {corpus.name} is no longer the one that {workdir} was trained on;"
                " choose another --workdir."
            )
        return load_vocabularies(directory)
    vocabularies = build_vocabularies(config.data, corpus.split("train"))
    save_vocabularies(vocabularies, directory)
    write_whole(note, f"{corpus.fingerprint}\n")
    return vocabularies


def compile_steps(
    config: Config,
    material: Material,
    mesh: Mesh,
    abstract: TrainState,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> dict[tuple[int, int], TrainStep]:
    """The train step compiled for every shape of the plan, side by side: nothing compiles after step 1.

    Returns fewer of them where `stop` says so in between.
    """
    start = time.perf_counter()
    step, sharding = jit_train_step(config, vocab_sizes(material.vocabularies), mesh), by_rows(mesh)

    def compile_one(shape: BatchShape) -> TrainStep:
        batch = (
            jax.ShapeDtypeStruct((shape.batch, length), np.int32, sharding=sharding)
            for length in (shape.source, shape.target)
        )
        return step.lower(abstract, *batch).compile()

    shapes = material.plan.shapes
    compiled: dict[tuple[int, int], TrainStep] = {}
    with ThreadPoolExecutor() as pool, progress_bar() as progress:
        for shape, future in [(shape, pool.submit(compile_one, shape)) for shape in shapes]:
            if stop():
                pool.shutdown(wait=False, cancel_futures=True)
                break
            compiled[shape.source, shape.target] = future.result()
            progress("compiling", len(compiled), len(shapes))
    plural = "shape" if len(compiled) == 1 else "shapes"
    say(f"Compiled {len(compiled)} batch {plural} in {time.perf_counter() - start:.1f} s.")
    return compiled
