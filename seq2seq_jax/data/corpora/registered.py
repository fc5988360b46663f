"""Any TFDS dataset as a corpus, without TensorFlow.

Data already prepared on disk is used as it is, ArrayRecord or TFRecord; else
the dataset's own builder downloads it. Either way its text then goes through
`prepare` once. Line breaks inside a text become blanks, since everything
downstream is one line a sentence.
"""

import contextlib
import importlib
import io
import itertools
import logging
import os
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, registered
from tensorflow_datasets.core.download import downloader

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora.raw import Pair, RawCorpus, Stream, resolve_columns
from seq2seq_jax.data.corpora.scan import CONFIGS
from seq2seq_jax.data.corpora.without_tensorflow import file_functions
from seq2seq_jax.data.progress import Progress
from seq2seq_jax.errors import UserError, did_you_mean

# Datasets of the old style register themselves only when their package is imported.
_PACKAGES = ("translate", "text", "summarization", "text_simplification", "question_answering")
_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_READ_AT_ONCE = 1_000  # records
_CONNECT_SECONDS = 6.0
_DOWNLOAD_RETRIES = 3  # TFDS's own ten wait for more than three minutes in all


def find_registered(config: DataConfig, root: Path, progress: Progress) -> RawCorpus:
    """Returns the TFDS dataset data.corpus, prepared under `root` unless it is on disk already.

    It is looked for in `root` and in TFDS's own folder (TFDS_DATA_DIR or
    ~/tensorflow_datasets).

    Raises:
      UserError: no such dataset, no network to fetch it, or no text in its columns.
    """
    match = _NAME.fullmatch(config.corpus)
    if not match:
        raise UserError(_unknown(config.corpus))
    roots = [root, Path(constants.DATA_DIR)]
    folder = _find_prepared(match, roots)
    if folder is None:
        builder = _make_builder(config.corpus, root)
        folder = _find_built(builder, roots)
        if folder is None:
            progress(f"downloading {config.corpus}", 0, None)
            _download(builder)
            folder = Path(builder.data_dir)
    return _open(folder, config)


def _open(folder: Path, config: DataConfig) -> RawCorpus:
    """Returns the corpus of a prepared TFDS dataset."""
    try:
        with _quiet():
            builder = tfds.builder_from_directory(folder)
    except Exception as error:  # whatever TFDS makes of files it cannot read
        raise UserError(f"{folder} is not a TFDS dataset that can be read: {error}") from error
    features = builder.info.features
    columns = sorted(name for name, feature in features.items() if _is_text(feature))
    keys: Any = builder.info.supervised_keys
    defaults = tuple(keys) if keys and len(keys) == 2 and set(map(str, keys)) <= set(columns) else None
    source, target = resolve_columns(config.source, config.target, columns, defaults, config.corpus)
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    stats = [file.stat() for file in files]

    def stream(split: str) -> Stream:
        return lambda: _pairs(builder, split, source, target)

    return RawCorpus(
        source,
        target,
        splits={name: stream(name) for name, split in builder.info.splits.items() if split.num_examples},
        signature=["tfds", os.fspath(folder), source, target, [[s.st_size, s.st_mtime_ns] for s in stats]],
        newest=max(stat.st_mtime for stat in stats),
        notes=(f"{config.corpus}: {source} to {target}, from {folder}",),
    )


def _pairs(builder: Any, split: str, source: str, target: str) -> Iterator[Pair]:
    """Yields the text of two features of every example."""
    for example in _examples(builder, split):
        yield _line(example[source]), _line(example[target])


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:  # which as_data_source cannot read
        for path in builder.info.splits[split].filepaths:
            for record in read_tfrecords(Path(path)):
                yield builder.info.features.deserialize_example_np(record)
        return
    records = builder.as_data_source(split)
    for start in range(0, len(records), _READ_AT_ONCE):
        yield from records.__getitems__(list(range(start, min(start + _READ_AT_ONCE, len(records)))))


def read_tfrecords(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file; its checksums are not checked.

    Raises:
      UserError: the file ends inside a record.
    """
    with open(path, "rb") as file:
        while header := file.read(12):  # length as uint64, and its checksum
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else -1
            record = file.read(length + 4)[:-4] if length >= 0 else b""  # and a checksum again
            if len(record) != length:
                raise UserError(f"{path} is damaged: it ends inside a record. Prepare the dataset again.")
            yield record


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
        folders = [info.parent for info in base.glob(f"{version or '*'}/dataset_info.json")]
        if folders:
            return max(folders, key=lambda folder: tfds.core.Version(folder.name))
    return None


def _find_built(builder: Any, roots: Iterable[Path]) -> Path | None:
    """Returns the folder on disk of exactly what `builder` builds."""
    place = Path(builder.data_dir).relative_to(builder._data_dir_root)
    return next((root / place for root in roots if (root / place / "dataset_info.json").exists()), None)


def _make_builder(name: str, root: Path) -> Any:
    """Returns the TFDS builder of that name.

    Raises:
      UserError: there is none, or no such configuration of it.
    """
    with _quiet():
        for package in _PACKAGES:
            with contextlib.suppress(ImportError):  # one that needs a library we lack hides no other
                importlib.import_module(f"tensorflow_datasets.{package}")
        try:
            return tfds.builder(name, data_dir=root, file_format="array_record")
        except registered.DatasetNotFoundError as error:
            raise UserError(_unknown(name)) from error
        except (ValueError, AssertionError) as error:
            raise UserError(_unknown_config(name, error)) from error
        except ImportError as error:
            raise UserError(f"data.corpus {name}: its TFDS builder needs the package {error.name}.") from error


def _unknown(name: str) -> str:
    plain = name.partition("/")[0].partition(":")[0]
    own = [f"scan/{config}" for config in CONFIGS]
    near = did_you_mean(name, own) or did_you_mean(plain, registered.list_imported_builders())
    for path in (name, name.partition(":")[2]):
        if path and Path(path).expanduser().is_dir():
            near = f" Did you mean files:{path}?"
    return (
        f"data.corpus {name}: there is no such corpus.{near} There are {', '.join(own)}, files:DIR for a folder of"
        " text files, and the datasets of TFDS."
    )


def _unknown_config(name: str, error: Exception) -> str:
    plain, _, config = name.partition(":")[0].partition("/")
    configs = list(tfds.builder_cls(plain).builder_configs)
    if config and config not in configs:
        there = f"its configurations are {', '.join(configs)}" if configs else "it has no configurations"
        return f"data.corpus {name}: {plain} has no configuration {config}; {there}.{did_you_mean(config, configs)}"
    reason = str(error).rpartition('}": ')[2]  # after TFDS's account of our arguments
    return f"data.corpus {name}: {reason}"


def _download(builder: Any) -> None:
    """Lets the builder download and prepare its data.

    Raises:
      UserError: no network, or whatever else the builder could not do.
    """
    _check_network(builder)
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with _quiet(), _few_retries(), file_functions():
            builder.download_and_prepare(download_config=settings, file_format="array_record")
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
    urls = [urllib.parse.urlsplit(url) for url in builder.url_infos or ()]
    hosts = sorted({(url.hostname, url.port or (80 if url.scheme == "http" else 443)) for url in urls if url.hostname})
    if hosts and not _any_answers(hosts):
        names = ", ".join(host for host, _ in hosts[:3])
        raise UserError(
            f"data.corpus {builder.name} is not on this machine, and no network reaches {names} to download it."
            f" Prepare it with TFDS where there is one, and copy the folder to {builder.data_dir},"
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
