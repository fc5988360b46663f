"""Raw text pairs -> a TFDS dataset of ArrayRecord files, named by its content.

Two passes over the streams, in bounded memory: `survey` counts, checks and
hashes, so that bad input is told before anything is written and text prepared
once is not prepared again; `write` makes the dataset, whole or not at all. The
dataset can be read by TFDS alone: `tfds.builder_from_directory(folder / VERSION)`.
"""

import errno
import hashlib
import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import (  # ty: ignore[import-not-found] - a compiled module
    ArrayRecordReader,
    ArrayRecordWriter,
)
from tensorflow_datasets.proto import tf_example_pb2

from seq2seq_jax.cache import existing_folder, whole_directory
from seq2seq_jax.data.corpora.raw import Pair, RawCorpus, Stream
from seq2seq_jax.data.progress import ProgressCallback
from seq2seq_jax.errors import UserError

DATASET = "pairs"
VERSION = "2.0.0"  # of the files and of the rules by which pairs are left out and held out; part of the fingerprint

_SIDES = ("source", "target")  # features of an example
_Example = tf_example_pb2.Example  # ty: ignore[missing-attribute] - protobuf makes its classes on import
_VALIDATION_SHARE = 20  # one pair in so many
_LARGEST_VALIDATION = 2_000  # pairs: evaluated every few minutes, and its scores are steady by then
_REPORT_EVERY = 2_000  # pairs between two calls of `ProgressCallback`
# One record a group, as TFDS writes, for random access; a sentence is too short for compression to gain anything.
_RECORD_OPTIONS = "group_size:1,uncompressed"
_READ_OPTIONS = "readahead_buffer_size:0"  # for random access
_LONGEST_NAME = 255  # bytes, on the file systems there are
_RECORD_OVERHEAD = 150  # bytes a pair takes on disk beside its text, by measurement


