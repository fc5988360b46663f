"""What the scores of a test set are worth, and where its errors are."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sacrebleu
from jaxtyping import Bool, Float, Int
from sacrebleu.significance import PairedTest
from scipy.stats import binomtest

from seq2seq_jax.metrics import Metric, References, streams

CONFIDENCE = 0.95
MOST_RESAMPLED = 20_000  # sentences: sacreBLEU holds all resamples at once, 72 kB of chrF's counts for each
FREQUENCIES = (0, 1, 2, 3, 4, 5, 10, 100, 1000)
"""Where the classes of words by frequency begin; those of compare-mt."""

Tokenizer = Callable[[str], Sequence[str]]


class Resampled(NamedTuple):
    """What sacreBLEU's paired bootstrap says of a score.

    Attributes:
      score: of all sentences.
      mean: of the scores of the resamples.
      half: half the width of their central 95 %.
      p_value: that its difference from the first system is chance; None for the first.
      bootstrap: how many resamples and which, in the notation of sacreBLEU's signatures.
    """

    score: float
    mean: float
    half: float
    p_value: float | None
    bootstrap: str


def resample(metric: Metric, systems: Sequence[Sequence[str]], references: References) -> list[Resampled]:
    """Returns for each system its score with its interval, and how it differs from the first (Koehn 2004).

    The resamples are the same for all systems and in every call, 1,000 unless
    sacreBLEU is told otherwise; its environment variable SACREBLEU_SEED gives others.
    """
    named: list[tuple[str, Sequence[str]]] = [(str(number), list(lines)) for number, lines in enumerate(systems)]
    signatures, scores = PairedTest(named, {"metric": metric}, streams(references), test_type="bs")()
    ((name, signature),) = signatures.items()
    bootstrap = "|".join(part for part in str(signature).split("|") if part.startswith(("bs:", "seed:")))
    results: Any = scores[name]
    first, *others = results
    # sacreBLEU counts resamples that differ by more than the systems do; of equal ones none does, and p would be least.
    p_values = [None, *(each.p_value if each.score != first.score else 1.0 for each in others)]
    found = zip(results, p_values, strict=True)
    return [Resampled(each.score, each.mean, each.ci, p_value, bootstrap) for each, p_value in found]


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Returns the ends of the 95 % score interval of a share, from 0 to 1 (Wilson 1927)."""
    found = binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
    """Returns the two-sided p-value of McNemar's exact test on sentences that the one system has right, the other not.

    McNemar 1947, with the binomial distribution in the place of its approximation.
    """
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sentence_scores(hypotheses: Sequence[str], references: References, *, lowercase: bool) -> Float[np.ndarray, " N"]:
    """Returns the chrF of each sentence (Popović 2015; sacreBLEU's)."""
    metric = sacrebleu.CHRF(lowercase=lowercase)
    pairs = zip(hypotheses, references, strict=True)
    return np.array([metric.sentence_score(line, texts).score for line, texts in pairs], np.float64)


def equal_parts(lengths: Int[np.ndarray, " N"], most: int = 6) -> list[tuple[int, int]]:
    """Returns up to `most` ranges of lengths, first and last, that hold about as many sentences each, and all of them.

    Sentences of one length are in one range, so that there may be fewer, of different sizes.
    """
    ordered = np.sort(lengths)
    starts = np.unique(ordered[[len(ordered) * part // most for part in range(most)]])
    ends = [*(int(start) - 1 for start in starts[1:]), int(ordered[-1])]
    return [(int(start), end) for start, end in zip(starts, ends, strict=True)]


class WordClass(NamedTuple):
    """The words of some frequency: how many references and outputs have, and how many of these are the same.

    Attributes:
      first: least frequency in the training text.
      last: the greatest, or None without a limit.
      references: words in the references.
      outputs: words in the outputs.
      matched: words of a reference that its output has too, as often as both have them.
    """

    first: int
    last: int | None
    references: int
    outputs: int
    matched: int

    @property
    def recall(self) -> float:
        """Share of the references' words that the outputs have."""
        return self.matched / self.references if self.references else math.nan

    @property
    def precision(self) -> float:
        """Share of the outputs' words that the references have."""
        return self.matched / self.outputs if self.outputs else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        total = self.references + self.outputs
        return 2 * self.matched / total if total else math.nan


def by_frequency(
    hypotheses: Iterable[str], references: Iterable[str], frequencies: Mapping[str, int], tokenize: Tokenizer
) -> list[WordClass]:
    """Returns how well words are translated, by how often they are in the training text (Neubig et al. 2019, 2.2).

    A word counts as matched wherever it stands in the sentence. Classes without a word are left out.

    Args:
      hypotheses: what a model wrote.
      references: one for each.
      frequencies: of words in the training text; others have none.
      tokenize: cuts a line into words.
    """
    counts = np.zeros((3, len(FREQUENCIES)), np.int64)
    for output, reference in zip(hypotheses, references, strict=True):
        written, expected = Counter(tokenize(output)), Counter(tokenize(reference))
        for row, words in zip(counts, (expected, written, expected & written), strict=True):
            for word, number in words.items():
                row[np.searchsorted(FREQUENCIES, frequencies.get(word, 0), side="right") - 1] += number
    lasts = [*(start - 1 for start in FREQUENCIES[1:]), None]
    classes = itertools.starmap(WordClass, zip(FREQUENCIES, lasts, *counts.tolist(), strict=True))
    return [each for each in classes if each.references or each.outputs]
