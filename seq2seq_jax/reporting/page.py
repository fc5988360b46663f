"""The report of one run, or of several side by side: one page of HTML that needs nothing beside it."""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax

from seq2seq_jax import __version__, text_files
from seq2seq_jax.checkpoint import version_of
from seq2seq_jax.config import OF_SENTENCES, Config, flat
from seq2seq_jax.console import ready_streams
from seq2seq_jax.errors import UserError, did_you_mean
from seq2seq_jax.reporting.charts import Series, badge, line_chart
from seq2seq_jax.reporting.markup import Content, Element, document, element
from seq2seq_jax.reporting.runs import Evaluation, Run, TextGone, is_number, read_evaluation, read_runs
from seq2seq_jax.reporting.scores import Cell, Row, score_rows
from seq2seq_jax.reporting.sentences import (
    chrf_of,
    difference_section,
    extreme_section,
    frequency_section,
    length_section,
    sample_section,
)
from seq2seq_jax.reporting.statistics import MOST_RESAMPLED
from seq2seq_jax.run_directory import REPRODUCTION, SEEDS, is_claimed
from seq2seq_jax.training.report import HEADLINES, number
from seq2seq_jax.wording import counted, duration

PAGE = "report.html"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "sacrebleu", "numpy")


@ready_streams()
def report(
    workdir: Path | str | Sequence[Path | str], output: Path | str | None = None, split: str | None = None
) -> Path:
    """Writes a page of HTML about a run, or about several side by side.

    Curves, scores with their intervals, errors by length and by word frequency, samples
    with their attention, the best and the worst sentences, settings. The sentences are
    of an evaluation that has been made: nothing is evaluated.

    Args:
      workdir: the run directory, or several; that of several seeds stands for all of them that were tested.
      output: the file; by default report.html in the first of them.
      split: name of the evaluation; by default test, or the first there is.

    Returns:
      The file.

    Raises:
      UserError: a directory is not that of a run, has nothing to report, or holds damaged
        evaluations; there is no such evaluation; the runs were evaluated on different text;
        or the file cannot be written.
    """
    workdirs = [Path(workdir)] if isinstance(workdir, Path | str) else [Path(each) for each in workdir]
    if not workdirs:
        raise UserError("--workdir names no run directory; give one, or several to see them side by side.")
    runs = read_runs(workdirs)
    chosen = _choose(runs, split)
    path = Path(output) if output is not None else workdirs[0] / PAGE
    with text_files.open_output(path) as file:
        file.write(_page(workdirs, runs, chosen).encode())
    return path


def _choose(runs: Sequence[Run], split: str | None) -> str | None:
    """The evaluation of which the sentences are shown; None where there is none at all."""
    names = list(dict.fromkeys(name for run in runs for name in run.evaluations))
    if split is not None and split not in names:
        there = f"there are {', '.join(names)}" if names else "there is none yet"
        raise UserError(
            f"No evaluation of {split} in {', '.join(str(run.workdir) for run in runs)}; {there}."
            f"{did_you_mean(split, names)} To make it: python -m seq2seq_jax evaluate --workdir {runs[0].workdir}"
            f" --split {split}"
        )
    if split is not None or not names:
        return split
    return min(names, key=lambda name: (name != "test", not name.startswith("test")))


