"""Scores of several seeds: their mean and standard deviation, and whether that is what was published."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seq2seq_jax import __version__, run_directory
from seq2seq_jax.cache import write_whole
from seq2seq_jax.config import LOWER_IS_BETTER, Config
from seq2seq_jax.errors import UserError
from seq2seq_jax.training.report import HEADLINES, amount, number, shown
from seq2seq_jax.wording import counted

FILES = (run_directory.REPRODUCTION, "reproduction.md")
Verdict = Literal["REPRODUCED", "ABOVE", "BELOW"]


class Outcome(NamedTuple):
    """What became of one seed."""

    seed: int
    best_step: int | None
    """Step of the parameters that were tested."""
    scores: dict[str, dict[str, Any]]
    """By test split; none where training had diverged."""
    trouble: str = ""
    """In what way it has diverged."""
    validation: float | None = None
    """Best value of train.best_metric on the validation split; None where there are no scores."""


class Summary(NamedTuple):
    """Of a score over seeds: its mean and sample standard deviation, which one seed alone has not."""

    mean: float
    deviation: float | None
    count: int
    signature: str = ""

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {number(self.deviation)}"
        return f"{number(self.mean)}{spread}"


def summarize(values: Sequence[float], signature: str = "") -> Summary:
    """Mean and sample standard deviation (divided by one less than their number)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Summary(mean, None, 1, signature)
    finite = all(map(math.isfinite, values))
    return Summary(mean, statistics.stdev(values) if finite else math.nan, len(values), signature)


def summaries(outcomes: Sequence[Outcome], also: str | None = None) -> dict[str, dict[str, Summary]]:
    """By split and metric, over the seeds that were tested; `also` names a metric beside those that are printed."""
    tested = [outcome.scores for outcome in outcomes if outcome.scores]
    found: dict[str, dict[str, Summary]] = {}
    for split, scores in tested[0].items() if tested else ():
        names = [name for name in dict.fromkeys([*HEADLINES, also]) if name in scores and name != "cut_outputs"]
        found[split] = {
            name: summarize([float(each[split][name]) for each in tested], scores.get(f"{name}_signature", ""))
            for name in names
        }
    return found


def best_validation(outcomes: Sequence[Outcome]) -> Summary | None:
    """Best validation values over the seeds that were tested, if there are any."""
    values = [outcome.validation for outcome in outcomes if outcome.validation is not None]
    return summarize(values) if values else None


def judge(summary: Summary, score: float, band: float | None) -> Verdict | None:
    """Whether a mean is within the band around a score, or within one standard deviation of it without a band.

    None where there is neither. ABOVE and BELOW say on which side of the score the
    mean lies, whether or not that is the better one.
    """
    width = summary.deviation if band is None else band
    if width is None or not math.isfinite(width) or not math.isfinite(summary.mean):
        return None
    # What is printed alike is alike: 99.85 lies within 0.05 of 99.8, whatever binary fractions make of it.
    if abs(summary.mean - score) <= width * (1 + 1e-9) + 1e-9 * abs(score):
        return "REPRODUCED"
    return "ABOVE" if summary.mean > score else "BELOW"


def published_split(config: Config, tested: Sequence[str], corpus: str) -> str | None:
    """The split whose score is compared with the published one, if there is one.

    Raises:
      UserError: there are several, or not that one.
    """
    if config.published_metric is None:
        return None
    name, names = config.published_split, ", ".join(tested)
    if name is None and len(tested) > 1:
        raise UserError(
            f"{corpus} has the test splits {names}, and published_split does not say on which of them"
            f" published_score was reached; name it: --published-split {tested[0]}."
        )
    if name is not None and name not in tested:
        raise UserError(f"published_split {name} is none of those that {corpus} is tested on: {names}.")
    return name or tested[0]


def conclusion(config: Config, split: str | None, found: dict[str, dict[str, Summary]]) -> tuple[Verdict | None, str]:
    """The verdict, and the sentence that says it with its numbers; nothing where nothing was published or tested."""
    if split is None or split not in found:
        return None, ""
    assert config.published_metric is not None and config.published_score is not None
    summary, score = found[split][config.published_metric], config.published_score
    verdict = judge(summary, score, config.published_band)
    by = "published_band" if config.published_band is not None else "one standard deviation"
    width = config.published_band if config.published_band is not None else summary.deviation
    reach = f"{by} is {number(width)}" if width is not None else "one seed has no standard deviation; give a band"
    signature = f" [{summary.signature}]" if summary.signature else ""
    better = " (lower is better)" if config.published_metric in LOWER_IS_BETTER else ""
    return verdict, (
        f"{verdict or 'UNDECIDED'}: {config.published_metric} on {split} {summary} over"
        f" {counted(summary.count, 'seed')}, published {score:g}{better}; {reach}{signature}"
    )


