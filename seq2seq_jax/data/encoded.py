"""The ids of a split: encoded once, kept on disk, read by memory map."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from seq2seq_jax.cache import is_whole, whole_directory, writing_to
from seq2seq_jax.data.progress import ProgressCallback, progress_bar
from seq2seq_jax.data.vocabulary import Ids, LinePairs, Vocabularies, Vocabulary
from seq2seq_jax.padded import Padded
from seq2seq_jax.symbols import EOS, PAD, UNK

_FILES = {"ids": np.dtype("<i4"), "lengths": np.dtype("<i4"), "starts": np.dtype("<i8")}  # of each side, on disk
_FORMAT = "3"  # part of the cache key: raise it when the files change
_BLOCK = 8_192  # pairs encoded at once
# SentencePiece, two thirds of the work, does without Python's lock: beyond so many, threads wait for each other.
_THREADS = 4
_IDS_AT_ONCE = 1 << 20  # looked through


class Rows:
    """Sequences of ids of different lengths, end to end in one array.

    Attributes:
      lengths: ids of each sequence.
      unknown: ids that stand for what the vocabulary lacks.
      left_out: ids that stand for turns of a dialogue that are left out.
    """

    def __init__(
        self,
        flat: Int[np.ndarray, " N"],
        lengths: Int[np.ndarray, " R"],
        unknown: tuple[int, ...] = (UNK,),
        left_out: tuple[int, ...] = (),
        starts: Int[np.ndarray, " R"] | None = None,
    ) -> None:
        self.flat, self.lengths, self.unknown, self.left_out = flat, lengths, unknown, left_out
        self._starts = np.cumsum(lengths, dtype=np.int64) - lengths if starts is None else starts

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int | np.integer) -> Int[np.ndarray, " L"]:
        start = self._starts[index]
        return np.asarray(self.flat[start : start + self.lengths[index]])

    def with_unknown(self) -> Int[np.ndarray, " n"]:
        """Returns the indices of the sequences that have an unknown symbol."""
        return self._having(self.unknown)

    def with_turns_left_out(self) -> Int[np.ndarray, " n"]:
        """Returns the indices of the sequences whose oldest turns are left out."""
        return self._having(self.left_out)

    def _having(self, ids: tuple[int, ...]) -> Int[np.ndarray, " n"]:
        blocks = range(0, len(self.flat) if ids else 0, _IDS_AT_ONCE)
        places = [start + np.flatnonzero(np.isin(self.flat[start : start + _IDS_AT_ONCE], ids)) for start in blocks]
        found = np.concatenate([np.zeros(0, np.int64), *places])
        return np.unique(np.searchsorted(self._starts, found, side="right") - 1)

    def first(self, count: int) -> "Rows":
        """Returns the first `count` sequences, or all where there are fewer; nothing is copied."""
        lengths = self.lengths[:count]
        flat = self.flat[: lengths.sum(dtype=np.int64)]
        return Rows(flat, lengths, self.unknown, self.left_out, self._starts[:count])

    def take(self, indices: Sequence[int]) -> "Rows":
        """Returns the sequences `indices`, in their order."""
        flat = [self[index] for index in indices]
        joined = np.concatenate(flat) if flat else np.zeros(0, np.int32)
        return Rows(joined, self.lengths[np.array(indices, np.int64)], self.unknown)

    def padded(self, indices: Int[np.ndarray, " n"], num_rows: int, width: int) -> Padded:
        """Returns the sequences `indices` as rows [num_rows, width], int32; rows beyond them are empty."""
        lengths = self.lengths[indices]
        if len(indices) > num_rows or (len(indices) and lengths.max() > width):
            raise ValueError(f"{len(indices)} sequences of up to {lengths.max()} ids do not fit [{num_rows}, {width}]")
        mask = np.arange(width) < lengths[:, None]
        positions = (self._starts[indices][:, None] + np.arange(width))[mask]
        values = np.full((num_rows, width), PAD, np.int32)
        values[: len(indices)][mask] = self.flat[positions]
        return Padded(values, np.pad(lengths, (0, num_rows - len(indices))).astype(np.int32))


@dataclass(frozen=True)
class EncodedSplit:
    """The ids of a split, an end id after every sequence."""

    sources: Rows
    targets: Rows

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def source_lengths(self) -> Int[np.ndarray, " N"]:
        """Source ids of each pair, the end id included."""
        return self.sources.lengths

    @property
    def target_lengths(self) -> Int[np.ndarray, " N"]:
        """Target ids of each pair, the end id included."""
        return self.targets.lengths

    def first(self, count: int) -> "EncodedSplit":
        """Returns the first `count` pairs, or all where there are fewer."""
        return EncodedSplit(self.sources.first(count), self.targets.first(count))

    def source(self, index: int | np.integer) -> Int[np.ndarray, " S"]:
        """Returns the source ids of a pair, the end id included."""
        return self.sources[index]

    def target(self, index: int | np.integer) -> Int[np.ndarray, " T"]:
        """Returns the target ids of a pair, the end id included."""
        return self.targets[index]


def encode_lines(
    vocabularies: Vocabularies, source_lines: Sequence[str], target_lines: Sequence[str] | None = None
) -> EncodedSplit:
    """Returns lines encoded in memory; without target lines every target is the end id alone."""
    if target_lines is None:
        target_lines = [""] * len(source_lines)
    sources, targets = vocabularies.source.encode_sources(source_lines), vocabularies.target.encode(target_lines)
    if vocabularies.copy:
        _mark_copies(vocabularies.source, source_lines, target_lines, sources, targets)
    source, target = vocabularies.source, vocabularies.target
    return EncodedSplit(
        Rows(*_ended(sources), source.unknown, source.left_out), Rows(*_ended(targets), target.unknown, target.left_out)
    )


def _mark_copies(
    vocabulary: Vocabulary,
    source_lines: Sequence[str],
    target_lines: Sequence[str],
    sources: Sequence[Ids],
    targets: Sequence[Ids],
) -> None:
    """Gives unknown symbols of sources, and of targets where the source has the token, the ids of its copies."""
    for source, target, source_ids, target_ids in zip(source_lines, target_lines, sources, targets, strict=True):
        if UNK not in source_ids:
            continue
        copies = vocabulary.copies(source)
        for ids, tokens in ((source_ids, vocabulary.source_tokens(source)), (target_ids, vocabulary.tokens(target))):
            for position, token in enumerate(tokens, len(ids) - len(tokens)):
                if ids[position] == UNK:
                    ids[position] = copies.get(token, UNK)


def encode_split(split: LinePairs, vocabularies: Vocabularies, cache: Path, key: str) -> EncodedSplit:
    """Returns the ids of `split`, encoding it only if `cache` does not hold them, every bit as they were written.

    Args:
      split: the text.
      vocabularies: what to encode it with.
      cache: folder of all caches; files go to `encoded/HASH` in it.
      key: identifies the text, as a corpus's fingerprint and the split's name do.

    Raises:
      UserError: the cache cannot be written.
    """
    names = (_FORMAT, key, vocabularies.source.fingerprint, vocabularies.target.fingerprint)
    names += ("copy",) if vocabularies.copy else ()
    folder = cache / "encoded" / hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()[:32]
    if not is_whole(folder):
        with (
            writing_to(folder, "SEQ2SEQ_JAX_CACHE"),
            whole_directory(folder) as beside,
            progress_bar(logged=True) as progress,
        ):
            _write(split, vocabularies, beside, progress)
    return EncodedSplit(
        _open_side(folder, "source", len(split), vocabularies.source),
        _open_side(folder, "target", len(split), vocabularies.target),
    )


def _ended(rows: Sequence[Ids]) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " R"]]:
    """Returns the ids of all lines in one array, an end id after each, and their numbers."""
    lengths = np.array([len(row) + 1 for row in rows], np.int32)
    end = np.array([EOS], np.int32)
    flat = [part for row in rows for part in (row, end)]
    return np.concatenate(flat) if flat else np.zeros(0, np.int32), lengths


def _open_side(folder: Path, side: str, num_pairs: int, vocabulary: Vocabulary) -> Rows:
    flat, lengths, starts = (_open_array(folder / f"{side}.{name}", dtype) for name, dtype in _FILES.items())
    if not len(lengths) == len(starts) == num_pairs or len(flat) != lengths.sum(dtype=np.int64):
        raise ValueError(f"{folder} holds {len(lengths)} sequences of {num_pairs}")
    return Rows(flat, lengths, vocabulary.unknown, vocabulary.left_out, starts)


def _open_array(path: Path, dtype: np.dtype) -> np.ndarray:
    """Returns the array in a file; what is read of it is memory of the system, which takes it back as it likes."""
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.zeros(0, dtype)


def _write(split: LinePairs, vocabularies: Vocabularies, folder: Path, progress: ProgressCallback) -> None:
    sides = ("source", "target")
    ends = dict.fromkeys(sides, 0)
    num_pairs = 0
    with ExitStack() as stack:
        files = {
            (side, name): stack.enter_context(open(folder / f"{side}.{name}", "wb"))
            for side in sides
            for name in _FILES
        }
        for block in _encoded(split, vocabularies):
            for side, rows in zip(sides, (block.sources, block.targets), strict=True):
                starts = ends[side] + np.cumsum(rows.lengths, dtype=np.int64) - rows.lengths
                for (name, dtype), array in zip(_FILES.items(), (rows.flat, rows.lengths, starts), strict=True):
                    files[side, name].write(array.astype(dtype).tobytes())
                ends[side] += len(rows.flat)
            num_pairs += len(block)
            progress("encoding", num_pairs, len(split))


def _encoded(split: LinePairs, vocabularies: Vocabularies) -> Iterator[EncodedSplit]:
    """Yields blocks of a split, in their order; threads are a few blocks ahead."""

    def encode(start: int) -> EncodedSplit:
        return encode_lines(vocabularies, *split.read(start, min(start + _BLOCK, len(split))))

    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: deque[Future[EncodedSplit]] = deque()
        for start in range(0, len(split), _BLOCK):
            ahead.append(pool.submit(encode, start))
            if len(ahead) > _THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
