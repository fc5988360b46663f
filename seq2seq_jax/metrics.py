"""Corpus scores of output text against reference text, each with the signature that makes it comparable."""

import importlib.metadata
import importlib.util
import itertools
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sacrebleu

from seq2seq_jax.config import Config, FurtherMetric
from seq2seq_jax.errors import UserError
from seq2seq_jax.wording import part_of

Metric = sacrebleu.BLEU | sacrebleu.CHRF
References = Sequence[list[str]]
"""For each hypothesis what it is compared with: a text or several."""

EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}
"""What sacreBLEU's tokenisers need beside it, as pip names it."""
WITHOUT_BLANKS = ("char", *EXTRAS)
"""Tokenisers that find words or characters where a script writes no blanks."""


class Score(NamedTuple):
    """A corpus score and how it was computed.

    Attributes:
      value: percent, 0 to 100, and the higher the better, unless its metric says otherwise.
      signature: what the value depends on, in sacreBLEU's notation; empty for
        a score that needs no explanation.
    """

    value: float
    signature: str


def score_hypotheses(
    hypotheses: Sequence[str],
    references: References,
    restored: Sequence[list[str | None]] | None = None,
    *,
    tokenizer: str = "13a",
    lowercase: bool = False,
) -> dict[str, Score]:
    """Scores detokenised text.

    With several references BLEU's clipped counts and lengths are those of
    Papineni et al. 2002, chrF is with the one that gives the best F of a line,
    and any may be matched.

    Args:
      hypotheses: what a model wrote.
      references: the text of the files, one or several for each hypothesis.
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
      lines equal to a restored reference) and, where a restored reference is
      not the reference, `exact_match_raw` (percent equal to a reference).

    Raises:
      ValueError: the numbers of lines differ, there is no line, or one has no reference.
      UserError: a package that the tokeniser needs is not installed.
    """
    written: Sequence[list[str | None]] = [[*texts] for texts in references] if restored is None else restored
    _check(hypotheses, references, written)
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
    scores["exact_match"] = _exact_match(hypotheses, written)
    raw = [
        [None if text is None else reference for text, reference in zip(*pair, strict=True)]
        for pair in zip(written, references, strict=True)
    ]
    if raw != list(written):
        scores["exact_match_raw"] = _exact_match(hypotheses, raw)
    return scores


