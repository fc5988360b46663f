"""A split decoded and scored."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seq2seq_jax.cache import write_whole
from seq2seq_jax.data.encoded import EncodedSplit, encode_lines
from seq2seq_jax.data.progress import Progress, progress_bar, silent
from seq2seq_jax.metrics import score_hypotheses, score_moses_lowercase
from seq2seq_jax.translator import Translator


def teacher_forced(translator: Translator, encoded: EncodedSplit) -> dict[str, float]:
    """Loss (nats per real target token, end marks included), perplexity and token accuracy (percent)."""
    scores = translator.token_scores(encoded)
    tokens = scores.tokens.sum()
    loss = float(scores.loss.sum() / tokens)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": 100 * float(scores.correct.sum() / tokens),
    }


def evaluate_lines(
    translator: Translator, sources: Sequence[str], targets: Sequence[str], progress: Progress = silent
) -> tuple[dict[str, Any], list[str]]:
    """Decodes `sources`, scores the result against `targets`.

    Returns:
      Scores by name (`NAME_signature` beside those of sacreBLEU) with the search settings, and the hypotheses.
    """
    scores: dict[str, Any] = dict(teacher_forced(translator, encode_lines(translator.vocabularies, sources, targets)))
    start = time.perf_counter()
    hypotheses = [hypothesis.text for hypothesis in translator.translate(sources, progress=progress)]
    seconds = time.perf_counter() - start
    results = score_hypotheses(hypotheses, targets)
    if translator.config.moses_language:
        results |= score_moses_lowercase(hypotheses, targets, translator.config.moses_language)
    for name, score in results.items():
        scores[name] = score.value
        if score.signature:
            scores[f"{name}_signature"] = score.signature
    scores |= {"sentences": len(sources), "sentences_per_second": len(sources) / seconds}
    return scores | {"decode": dataclasses.asdict(translator.decode)}, hypotheses


def evaluate_split(
    translator: Translator, workdir: Path, name: str, sources: Sequence[str], targets: Sequence[str]
) -> dict[str, Any]:
    """`evaluate_lines`, written to `evaluations/NAME.json` and `evaluations/NAME.hypotheses.txt`."""
    with progress_bar() as progress:
        scores, hypotheses = evaluate_lines(translator, sources, targets, progress)
    folder = workdir / "evaluations"
    write_whole(folder / f"{name}.hypotheses.txt", "".join(f"{text}\n" for text in hypotheses))
    write_whole(folder / f"{name}.json", json.dumps(scores, indent=2) + "\n")
    return scores
