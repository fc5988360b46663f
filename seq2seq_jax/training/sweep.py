"""A grid of settings, each trained as `reproduce` does, and compared on the validation split: `reproduce --sweep`."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from seq2seq_jax import __version__, run_directory
from seq2seq_jax.cache import write_whole
from seq2seq_jax.config import PUBLISHED, Config
from seq2seq_jax.console import harmless, ready_streams
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.errors import UserError
from seq2seq_jax.training.loop import ASKED_BY, Status
from seq2seq_jax.training.reproduction import reproduce
from seq2seq_jax.training.verdict import Summary, all_diverged

TEST_SCORES = ("loss", "bleu", "chrf", "exact_match")
"""Scores of test splits in the table; all others are in the results of each point."""
LONGEST_FOLDER = 160  # characters

_TEXT = ("corpus", "source", "target", "train_split", "columns", "features", "features_separator", "data_dir")
_TEXT += ("train_files", "validation_files", "test_files", "lowercase")
_TOKENS = (
    "data.vocabulary",
    "data.target_vocabulary",
    "data.vocab_size",
    "data.vocabulary_sample",
    "data.joint_vocabulary",
    "data.min_frequency",
    "model.copy",
)
_MEASURES = ("train.best_metric", "train.decode_sentences", "data.group_references", "bleu_tokenizer")
_AFTERWARDS = ("moses_language", "metrics", *PUBLISHED)


class Point(NamedTuple):
    """What became of one combination of settings.

    Attributes:
      values: of the fields that differ, by their dotted names.
      folder: its name within the directory of the sweep.
      result: what `reproduction.json` says; None where there is none.
      trouble: why there are no scores, if so.
    """

    values: dict[str, Any]
    folder: str
    result: dict[str, Any] | None
    trouble: str = ""

    @property
    def validation(self) -> float | None:
        """Mean of the seeds' best validation values."""
        return None if self.trouble or self.result is None else self.result["validation"]["mean"]


@ready_streams()
def sweep(fields: Sequence[str], configs: Sequence[Config], num_seeds: int, workdir: Path) -> Status:
    """Trains `configs` one after another, each by `reproduce` in a folder of `workdir`, and compares them.

    `workdir/sweep.json` and `sweep.md` say what came out; the best is the one with
    the best mean of the seeds' best values of `train.best_metric`, on validation. A
    point that is done is not trained again, and one that was broken off is resumed.
    One that fails, because all of its seeds diverge or it does not fit into memory,
    is told, and the others go on.

    Args:
      fields: the dotted names of the fields in which `configs` differ.
      configs: at least one.
      num_seeds: of each of them.
      workdir: holds nothing else.

    Returns:
      "done", or by which signal it was asked to stop.

    Raises:
      UserError: the validation scores of these settings cannot be compared, two are the same, `workdir` is a
        run directory or in use; or at the end, if all points have failed.
    """
    workdir = Path(workdir)
    for field in fields:
        _check_comparable(field, configs[0].train.best_metric)
    if len(set(configs)) < len(configs):
        twice = next(config for index, config in enumerate(configs) if config in configs[:index])
        raise UserError(f"--sweep: {_words(_values(fields, twice))} is there twice; give each value once.")
    if run_directory.is_claimed(workdir):
        raise UserError(
            f"{workdir} is a run directory, and a sweep holds one for each point; choose another --workdir."
        )
    say, points = partial(print, flush=True), list[Point]()
    with run_directory.locked(workdir):
        for number, config in enumerate(configs, 1):
            values = _values(fields, config)
            folder = folder_name(values)
            say(f"Point       {number} of {len(configs)}: {harmless(_words(values))}")
            try:
                if result := _result(run_directory.with_absolute_paths(config), num_seeds, workdir / folder):
                    say("Done        earlier, and not trained again")
                else:
                    status = reproduce(config, num_seeds, workdir / folder).status
                    if status in ASKED_BY.values():
                        return status
                    result = _read(workdir / folder)
                trouble = "" if result["splits"] else all_diverged([seed["trouble"] for seed in result["seeds"]])
            except UserError as error:
                result, trouble = None, str(error)
            if trouble:
                say(f"Failed      {trouble}")
            points.append(Point(values, folder, result, trouble))
        _write(workdir, configs[0], num_seeds, points)
        for line in _lines(configs[0], num_seeds, points):
            say(line)
        say(f"Outputs     {workdir}/sweep.md and .json, and a folder a point")
    if all(point.trouble for point in points):
        raise UserError(f"All points of the sweep have failed. {_words(points[0].values)}: {points[0].trouble}")
    return "done"


