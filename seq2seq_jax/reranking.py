"""N-best lists put into another order by what another model says of them."""

from collections.abc import Sequence

from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.translator import Hypothesis, Translator


def rerank(
    scorer: Translator,
    lines: Sequence[str],
    found: Sequence[Sequence[Hypothesis]],
    weight: float,
    length_penalty: float,
) -> list[list[Hypothesis]]:
    """Returns the hypotheses of each line by their new scores, best first.

    A new score is `(1 - weight) score + weight log P / lp`: the scorer's
    log-probability of source and text, over the length penalty of its own tokens.
    Hypotheses of equal new score keep their order.

    Args:
      scorer: of any vocabularies; it is given text.
      lines: sources.
      found: hypotheses of each.
      weight: from 0 to 1.
      length_penalty: exponent of Wu et al. 2016, as of the search.
    """
    pairs = [(line, each.text) for line, hypotheses in zip(lines, found, strict=True) for each in hypotheses]
    if not pairs:
        return [list(hypotheses) for hypotheses in found]
    encoded = encode_lines(scorer.vocabularies, *map(list, zip(*pairs, strict=True)))
    log_probs = -scorer.token_scores(encoded).loss
    theirs = iter(log_probs / ((5 + encoded.target_lengths) / 6) ** length_penalty)
    again = [
        [each._replace(score=float((1 - weight) * each.score + weight * next(theirs))) for each in hypotheses]
        for hypotheses in found
    ]
    return [sorted(hypotheses, key=lambda each: -each.score) for hypotheses in again]
