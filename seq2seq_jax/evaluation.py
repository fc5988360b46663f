"""A split decoded and scored."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from seq2seq_jax import processes
from seq2seq_jax.cache import write_whole
from seq2seq_jax.config import Config, DecodeConfig
from seq2seq_jax.data.encoded import EncodedSplit, Rows, encode_lines
from seq2seq_jax.data.progress import ProgressCallback, progress_bar, silent
from seq2seq_jax.data.vocabulary import Vocabularies
from seq2seq_jax.metrics import (
    Score,
    advice_on_rouge,
    advice_on_tokenizer,
    score_comet,
    score_further,
    score_hypotheses,
    score_moses_lowercase,
)
from seq2seq_jax.translator import Hypothesis, Translator, output_limits
from seq2seq_jax.wording import part_of


def teacher_forced(translator: Translator, encoded: EncodedSplit) -> dict[str, float]:
    """Loss (nats per real target token, end marks included), perplexity and token accuracy (percent)."""
    scores = translator.token_scores(encoded)
    tokens = scores.tokens.sum()
    loss = float(scores.loss.sum() / tokens)
    return {
        "loss": loss,
        "perplexity": _perplexity(loss),
        "token_accuracy": 100 * float(scores.correct.sum() / tokens),
    }


_ALWAYS_TOLD = ("beam_size", "length_penalty", "max_length_ratio", "batch_size")  # others where they are no default


class Items(NamedTuple):
    """What is decoded of pairs, and what that is compared with.

    An item is a pair; with `data.group_references` it is a source, tags
    included, with the targets of all pairs that have it. Items are in the order
    in which their sources first appear.

    Attributes:
      sources: a line for each item.
      ids: of these lines.
      references: the targets of each.
      restored: each reference as the vocabulary gives it back; None where it has an unknown symbol.
    """

    sources: list[str]
    ids: Rows
    references: list[list[str]]
    restored: list[list[str | None]]


def make_items(
    config: Config,
    vocabularies: Vocabularies,
    encoded: EncodedSplit,
    sources: Sequence[str],
    targets: Sequence[str],
    most: int | None = None,
) -> Items:
    """The items of encoded pairs and their lines; no more than `most`, the first."""
    found: dict[str | int, list[int]] = {}
    for index, source in enumerate(sources):
        found.setdefault(source if config.data.group_references else index, []).append(index)
    groups = list(found.values())[:most]
    chosen = [index for group in groups for index in group]
    restored = dict(zip(chosen, _restored(vocabularies, encoded.targets, sources, chosen), strict=True))
    firsts = [group[0] for group in groups]
    return Items(
        sources=[sources[index] for index in firsts],
        ids=encoded.sources.take(firsts),
        references=[[targets[index] for index in group] for group in groups],
        restored=[[restored[index] for index in group] for group in groups],
    )


def output_scores(translator: Translator, outputs: Sequence[Hypothesis], items: Items) -> dict[str, Any]:
    """Scores what `translator` wrote.

    Args:
      translator: its configuration says which scores, and how text is compared.
      outputs: its best hypothesis for each item.
      items: what it read, and what that is compared with.

    Returns:
      Scores by name, `NAME_signature` beside those of which there is more to
      say, and `cut_outputs`: how many outputs end only because they may be no longer.
    """
    config, hypotheses = translator.config, [output.text for output in outputs]
    lowercase = config.data.lowercase
    results = score_hypotheses(
        hypotheses, items.references, items.restored, tokenizer=config.tokenizer, lowercase=lowercase
    )
    if config.moses_language:
        results |= score_moses_lowercase(hypotheses, items.references, config.moses_language)
    for metric in config.metrics:
        results |= score_further(metric, hypotheses, items.references, lowercase=lowercase)
    scores = _told(results)
    if "token_errors" in config.metrics:
        scores["sequence_error_rate"] = 100 - scores["exact_match"]
    return scores | {"cut_outputs": sum(output.cut for output in outputs)}


def _told(results: Mapping[str, Score]) -> dict[str, Any]:
    """Values by name, and `NAME_signature` beside those of which there is more to say."""
    scores: dict[str, Any] = {}
    for name, score in results.items():
        scores[name] = score.value
        if score.signature:
            scores[f"{name}_signature"] = score.signature
    return scores


def evaluate_lines(
    translator: Translator,
    sources: Sequence[str],
    targets: Sequence[str],
    progress: ProgressCallback = silent,
    comet: Path | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Decodes `sources`, scores the result against `targets`, by the COMET model of a file too.

    Returns:
      The scores of `teacher_forced`, over all pairs, and of `output_scores`, over
      items, the numbers of both, what `remarks` says of them and the search
      settings; and the hypothesis for each item.
    """
    config = translator.config
    encoded = encode_lines(translator.vocabularies, sources, targets)
    items = make_items(config, translator.vocabularies, encoded, sources, targets)
    scores: dict[str, Any] = dict(teacher_forced(translator, encoded))
    start = time.perf_counter()
    outputs = translator.translate_ids(items.ids, items.sources, progress=progress)
    seconds = time.perf_counter() - start
    scores |= output_scores(translator, outputs, items)
    if comet is not None:
        scores |= _told(score_comet(comet, items.sources, [output.text for output in outputs], items.references))
    scores |= {"sentences": len(outputs), "sentences_per_second": len(outputs) / seconds}
    scores |= {"pairs": len(sources)} if config.data.group_references else {}
    scores |= {"step": translator.step} if translator.step is not None else {}
    scores["remarks"] = list(remarks(config, translator.decode, encoded, targets))
    told = {*_ALWAYS_TOLD, *(("ensemble",) if translator.num_models > 1 else ())}
    decode = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(translator.decode).items()
        if name in told or (name != "ensemble" and value != getattr(DecodeConfig, name))
    }
    return scores | {"decode": decode}, [output.text for output in outputs]


