"""The lines a run prints about itself."""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from seq2seq_jax import processes
from seq2seq_jax.config import FURTHER_SCORES, OBJECTIVES_OF, Config, DecodeConfig, ObjectiveConfig
from seq2seq_jax.console import harmless
from seq2seq_jax.evaluation import remarks
from seq2seq_jax.training.setup import Material
from seq2seq_jax.wording import counted, duration, part_of

SAMPLE_CHARACTERS = 140
HEADLINES = (
    "loss",
    "perplexity",
    "bleu",
    "bleu_lowercase",
    "bleu_moses_lowercase",
    "chrf",
    "exact_match",
    "exact_match_raw",
    "token_accuracy",
    *itertools.chain.from_iterable(FURTHER_SCORES.values()),
    "cut_outputs",
)
REMARK_SENTENCES = 1_000  # validation references that are read for what is to be said of them


def describe(config: Config, material: Material, params: Any, mesh: Mesh) -> Iterator[str]:
    """Corpus, vocabulary, batches, model, devices; and what the validation split makes one expect of its scores."""
    corpus, batching = material.corpus, material.batching
    *others, (name, split) = corpus.splits.items()
    sizes = [*(f"{name} {len(split):,}" for name, split in others), f"{name} {counted(len(split), 'pair')}"]
    yield f"Corpus      {corpus.name}, {corpus.source} to {corpus.target}: {', '.join(sizes)}"
    yield from (f"            {note}" for note in corpus.notes)
    if config.data.group_references:
        sources = {*corpus.split("validation").read(0, len(material.validation))[0]}
        yield f"            validation: {counted(len(sources), 'source')}, each with all of its targets as references"
    source, target = material.vocabularies.source, material.vocabularies.target
    joint = f"{source.size:,} joint" if source is target else f"{source.size:,} source, {target.size:,} target"
    kinds = dict.fromkeys([config.data.vocabulary, config.data.target_vocabulary or config.data.vocabulary])
    yield f"Vocabulary  {' to '.join(kinds)}, {joint} entries"
    for index, (side, found) in enumerate(material.vectors.items()):
        file, size = getattr(config.model, f"{side}_vectors"), getattr(material.vocabularies, side).size
        yield f"{'' if index else 'Vectors':<12}{file}: {len(found.ids):,} of {size:,} {side} entries"
    shapes = " ".join(f"{shape.batch}x{shape.source}x{shape.target}" for shape in batching.shapes)
    count = counted(len(batching.shapes), "shape")
    yield f"Batches     {batching.num_batches:,} an epoch in {count} ({shapes}), {batching.padded_share:.1%} padding"
    if batching.num_too_long:
        pairs, limit = counted(batching.num_too_long, "training pair"), config.data.max_length
        yield f"            {pairs} longer than data.max_length {limit} left out"
    if num_shortened := len(material.train.sources.with_turns_left_out()):
        some = part_of(num_shortened, len(material.train), "training source")
        yield f"            {some} read without the oldest turns, to fit data.max_length {config.data.max_length}"
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    model = config.model
    yield f"Model       {model.cell} {model.hidden_size}, {model.attention} attention: {count:,} parameters"
    device = mesh.devices.flat[0]
    several = f" of {processes.count()} processes" if processes.count() > 1 else ""
    yield f"Devices     {mesh.size} {device.platform} ({device.device_kind}){several}, {model.compute_dtype}"
    objective = config.objective
    if objective != ObjectiveConfig():
        belong = [name for name, objectives in OBJECTIVES_OF.items() if objective.name in objectives]
        values = [f"{name} {value}" for name in belong if (value := getattr(objective, name))]
        yield f"Objective   {', '.join([objective.name, *values])}"
    references = corpus.split("validation").read(0, min(REMARK_SENTENCES, len(material.validation)))[1]
    said = remarks(config, config.decode, material.validation, references, "validation ")
    yield from (f"{'' if index else 'Scores':<12}{remark}" for index, remark in enumerate(said))


def validation(
    step: int, scores: dict[str, float], samples: list[tuple[str, list[str], str]], seconds: float
) -> Iterator[str]:
    """One line of scores, and the samples: source, references, output."""
    numbers = "  ".join(f"{name} {scores[name]:.4g}" for name in shown(scores))
    yield f"Step {step:,} after {duration(seconds)}: validation {numbers}"
    for source, references, hypothesis in samples:
        yield f"    source     {_shortened(source)}"
        yield from (f"    reference  {_shortened(reference)}" for reference in references)
        yield f"    output     {_shortened(hypothesis)}"


def asked_to_stop(step: int) -> str:
    """What a signal left behind."""
    if not step:
        return "Asked to stop before the first step. The same command begins again."
    return f"Asked to stop: saved at step {step:,}. The same command resumes."


def ending(status: str, step: int, seconds: float) -> str:
    """How training ended."""
    return f"{'Trained' if status == 'done' else 'Stopped early after'} {counted(step, 'step')} in {duration(seconds)}."


def test(name: str, scores: dict[str, Any], decode: DecodeConfig) -> Iterator[str]:
    """Scores of a test split, and what is to be said of them."""
    rate = f"{scores['sentences_per_second']:,.0f} sentences/s"
    yield f"Split {name}, {amount(scores)}, {decode.search}, {rate}:"
    for metric in shown(scores):
        signature = scores.get(f"{metric}_signature", "")
        yield f"    {metric:<20} {number(scores[metric]):>9}  {signature}".rstrip()
    yield from (f"    {remark}" for remark in scores.get("remarks", ()))


def amount(scores: Mapping[str, Any]) -> str:
    """How many sentences were decoded and scored; with data.group_references, of how many pairs."""
    if "pairs" not in scores:
        return counted(scores["sentences"], "sentence")
    return f"{counted(scores['sentences'], 'source')} of {counted(scores['pairs'], 'pair')}"


def farewell(config: Config, workdir: Path) -> Iterator[str]:
    """The published result, and where to look next."""
    if config.published:
        yield f"Published   {config.published}"
    yield f"Outputs     {workdir}/evaluations, curves in {workdir}/metrics.jsonl"
    yield f"Use it      python -m seq2seq_jax translate --workdir {shlex.quote(str(workdir))}"


def farewell_of_seeds(config: Config, sentence: str, workdir: Path, tested: Sequence[int]) -> Iterator[str]:
    """The published result, the verdict, and where to look next; `tested` are the places of the seeds that were."""
    if config.published:
        yield f"Published   {config.published}"
    if sentence:
        yield f"Verdict     {sentence}"
    yield f"Outputs     {workdir}/reproduction.md and .json, a run directory a seed in {workdir}/seeds"
    one, everything = (shlex.quote(str(path)) for path in (workdir / "seeds" / str(tested[0]), workdir))
    yield f"Use one     python -m seq2seq_jax translate --workdir {one}"
    if len(tested) > 1:
        yield f"Use all     python -m seq2seq_jax evaluate --workdir {everything}"


def shown(scores: Mapping[str, Any]) -> list[str]:
    """Names of the scores that are printed; a count of nothing is not."""
    return [name for name in HEADLINES if name in scores and (name != "cut_outputs" or scores[name])]


def number(value: float) -> str:
    """Four places after the point, or as few digits as say how large it is."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _shortened(text: str) -> str:
    text = harmless(text)
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[: SAMPLE_CHARACTERS - 1]}…"
