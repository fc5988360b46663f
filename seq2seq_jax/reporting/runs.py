"""What run directories hold that can be reported: rows of training, evaluations, and the text these are of."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from seq2seq_jax.config import Config
from seq2seq_jax.data.corpora import Corpus, load_corpus_of
from seq2seq_jax.data.corpora.files import read_pairs
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.data.vocabulary import load_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluation import Items, make_items
from seq2seq_jax.run_directory import SEEDS, VOCABULARY, members, read_config
from seq2seq_jax.training.report import HEADLINES
from seq2seq_jax.training.writer import row_of, whole_lines
from seq2seq_jax.wording import counted

EVALUATIONS = "evaluations"
MOST_COUNTED = 500_000  # training pairs whose words are counted, in half a minute
SHARES = ("exact_match", "exact_match_raw", "sequence_error_rate")
"""Scores that are shares of sentences, in percent."""
_BLOCK = 10_000


class Run(NamedTuple):
    """A run directory, or several as the ensemble that they were evaluated as.

    Attributes:
      name: short, and no other run's of the report.
      number: its place in the report, by which it has its colour.
      workdir: its directory; of the seeds of `reproduce` theirs.
      models: the run directories whose models it is.
      config: of its first model.
      rows: of `metrics.jsonl`; an ensemble has none.
      damaged: lines of that file that are no rows.
      evaluations: the scores of each, by its name.
    """

    name: str
    number: int
    workdir: Path
    models: tuple[Path, ...]
    config: Config
    rows: list[dict[str, Any]]
    damaged: int
    evaluations: dict[str, dict[str, Any]]


class Outputs(NamedTuple):
    """What a run wrote in an evaluation.

    Attributes:
      run: whose.
      scores: the evaluation's.
      hypotheses: a line for each item.
      exact: whether it is one of the references, as the vocabulary can write them.
    """

    run: Run
    scores: dict[str, Any]
    hypotheses: list[str]
    exact: Bool[np.ndarray, " N"]


class Evaluation(NamedTuple):
    """What runs wrote for the same items.

    Attributes:
      name: such as "test".
      sources: of the items.
      references: one or several for each.
      source_lengths: tokens of the first run's vocabulary, the end mark not counted.
      target_lengths: of the first reference, as source_lengths.
      outputs: of each run that has the evaluation.
    """

    name: str
    sources: list[str]
    references: list[list[str]]
    source_lengths: Int[np.ndarray, " N"]
    target_lengths: Int[np.ndarray, " N"]
    outputs: list[Outputs]


def read_runs(workdirs: Sequence[Path]) -> list[Run]:
    """Returns what there is to report.

    The directory of several seeds stands for those that were tested, each a run,
    and for their ensemble where it has been evaluated; while they are trained, for all.

    Raises:
      UserError: one of them is no run directory, is given twice, holds a damaged
        evaluation, or has no row and no evaluation.
    """
    found = [run for workdir in workdirs for run in _runs_of(workdir, len(workdirs) == 1)]
    places = [run.workdir.resolve() for run in found]
    for run, place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{run.workdir} is given twice. Give it once.")
    names = Counter(run.name for run in found)
    return [
        run._replace(number=number, name=run.name if names[run.name] == 1 else str(run.workdir))
        for number, run in enumerate(found)
    ]


def _runs_of(workdir: Path, alone: bool) -> list[Run]:
    """The run or the runs of a directory; where it is the only one, its seeds are called by their numbers alone."""
    name, seeds = workdir.resolve().name, members([workdir])
    before = "" if alone else f"{name}, "
    if seeds != (workdir,):
        runs = [_read_run(f"{before}seed {read_config(seed).train.seed}", seed, read_config(seed)) for seed in seeds]
        if evaluations := _read_evaluations(workdir):
            many = f"{before}ensemble of {len(seeds)}"
            runs.append(Run(many, 0, workdir, seeds, runs[0].config, [], 0, evaluations))
        return runs
    config, runs = read_config(workdir), []
    for index in itertools.takewhile(lambda index: (workdir / SEEDS / str(index)).is_dir(), itertools.count()):
        own = replace(config, train=replace(config.train, seed=config.train.seed + index))
        runs.append(_read_run(f"{before}seed {own.train.seed}", workdir / SEEDS / str(index), own))
    if (folder := workdir.resolve().parent).name == SEEDS:
        name = f"{folder.parent.name}, seed {config.train.seed}"
    return runs or [_read_run(name, workdir, config)]


def _read_run(name: str, workdir: Path, config: Config) -> Run:
    evaluations = _read_evaluations(workdir)
    lines = whole_lines(workdir / "metrics.jsonl")
    rows = [row for line in lines if (row := row_of(line)) and 0 <= row["step"] < 2**63]
    if not rows and not evaluations:
        raise UserError(
            f"There is nothing to report of {workdir}: metrics.jsonl has no row, and evaluations/ no evaluation. Train"
            " it first, or give it to the command evaluate."
        )
    return Run(name, 0, workdir, (workdir,), config, rows, len(lines) - len(rows), evaluations)


def _read_evaluations(workdir: Path) -> dict[str, dict[str, Any]]:
    folder = workdir / EVALUATIONS
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.json"))}
    return {name: _read_scores(path) for name, path in paths.items()}


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        scores = json.loads(path.read_bytes())
        _check_kinds(scores)
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}). Remove it, or evaluate the run again.") from None
    return scores


def _check_kinds(scores: Any) -> None:
    """Raises TypeError where a file of scores holds anything of another kind than `evaluate` writes."""
    kinds: dict[str, Any] = {
        "sentences": int,
        "decode": dict,
        "workdirs": list,
        "remarks": list,
        **dict.fromkeys(("source_file", "target_file", *(f"{name}_signature" for name in HEADLINES)), str),
    }
    if not isinstance(scores, dict) or "sentences" not in scores:
        raise TypeError
    for name, kind in kinds.items():
        if name in scores and not isinstance(scores[name], kind):
            raise TypeError
    for name in HEADLINES:
        value = scores.get(name)
        if value is not None and not (is_number(value) and (name not in SHARES or 0 <= value <= 100)):
            raise TypeError
    if not all(isinstance(text, str) for name in ("workdirs", "remarks") for text in scores.get(name, ())):
        raise TypeError


def is_number(value: Any) -> bool:
    """Whether a value of JSON, which Python reads more liberally than others, is a number to be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


