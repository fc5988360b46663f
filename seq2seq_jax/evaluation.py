"""A split decoded and scored."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from seq2seq_jax.cache import write_whole
from seq2seq_jax.config import Config, DecodeConfig
from seq2seq_jax.data.encoded import EncodedSplit, Rows, encode_lines
from seq2seq_jax.data.progress import ProgressCallback, progress_bar, silent
from seq2seq_jax.data.vocabulary import Vocabularies
from seq2seq_jax.metrics import advice_on_tokenizer, score_hypotheses, score_moses_lowercase
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


def output_scores(
    translator: Translator,
    outputs: Sequence[Hypothesis],
    targets: Rows,
    sources: Sequence[str],
    references: Sequence[str],
) -> dict[str, Any]:
    """Scores what `translator` wrote.

    Args:
      translator: its configuration says which scores, and how text is compared.
      outputs: its best hypotheses.
      targets: ids of the references.
      sources: lines that it read.
      references: text of the references.

    Returns:
      Scores by name, `NAME_signature` beside those of sacreBLEU, and
      `cut_outputs`: how many outputs end only because they may be no longer.
    """
    config, hypotheses = translator.config, [output.text for output in outputs]
    results = score_hypotheses(
        hypotheses,
        references,
        _restored(translator.vocabularies, targets, sources),
        tokenizer=config.bleu_tokenizer,
        lowercase=config.data.lowercase,
    )
    if config.moses_language:
        results |= score_moses_lowercase(hypotheses, references, config.moses_language)
    scores: dict[str, Any] = {}
    for name, score in results.items():
        scores[name] = score.value
        if score.signature:
            scores[f"{name}_signature"] = score.signature
    return scores | {"cut_outputs": sum(output.cut for output in outputs)}


def evaluate_lines(
    translator: Translator, sources: Sequence[str], targets: Sequence[str], progress: ProgressCallback = silent
) -> tuple[dict[str, Any], list[str]]:
    """Decodes `sources`, scores the result against `targets`.

    Returns:
      The scores of `teacher_forced` and `output_scores`, what `remarks` says of
      them and the search settings; and the hypotheses.
    """
    encoded = encode_lines(translator.vocabularies, sources, targets)
    scores: dict[str, Any] = dict(teacher_forced(translator, encoded))
    start = time.perf_counter()
    outputs = translator.translate_ids(encoded.sources, sources, progress=progress)
    seconds = time.perf_counter() - start
    scores |= output_scores(translator, outputs, encoded.targets, sources, targets)
    scores |= {"sentences": len(sources), "sentences_per_second": len(sources) / seconds}
    scores |= {"step": translator.step} if translator.step is not None else {}
    scores["remarks"] = list(remarks(translator.config, translator.decode, encoded, targets))
    decode = dataclasses.asdict(translator.decode)
    if translator.num_models == 1:
        del decode["ensemble"]  # it says nothing of one model
    return scores | {"decode": decode}, [output.text for output in outputs]


def evaluate_split(
    translator: Translator,
    workdir: Path,
    name: str,
    sources: Sequence[str],
    targets: Sequence[str],
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`evaluate_lines`, written to `evaluations/NAME.json`, with `about`, and `evaluations/NAME.hypotheses.txt`."""
    with progress_bar() as progress:
        scores, hypotheses = evaluate_lines(translator, sources, targets, progress)
    folder = workdir / "evaluations"
    written = {name: _plain(value) for name, value in {**(about or {}), **scores}.items()}
    write_whole(folder / f"{name}.hypotheses.txt", "".join(f"{text}\n" for text in hypotheses))
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
    if advice := advice_on_tokenizer(references, config.bleu_tokenizer):
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


def _restored(vocabularies: Vocabularies, targets: Rows, sources: Sequence[str]) -> list[str | None]:
    """Each target as the vocabulary gives it back; None where it has an unknown symbol."""
    rows, copies = (targets[index] for index in range(len(targets))), vocabularies.copies(sources)
    restored: list[str | None] = [*vocabularies.target.decode(rows, copies)]
    for index in targets.with_unknown():
        restored[index] = None
    return restored


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _plain(value: Any) -> Any:
    """Returns what JSON can hold: a number that is not finite as None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