def _page(workdirs: Sequence[Path], runs: Sequence[Run], chosen: str | None) -> str:
    others = [name for name in dict.fromkeys(name for run in runs for name in run.evaluations) if name != chosen]
    evaluations, notes = {}, list(_notes(runs, chosen))
    for name in [chosen, *others] if chosen else []:
        try:
            evaluations[name] = read_evaluation(name, runs)
        except TextGone as gone:
            evaluations[name] = None
            notes.append(f"The sentences of {name} are not shown, and its scores have no intervals: {gone}")
    sections = {"Scores": list(_scores(workdirs, runs, evaluations)), "Curves": list(_curves(runs))}
    if chosen and (evaluation := evaluations[chosen]):
        sections |= _of_sentences(evaluation)
    sections |= {"Settings": list(_settings(runs)), "Environment": list(_environment(runs))}
    sections = {name: parts for name, parts in sections.items() if parts}
    links = [element("a", name.partition(" (")[0], href=f"#{_anchor(name)}") for name in sections]
    names = [run.name for run in runs] if len(runs) == len(workdirs) else [path.resolve().name for path in workdirs]
    title = " · ".join(names)
    head = [element("h1", title), _summary(runs), element("nav", *links, aria_label="Sections")]
    head += [element("p", note, class_="note") for note in notes]
    body = [
        element("section", element("h2", name), *parts, id=_anchor(name), aria_label=name)
        for name, parts in sections.items()
    ]
    return document(title, element("header", *head), *body)


def _of_sentences(evaluation: Evaluation) -> dict[str, list[Content]]:
    chrf, of = chrf_of(evaluation), f" ({evaluation.name})"
    return {
        f"Samples{of}": list(sample_section(evaluation)),
        f"Errors by length{of}": list(length_section(evaluation)),
        f"Errors by word frequency{of}": list(frequency_section(evaluation)),
        f"Where the runs differ{of}": list(difference_section(evaluation, chrf)),
        f"Best and worst sentences{of}": list(extreme_section(evaluation, chrf)),
    }


def _anchor(name: str) -> str:
    return name.partition(" (")[0].lower().replace(" ", "-")


def _notes(runs: Sequence[Run], chosen: str | None) -> Iterator[str]:
    """What is missing, or was left out."""
    for run in runs:
        if not is_claimed(run.workdir):
            yield f"{run.name} is still trained, and has no evaluation yet."
        elif chosen not in run.evaluations:
            what = f"evaluation of {chosen}" if chosen else "evaluation"
            yield (
                f"{run.name} has no {what}: its sentences are not shown. To make one: python -m seq2seq_jax evaluate"
                f" --workdir {run.workdir}{f' --split {chosen}' if chosen else ''}"
            )
        if run.damaged:
            yield f"metrics.jsonl of {run.name} has {counted(run.damaged, 'damaged line')}, left out here."
        if not run.rows and len(run.models) == 1:
            yield f"{run.name} has no metrics.jsonl, so that there are no curves of it."


def _summary(runs: Sequence[Run]) -> Element:
    """What each run is, in a line."""
    lines = []
    for run in runs:
        data, model = run.config.data, run.config.model
        text = ",".join(data.train_files or ()) or data.corpus
        columns = f", {data.source} to {data.target}" if data.source and data.target else ""
        layers = f"{counted(model.num_layers, 'layer')} of {model.hidden_size}"
        steps = f"; step {run.rows[-1]['step']:,} of {run.config.train.num_steps:,}" if run.rows else ""
        took = f", {duration(seconds)} of training" if (seconds := _last(run, "seconds")) else ""
        said = f"{text}{columns}; {model.cell}, {layers}, {model.attention} attention{steps}{took}"
        name = [badge(run.number), element("b", run.name), ": "] if len(runs) > 1 else []
        lines.append(element("p", *name, said))
    return element("div", *lines)


def _last(run: Run, name: str) -> Any:
    values = [row[name] for row in run.rows if is_number(row.get(name))]
    return values[-1] if values else None


