"""The records of TFRecord files, checked: each has CRC-32C checksums of its length and of its bytes."""

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt32

from seq2seq_jax.errors import UserError

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed
_BATCH = 1 << 22  # bytes checked at once


class _Frame(NamedTuple):
    """A record as it lies in the file: its length, its bytes, and a checksum of either."""

    length: bytes
    length_checksum: int
    record: bytes
    record_checksum: int


def read_tfrecords(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    A checksum of zero is that of a writer that left it out.

    Raises:
      UserError: a record is not what was written, or the file ends inside one.
    """
    batch: list[_Frame] = []
    size = 0
    try:
        for frame in _frames(path):
            batch.append(frame)
            size += len(frame.record)
            if size >= _BATCH:
                yield from _checked(path, batch)
                batch, size = [], 0
    except UserError:  # what came before is whole
        yield from _checked(path, batch)
        raise
    yield from _checked(path, batch)


def crc32c(parts: Sequence[bytes]) -> UInt32[np.ndarray, " n"]:
    """Returns the CRC-32C of each part; side by side, for one after the other would take Python too long."""
    lengths = np.array([len(part) for part in parts], np.int64)
    order = np.argsort(-lengths, kind="stable")  # the parts with an i-th byte are the first
    starts = (np.cumsum(lengths) - lengths)[order]
    with_byte = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)))
    content = np.frombuffer(b"".join(parts), np.uint8)
    table, checksums = _table(), np.full(len(parts), 0xFFFFFFFF, np.uint32)
    for index, count in enumerate(with_byte.tolist()):
        some = checksums[:count]
        checksums[:count] = table[(some ^ content[starts[:count] + index]) & 0xFF] ^ (some >> 8)
    result = np.empty_like(checksums)
    result[order] = ~checksums
    return result


def _table() -> UInt32[np.ndarray, "256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def _frames(path: Path) -> Iterator[_Frame]:
    left = os.path.getsize(path)
    with open(path, "rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else left
            left -= len(header) + length + 4
            if left < 0:
                raise UserError(f"{path.name} is damaged: it ends inside a record.")
            record = file.read(length)
            yield _Frame(header[:8], *struct.unpack("<I", header[8:]), record, *struct.unpack("<I", file.read(4)))


def _checked(path: Path, frames: Sequence[_Frame]) -> Iterator[bytes]:
    """Yields the records of `frames`, if they have their checksums."""
    parts = list(itertools.chain.from_iterable((frame.length, frame.record) for frame in frames))
    pairs = ((frame.length_checksum, frame.record_checksum) for frame in frames)
    noted = np.array(list(itertools.chain.from_iterable(pairs)), np.uint32)
    checksums = crc32c(parts)
    masked = ((checksums >> 15) | (checksums << 17)) + np.uint32(0xA282EAD8)  # as the format has it
    wrong = np.flatnonzero((noted != 0) & (noted != masked))
    yield from (frame.record for frame in frames[: wrong[0] // 2 if len(wrong) else None])
    if len(wrong):
        raise UserError(f"{path.name} is damaged: a record is not what was written.")
