"""Hypotheses as lines: plain text, n-best lists, JSON, and word alignments."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from seq2seq_jax.data.vocabulary import WORD_MARK, Vocabularies, Vocabulary

if TYPE_CHECKING:
    from seq2seq_jax.translator import Hypothesis

Format = Literal["text", "tsv", "json"]


def answer_lines(form: Format, number: int, hypotheses: "Sequence[Hypothesis]", *, ranked: bool) -> list[str]:
    """Returns what is written for an input line.

    Args:
      form: `text` is the text alone, or of ranked hypotheses `NUMBER ||| TEXT ||| SCORE`, as Moses
        writes them; `tsv` is NUMBER, SCORE and TEXT with tabs between; `json` an object with all there is.
      number: of the input line, from 1.
      hypotheses: best first.
      ranked: whether several may be wanted of a line.
    """
    if form == "json":
        return [_json(number, rank, each) for rank, each in enumerate(hypotheses, 1)]
    if form == "tsv":
        return [f"{number}\t{each.score:.4f}\t{each.text}" for each in hypotheses]
    if ranked:
        return [f"{number} ||| {each.text} ||| {each.score:.4f}" for each in hypotheses]
    return [each.text for each in hypotheses]


def _json(number: int, rank: int, hypothesis: "Hypothesis") -> str:
    """An object of one line; a score of minus infinity, of no output, is null."""
    found: dict[str, Any] = {"line": number, "rank": rank, "text": hypothesis.text, "score": _rounded(hypothesis.score)}
    found["cut"] = hypothesis.cut
    if details := hypothesis.details:
        found["tokens"], found["log_probs"] = details.tokens, [_rounded(value) for value in details.log_probs]
        found["source_tokens"], found["alignment"] = details.source_tokens, hypothesis.alignment
    return json.dumps(found, ensure_ascii=False)


def _rounded(value: float) -> float | None:
    return round(value, 6) if abs(value) < float("inf") else None


def pharaoh(vocabularies: Vocabularies, hypothesis: "Hypothesis") -> str:
    """Returns word alignments as `i-j`: word j of the output attended most to word i of the source, from 0.

    Words are those between blanks; where a vocabulary consists of words or characters, its
    tokens. A word made of several tokens has the alignments of all of them. End marks
    have none, nor has a token that attended most to one.
    """
    details, alignment = hypothesis.details, hypothesis.alignment
    if details is None or alignment is None:
        raise ValueError("without details and attention there is no alignment")
    source = _words(vocabularies.source, details.source_tokens)
    target = _words(vocabularies.target, details.tokens)
    last = len(details.source_tokens) - 1
    links = {
        (source[best], target[place]) for place, best in enumerate(alignment) if place < len(target) - 1 and best < last
    }
    return " ".join(f"{i}-{j}" for i, j in sorted(links))


def _words(vocabulary: Vocabulary, tokens: Sequence[str]) -> list[int]:
    """The number of the word that each token is of."""
    if not vocabulary.kind.endswith(("unigram", "bpe")):
        return list(range(len(tokens)))
    numbers, word = [], -1
    for token in tokens:
        word += token.startswith(WORD_MARK) or word < 0
        numbers.append(word)
    return numbers
