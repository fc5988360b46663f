"""Text files as a corpus: a folder, or files named one by one.

A folder holds parallel files `SPLIT.COLUMN[.gz]`, of which line n of every
column belongs together, or `SPLIT.tsv[.gz]` with tab-separated columns and no
header; `text_files` says what is text. A SPLIT is train or begins so, is a
usual name of a validation split, or has test in it; other files in the folder,
such as vocabularies, are left alone.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora.dialogue import as_pairs, turns_notes, turns_signature
from seq2seq_jax.data.corpora.raw import RawCorpus, Stream, named_path, resolve_columns
from seq2seq_jax.errors import UserError, did_you_mean
from seq2seq_jax.text_files import check_exists, names_beside, read_lines

_SPLIT = re.compile(r"train|valid|val$|dev|.*test")

Folder = dict[str, dict[str, Path]]
"""Split -> column -> file."""


def find_folder(name: str, config: DataConfig) -> RawCorpus:
    """Returns the corpus in the folder `name`.

    Raises:
      UserError: no such folder, split or column, or files that leave a choice.
    """
    folder = named_path("data.corpus files:", name)
    listing = _list_folder(folder, config)
    if config.columns:
        return _find_tables(folder, listing, config)
    parallel = {split: sorted(files.keys() - {"tsv"}) for split, files in listing.items()}
    trained = parallel.get(config.train_split) or sorted({column for names in parallel.values() for column in names})
    if not parallel.get(config.train_split) and any("tsv" in files for files in listing.values()):
        raise UserError(_unnamed_columns(listing))
    where = f"{folder}, split {config.train_split},"
    chosen = resolve_columns(config, trained, _own_names(trained), where)
    complete = {}
    for split, files in listing.items():
        missing = [column for column in chosen if column not in files]
        if not missing:
            complete[split] = tuple(files[column] for column in chosen)
            for path in complete[split]:
                _check_file(path, f"data.corpus files:{folder}")
        elif len(missing) < len(chosen) and (split in ("train", "validation") or split.startswith("test")):
            raise UserError(f"{folder}: split {split} has no column {missing[0]}; it has {', '.join(parallel[split])}.")
    return _parallel_corpus(chosen[0], chosen[1], complete, config)


def find_files(config: DataConfig) -> RawCorpus:
    """Returns the corpus of data.train_files, data.validation_files and data.test_files.

    Raises:
      UserError: a file is not there.
    """
    splits = {}
    for split in ("train", "validation", "test"):
        named = getattr(config, f"{split}_files")
        if named:
            splits[split] = tuple(named_path(f"data.{split}_files", name) for name in named)
            for path in splits[split]:
                _check_file(path, f"data.{split}_files")
    source, target = (_file_column(path) for path in splits["train"])
    if source == target:
        source, target = "source", "target"
    return _parallel_corpus(config.source or source, config.target or target, splits, config)


def parallel_lines(*paths: Path) -> Iterator[tuple[str, ...]]:
    """Yields the lines of several files side by side.

    Raises:
      UserError: one file has more lines, or `read_lines` says so.
    """
    with contextlib.ExitStack() as stack:
        lines = itertools.zip_longest(*(stack.enter_context(closing(read_lines(path))) for path in paths))
        for number, columns in enumerate(lines, 1):
            if None in columns:
                longer = next(place for place, line in enumerate(columns) if line is not None)
                path, shorter = paths[longer], paths[columns.index(None)]
                total = number + sum(line[longer] is not None for line in lines)
                raise UserError(
                    f"{path} has {total:,} lines and {shorter} has {number - 1:,}: line {number:,} of {path.name}"
                    f" is the first without a partner: {_excerpt(columns[longer])}"
                )
            yield columns


def read_pairs(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """Returns the lines of two parallel files.

    Raises:
      UserError: one of them is not there, or they are empty, or as `parallel_lines` says.
    """
    for path in (source, target):
        check_exists(path)
    pairs = list(parallel_lines(source, target))
    if not pairs:
        raise UserError(f"{source} and {target} are empty.")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _find_tables(folder: Path, listing: Folder, config: DataConfig) -> RawCorpus:
    """Returns the corpus of the SPLIT.tsv files in `folder`."""
    tables = {split: files["tsv"] for split, files in listing.items() if "tsv" in files}
    if not tables:
        raise UserError(f"data.columns is for SPLIT.tsv[.gz] files, and {folder} has none. Leave it out.")
    for path in tables.values():
        _check_file(path, f"data.corpus files:{folder}")
    columns = config.columns
    chosen = resolve_columns(config, columns, _own_names(columns), "data.columns")
    places = [columns.index(column) for column in chosen]

    def stream(path: Path) -> Stream:
        return lambda: as_pairs(_table_rows(path, columns, places), config, partial(_place, path))

    return RawCorpus(
        chosen[0],
        chosen[1],
        splits={split: stream(path) for split, path in tables.items()},
        signature=[
            *("tsv", len(columns), *places),
            {split: _stamp(path) for split, path in tables.items()},
            *turns_signature(config),
        ],
        newest=max(path.stat().st_mtime for path in tables.values()),
        largest_train=_largest_train({split: [path] for split, path in tables.items()}),
        notes=turns_notes(config),
    )


def _table_rows(path: Path, columns: tuple[str, ...], places: Sequence[int]) -> Iterator[list[str]]:
    with closing(read_lines(path)) as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split("\t")
            if len(fields) != len(columns):
                if not line.strip():
                    fields = [""] * len(columns)  # an empty line is an empty pair, as in parallel files
                else:
                    raise UserError(
                        f"{path}, line {number:,} has {len(fields)} tab-separated fields, and data.columns names"
                        f" {len(columns)} ({', '.join(columns)}): {_excerpt(line)}"
                    )
            yield [fields[place] for place in places]


def _parallel_corpus(source: str, target: str, splits: dict[str, tuple[Path, ...]], config: DataConfig) -> RawCorpus:
    def stream(files: tuple[Path, ...]) -> Stream:
        return lambda: as_pairs(parallel_lines(*files), config, partial(_place, files[-1]))

    everything = [path for files in splits.values() for path in files]
    return RawCorpus(
        source,
        target,
        splits={split: stream(files) for split, files in splits.items()},
        signature=[
            "lines",
            {split: [_stamp(path) for path in files] for split, files in splits.items()},
            *turns_signature(config),
        ],
        newest=max((path.stat().st_mtime for path in everything), default=0.0),
        largest_train=_largest_train(splits),
        notes=turns_notes(config),
    )


def _list_folder(folder: Path, config: DataConfig) -> Folder:
    """Returns the SPLIT.COLUMN[.gz] files of `folder`; data.train_split is a split whatever its name.

    Whatever else has the name of a split and a column is among them: `_check_file` refuses it where it is needed.
    """
    if not folder.is_dir():
        near = did_you_mean(folder.name, names_beside(folder))
        raise UserError(
            f"data.corpus files:{folder}: there is no such folder.{near}\n"
            "Name your own with --data.corpus files:DIR, or two files with --data.train-files SOURCE TARGET."
        )
    listing: Folder = {}
    columns = {config.source, config.target, "tsv"}  # of folders, which may be there for any other reason, only these
    for path in sorted(_paths_in(folder), key=lambda path: (path.is_dir(), path)):
        split, dot, column = path.name.removesuffix(".gz").partition(".")
        if not dot or not (split == config.train_split or _SPLIT.match(split)):
            continue
        if not path.is_dir():
            columns.add(column)
        elif column not in columns:
            continue
        other = listing.setdefault(split, {}).setdefault(column, path)
        if other != path:
            raise UserError(f"{folder} has both {other.name} and {path.name}; remove one.")
    if not listing:
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = f" Its folders are {', '.join(inner)}; name one of them." if inner else ""
        raise UserError(f"{folder} has no files SPLIT.COLUMN[.gz] or SPLIT.tsv[.gz].{hint}")
    return listing


def _check_file(path: Path, where: str) -> None:
    """Raises UserError unless `path` is a file or leads to one; `where` is said to name it."""
    if os.path.isfile(path):
        return
    if not os.path.lexists(path):
        raise UserError(f"{where}: there is no file {path}.{did_you_mean(path.name, names_beside(path))}")
    kind = "a pipe or a device, and a corpus is read more than once"
    if os.path.isdir(path):
        kind = "a folder"
    elif not os.path.exists(path):
        kind = "a link to nothing"
    raise UserError(f"{where}: {path} should be a file of text and is {kind}.")


def _paths_in(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read {folder}: {error.strerror}.") from error


def _unnamed_columns(listing: Folder) -> str:
    path = next(files["tsv"] for files in listing.values() if "tsv" in files)
    first = next(read_lines(path), "")
    return (
        f"{path} has {first.count(chr(9)) + 1} columns without names: {_excerpt(first)}. Name them, left to right,"
        " with data.columns, and say with data.source and data.target which is read and which is written."
    )


def _own_names(columns: Any) -> tuple[str, str] | None:
    """Returns (source, target) if columns are called just that."""
    return ("source", "target") if {"source", "target"} <= set(columns) else None


def _file_column(path: Path) -> str:
    """Returns what sets the file's name apart: de for train.de.gz."""
    return Path(path.name.removesuffix(".gz")).suffix.removeprefix(".") or path.name


def _place(path: Path, number: int) -> str:
    return f"{path}, line {number:,}"


def _largest_train(splits: dict[str, Any]) -> str | None:
    """Returns the split of most bytes among train-low, train-high and the like."""
    names = sorted(split for split in splits if split.startswith("train"))
    return max(names, key=lambda split: sum(path.stat().st_size for path in splits[split]), default=None)


def _stamp(path: Path) -> list[Any]:
    """Returns what changes when a file is written to: place, size and time in nanoseconds."""
    stat = path.stat()
    return [os.fspath(path), stat.st_size, stat.st_mtime_ns]


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
