"""Corpora: named splits of text pairs, each a TFDS dataset of ArrayRecord files on disk.

`load_corpus` finds what data.corpus names, prepares it once, and opens it. The
dataset on disk is named by the hash of its text, and a small index file says
which hash belongs to which untouched files, so that a second start reads no
text, a touched file is read but not prepared again, and changed text is. What
was prepared is read only if every byte is still as it was written, a second for
one or two GB; else it is prepared again, and said.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seq2seq_jax.cache import cache_dir, existing_folder, is_whole, write_whole, writing_to
from seq2seq_jax.checksums import text_checksum
from seq2seq_jax.config import Config, DataConfig
from seq2seq_jax.data.corpora.files import find_files, find_folder
from seq2seq_jax.data.corpora.generated import find_generated, is_generated
from seq2seq_jax.data.corpora.hallucination import with_hallucinated
from seq2seq_jax.data.corpora.prepare import DATASET, VERSION, Split, Survey, open_splits, survey, write
from seq2seq_jax.data.corpora.raw import RawCorpus, name_splits, named_path
from seq2seq_jax.data.corpora.registered import find_registered
from seq2seq_jax.data.progress import ProgressCallback, progress_bar
from seq2seq_jax.errors import UserError, did_you_mean
from seq2seq_jax.run_directory import check_text

__all__ = ["Corpus", "Split", "load_corpus", "load_corpus_of"]

# A file written to within one tick of its clock keeps its time: times this fresh prove nothing yet.
_CLOCK_TICK = 2.0


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
      name: as the user gave it.
      source: name of the column that is read.
      target: name of the column that is written.
      splits: train and validation, and whatever others there are.
      fingerprint: hash of the text, the same if and only if the text of all splits is the same.
      notes: what the user should be told.
    """

    name: str
    source: str
    target: str
    splits: dict[str, Split]
    fingerprint: str
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> Split:
        """Returns the split `name`.

        Raises:
          UserError: there is none.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.name} has no split {name}; it has {', '.join(self.splits)}.{did_you_mean(name, self.splits)}"
            )
        return self.splits[name]


def load_corpus(config: DataConfig, *, progress: ProgressCallback | None = None) -> Corpus:
    """Returns the corpus that `config` names, prepared if need be.

    Pairs with an empty side are left out of train; the other splits keep every
    line. If there is no validation split, one is cut from train: one pair in
    twenty, at most 2,000, by a hash of their text, and no pair that train still
    has; with `group_references`, all pairs of as many sources. All of it is said in the notes.

    Args:
      config: corpus, columns and where prepared corpora are kept.
      progress: told what is done; by default a bar on a terminal, and lines in a log.

    Raises:
      UserError: the corpus is not there or faulty, or cannot be prepared.
    """
    root = named_path("data.data_dir", config.data_dir) if config.data_dir else cache_dir() / "corpora"
    setting = "data.data_dir" if config.data_dir else "SEQ2SEQ_JAX_CACHE or data.data_dir"
    existing_folder(root / DATASET / "index", setting)  # before minutes are spent
    with contextlib.nullcontext(progress) if progress else progress_bar(logged=True) as report:
        raw = name_splits(_find(config, root, report), config.train_split)
        if config.hallucinate:
            raw = with_hallucinated(raw, config.hallucinate, lowercase=config.lowercase)
        whole_sources = config.group_references and "validation" not in raw.splits
        index = root / DATASET / "index" / f"{_hash(raw, whole_sources)}.json"
        found = _read_index(index, root)
        if found is None:
            still = raw.newest < time.time() - _CLOCK_TICK
            found = survey(raw, report, whole_sources=whole_sources)
            folder = root / DATASET / found.fingerprint
            if not is_whole(folder):
                with writing_to(folder, setting):
                    write(raw, found, folder, report)
            if still:
                _write_index(index, found)
    return Corpus(
        name=_name(config),
        source=raw.source,
        target=raw.target,
        splits=open_splits(root / DATASET / found.fingerprint, found.counts),
        fingerprint=found.fingerprint,
        notes=raw.notes + found.notes,
    )


def load_corpus_of(workdirs: Sequence[Path], config: Config) -> Corpus:
    """Returns the corpus that `config` names, as long as its text is the one that each of the runs was trained on.

    Raises:
      UserError: the text differs, or cannot be read.
    """
    way_out = "score other text with --source-file F --target-file F."
    try:
        corpus = load_corpus(config.data)
    except UserError as error:
        trouble = str(error).partition("\n")[0]  # what follows names options of train
        raise UserError(f"The text that {workdirs[0]} was trained on cannot be read; {way_out}\n{trouble}") from None
    for workdir in workdirs:
        check_text(workdir, config, corpus.name, corpus.fingerprint, way_out)
    return corpus


def _find(config: DataConfig, root: Path, progress: ProgressCallback) -> RawCorpus:
    if config.train_files:
        return find_files(config)
    kind, colon, rest = config.corpus.partition(":")
    if colon and kind == "files":
        return find_folder(rest, config)
    if is_generated(config.corpus):
        return find_generated(config)
    return find_registered(config, root, progress)


def _name(config: DataConfig) -> str:
    return f"files:{','.join(config.train_files)}" if config.train_files else config.corpus


def _hash(raw: RawCorpus, whole_sources: bool) -> str:
    known = [VERSION, raw.signature, list(raw.splits), *(["validation by sources"] if whole_sources else [])]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


def _read_index(path: Path, root: Path) -> Survey | None:
    """Returns what an earlier survey of the same files found, if its dataset is still there and whole."""
    if not os.path.lexists(path):
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("checksum") != _checksum(path, values):
            raise ValueError("not what was written")
        found = Survey(values["fingerprint"], values["counts"], values["num_bytes"], tuple(values["notes"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        warnings.warn(f"{path} is damaged: the text is read again.", stacklevel=3)
        return None
    return found if is_whole(root / DATASET / found.fingerprint) else None


def _write_index(path: Path, found: Survey) -> None:
    values = {
        "fingerprint": found.fingerprint,
        "counts": found.counts,
        "num_bytes": found.num_bytes,
        "notes": found.notes,
    }
    values["checksum"] = _checksum(path, values)
    with contextlib.suppress(OSError):  # it only saves time
        if path.is_dir():
            shutil.rmtree(path)
        write_whole(path, json.dumps(values, indent=1) + "\n")


def _checksum(path: Path, values: dict[str, Any]) -> int:
    """Returns the checksum of what the index file `path` says, for no other file."""
    return text_checksum(json.dumps([path.name, values], sort_keys=True))