def _scores(
    workdirs: Sequence[Path], runs: Sequence[Run], evaluations: dict[str, Evaluation | None]
) -> Iterator[Content]:
    for workdir in workdirs:
        yield from _conclusion(workdir)
    for published in dict.fromkeys(run.config.published for run in runs if run.config.published):
        yield element("p", f"Published: {published}")
    for name, evaluation in evaluations.items():
        there = [run for run in runs if name in run.evaluations]
        yield element("h3", f"{name}, {counted(there[0].evaluations[name]['sentences'], 'sentence')}")
        yield element("div", _score_table(there, score_rows(there, name, evaluation)), class_="wide")
        yield from _means(there, name)
        for remark in dict.fromkeys(text for run in there for text in run.evaluations[name].get("remarks", ())):
            yield element("p", remark, class_="faint")
        if evaluation is not None and len(evaluation.sources) > MOST_RESAMPLED:
            yield element(
                "p", f"BLEU and chrF have no intervals: more than {MOST_RESAMPLED:,} sentences.", class_="faint"
            )
    if evaluations:
        yield element("p", _how_scores_are_tested(len(runs) > 1), class_="faint")


def _how_scores_are_tested(several: bool) -> str:
    text = (
        "In brackets 95 % intervals: of BLEU and chrF by sacreBLEU's bootstrap (mean of the resamples ± half the width"
        " of their central 95 %), of shares of sentences by Wilson 1927. Other scores have none."
    )
    if several:
        text += (
            " p: how likely so large a difference from the first run is by chance, for these two models on such a test"
            " set; of BLEU and chrF by sacreBLEU's paired bootstrap (Koehn 2004), of exact match by McNemar's exact"
            " test. It says nothing about other seeds, and with many comparisons some p are small by chance."
        )
    return text


def _conclusion(workdir: Path) -> Iterator[Content]:
    """What `reproduce` said of the seeds; `members` has found its file whole."""
    path = workdir / REPRODUCTION
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(sentence := content.get("conclusion"), str) and sentence:
            yield element("p", element("b", sentence))
        for seed in content["seeds"]:
            if not seed["scores"]:
                yield element("p", f"Seed {seed['seed']} is left out: {seed.get('trouble') or 'it was not tested'}")


def _means(runs: Sequence[Run], name: str) -> Iterator[Content]:
    """Mean and spread of the scores of the seeds of each `reproduce`."""
    groups: dict[Path, list[Run]] = {}
    for run in runs:
        if run.workdir.parent.name == SEEDS:
            groups.setdefault(run.workdir.parent.parent, []).append(run)
    for workdir, seeds in groups.items():
        if len(seeds) > 1:
            scores: dict[str, list[Any]] = {
                metric: [seed.evaluations[name].get(metric) for seed in seeds] for metric in HEADLINES
            }
            said = [
                f"{metric.replace('_', ' ')} {number(mean(values))} ± {number(stdev(values))}"
                for metric, values in scores.items()
                if None not in values and metric != "cut_outputs"
            ]
            many = f"{counted(len(seeds), 'seed')} of {workdir.resolve().name}"
            yield element("p", f"Mean ± sample standard deviation over {many}: {', '.join(said)}.")


def _score_table(runs: Sequence[Run], rows: Sequence[Row]) -> Element:
    head = [element("th", "score"), *(element("th", run.name, class_="number") for run in runs)]
    body = []
    for row in rows:
        cells = [element("td", *_cell(cell), class_="number") for cell in row.cells]
        signatures = [element("div", element("code", signature)) for signature in row.signatures]
        body.append(
            element(
                "tr", element("td", row.name.replace("_", " ")), *cells, element("td", *signatures, class_="signature")
            )
        )
    return element("table", element("thead", element("tr", *head, element("th", "signature"))), element("tbody", *body))


def _cell(cell: Cell) -> Iterator[Content]:
    yield "–" if cell.value is None else number(cell.value)
    if cell.interval:
        low, high = cell.interval
        yield element("div", f"[{low:.2f}, {high:.2f}]", class_="unit")
    if cell.p_value is not None:
        yield element("div", f"p = {cell.p_value:.3f}" if cell.p_value >= 0.001 else "p < 0.001", class_="unit")