@lru_cache(maxsize=4)
def _corpus(models: tuple[Path, ...], config: Config) -> Corpus:
    return load_corpus_of(models, config)


def read_evaluation(name: str, runs: Sequence[Run]) -> Evaluation:
    """Returns an evaluation that at least one of `runs` has.

    Raises:
      TextGone: the text of the items cannot be read any more, or is another.
      UserError: the runs were evaluated on different items, or outputs do not fit their scores.
    """
    outputs, first, together = [], None, None
    for run in (run for run in runs if name in run.evaluations):
        items, lengths = _read_items(run, name)
        if first is None or together is None:
            first, together = run, Evaluation(name, items.sources, items.references, *lengths, [])
        _check_same(name, together, first, items, run)
        outputs.append(_read_outputs(run, name, items))
    assert together is not None
    return together._replace(outputs=outputs)


class TextGone(UserError):
    """The text of an evaluation can no longer be had."""


def _read_items(run: Run, name: str) -> tuple[Items, tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]]:
    """The items of an evaluation, and the tokens of their sources and first references."""
    scores = run.evaluations[name]
    try:
        if "source_file" in scores:
            sources, targets = read_pairs(Path(scores["source_file"]), Path(scores["target_file"]))
        else:
            pairs = _corpus(run.models, run.config).split(name.rpartition("/")[2])
            sources, targets = pairs.read(0, len(pairs))
    except UserError as error:
        raise TextGone(str(error)) from None
    vocabularies = load_vocabularies(run.models[0] / VOCABULARY, copy=run.config.model.copy)
    encoded = encode_lines(vocabularies, sources, targets)
    items = make_items(run.config, vocabularies, encoded, sources, targets)
    firsts = encode_lines(vocabularies, items.sources, [texts[0] for texts in items.references])
    return items, (items.ids.lengths - 1, firsts.target_lengths - 1)


def _check_same(name: str, expected: Evaluation, first: Run, items: Items, run: Run) -> None:
    here, there = (list(zip(each.sources, each.references, strict=True)) for each in (items, expected))
    if here == there:
        return
    if len(here) != len(there):
        how = f"{counted(len(here), 'item')} there and {len(there):,}"
    else:
        number = next(place for place, pair in enumerate(zip(here, there, strict=True), 1) if pair[0] != pair[1])
        how = f"item {number:,} is the first that differs"
    raise UserError(
        f"{run.workdir} and {first.workdir} were evaluated on different text, so that nothing can be compared: of"
        f" {name} {how}. Report them one by one, or evaluate both with the same --source-file and --target-file."
    )


def _read_outputs(run: Run, name: str, items: Items) -> Outputs:
    path, scores = run.workdir / EVALUATIONS / f"{name}.hypotheses.txt", run.evaluations[name]
    try:
        hypotheses = path.read_bytes().decode().split("\n")[:-1]
    except FileNotFoundError:
        raise UserError(f"There is no {path}, though there are its scores. Evaluate the run again.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8. Evaluate the run again.") from None
    if len(hypotheses) != len(items.sources):
        raise UserError(
            f"{path} has {counted(len(hypotheses), 'line')}, and {name} {counted(len(items.sources), 'item')}."
            " Evaluate the run again."
        )
    exact = np.array([line in texts for line, texts in zip(hypotheses, items.restored, strict=True)], bool)
    check_score(run, name, "exact_match", 100 * float(exact.mean()))
    return Outputs(run, scores, hypotheses, exact)


def check_score(run: Run, name: str, metric: str, value: float) -> None:
    """Refuses outputs that have another score than was written beside them.

    Raises:
      UserError: names both, and the files.
    """
    written = run.evaluations[name].get(metric)
    if not isinstance(written, int | float) or abs(written - value) > 1e-3:
        path = run.workdir / EVALUATIONS / name
        raise UserError(
            f"{path}.hypotheses.txt has {metric} {value:.4f}, and {path}.json says {written}: they, or the text, are"
            " not of one evaluation. Evaluate the run again."
        )


class Frequencies(NamedTuple):
    """How often words are in the targets of training pairs: of the first `counted` of `pairs`."""

    words: Mapping[str, int]
    counted: int
    pairs: int


def training_words(run: Run, tokenize: Callable[[str], Sequence[str]]) -> Frequencies:
    """Counts the words that a run was trained to write.

    Raises:
      TextGone: the text cannot be read any more.
    """
    try:
        train = _corpus(run.models, run.config).split("train")
    except UserError as error:
        raise TextGone(str(error)) from None
    words, most = Counter[str](), min(len(train), MOST_COUNTED)
    for start in range(0, most, _BLOCK):
        for line in train.read(start, min(start + _BLOCK, most))[1]:
            words.update(tokenize(line))
    return Frequencies(words, most, len(train))
