"""Corpus scores of output text against reference text, each with the signature that makes it comparable."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import sacrebleu

from seq2seq_jax.errors import UserError

SENTENCEPIECE_MARK = "\u2581"

Metric = sacrebleu.BLEU | sacrebleu.CHRF

METRICS: dict[str, Callable[[bool], Metric]] = {
    # force: corpora that are published in tokens are scored as they are, without a warning.
    "bleu": lambda lowercase: sacrebleu.BLEU(lowercase=lowercase, force=True),
    "chrf": lambda lowercase: sacrebleu.CHRF(lowercase=lowercase),
}
"""sacreBLEU's metrics by name, with its own defaults; the argument says whether to lowercase both sides."""


class Score(NamedTuple):
    """A corpus score and how it was computed.

    Attributes:
      value: percent, 0 to 100; higher is better.
      signature: what the value depends on, in sacreBLEU's notation; empty for
        a score that needs no explanation.
    """

    value: float
    signature: str


def score_hypotheses(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
    """Scores detokenised text, one reference per hypothesis.

    Returns:
      `bleu` and `chrf` (cased), `bleu_lowercase` and `chrf_lowercase` (both
      sides lowercased), `exact_match` (percent of lines equal to the reference).

    Raises:
      ValueError: the numbers of lines differ, there is no line, or a hypothesis
        is still cut into SentencePiece pieces.
    """
    _check(hypotheses, references)
    case_matters = _case_matters(hypotheses, references)
    scores = {}
    for name, metric in METRICS.items():
        cased = scores[name] = _score(metric(False), hypotheses, references)
        scores[f"{name}_lowercase"] = (
            _score(metric(True), hypotheses, references)
            if case_matters
            else Score(cased.value, cased.signature.replace("case:mixed", "case:lc"))
        )
    equal = sum(hypothesis == reference for hypothesis, reference in zip(hypotheses, references, strict=True))
    return scores | {"exact_match": Score(100.0 * equal / len(hypotheses), "")}


def score_moses_lowercase(hypotheses: Sequence[str], references: Sequence[str], language: str) -> dict[str, Score]:
    """Scores text by the protocol of the WMT multimodal task: BLEU of normalised, Moses-tokenised, lowercased text.

    Both sides go through Moses's punctuation normalisation, its tokeniser and
    lowercasing, in this order, and BLEU counts their tokens as they are. Not
    comparable with `bleu_lowercase`, which cuts text into other tokens.

    Args:
      hypotheses: detokenised text.
      references: one for each hypothesis.
      language: two-letter code of the text, for the tokeniser's abbreviations.

    Returns:
      `bleu_moses_lowercase`.

    Raises:
      ValueError: as `score_hypotheses`.
      UserError: sacremoses is not installed.
    """
    _check(hypotheses, references)
    check_moses()
    import sacremoses

    hypotheses, references = _moses_tokens(hypotheses, language), _moses_tokens(references, language)
    score = _score(sacrebleu.BLEU(tokenize="none", force=True), hypotheses, references)
    signature = f"{score.signature}|moses:norm.tok.lc-{language}|sacremoses:{sacremoses.__version__}"
    return {"bleu_moses_lowercase": Score(score.value, signature)}


def check_moses() -> None:
    """Raises UserError where sacremoses (the extra `moses`) is not installed."""
    if importlib.util.find_spec("sacremoses") is None:
        raise UserError("moses_language needs sacremoses: pip install '.[moses]', or set moses_language None.")


def _moses_tokens(lines: Sequence[str], language: str) -> list[str]:
    """Returns each line as blank-separated lowercased tokens.

    sacremoses 0.2.0 cuts the 4,000 lines of Multi30k's two Flickr test sets,
    German and English, lowercased before as there, as the Perl scripts did.
    """
    import sacremoses

    normalizer, tokenizer = sacremoses.MosesPunctNormalizer(language), sacremoses.MosesTokenizer(language)
    return [tokenizer.tokenize(normalizer.normalize(line), return_str=True).lower() for line in lines]


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references; there must be one for each.")
    if not hypotheses:
        raise ValueError("There is no hypothesis to score.")
    for number, line in enumerate(hypotheses, 1):
        if SENTENCEPIECE_MARK in line:
            raise ValueError(f"Hypothesis {number} is cut into SentencePiece pieces, decode it first: {line!r}.")


def _case_matters(hypotheses: Sequence[str], references: Sequence[str]) -> bool:
    """Returns False where lowercasing cannot change a score, because no two characters are the same letter.

    Lowercase and uppercase corpora, such as SCAN, are then scored once, not twice.
    """
    characters = set().union(*hypotheses, *references)
    if "&" in characters:  # BLEU's tokeniser knows entities, in lowercase only
        return True
    upper = {character for character in characters if character != character.lower()}
    return any(not character.isascii() or character.lower() in characters for character in upper)


def _score(metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return Score(float(value), str(metric.get_signature()))