def _curves(runs: Sequence[Run]) -> Iterator[Content]:
    charts = []
    losses = [
        Series(f"{run.name}, {name}" if len(runs) > 1 else name, points, run.number, name == "training")
        for run in runs
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
        if not (name == "training" and run.config.objective.name in OF_SENTENCES) and (points := _points(run, key))
    ]
    minimised = [
        Series(run.name, points, run.number)
        for run in runs
        if run.config.objective.name in OF_SENTENCES and (points := _points(run, "loss"))
    ]
    if losses:
        charts.append(line_chart("Loss, nats per target token (thin: training)", losses, "step", logarithmic=True))
    if minimised:
        charts.append(line_chart("What was minimised: loss by objective.reward", minimised, "step"))
    validated = [f"validation_{name}" for name in HEADLINES if name not in ("loss", "cut_outputs")]
    titles = {name: name.removeprefix("validation_").replace("_", " ") + ", validation" for name in validated}
    titles |= {"learning_rate": "Learning rate", "grad_norm": "Norm of the gradient"}
    titles |= {"target_tokens_per_second": "Target tokens per second"}
    ways = {"validation_perplexity": {"logarithmic": True}, "target_tokens_per_second": {"from_zero": True}}
    for name, title in titles.items():
        series = [Series(run.name, points, run.number) for run in runs if (points := _points(run, name))]
        if series:
            charts.append(line_chart(title, series, "step", **ways.get(name, {})))
    if charts:
        yield element("div", *charts, class_="charts")
        yield element(
            "p",
            "Training loss is the mean since the row before, with dropout and, where it is set, with label smoothing;"
            " validation loss is without. Of many rows some neighbours are one point, their mean.",
            class_="faint",
        )


def _points(run: Run, name: str) -> list[tuple[float, float | None]]:
    """The rows that have `name`; none where no value is a number."""
    found = [(row["step"], value if is_number(value := row[name]) else None) for row in run.rows if name in row]
    return found if any(value is not None for _, value in found) else []


def _settings(runs: Sequence[Run]) -> Iterator[Content]:
    default, fields = flat(Config()), [flat(run.config) for run in runs]
    changed = [name for name in default if any(each[name] != default[name] for each in fields)]
    head = element("tr", *(element("th", text) for text in ("field", *(run.name for run in runs), "default")))
    rows = []
    for name in changed:
        values = [each[name] for each in fields]
        tag = "b" if any(value != values[0] for value in values) else "span"
        cells = [element("td", element(tag, _value(value))) for value in values]
        rows.append(element("tr", element("td", element("code", name)), *cells, element("td", _value(default[name]))))
    yield element("p", f"Fields that are not as by default{'; bold where the runs differ' if len(runs) > 1 else ''}.")
    yield element("div", element("table", element("thead", head), element("tbody", *rows)), class_="wide")
    for run in runs:
        whole = json.dumps(asdict(run.config), indent=2, ensure_ascii=False)
        yield element(
            "details", element("summary", f"All settings of {run.name}"), element("pre", element("code", whole))
        )


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else "–" if value is None else str(value)


def _environment(runs: Sequence[Run]) -> Iterator[Content]:
    """What is known of where the runs were trained, and where this page was made."""
    lines: list[Element] = []
    for run in runs:
        if len(run.models) > 1:
            continue
        version = version_of(run.workdir)
        made = f"seq2seq-jax {version}" if version else "no checkpoint, so that the version is not known"
        evaluated = [
            f"{name} at step {step if isinstance(step := scores.get('step'), int) else 'unknown'}"
            for name, scores in run.evaluations.items()
        ]
        lines += [element("dt", f"{run.name}, trained with"), element("dd", made)]
        lines += [element("dt", "evaluated"), element("dd", ", ".join(evaluated) or "not yet")]
    devices = jax.local_devices()
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    here = f"seq2seq-jax {__version__}, Python {platform.python_version()}, {libraries}"
    lines += [element("dt", "This page, made with"), element("dd", here)]
    lines += [element("dt", "on"), element("dd", f"{platform.platform()}, {len(devices)} {devices[0].device_kind}")]
    yield element("dl", *lines)
