"""Any TFDS dataset as a corpus, without TensorFlow.

Data already prepared on disk is used as it is, ArrayRecord or TFRecord; else
the dataset's own builder downloads it. Either way its text then goes through
`prepare` once. Line breaks inside a text become blanks, since everything
downstream is one line a sentence.

What lies on disk is data: it chooses among TFDS's own classes, and no other
code is imported for it.
"""

import contextlib
import importlib.util
import io
import itertools
import logging
import os
import re
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader  # ty: ignore[import-not-found] - a compiled module
from tensorflow_datasets.core import constants, registered
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from seq2seq_jax.cache import existing_folder
from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora.dialogue import as_pairs, turns_notes, turns_signature
from seq2seq_jax.data.corpora.generated import NAMES
from seq2seq_jax.data.corpora.published import Published
from seq2seq_jax.data.corpora.raw import RawCorpus, Stream, resolve_columns
from seq2seq_jax.data.corpora.tfrecords import read_tfrecords
from seq2seq_jax.data.corpora.without_tensorflow import file_functions
from seq2seq_jax.data.progress import ProgressCallback
from seq2seq_jax.errors import UserError, did_you_mean

# Datasets of the old style register themselves only when their package is imported.
_PACKAGES = ("translate", "text", "summarization", "text_simplification", "question_answering")
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"  # in the folder of every prepared dataset
_LONGEST_NAME = 255  # bytes that a file system takes
_READ_AT_ONCE = 1_000  # records
_CONNECT_SECONDS = 6.0
_DOWNLOAD_RETRIES = 3  # TFDS's own ten wait for more than three minutes in all


def find_registered(config: DataConfig, root: Path, progress: ProgressCallback) -> RawCorpus:
    """Returns the TFDS dataset data.corpus, prepared under `root` unless it is on disk already.

    It is looked for in `root` and in TFDS's own folder (TFDS_DATA_DIR or
    ~/tensorflow_datasets).

    Raises:
      UserError: no such dataset, no network to fetch it, or no text in its columns.
    """
    match = _NAME.fullmatch(config.corpus)
    if not match or len(config.corpus.encode()) > _LONGEST_NAME:
        raise UserError(_unknown(config.corpus))
    roots = [root, Path(constants.DATA_DIR)]
    folder = _find_prepared(match, roots)
    if folder is None:
        builder = _make_builder(config.corpus, root)
        folder = _find_built(builder, roots)
        if folder is None:
            _clear(Path(builder.data_dir))
            progress(f"downloading {config.corpus}", 0, None)
            _download(builder)
            folder = Path(builder.data_dir)
    return _open(folder, config)


def _open(folder: Path, config: DataConfig) -> RawCorpus:
    """Returns the corpus of a prepared TFDS dataset."""
    try:
        with _quiet(), _own_features():
            builder = tfds.builder_from_directory(folder)
        files = [file for file in sorted(folder.iterdir()) if file.is_file()]
        _check_files(builder, files)
        stats = [file.stat() for file in files]
    except Exception as error:  # whatever TFDS makes of files it cannot read
        raise _damaged(folder, folder, _short(error)) from error
    columns = sorted(name for name, feature in builder.info.features.items() if _is_text(feature))
    keys: Any = builder.info.supervised_keys
    defaults = tuple(keys) if keys and len(keys) == 2 and set(map(str, keys)) <= set(columns) else None
    chosen = resolve_columns(config, columns, defaults, config.corpus)

    def stream(split: str) -> Stream:
        return lambda: as_pairs(
            _rows(builder, folder, split, chosen),
            config,
            lambda number: f"{config.corpus}, split {split}, example {number:,}",
        )

    return RawCorpus(
        chosen[0],
        chosen[1],
        splits={name: stream(name) for name, split in builder.info.splits.items() if split.num_examples},
        signature=[
            *("tfds", os.fspath(folder), *chosen),
            [[s.st_size, s.st_mtime_ns] for s in stats],
            *turns_signature(config),
        ],
        newest=max(stat.st_mtime for stat in stats),
        notes=(f"{config.corpus}: {chosen[0]} to {chosen[1]}, from {folder}", *turns_notes(config)),
    )


@contextlib.contextmanager
def _own_features() -> Generator[None]:
    """Lets TFDS make features of its own classes alone.

    A features.json names Python classes, and TFDS would import whatever that is.
    """
    connector: Any = tfds.features.FeatureConnector
    before = vars(connector)["cls_from_name"]
    connector.cls_from_name = staticmethod(_own_feature)
    try:
        yield
    finally:
        connector.cls_from_name = before


def _own_feature(name: str) -> type:
    """Returns TFDS's class of that full name; `_own_features` puts this in the place of its own search.

    Raises:
      UserError: TFDS has none.
    """
    features: Any = tfds.features.FeatureConnector
    found = features._registered_features.get(name) if str(name).startswith("tensorflow_datasets.core.") else None
    if found is None:
        raise UserError(f"features.json names the Python class {name}, which is no feature of TFDS.")
    return found