def evaluate_split(
    translator: Translator,
    workdir: Path,
    name: str,
    sources: Sequence[str],
    targets: Sequence[str],
    about: Mapping[str, Any] | None = None,
    comet: Path | None = None,
) -> dict[str, Any]:
    """`evaluate_lines`, written to `evaluations/NAME.json`, with `about`, and `evaluations/NAME.hypotheses.txt`.

    With `data.group_references` the hypotheses are fewer than the lines of the
    split, and `evaluations/NAME.sources.txt` has the source of each, line by line.
    Of several processes the first one writes.
    """
    with progress_bar() if processes.is_first() else contextlib.nullcontext(silent) as progress:
        scores, hypotheses = evaluate_lines(translator, sources, targets, progress, comet)
    if not processes.is_first():
        return scores
    folder = workdir / "evaluations"
    written = {name: _plain(value) for name, value in {**(about or {}), **scores}.items()}
    write_whole(folder / f"{name}.hypotheses.txt", "".join(f"{text}\n" for text in hypotheses))
    if translator.config.data.group_references:
        write_whole(folder / f"{name}.sources.txt", "".join(f"{source}\n" for source in dict.fromkeys(sources)))
    write_whole(folder / f"{name}.json", json.dumps(written, indent=2) + "\n")
    return scores


def remarks(
    config: Config, decode: DecodeConfig, encoded: EncodedSplit, references: Sequence[str], kind: str = ""
) -> Iterator[str]:
    """What scores on these pairs depend on besides the model, a line each.

    Args:
      config: of the run.
      decode: search settings.
      encoded: the pairs.
      references: text of their targets, or of some of them.
      kind: what the pairs are called, such as "validation ".
    """
    longest = config.data.max_length
    if num_long := int((encoded.source_lengths > longest).sum()):
        some = part_of(num_long, len(encoded), f"{kind}source")
        yield f"{some} longer than data.max_length {longest}, so than any in training"
    if num_shortened := len(encoded.sources.with_turns_left_out()):
        some = part_of(num_shortened, len(encoded), f"{kind}source")
        yield f"{some} read without the oldest turns, to fit data.max_length {longest}"
    yield from _remark_on_limit(encoded, decode.max_length_ratio, kind)
    if num_unknown := len(encoded.sources.with_unknown()):
        some = part_of(num_unknown, len(encoded), f"{kind}source")
        yield f"{some} read with unknown symbols, which the vocabulary lacks"
    if num_unknown := len(encoded.targets.with_unknown()):
        some = part_of(num_unknown, len(encoded), f"{kind}target")
        yield f"{some} impossible to match exactly: the vocabulary lacks symbols"
    if config.data.lowercase:
        yield "references are lowercased before they are compared (data.lowercase); for exact_match_raw they are not"
    if config.bleu_tokenizer is None and config.tokenizer != "13a":
        yield f"BLEU's tokeniser is {config.tokenizer}, for the target is {config.data.target}"
    if advice := advice_on_tokenizer(references, config.tokenizer):
        yield advice
    if "rouge" in config.metrics and (advice := advice_on_rouge(references)):
        yield advice


def _remark_on_limit(encoded: EncodedSplit, ratio: float, kind: str) -> Iterator[str]:
    """Says how many targets are longer than an output may be, and what ratio would do. Empty sources have no output."""
    filled = encoded.source_lengths > 1
    source, target = encoded.source_lengths[filled], encoded.target_lengths[filled]
    num_unreachable = int((target > output_limits(source, ratio)).sum())
    if num_unreachable:
        needed = f"{_needed_ratio(source, target):.1f}".removesuffix(".0")
        yield (
            f"{part_of(num_unreachable, len(encoded), f'{kind}target')} longer than the decoder may write"
            f" (decode.max_length_ratio {ratio:g});"
            f" --decode.max-length-ratio {needed} would do"
        )


def _needed_ratio(source: Int[np.ndarray, " N"], target: Int[np.ndarray, " N"]) -> float:
    """The least ratio of at most one decimal by which every target can be written."""
    tenths = 1
    while (short := target > output_limits(source, tenths / 10)).any():
        missing = target[short] - output_limits(source[short], 0.0)
        tenths = max(tenths + 1, int((10 * (missing - 1) / source[short]).max()))  # never too large: ceil rounds up
    return tenths / 10


def _restored(
    vocabularies: Vocabularies, targets: Rows, sources: Sequence[str], chosen: Sequence[int]
) -> list[str | None]:
    """The `chosen` targets as the vocabulary gives them back; None for those that have an unknown symbol."""
    copies = vocabularies.copies([sources[index] for index in chosen])
    restored = vocabularies.target.decode([targets[index] for index in chosen], copies)
    unknown = set(targets.with_unknown().tolist())
    return [None if index in unknown else text for index, text in zip(chosen, restored, strict=True)]


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _plain(value: Any) -> Any:
    """Returns what JSON can hold: a number that is not finite as None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
