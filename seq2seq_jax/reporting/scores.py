"""The scores of an evaluation, with their intervals, and how the runs differ."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from seq2seq_jax.metrics import measured_by
from seq2seq_jax.reporting.runs import SHARES, Evaluation, Outputs, Run, check_score
from seq2seq_jax.reporting.statistics import MOST_RESAMPLED, mcnemar, resample, wilson
from seq2seq_jax.training.report import HEADLINES


class Cell(NamedTuple):
    """A run's score.

    Attributes:
      value: None where the run does not have it, or it is no finite number.
      interval: ends of its 95 % interval, where there is one.
      p_value: that its difference from the first run's is chance, where that is tested.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    p_value: float | None = None


class Row(NamedTuple):
    """A score of all runs, and the signatures that it has, of the interval and the test too."""

    name: str
    cells: list[Cell]
    signatures: list[str]


def score_rows(runs: Sequence[Run], name: str, evaluation: Evaluation | None) -> list[Row]:
    """Returns the scores of an evaluation, a cell for each run; without its items there are no intervals.

    Raises:
      UserError: outputs do not fit their scores.
    """
    scores = [run.evaluations.get(name, {}) for run in runs]
    found = []
    for metric in HEADLINES:
        if any(metric in each for each in scores):
            found.append(_row(metric, runs, scores, evaluation))
    return found


def _row(metric: str, runs: Sequence[Run], scores: Sequence[dict[str, Any]], evaluation: Evaluation | None) -> Row:
    cells = {run.name: Cell(each.get(metric)) for run, each in zip(runs, scores, strict=True)}
    signatures = [each.get(f"{metric}_signature", "") for each in scores if metric in each]
    if evaluation is not None:
        outputs = [each for each in evaluation.outputs if each.scores.get(metric) is not None]
        if metric in SHARES:
            cells |= _shares(metric, outputs)
        elif len(evaluation.sources) <= MOST_RESAMPLED:
            found = list(_resampled(metric, evaluation, outputs))
            cells |= {name: cell for name, cell, _ in found}
            signatures = [signature for _, _, signature in found] or signatures
    return Row(metric, [cells[run.name] for run in runs], [*dict.fromkeys(filter(None, signatures))])


def _shares(metric: str, outputs: Sequence[Outputs]) -> dict[str, Cell]:
    """Wilson's intervals, and McNemar's test but for `exact_match_raw`, of which only the sum is known."""
    cells = {}
    for each in outputs:
        value, total = each.scores[metric], len(each.exact)
        low, high = wilson(round(value * total / 100), total)
        tested = metric != "exact_match_raw" and each is not outputs[0]
        p_value = mcnemar(outputs[0].exact, each.exact) if tested else None
        cells[each.run.name] = Cell(value, (100 * low, 100 * high), p_value)
    return cells


def _resampled(metric: str, evaluation: Evaluation, outputs: Sequence[Outputs]) -> Iterator[tuple[str, Cell, str]]:
    """sacreBLEU's bootstrap of BLEU and chrF; only runs with the signature of the first are tested against it."""
    by_signature: dict[str, list[Outputs]] = {}
    for each in outputs:
        by_signature.setdefault(each.scores.get(f"{metric}_signature", ""), []).append(each)
    for number, (signature, alike) in enumerate(by_signature.items()):
        measured = measured_by(metric, signature)
        if measured is None:
            return
        systems = [measured.prepare(each.hypotheses) for each in alike]
        references = [measured.prepare(texts) for texts in evaluation.references]
        for each, found in zip(alike, resample(measured.metric, systems, references), strict=True):
            check_score(each.run, evaluation.name, metric, found.score)
            interval = found.mean - found.half, found.mean + found.half
            cell = Cell(found.score, interval, None if number else found.p_value)
            yield each.run.name, cell, f"{signature}|{found.bootstrap}"