def _check_files(builder: Any, files: Iterable[Path]) -> None:
    """Raises ValueError where the files are not those of the splits that dataset_info.json tells of."""
    suffix = builder.info.file_format.file_suffix
    if builder.info.file_format not in _READERS:
        raise ValueError(f"its files are of the format {suffix}; array_record and tfrecord can be read")
    splits = [split for split in builder.info.splits.values() if split.num_examples]
    shards = [shard for split in splits for shard in zip(split.filepaths, split.shard_lengths, strict=True)]
    known = {Path(path).name for path, _ in shards}
    needed = {Path(path).name for path, length in shards if length}
    there = {file.name for file in files if f".{suffix}-" in file.name and file.stat().st_size}
    if missing := needed - there:
        raise ValueError(f"{min(missing)} is missing or empty")
    if stray := there - known:
        raise ValueError(f"{min(stray)} belongs to no split of dataset_info.json")


def _rows(builder: Any, folder: Path, split: str, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yields the text of some features of every example.

    Raises:
      UserError: a file is damaged, or text is not UTF-8.
    """
    info, features, read = builder.info.splits[split], builder.info.features, _READERS[builder.info.file_format]
    for path, length in zip(map(Path, info.filepaths), info.shard_lengths, strict=True):
        count = 0
        try:
            for record in read(path) if length or path.exists() else ():
                count += 1
                example = features.deserialize_example_np(record)
                yield [_line(example[column]) for column in columns]
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, record {count:,}: its text is not UTF-8 ({error.reason}).") from error
        except Exception as error:  # whatever the reader of records makes of it
            raise _damaged(folder, path, _short(error)) from error
        if count != length:
            raise _damaged(folder, path, f"it holds {count:,} records, and dataset_info.json says {length:,}")


def _read_array_records(path: Path) -> Iterator[bytes]:
    records = ArrayRecordReader(str(path))
    count = records.num_records()
    for start in range(0, count, _READ_AT_ONCE):
        yield from records.read(start, min(start + _READ_AT_ONCE, count))


_READERS = {
    tfds.core.FileFormat.ARRAY_RECORD: _read_array_records,
    tfds.core.FileFormat.TFRECORD: read_tfrecords,
}


def _damaged(folder: Path, what: Path, reason: str) -> UserError:
    """Returns what to say of a prepared dataset that cannot be used."""
    return UserError(
        f"{what} cannot be used: {reason.rstrip('.')}. Remove {folder}; a dataset of TFDS is then prepared again."
    )


def _line(text: bytes) -> str:
    return " ".join(text.decode("utf-8").splitlines()) if b"\n" in text or b"\r" in text else text.decode("utf-8")


def _is_text(feature: Any) -> bool:
    """Returns whether a feature is one string per example."""
    return isinstance(feature, tfds.features.Text) or (
        type(feature) is tfds.features.Tensor and feature.shape == () and feature.np_dtype.kind == "O"
    )


def _find_prepared(match: re.Match[str], roots: Iterable[Path]) -> Path | None:
    """Returns the folder of the newest version on disk, unless the name leaves open which configuration."""
    name, config, version = match["name"], match["config"], match["version"]
    for root in roots:
        base = root / name / config if config else root / name
        versions = [version] if version else [file.name for file in _list(base) if _VERSION.fullmatch(file.name)]
        folders = [base / name for name in versions if os.path.lexists(base / name / _INFO)]
        if folders:
            return max(folders, key=lambda folder: tfds.core.Version(folder.name))
    return None


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _find_built(builder: Any, roots: Iterable[Path]) -> Path | None:
    """Returns the folder on disk of exactly what `builder` builds."""
    own = Path(builder.data_dir)
    folders = [own, *(root / own.relative_to(builder._data_dir_root) for root in roots)]
    return next((folder for folder in folders if os.path.lexists(folder / _INFO)), None)


def _make_builder(name: str, root: Path) -> Any:
    """Returns the TFDS builder of that name.

    Raises:
      UserError: there is none, or no such configuration of it.
    """
    with _quiet(), _own_features():
        for package in _PACKAGES:
            with contextlib.suppress(ImportError):  # one that needs a library we lack hides no other
                importlib.import_module(f"tensorflow_datasets.{package}")
        try:
            return tfds.builder(name, data_dir=root, file_format="array_record")
        except registered.DatasetNotFoundError as error:
            raise UserError(_unknown(name)) from error
        except ImportError as error:
            package = _missing_package(error)
            raise UserError(
                f"data.corpus {name}: its builder needs the package {package}: pip install {package}."
            ) from error
        except Exception as error:  # a wrong name, or damaged files of a dataset on disk
            raise UserError(_unusable(name, root, error)) from error


def _missing_package(error: ImportError) -> str:
    """Returns what could not be imported; TFDS raises another error of that kind from the first, without the name."""
    found: BaseException | None = error
    while isinstance(found, ImportError) and not found.name:
        found = found.__cause__
    return found.name if isinstance(found, ImportError) and found.name else str(error)


def _unknown(name: str) -> str:
    plain = name.partition("/")[0].partition(":")[0]
    near = did_you_mean(name, NAMES) or did_you_mean(plain, registered.list_imported_builders())
    for path in (name, name.partition(":")[2]):
        if path and os.path.isdir(os.path.expanduser(path)):
            near = f" Did you mean files:{path}?"
    return (
        f"data.corpus {name}: there is no such corpus.{near} There are {', '.join(NAMES)}, files:DIR for a folder of"
        " text files, and the datasets of TFDS."
    )


def _unusable(name: str, root: Path, error: Exception) -> str:
    """Returns why TFDS makes no builder of a name that it knows, or that is on disk."""
    plain, _, config = name.partition(":")[0].partition("/")
    with contextlib.suppress(registered.DatasetNotFoundError):
        configs = list(tfds.builder_cls(plain).builder_configs)
        if config and config not in configs:
            there = f"its configurations are {', '.join(configs)}" if configs else "it has no configurations"
            return f"data.corpus {name}: {plain} has no configuration {config}; {there}.{did_you_mean(config, configs)}"
    reason = str(error).rpartition('}": ')[2].rstrip(".")  # after TFDS's account of our arguments
    remedy = f" If {root / plain} is damaged, remove it." if os.path.exists(root / plain) else ""
    return f"data.corpus {name}: {reason}.{remedy}"


def _clear(folder: Path) -> None:
    """Makes way for a dataset: TFDS takes any folder in its place for the dataset.

    Raises:
      UserError: there is something, and no dataset.
    """
    with contextlib.suppress(OSError):
        folder.rmdir()  # one that is empty
    if os.path.lexists(folder):
        raise _damaged(folder, folder, f"there is no {_INFO} in it")
    existing_folder(folder, "data.data_dir")


def _download(builder: Any) -> None:
    """Lets the builder download and prepare its data.

    Raises:
      UserError: no network, or whatever else the builder could not do.
    """
    _check_network(builder)
    # Unless a runner is named, TFDS asks at a prompt that nobody sees whether a large dataset may run on one machine.
    runner = "DirectRunner" if importlib.util.find_spec("apache_beam") else None
    settings = tfds.download.DownloadConfig(try_download_gcs=False, beam_runner=runner)
    try:
        with _quiet(), _own_features(), _few_retries(), file_functions():
            builder.download_and_prepare(download_config=settings, file_format="array_record")
    except NonMatchingChecksumError as error:
        address = str(error).removeprefix("Artifact ").partition(", downloaded to ")[0]
        raise UserError(
            f"data.corpus {builder.name}: {address} has another checksum than the file that was published. It was"
            " changed since, or damaged on its way."
        ) from error
    except Exception as error:  # a builder is anybody's code: name it, and say what it said
        raise UserError(
            f"data.corpus {builder.name}: TFDS could not prepare it: {_short(error)}\n"
            f"If the data can be had by hand, TFDS looks for it in {builder.data_dir_root}/downloads/manual."
        ) from error


def _check_network(builder: Any) -> None:
    """Raises UserError if none of the hosts of the dataset answers within seconds."""
    if urllib.request.getproxies().keys() - {
        "no"
    }:  # a proxy resolves names that we cannot; the download itself will tell
        return
    addresses = builder.addresses if isinstance(builder, Published) else builder.url_infos or ()
    urls = [urllib.parse.urlsplit(address) for address in addresses]
    hosts = sorted({(url.hostname, url.port or (80 if url.scheme == "http" else 443)) for url in urls if url.hostname})
    if hosts and not _any_answers(hosts):
        names = ", ".join(host for host, _ in hosts[:3])
        raise UserError(
            f"data.corpus {builder.name} is not on this machine, and no network reaches {names} to download it."
            f" Prepare it where there is one, and copy the folder to {builder.data_dir},"
            " or name the folder that has it with data.data_dir."
        )


def _any_answers(hosts: list[tuple[str, int]]) -> bool:
    """Tries all hosts at once: a name server that is cut off takes longer than anyone waits."""
    answered, left = threading.Event(), threading.Semaphore(0)

    def connect(host: tuple[str, int]) -> None:
        with contextlib.suppress(OSError), socket.create_connection(host, timeout=_CONNECT_SECONDS):
            answered.set()
        left.release()

    for host in hosts:
        threading.Thread(target=connect, args=(host,), daemon=True).start()
    end = time.monotonic() + _CONNECT_SECONDS
    for _ in hosts:
        if answered.is_set() or not left.acquire(timeout=max(end - time.monotonic(), 0)):
            break
    return answered.is_set()


@contextlib.contextmanager
def _few_retries() -> Generator[None]:
    settings: Any = downloader
    before = settings.MAX_RETRIES
    settings.MAX_RETRIES = _DOWNLOAD_RETRIES
    try:
        yield
    finally:
        settings.MAX_RETRIES = before


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keeps what TFDS prints and logs to itself; its progress bars stay on a terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(itertools.islice(lines, 3))[:300] or type(error).__name__