def _check_comparable(field: str, metric: str) -> None:
    """Refuses a field by which what points reach on validation cannot be compared, or does not differ."""
    section, _, name = field.rpartition(".")
    if field == "train.seed":
        raise UserError("--sweep train.seed compares chances; give --num-seeds, of which each point has the mean.")
    if section == "decode":
        raise UserError(
            f"--sweep {field}: it acts once a model is trained. Train it, and compare by evaluate --split validation"
            f" --{field.replace('_', '-')} VALUE."
        )
    if field in _AFTERWARDS:
        raise UserError(f"--sweep {field}: it changes nothing in training and validation.")
    if field in _MEASURES:
        raise UserError(f"--sweep {field}: it is part of what points are compared by; give all of them one value.")
    if section == "data" and name in _TEXT:
        raise UserError(f"--sweep {field}: scores on different text cannot be compared. Give reproduce each by itself.")
    if field in _TOKENS and metric == "loss":
        raise UserError(
            f"--sweep {field}: it changes what a token is, and train.best_metric is loss, in nats per token, which"
            " cannot be compared then. Set --train.best-metric bleu, chrf or exact_match."
        )


def _result(config: Config, num_seeds: int, folder: Path) -> dict[str, Any] | None:
    """What came of a point, if it is done as it is wanted now; whatever differs is for `reproduce` to judge."""
    if not run_directory.is_claimed(folder) or run_directory.read_config(folder) != config:
        return None
    try:
        result = _read(folder)
        as_wanted = "validation" in result and len(result["seeds"]) == num_seeds
    except (OSError, ValueError, KeyError, TypeError):  # not done yet, or damaged
        return None
    if not as_wanted or run_directory.read_fingerprint(folder) != load_corpus(config.data).fingerprint:
        return None
    return result


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / run_directory.REPRODUCTION).read_text(encoding="utf-8"))


def folder_name(values: Mapping[str, Any]) -> str:
    """The name of a point's folder: its values, and a few letters more where these can be no plain part of a name."""
    words = ",".join(f"{field}={value}" for field, value in values.items())
    name = re.sub(r"[^A-Za-z0-9_.=,+-]", "_", words)[:LONGEST_FOLDER]
    return name if name == words else f"{name}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _values(fields: Sequence[str], config: Config) -> dict[str, Any]:
    return {field: attrgetter(field)(config) for field in fields}


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{field}={value}" for field, value in values.items())


# what is said of all points


def best_points(metric: str, points: Sequence[Point]) -> list[Point]:
    """The points with the best mean on validation, which is the lowest loss or the highest of another metric."""
    values = [point.validation for point in points if point.validation is not None]
    best = (min if metric == "loss" else max)(values, default=None)
    return [point for point in points if point.validation is not None and point.validation == best]


def _write(workdir: Path, config: Config, num_seeds: int, points: Sequence[Point]) -> None:
    """Writes `sweep.json` and `sweep.md`, each as a whole."""
    best = best_points(config.train.best_metric, points)
    content = {
        "version": __version__,
        "metric": config.train.best_metric,
        "seeds": num_seeds,
        "points": [
            {
                "values": point.values,
                "workdir": point.folder,
                "best": point in best,
                "trouble": point.trouble,
                "validation": point.result and point.result["validation"],
                "splits": point.result["splits"] if point.result else {},
            }
            for point in points
        ],
    }
    write_whole(workdir / "sweep.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(workdir / "sweep.md", "".join(f"{line}\n" for line in _lines(config, num_seeds, points)))


def _lines(config: Config, num_seeds: int, points: Sequence[Point]) -> Iterator[str]:
    """The table, a row a point, in Markdown; what failed; and which is the best."""
    metric, columns = config.train.best_metric, _test_scores(config, points)
    best = best_points(metric, points)
    spread = f", mean ± standard deviation of {num_seeds} seeds" if num_seeds > 1 else ""
    rows = [[*points[0].values, f"validation {metric}", *(f"{split} {name}" for split, name in columns)]]
    for point in points:
        row = [*map(str, point.values.values())]
        if point.trouble or point.result is None:
            row += ["failed, see below", *("" for _ in columns)]
        else:
            validation, splits = point.result["validation"], point.result["splits"]
            some = f" ({validation['seeds']} of {num_seeds} seeds)" if validation["seeds"] < num_seeds else ""
            row += [f"{_shown(validation)}{some}{' (best)' if point in best else ''}"]
            row += [_shown(splits[split][name]) if name in splits.get(split, ()) else "" for split, name in columns]
        rows.append(row)
    rows = [[harmless(cell).replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
    yield ""
    for point in points:
        if point.trouble:
            yield f"* {harmless(_words(point.values))}: {harmless(point.trouble)}"
    words = " and ".join(harmless(_words(point.values)) for point in best)
    yield f"Best by validation {metric}{spread}: {words or 'none'}"


def _test_scores(config: Config, points: Sequence[Point]) -> list[tuple[str, str]]:
    """Split and name of the scores in the table: those that any point has."""
    names = dict.fromkeys([*TEST_SCORES, *filter(None, [config.published_metric])])
    results = [point.result["splits"] for point in points if point.result]
    splits = dict.fromkeys(split for result in results for split in result)
    return [(split, name) for split in splits for name in names if any(name in each.get(split, ()) for each in results)]


def _shown(score: Mapping[str, Any]) -> str:
    """A mean and its standard deviation; JSON keeps what is not finite as null."""
    mean = math.nan if score["mean"] is None else score["mean"]
    return str(Summary(mean, score["standard_deviation"], score["seeds"]))
