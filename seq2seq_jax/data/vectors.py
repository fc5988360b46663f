"""Word vectors that were trained elsewhere, for tables of embeddings to start from.

A file of them is text as word2vec (Mikolov et al. 2013) and GloVe (Pennington et
al. 2014) write it: a word and its numbers a line, blanks between. The first line
may be a header, the number of words and of each one's numbers. A word may have
blanks in it, as some of GloVe's do, if the last of its parts is no number.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from seq2seq_jax.config import ModelConfig
from seq2seq_jax.data.vocabulary import Vocabularies, Vocabulary
from seq2seq_jax.errors import UserError, shown
from seq2seq_jax.text_files import read_lines
from seq2seq_jax.wording import counted

_HEADER = re.compile(r"([0-9]{1,18}) +([0-9]{1,18}) *")


class Vectors(NamedTuple):
    """Rows of a table of embeddings, and the ids whose rows they are."""

    ids: Int[np.ndarray, " N"]
    rows: Float[np.ndarray, "N D"]


def load_vectors(config: ModelConfig, vocabularies: Vocabularies) -> dict[str, Vectors]:
    """Returns the vectors of `model.source_vectors` and `model.target_vectors`, as far as they are set, by side.

    Raises:
      UserError: as `read_vectors`.
    """
    files = {"source": config.source_vectors, "target": config.target_vectors}
    read = functools.cache(read_vectors)  # both may be one file for one vocabulary
    return {
        side: read(Path(file), getattr(vocabularies, side), config.embed_size) for side, file in files.items() if file
    }


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> Vectors:
    """Returns the vectors of the entries of a vocabulary that are in a file; of several for one entry, the first.

    An entry is a word, a character, or a piece as SentencePiece writes it. Where the
    vocabulary is lowercased, so are the words of the file. Every line is counted;
    numbers are read, and checked, where the vocabulary has the word. Nothing else is
    held.

    Args:
      path: the file, plain or gzip.
      vocabulary: whose entries are looked for.
      size: numbers that each vector must have.

    Raises:
      UserError: no such text, another width, a line without a word and its numbers,
        what is no finite number, a file that has fewer words than its header says,
        or none of the vocabulary.
    """
    ids, found, number, stated = vocabulary.entry_ids(), {}, 0, None
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number:,}"
        if number == 1 and (header := _HEADER.fullmatch(line)):
            stated = int(header[1])
            _check_width(where, int(header[2]), size)
            continue
        word, numbers = _parts(line, size, where)
        index = ids.get(word.lower() if vocabulary.lowercase else word)
        if index is not None and index not in found:
            found[index] = _vector(numbers, where)
    if stated is not None and stated != number - 1:
        raise UserError(
            f"{path}, line 1 says {counted(stated, 'word')}, and the file has {number - 1:,}. Is it whole? Fetch it"
            " again, or correct that line."
        )
    if not found:
        raise UserError(
            f"{path} has a vector for none of the {len(ids):,} entries of the vocabulary, such as"
            f" {shown(next(iter(ids)))}. Is it of another language, or of words where data.vocabulary has pieces?"
        )
    order = sorted(found)
    return Vectors(np.array(order, np.int32), np.stack([found[index] for index in order]))


def _parts(line: str, size: int, where: str) -> tuple[str, list[str]]:
    """The word of a line, and its numbers as they are written."""
    fields = line.rstrip(" ").split(" ")
    if "" in fields:
        fields = [field for field in fields if field]
    before = fields[:-size]
    if not before or (len(before) > 1 and _is_number(before[-1])):
        _check_width(where, max(len(fields) - 1, 0), size)
    return " ".join(before), fields[-size:]


def _check_width(where: str, width: int, size: int) -> None:
    if width != size:
        raise UserError(
            f"{where}: {counted(width, 'number')} for a word, and model.embed_size is {size:,}. Set that to the width"
            " of the file's vectors, or mend the line."
        )


def _vector(numbers: list[str], where: str) -> Float[np.ndarray, " D"]:
    for text in numbers:
        if not _is_number(text):
            raise UserError(f"{where}: {shown(text)} is not a number.")
    with np.errstate(over="ignore"):
        vector = np.array([float(text) for text in numbers]).astype(np.float32)
    if not np.isfinite(vector).all():
        text = numbers[int(np.flatnonzero(~np.isfinite(vector))[0])]
        raise UserError(f"{where}: {shown(text)} is not a finite number of 32 bits.")
    return vector


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