def score_moses_lowercase(hypotheses: Sequence[str], references: References, language: str) -> dict[str, Score]:
    """Scores text by the protocol of the WMT multimodal task: BLEU of normalised, Moses-tokenised, lowercased text.

    Both sides go through Moses's punctuation normalisation, its tokeniser and
    lowercasing, in this order, and BLEU counts their tokens as they are. Not
    comparable with `bleu_lowercase`, which cuts text into other tokens.

    Args:
      hypotheses: detokenised text.
      references: one or several for each hypothesis.
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

    hypotheses = _moses_tokens(hypotheses, language)
    references = [_moses_tokens(texts, language) for texts in references]
    score = _score(_bleu("none"), hypotheses, references)
    signature = f"{score.signature}|moses:norm.tok.lc-{language}|sacremoses:{sacremoses.__version__}"
    return {"bleu_moses_lowercase": Score(score.value, signature)}


def score_further(
    metric: FurtherMetric, hypotheses: Sequence[str], references: References, *, lowercase: bool = False
) -> dict[str, Score]:
    """The scores of one of `Config.metrics`, but for `sequence_error_rate`, which is 100 less `exact_match`.

    Args:
      metric: which.
      hypotheses: what a model wrote.
      references: one or several for each hypothesis.
      lowercase: whether the hypotheses can only be lowercase, so that references are lowercased.

    Returns:
      `rouge1`, `rouge2`, `rougeL`: F1 (Lin 2004), the mean over lines, with the
      reference that gives the best, by rouge-score with its Porter stemmer: it
      lowercases, and knows the letters a to z and digits alone.
      `token_error_rate`: Levenshtein distance over blank-separated tokens, of all
      lines, by the tokens of their references (PER in Gorman et al. 2020, over
      phones). Of several references the nearest counts; of equally near ones the
      longest, to which the distance is least in proportion.
      `edit_distance`: the mean Levenshtein distance over characters, to the
      nearest reference (Cotterell et al. 2017); no percentage.
      `distinct_1`, `distinct_2`: different tokens, and different pairs of
      neighbours in a line, by the number of all tokens written (Li et al. 2016).
      Lower is better for `token_error_rate`, which may be more than 100, and `edit_distance`.

    Raises:
      ValueError: as `score_hypotheses`.
      UserError: rouge-score is not installed.
    """
    _check(hypotheses, references)
    if metric == "rouge":
        return _rouge(hypotheses, references)
    if metric == "distinct":
        return _distinct(hypotheses)
    if lowercase:
        references = [[text.lower() for text in texts] for texts in references]
    measure = _token_error_rate if metric == "token_errors" else _edit_distance
    return measure(hypotheses, references, f"{_number_of(references)}|case:{'lc' if lowercase else 'mixed'}")


def _rouge(hypotheses: Sequence[str], references: References) -> dict[str, Score]:
    _check_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names), use_stemmer=True)  # as ROUGE-1.5.5 with pyrouge's options
    found = [scorer.score_multi(texts, line) for line, texts in zip(hypotheses, references, strict=True)]
    version = importlib.metadata.version("rouge-score")
    signature = f"{_number_of(references)}|case:lc|tok:a-z0-9|stem:porter|rouge-score:{version}"
    means = {name: math.fsum(each[name].fmeasure for each in found) / len(found) for name in names}
    return {name: Score(100 * mean, signature) for name, mean in means.items()}


def _token_error_rate(hypotheses: Sequence[str], references: References, signature: str) -> dict[str, Score]:
    errors = tokens = 0
    for line, texts in zip(hypotheses, references, strict=True):
        expected = [text.split() for text in texts]
        distances = [levenshtein(line.split(), each) for each in expected]
        distance, length = min(zip(distances, map(len, expected), strict=True), key=lambda pair: (pair[0], -pair[1]))
        errors, tokens = errors + distance, tokens + length
    rate = errors / tokens if tokens else math.inf if errors else 0.0
    return {"token_error_rate": Score(100 * rate, f"{signature}|tok:blanks")}


def _edit_distance(hypotheses: Sequence[str], references: References, signature: str) -> dict[str, Score]:
    pairs = zip(hypotheses, references, strict=True)
    distances = [min(levenshtein(line, text) for text in texts) for line, texts in pairs]
    return {"edit_distance": Score(sum(distances) / len(distances), f"{signature}|tok:char")}


def _distinct(hypotheses: Sequence[str]) -> dict[str, Score]:
    lines = [line.split() for line in hypotheses]
    total = max(sum(map(len, lines)), 1)
    different = {
        "distinct_1": {token for line in lines for token in line},
        "distinct_2": {pair for line in lines for pair in itertools.pairwise(line)},
    }
    return {
        name: Score(100 * len(found) / total, "case:mixed|tok:blanks|by:tokens") for name, found in different.items()
    }


def levenshtein(first: Sequence[str], second: Sequence[str]) -> int:
    """The least number of items to insert, delete or replace that makes the one sequence the other."""
    if list(first) == list(second):
        return 0
    numbers = {item: number for number, item in enumerate(dict.fromkeys([*first, *second]))}
    columns = np.array([numbers[item] for item in second], np.int32)
    places = np.arange(len(second) + 1)
    row = places  # distances of the items of `first` read so far to each beginning of `second`
    for item in first:
        above = row + 1
        above[1:] = np.minimum(above[1:], row[:-1] + (columns != numbers[item]))
        row = np.minimum.accumulate(above - places) + places  # and what of `second` is inserted
    return int(row[-1])


def streams(references: References) -> Any:
    """Returns references as sacreBLEU takes them: the first of every line, the second, and so on; None for none."""
    return list(itertools.zip_longest(*references))


class Measured(NamedTuple):
    """What gave a score its signature: the metric, what becomes of text before it, and what cuts it into words."""

    metric: Metric
    prepare: Callable[[Sequence[str]], list[str]]
    tokenize: Callable[[str], list[str]]


def measured_by(name: str, signature: str) -> Measured | None:
    """Returns what gave the score `name` its signature; None where it is not BLEU or chrF.

    Raises:
      UserError: a package that it needs is not installed.
    """
    parts = dict(part.partition(":")[::2] for part in signature.split("|"))
    lowercase = parts.get("case") == "lc"
    if name.startswith("chrf"):
        return Measured(sacrebleu.CHRF(lowercase=lowercase), list, str.split)
    if not name.startswith("bleu"):
        return None
    metric = _bleu(parts.get("tok", "13a"), lowercase)
    prepare: Callable[[Sequence[str]], list[str]] = list
    if language := parts.get("moses", "").rpartition("-")[2]:
        _check_moses()
        prepare = partial(_moses_tokens, language=language)
    return Measured(metric, prepare, lambda line: metric.tokenizer(line).split())


def check_packages(config: Config) -> None:
    """Raises UserError where a package is not installed that the scores of `config` need."""
    if config.moses_language:
        _check_moses()
    if "rouge" in config.metrics:
        _check_rouge()
    _bleu(config.tokenizer)


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


def advice_on_rouge(references: Sequence[str]) -> str | None:
    """Returns a word of advice where ROUGE cuts words at letters that its tokeniser does not know, or None."""
    number = sum(any(letter.isalpha() and not letter.isascii() for letter in line.lower()) for line in references)
    if not number:
        return None
    return f"{part_of(number, len(references), 'reference')} cut by ROUGE, which knows the letters a to z alone"


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
        raise UserError(
            "moses_language needs sacremoses: pip install 'seq2seq-jax[moses]', or set moses_language None."
        )


def _check_rouge() -> None:
    """Raises UserError where rouge-score (the extra `rouge`) is not installed."""
    if importlib.util.find_spec("rouge_score") is None:
        raise UserError(
            "metrics rouge needs rouge-score: pip install 'seq2seq-jax[rouge]', or leave rouge out of metrics."
        )


def check_comet(model: Path) -> None:
    """Raises UserError where unbabel-comet (the extra `comet`) is not installed, or there is no such model."""
    if importlib.util.find_spec("comet") is None:
        raise UserError("--comet-model needs unbabel-comet: pip install 'seq2seq-jax[comet]', or leave it out.")
    if not model.is_file():
        raise UserError(f"--comet-model: there is no file {model}. COMET's models are files named model.ckpt.")


def score_comet(
    model: Path, sources: Sequence[str], hypotheses: Sequence[str], references: References
) -> dict[str, Score]:
    """COMET by a model that has been downloaded (Rei et al. 2020), times 100: the mean over all references.

    Args:
      model: a checkpoint file.
      sources, hypotheses, references: text of each line, references one or several.
    """
    import comet

    found = comet.load_from_checkpoint(str(model))
    triples = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, of_line in zip(sources, hypotheses, references, strict=True)
        for reference in of_line
    ]
    score = found.predict(triples, gpus=0, progress_bar=False).system_score
    version = importlib.metadata.version("unbabel-comet")
    return {"comet": Score(100 * float(score), f"model:{model.resolve().parent.parent.name}|version:{version}")}


def _moses_tokens(lines: Sequence[str], language: str) -> list[str]:
    """Returns each line as blank-separated lowercased tokens.

    sacremoses 0.2.0 cuts the 4,000 lines of Multi30k's two Flickr test sets,
    German and English, lowercased before as there, as the Perl scripts did.
    """
    import sacremoses

    normalizer, tokenizer = sacremoses.MosesPunctNormalizer(language), sacremoses.MosesTokenizer(language)
    return [tokenizer.tokenize(normalizer.normalize(line), return_str=True).lower() for line in lines]


def _check(hypotheses: Sequence[str], *others: Sequence[Sequence[str | None]]) -> None:
    for references in others:
        if len(hypotheses) != len(references):
            raise ValueError(
                f"{len(hypotheses)} hypotheses, and references for {len(references)}; there must be some for each."
            )
        if not all(references):
            raise ValueError("A hypothesis has no reference to be compared with.")
    if not hypotheses:
        raise ValueError("There is no hypothesis to score.")


def _number_of(references: References) -> str:
    """How many references there are, in sacreBLEU's notation."""
    numbers = {len(texts) for texts in references}
    return f"nrefs:{numbers.pop() if len(numbers) == 1 else 'var'}"


def _exact_match(hypotheses: Sequence[str], references: Sequence[list[str | None]]) -> Score:
    equal = sum(line in texts for line, texts in zip(hypotheses, references, strict=True))
    return Score(100.0 * equal / len(hypotheses), "")


def _case_matters(hypotheses: Sequence[str], references: References) -> bool:
    """Returns False where lowercasing cannot change a score, because no two characters are the same letter.

    Lowercase and uppercase corpora, such as SCAN, are then scored once, not twice.
    """
    characters = set().union(*hypotheses, *itertools.chain.from_iterable(references))
    if "&" in characters:  # BLEU's tokeniser knows entities, in lowercase only
        return True
    upper = {character for character in characters if character != character.lower()}
    return any(not character.isascii() or character.lower() in characters for character in upper)


def _score(metric: Metric, hypotheses: Sequence[str], references: References) -> Score:
    value = metric.corpus_score(list(hypotheses), streams(references)).score
    return Score(float(value), str(metric.get_signature()))
