"""Corpus scores of output text against reference text, each with the signature that makes it comparable."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import sacrebleu

from seq2seq_jax.config import Config
from seq2seq_jax.errors import UserError
from seq2seq_jax.wording import part_of

Metric = sacrebleu.BLEU | sacrebleu.CHRF

EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}
"""What sacreBLEU's tokenisers need beside it, as pip names it."""
WITHOUT_BLANKS = ("char", *EXTRAS)
"""Tokenisers that find words or characters where a script writes no blanks."""


class Score(NamedTuple):
    """A corpus score and how it was computed.

    Attributes:
      value: percent, 0 to 100; higher is better.
      signature: what the value depends on, in sacreBLEU's notation; empty for
        a score that needs no explanation.
    """

    value: float
    signature: str


def score_hypotheses(
    hypotheses: Sequence[str],
    references: Sequence[str],
    restored: Sequence[str | None] | None = None,
    *,
    tokenizer: str = "13a",
    lowercase: bool = False,
) -> dict[str, Score]:
    """Scores detokenised text, one reference per hypothesis.

    Args:
      hypotheses: what a model wrote.
      references: the text of the files.
      restored: each reference as the vocabulary gives it back, the most that a
        model can write of it: runs of blanks as one, lowercased where the
        vocabulary is. None where it has an unknown symbol, which no output
        matches, the sign for an unknown symbol neither. By default the
        references as they are.
      tokenizer: sacreBLEU's, for BLEU.
      lowercase: whether the hypotheses can only be lowercase: `bleu` and `chrf`
        then compare with lowercased references, and their signatures say so.

    Returns:
      `bleu` and `chrf` (cased), `bleu_lowercase` and `chrf_lowercase` (both
      sides lowercased), all against `references`; `exact_match` (percent of
      lines equal to the restored reference) and, where a restored reference is
      not the reference, `exact_match_raw` (percent equal to the reference).

    Raises:
      ValueError: the numbers of lines differ, or there is no line.
      UserError: a package that the tokeniser needs is not installed.
    """
    restored = references if restored is None else restored
    _check(hypotheses, references, restored)
    metrics: dict[str, Callable[[bool], Metric]] = {
        "bleu": partial(_bleu, tokenizer),
        "chrf": lambda lowercase: sacrebleu.CHRF(lowercase=lowercase),
    }
    case_matters = not lowercase and (tokenizer in EXTRAS or _case_matters(hypotheses, references))
    scores = {}
    for name, metric in metrics.items():
        cased = scores[name] = _score(metric(lowercase), hypotheses, references)
        scores[f"{name}_lowercase"] = (
            _score(metric(True), hypotheses, references)
            if case_matters
            else Score(cased.value, cased.signature.replace("case:mixed", "case:lc"))
        )
    scores["exact_match"] = _exact_match(hypotheses, restored)
    raw = [None if text is None else reference for text, reference in zip(restored, references, strict=True)]
    if raw != list(restored):
        scores["exact_match_raw"] = _exact_match(hypotheses, raw)
    return scores


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
    _check_moses()
    import sacremoses

    hypotheses, references = _moses_tokens(hypotheses, language), _moses_tokens(references, language)
    score = _score(_bleu("none"), hypotheses, references)
    signature = f"{score.signature}|moses:norm.tok.lc-{language}|sacremoses:{sacremoses.__version__}"
    return {"bleu_moses_lowercase": Score(score.value, signature)}


def check_packages(config: Config) -> None:
    """Raises UserError where a package is not installed that the scores of `config` need."""
    if config.moses_language:
        _check_moses()
    _bleu(config.bleu_tokenizer)


def advice_on_tokenizer(references: Sequence[str], tokenizer: str) -> str | None:
    """Returns a word of advice where most references are one token to BLEU, or None.

    One token has no n-grams to be partly right in: a line is right as a whole,
    or it counts for nothing.
    """
    if tokenizer in WITHOUT_BLANKS:
        return None
    tokenize = _bleu(tokenizer).tokenizer
    numbers = [len(tokenize(line).split()) for line in references]
    single, filled = numbers.count(1), len(numbers) - numbers.count(0)
    if 2 * single <= filled:
        return None
    others = " or ".join(f"--bleu-tokenizer {name}" for name in _tokenizers_for("".join(references)))
    return f"{part_of(single, filled, 'reference')} one token to BLEU's {tokenizer}, so BLEU says little; {others}"


def _tokenizers_for(text: str) -> tuple[str, ...]:
    """Returns what cuts the script of `text` into tokens, the usual one first."""
    kana, hangul, han = (
        len(re.findall(f"[{letters}]", text))
        for letters in ("\u3040-\u30ff", "\uac00-\ud7a3", "\u3400-\u4dbf\u4e00-\u9fff")
    )
    if hangul > kana + han:
        return "ko-mecab", "char"
    if 10 * kana > han:  # Japanese has no sentence without kana, Chinese a name at most
        return "ja-mecab", "char"
    return ("zh", "char") if han else ("char",)


def _bleu(tokenizer: str, lowercase: bool = False) -> sacrebleu.BLEU:
    """BLEU with sacreBLEU's own settings."""
    try:
        # force: corpora that are published in tokens are scored as they are, without a warning.
        return sacrebleu.BLEU(tokenize=tokenizer, lowercase=lowercase, force=True)
    except RuntimeError:
        package = f"sacrebleu[{EXTRAS[tokenizer]}]"
        raise UserError(
            f"bleu_tokenizer {tokenizer} needs a package of its own: pip install '{package}',"
            " or set bleu_tokenizer char."
        ) from None


def _check_moses() -> None:
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


def _check(hypotheses: Sequence[str], *others: Sequence[str | None]) -> None:
    for references in others:
        if len(hypotheses) != len(references):
            raise ValueError(
                f"{len(hypotheses)} hypotheses for {len(references)} references; there must be one for each."
            )
    if not hypotheses:
        raise ValueError("There is no hypothesis to score.")


def _exact_match(hypotheses: Sequence[str], references: Sequence[str | None]) -> Score:
    equal = sum(hypothesis == reference for hypothesis, reference in zip(hypotheses, references, strict=True))
    return Score(100.0 * equal / len(hypotheses), "")


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