def lines_of_seed(outcome: Outcome) -> Iterator[str]:
    """A line for each split."""
    if outcome.trouble:
        yield f"Seed {outcome.seed:<6} {outcome.trouble}"
    for split, scores in outcome.scores.items():
        numbers = "  ".join(f"{name} {scores[name]:.4g}" for name in shown(scores))
        yield f"Seed {outcome.seed:<6} {split} at step {outcome.best_step:,}: {numbers}"


def lines_of_seeds(config: Config, outcomes: Sequence[Outcome], found: dict[str, dict[str, Summary]]) -> Iterator[str]:
    """Mean and standard deviation of every metric, and what is to be said of them."""
    tested = [outcome for outcome in outcomes if outcome.scores]
    if validation := best_validation(outcomes):
        yield f"Validation  best {config.train.best_metric} {validation}"
    for split, metrics in found.items():
        some = f"{len(tested)} of " if len(tested) < len(outcomes) else ""
        tests = f"{amount(tested[0].scores[split])}, {some}{counted(len(outcomes), 'seed')}"
        spread = ", mean ± standard deviation" if len(tested) > 1 else ""
        yield f"Split {split}, {tests}{spread}:"
        for name, summary in metrics.items():
            yield f"    {name:<20} {summary!s:>18}  {summary.signature}".rstrip()
        yield from (f"    {remark}" for remark in tested[0].scores[split].get("remarks", ()))


def write_results(
    workdir: Path,
    config: Config,
    outcomes: Sequence[Outcome],
    found: dict[str, dict[str, Summary]],
    verdict: Verdict | None,
    sentence: str,
) -> None:
    """Writes `reproduction.json` and `reproduction.md`, each as a whole."""
    published = {name: getattr(config, f"published_{name}") for name in ("metric", "score", "band", "split")}
    validation = best_validation(outcomes)
    content = {
        "version": __version__,
        "published": {"text": config.published, **published},
        "verdict": verdict,
        "conclusion": sentence,
        "validation": validation and {"metric": config.train.best_metric, **_as_json(validation)},
        "splits": {
            split: {name: {**_as_json(summary), "signature": summary.signature} for name, summary in metrics.items()}
            for split, metrics in found.items()
        },
        "seeds": [
            {
                "seed": outcome.seed,
                "workdir": f"{run_directory.SEEDS}/{index}",
                "best_step": outcome.best_step,
                "trouble": outcome.trouble,
                "validation": _plain(outcome.validation),
                "scores": {
                    split: {name: _plain(outcome.scores[split][name]) for name in metrics}
                    for split, metrics in found.items()
                    if outcome.scores
                },
            }
            for index, outcome in enumerate(outcomes)
        ],
    }
    write_whole(workdir / FILES[0], json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(workdir / FILES[1], "".join(f"{line}\n" for line in _markdown(config, outcomes, found, sentence)))


def all_diverged(troubles: Sequence[str]) -> str:
    """What to say where no seed is left, given what became of each."""
    many = f"All {len(troubles)} seeds have diverged. " if len(troubles) > 1 else ""
    return f"{many}{troubles[0]}"


def remove_results(workdir: Path) -> None:
    """Removes what `write_results` wrote."""
    for name in FILES:
        (workdir / name).unlink(missing_ok=True)


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "mean": _plain(summary.mean),
        "standard_deviation": _plain(summary.deviation),
        "seeds": summary.count,
    }


def _markdown(
    config: Config, outcomes: Sequence[Outcome], found: dict[str, dict[str, Summary]], sentence: str
) -> Iterator[str]:
    seeds = counted(len(outcomes), "seed")
    yield f"# {config.data.corpus}, {seeds}\n"
    yield f"seq2seq_jax {__version__}; all settings are in config.json beside this file.\n"
    columns = ["split", "metric", "mean ± standard deviation", *(f"seed {outcome.seed}" for outcome in outcomes)]
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    if validation := best_validation(outcomes):
        values = ["diverged" if each.validation is None else number(each.validation) for each in outcomes]
        yield f"| {' | '.join(['validation, best', config.train.best_metric, str(validation), *values])} |"
    for split, metrics in found.items():
        for name, summary in metrics.items():
            scores = [number(each.scores[split][name]) if each.scores else "diverged" for each in outcomes]
            yield f"| {' | '.join([split, name, str(summary), *scores])} |"
    if config.published:
        yield f"\nPublished: {config.published}"
    if sentence:
        yield f"\n{sentence}"
    if troubles := [outcome for outcome in outcomes if outcome.trouble]:
        yield ""
        yield from (f"* Seed {outcome.seed}: {outcome.trouble}" for outcome in troubles)
    signatures = {name: summary.signature for metrics in found.values() for name, summary in metrics.items()}
    if any(signatures.values()):
        yield ""
        yield from (f"* {name}: `{signature}`" for name, signature in signatures.items() if signature)


def _plain(value: float | None) -> float | None:
    """Returns what JSON can hold: a number that is not finite as None."""
    return None if value is None or not math.isfinite(value) else value