class Split:
    """Random access to the text pairs of one split on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Not ArrayRecordDataSource: to be asked for a list of records costs time in proportion to all that there are.
        self._records = ArrayRecordReader(str(path), _READ_OPTIONS)

    def __reduce__(self) -> tuple[type["Split"], tuple[Path]]:
        return Split, (self._path,)

    def __len__(self) -> int:
        return self._records.num_records()

    def read(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        """Returns source lines and target lines `start` to `stop` (not included; cut to the split's length).

        Raises:
          UserError: the file was damaged since it was opened.
        """
        try:
            stop = min(stop, len(self))
            records = self._records.read(start, stop) if start < stop else []
            # TFDS's own decoding takes three times as long as this.
            features = [_Example.FromString(record).features.feature for record in records]
            columns = [[feature[side].bytes_list.value[0].decode() for feature in features] for side in _SIDES]
        except Exception as error:  # whatever ArrayRecord, protobuf and Python make of damaged bytes
            raise UserError(
                f"{self._path} can no longer be read ({type(error).__name__}): it was damaged since the start."
                " Give the command again: what is damaged is then prepared anew."
            ) from error
        return columns[0], columns[1]


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus found.

    Attributes:
      fingerprint: hash of the splits' names and text.
      counts: pairs in each split to be written.
      num_bytes: UTF-8 bytes of all text.
      notes: what the user should be told.
      held_out: positions in train of the pairs that become the validation split; empty if it has its own.
    """

    fingerprint: str
    counts: dict[str, int]
    num_bytes: int
    notes: tuple[str, ...]
    held_out: frozenset[int] = frozenset()


def survey(raw: RawCorpus, progress: ProgressCallback, *, whole_sources: bool = False) -> Survey:
    """Reads every split of `raw` once.

    Args:
      raw: the corpus.
      progress: told what is read.
      whole_sources: whether a validation split that is cut from train has all pairs of its sources.

    Raises:
      UserError: a stream's text is faulty, or a split has no pair.
    """
    counts, digests, notes, num_bytes = {}, [], [], 0
    ranks = None if "validation" in raw.splits else array("Q")
    for name, stream in raw.splits.items():
        tally = _survey_split(name, stream, ranks if name == "train" else None, whole_sources, progress)
        notes += tally.notes(name)
        counts[name], num_bytes = tally.count, num_bytes + tally.num_bytes
        digests.append(f"{name} {tally.count} {tally.digest}")
    held_out: frozenset[int] = frozenset()
    if ranks is not None:
        held_out = _held_out(ranks, whole_sources)
        counts = _cut(counts, len(held_out))
        notes.append(
            f"validation: {len(held_out):,} pairs cut from train by a fixed rule, which leaves {counts['train']:,}"
        )
        if whole_sources:
            digests.append("validation by sources")
    _check_names(counts)
    fingerprint = hashlib.sha256(os.fsencode("\n".join([VERSION, *sorted(digests)]))).hexdigest()[:32]
    return Survey(fingerprint, counts, num_bytes, tuple(notes), held_out)


def write(raw: RawCorpus, found: Survey, folder: Path, progress: ProgressCallback) -> None:
    """Writes the splits of `raw` as a TFDS dataset to `folder`, which appears whole.

    Raises:
      OSError, RuntimeError: the disk is full, or the folder cannot be written.
    """
    _check_space(folder, found)
    with whole_directory(folder) as beside:
        (beside / VERSION).mkdir()
        _write_dataset(raw, found, beside / VERSION, progress)


def open_splits(folder: Path, counts: dict[str, int]) -> dict[str, Split]:
    """Returns the splits of the dataset that `write` left in `folder`, with the pairs that each is known to have.

    The files that describe the dataset to TFDS are not read: they would say
    which Python classes to import.
    """
    splits = {name: Split(folder / VERSION / _file_name(name)) for name in counts}
    if {name: len(split) for name, split in splits.items()} != counts:
        raise ValueError(f"{folder} does not hold {counts}")
    return splits


class _Tally(NamedTuple):
    """What one pass over a split found: pairs kept, pairs with an empty side, bytes and hash of those kept."""

    count: int
    empty: int
    num_bytes: int
    digest: str

    def notes(self, name: str) -> Iterator[str]:
        """Yields what the user should be told of the split `name`."""
        if not self.empty:
            return
        if name == "train":
            yield f"train: {self.empty:,} of {self.count + self.empty:,} pairs left out, a side of them is empty"
        else:
            have = "has an empty side and is" if self.empty == 1 else "have an empty side and are"
            yield f"{name}: {self.empty:,} of {self.count:,} pairs {have} kept"


def _survey_split(
    name: str, stream: Stream, ranks: array | None, whole_sources: bool, progress: ProgressCallback
) -> _Tally:
    """Reads a split once and appends to `ranks` a random number for each pair kept, the same for equal pairs.

    With `whole_sources` it is the same for pairs of equal sources.

    Raises:
      UserError: no pair of it has text on both sides.
    """
    count = empty = num_bytes = 0
    digest = hashlib.blake2b(digest_size=16)
    for source, target in _counted(stream(), f"reading {name}", progress, None):
        if _is_empty(source, target):
            empty += 1
            if not _keeps_empty(name):
                continue
        text = f"{source}\n{target}\n".encode()
        digest.update(text)
        if ranks is not None:
            ranked = source.encode() if whole_sources else text
            ranks.append(int.from_bytes(hashlib.blake2b(ranked, digest_size=8).digest(), "little"))
        count, num_bytes = count + 1, num_bytes + len(text)
    if count == (empty if _keeps_empty(name) else 0):
        raise UserError(f"Split {name} is empty: it has no pair of lines that are both filled.")
    return _Tally(count, empty, num_bytes, digest.hexdigest())


def _check_names(names: Iterable[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        if len(_file_name(name).encode()) > _LONGEST_NAME:
            raise UserError(f"The name of split {name} is too long; give its files a shorter one.")
        other = taken.setdefault(_on_disk(name), name)
        if other != name:
            raise UserError(f"Splits {other} and {name} cannot be told apart on disk; rename one.")


def _held_out(ranks: array, whole_sources: bool) -> frozenset[int]:
    """Returns the positions of the pairs held out: a twentieth of all, at least one and at most two thousand.

    They are those of lowest rank among the pairs that occur once; only where
    there are too few follow those with two copies, and so on. Copies stay
    together: no pair is on both sides, and what a corpus repeats to be learnt,
    as SCAN its primitives, stays in train. With `whole_sources` they are the
    pairs of the sources of lowest rank, whatever number of pairs these have.
    """
    numbers = np.frombuffer(ranks, np.uint64)
    pairs, copies = np.unique(numbers, return_counts=True)
    if len(pairs) < 2:
        one = "source" if whole_sources else "pair"
        raise UserError(
            f"train has one {one}{f', {len(ranks):,} times' if len(ranks) > 1 else ''}, and there is no validation"
            f" split: one {one} cannot be cut in two. Give more pairs, or a validation split."
        )
    number = min(max(len(ranks) // _VALIDATION_SHARE, 1), _LARGEST_VALIDATION)
    # `pairs` rises, so that ranks decide among as many copies.
    order = np.arange(len(pairs)) if whole_sources else np.argsort(copies, kind="stable")
    chosen = order[: max(np.searchsorted(np.cumsum(copies[order]), number, side="right"), 1)]
    wanted = np.sort(pairs[chosen])
    nearest = wanted[np.minimum(np.searchsorted(wanted, numbers), len(wanted) - 1)]
    return frozenset(np.flatnonzero(nearest == numbers).tolist())


def _cut(counts: dict[str, int], number: int) -> dict[str, int]:
    """Returns `counts` with `number` pairs of train in a validation split."""
    others = {name: count for name, count in counts.items() if name != "train"}
    return {"train": counts["train"] - number, "validation": number} | others


def _write_dataset(raw: RawCorpus, found: Survey, folder: Path, progress: ProgressCallback) -> None:
    writers = {name: _SplitWriter(name, folder) for name in found.counts}
    for name, stream in raw.splits.items():
        held_out = found.held_out if name == "train" else frozenset()
        total = found.counts[name] + len(held_out)
        kept = (pair for pair in stream() if _keeps_empty(name) or not _is_empty(*pair))
        for index, pair in enumerate(_counted(kept, f"preparing {name}", progress, total)):
            writers["validation" if index in held_out else name].add(*pair)
    infos = [writer.close() for writer in writers.values()]
    if {name: writer.count for name, writer in writers.items()} != found.counts:
        raise UserError("The text changed while it was being prepared; start again when it is still.")
    _write_metadata(infos, found.fingerprint, folder)


class _SplitWriter:
    """One ArrayRecord file of tf.train.Example messages."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = _on_disk(name)
        self._template = tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=DATASET,
            split=self._name,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        path = self._template.sharded_filepath(shard_index=0, num_shards=1)
        self._writer = ArrayRecordWriter(str(path), _RECORD_OPTIONS)
        self.count = 0
        self._num_bytes = 0

    def add(self, source: str, target: str) -> None:
        """Appends a pair."""
        example = _Example()
        feature = example.features.feature
        for side, text in zip(_SIDES, (source, target), strict=True):
            feature[side].bytes_list.value.append(text.encode())
        record = example.SerializeToString(deterministic=True)  # else the order of the sides is left to chance
        self._writer.write(record)
        self.count += 1
        self._num_bytes += len(record)

    def close(self) -> tfds.core.SplitInfo:
        """Ends the file and returns its description for TFDS."""
        self._writer.close()
        return tfds.core.SplitInfo(
            name=self._name,
            shard_lengths=[self.count],
            num_bytes=self._num_bytes,
            filename_template=self._template,
        )


def _write_metadata(infos: list[tfds.core.SplitInfo], fingerprint: str, folder: Path) -> None:
    """Writes dataset_info.json and features.json, by which TFDS knows a dataset."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET,
        config_name=fingerprint,
        version=tfds.core.Version(VERSION),
        data_dir=str(folder),
        module_name=__name__,
    )
    text = tfds.features.Text
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict({side: text() for side in _SIDES}),
        supervised_keys=_SIDES,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)


def _counted(pairs: Iterator[Pair], what: str, progress: ProgressCallback, total: int | None) -> Iterator[Pair]:
    """Passes pairs on and tells `progress` now and then."""
    count = 0
    for count, pair in enumerate(pairs, 1):
        yield pair
        if count % _REPORT_EVERY == 0:
            progress(what, count, total)
    progress(what, count, total)


def _keeps_empty(name: str) -> bool:
    """Returns whether the split `name` keeps pairs with an empty side: outputs must line up with the lines of a file.

    Train does not: there is nothing to learn from them.
    """
    return name != "train"


def _is_empty(source: str, target: str) -> bool:
    return not source or source.isspace() or not target or target.isspace()


def _on_disk(name: str) -> str:
    """Returns a split's name as TFDS allows it: letters, digits and underscores."""
    return re.sub(r"\W", "_", name)


def _file_name(name: str) -> str:
    """Returns the name of the file of split `name`, as TFDS has it."""
    return f"{DATASET}-{_on_disk(name)}.array_record-00000-of-00001"


def _check_space(folder: Path, found: Survey) -> None:
    """Raises OSError before minutes are spent, if the disk cannot hold the dataset."""
    needed = found.num_bytes + _RECORD_OVERHEAD * sum(found.counts.values())
    if shutil.disk_usage(existing_folder(folder.parent)).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
