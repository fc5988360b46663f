"""The files of a run directory, and whose it is.

config.json  vocabulary/  checkpoints/STEP/  metrics.jsonl  evaluations/  and, while it is trained, lock

Training alone writes here (and `evaluate` its evaluations); whoever else reads changes nothing.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from seq2seq_jax import __version__
from seq2seq_jax.cache import existing_folder, naming, try_lock, write_whole
from seq2seq_jax.config import PUBLISHED, Config, MeshConfig, TrainConfig, differences, from_json, to_json
from seq2seq_jax.errors import UserError, nearest
from seq2seq_jax.signals import undoing
from seq2seq_jax.wording import counted

VOCABULARY = "vocabulary"
"""Folder of the vocabularies."""
SEEDS = "seeds"
"""Folder of the run directories of several seeds, 0, 1 and so on."""
REPRODUCTION = "reproduction.json"
"""What became of several seeds, once they are done."""
_FINGERPRINT = Path(VOCABULARY, "corpus.txt")  # hash of the text that the run reads
_LOCK = "lock"
_FILES = ("train_files", "validation_files", "test_files")
_FREE = ("log_every", "num_samples", "trackers")  # of `train`: they change nothing of what is trained
_VECTORS = ("source_vectors", "target_vectors")


def read_config(workdir: Path) -> Config:
    """Returns the configuration of the run in `workdir`.

    Raises:
      UserError: it is not a run directory, or its configuration is damaged.
    """
    path = workdir / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
        config, values = from_json(text), json.loads(text)
        if values.pop("checksum", None) not in (None, _checksum(values)):
            raise UserError("it is not what was written there: something in it has changed.")
        return config
    except (FileNotFoundError, NotADirectoryError):
        near = nearest(workdir.name, [run.parent.name for run in sorted(workdir.parent.glob("*/config.json"))])
        hint = f" Did you mean {workdir.parent / near}?" if near else ""
        raise UserError(f"{workdir} is not a run directory: there is no {path}.{hint}") from None
    except (UserError, UnicodeDecodeError, RecursionError, IsADirectoryError) as error:
        reason = "it is a folder" if isinstance(error, IsADirectoryError) else error
        raise UserError(
            f"{path}: {reason}\nPut it back from a copy; or remove it and give the command that trained the run again,"
            " for its checkpoints know the configuration."
        ) from None


def members(workdirs: Sequence[Path]) -> tuple[Path, ...]:
    """Returns the run directories that `workdirs` stand for: one of several seeds is all of them that were tested.

    A seed that had diverged, so that it was not tested, is left out with a warning.

    Raises:
      UserError: all seeds had diverged, or the note of what became of them is damaged.
    """
    return tuple(run for workdir in workdirs for run in _tested_seeds(workdir))


def _tested_seeds(workdir: Path) -> list[Path]:
    """The run directories of the seeds that `reproduce` has tested in `workdir`; itself, where there are none."""
    path = workdir / REPRODUCTION
    try:
        seeds = json.loads(path.read_text(encoding="utf-8"))["seeds"]
        tested = [workdir / SEEDS / str(index) for index, seed in enumerate(seeds) if seed["scores"]]
        untested = [seed["seed"] for seed in seeds if not seed["scores"]]
    except (FileNotFoundError, NotADirectoryError):
        return [workdir]
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}). The command reproduce that made it, given again, makes it"
            " anew, and trains nothing."
        ) from None
    if not tested:
        raise UserError(f"All seeds of {workdir} have diverged, see {path}; there is no model to use.")
    for seed in untested:
        warnings.warn(f"Seed {seed} of {workdir} had diverged and is left out of the ensemble.", stacklevel=5)
    return tested


def read_configs(workdirs: Sequence[Path]) -> list[Config]:
    """Returns the configurations of runs that are used together.

    Raises:
      UserError: as `read_config`; there is none, or one of them twice.
    """
    if not workdirs:
        raise UserError("--workdir names no run directory; give one, or several for an ensemble.")
    configs, seen = [read_config(workdir) for workdir in workdirs], set[Path]()
    for workdir in workdirs:
        if workdir.resolve() in seen:
            raise UserError(f"{workdir} is given twice; an ensemble is of different runs. Give it once.")
        seen.add(workdir.resolve())
    return configs


def is_claimed(workdir: Path) -> bool:
    """Whether a run has begun in `workdir`; what lies there otherwise is the rest of one that never did."""
    return (workdir / "config.json").exists()


def claim(workdir: Path, config: Config) -> None:
    """Makes `workdir` the run directory of `config`: from here on it is resumed, and no other run may use it."""
    values = json.loads(to_json(config)) | {"version": __version__}
    write_whole(workdir / "config.json", json.dumps(values | {"checksum": _checksum(values)}, indent=2) + "\n")


def is_sealed(workdir: Path) -> bool:
    """Whether config.json has a checksum, by which a change of it is noticed; those of older versions have none."""
    return "checksum" in json.loads((workdir / "config.json").read_text(encoding="utf-8"))


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# where the text lies, and which it was


def with_absolute_paths(config: Config) -> Config:
    """Returns `config` with every path in it absolute: the run is read from other folders too."""
    data = config.data
    changes: dict[str, Any] = {}
    kind, colon, folder = data.corpus.partition(":")
    if colon and kind == "files":
        changes["corpus"] = f"files:{_absolute(folder)}"
    if data.data_dir:
        changes["data_dir"] = _absolute(data.data_dir)
    for name in _FILES:
        if files := getattr(data, name):
            changes[name] = tuple(map(_absolute, files))
    vectors = {name: _absolute(file) for name in _VECTORS if (file := getattr(config.model, name))}
    start = {"init_from": _absolute(config.train.init_from)} if config.train.init_from else {}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, **changes),
        model=dataclasses.replace(config.model, **vectors),
        train=dataclasses.replace(config.train, **start),
    )


def write_fingerprint(workdir: Path, fingerprint: str) -> None:
    """Keeps the hash of the text that the run reads."""
    write_whole(workdir / _FINGERPRINT, f"{fingerprint}\n")


def read_fingerprint(workdir: Path) -> str | None:
    """Returns the hash of the text that the run read, or None where none is kept, as by an older version."""
    try:
        return (workdir / _FINGERPRINT).read_bytes().decode(errors="replace").strip()
    except OSError:
        return None


def check_text(workdir: Path, config: Config, name: str, fingerprint: str, way_out: str) -> None:
    """Refuses text that is not what the run in `workdir` was trained on, wherever either lies.

    Args:
      workdir: the run directory.
      config: says where the text was read.
      name: what the message calls the text.
      fingerprint: hash of the text.
      way_out: ends the message.

    Raises:
      UserError: the text differs, or its hash was never kept and it lies elsewhere.
    """
    known, kept = read_fingerprint(workdir), read_config(workdir)
    moved = differences(kept, dataclasses.replace(kept, data=config.data))
    if fingerprint == known or (known is None and not moved):
        return
    fields = "".join(f"\n  {change}" for change in moved)
    raise UserError(
        f"The text of {name} is no longer the one that {workdir} was trained on; {way_out}"
        + (f"\nIts configuration names other text (there -> here):{fields}" if moved else "")
    )


def check_is_free(workdir: Path, config: Config) -> None:
    """Refuses a directory that holds a run of another configuration.

    Where its text lies makes none, see `check_text`, nor do settings that change nothing of what is trained.

    Raises:
      UserError: with the fields that differ.
    """
    changed = _differences(read_config(workdir), config) if is_claimed(workdir) else []
    if changed:
        fields = "\n  ".join(changed)
        raise UserError(
            f"{workdir} holds a run of another configuration (there -> here):\n  {fields}\n"
            "Choose another --workdir, or set these fields as they were to resume that run, or remove it. If"
            " config.json was changed by hand, remove it and give the run's own command again: the checkpoints know it."
        )


# what belongs together


class Origin(NamedTuple):
    """What a checkpoint belongs to; kept with each, so that none is read with the files of another run.

    Attributes:
      config: of the run.
      source: fingerprint of the source vocabulary.
      target: fingerprint of the target vocabulary.
      corpus: hash of the text, or None where an older version kept none.
      seeds_together: how many seeds it holds that `reproduce` trains; None for a run by itself.
    """

    config: Config
    source: str
    target: str
    corpus: str | None
    seeds_together: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return self._asdict() | {"config": dataclasses.asdict(self.config)}


def check_origin(workdir: Path, checkpoint: Path, kept: dict[str, Any], here: Origin) -> None:
    """Refuses a checkpoint that does not belong to what is read with it.

    Args:
      workdir: the run directory.
      checkpoint: what the message names.
      kept: the checkpoint's own origin, by `Origin.as_json`.
      here: what is about to be used with it.

    Raises:
      UserError: names the file that differs and, of the configuration, the fields.
    """
    if (together := _seeds_together(kept)) != here.seeds_together:
        raise UserError(_of_other_seeds(workdir, checkpoint, together, here.seeds_together))
    # A checksum vouches for the settings that may change; without one the checkpoint does.
    found = _differences if is_claimed(workdir) and is_sealed(workdir) else _all_differences
    if changed := found(from_json(json.dumps(kept["config"])), here.config):
        fields = "\n  ".join(changed)
        raise UserError(
            f"{workdir / 'config.json'} or the command is not what {checkpoint} was trained with (then -> now):\n"
            f"  {fields}\nSet these fields as they were, or choose another --workdir."
        )
    joint = (workdir / VOCABULARY / "joint.json").exists()
    for side in ("source", "target"):
        if kept[side] != getattr(here, side):
            files = workdir / VOCABULARY / f"{'joint' if joint else side}.*"
            raise UserError(
                f"{files} is not the vocabulary that {checkpoint} was trained with."
                " Put it back from a copy of the run, or train again in another --workdir."
            )
    if kept["corpus"] != here.corpus:
        raise UserError(
            f"The text, or the note of it in {workdir / _FINGERPRINT}, is not what {checkpoint} was trained on."
            " Put it back from a copy, or choose another --workdir."
        )


def _seeds_together(kept: dict[str, Any]) -> int | None:
    """`Origin.seeds_together` of a checkpoint; earlier ones say `num_seeds`, which is 1 for a run by itself."""
    earlier = kept.get("num_seeds", 1)
    return kept.get("seeds_together", earlier if earlier > 1 else None)


def _of_other_seeds(workdir: Path, checkpoint: Path, kept: int | None, here: int | None) -> str:
    if kept is None:
        of = counted(here or 0, "seed")
        return f"Checkpoint {checkpoint} is of a run by itself, and not of {of}. Choose another --workdir."
    holds = f"Checkpoint {checkpoint} holds {counted(kept, 'seed')}"
    if here is not None:
        return f"{holds}, and --num-seeds is {here}. Give --num-seeds {kept}, or choose another --workdir."
    return (
        f"{holds}, which the command reproduce trains. When it is done, {workdir} is read as the ensemble of its seeds,"
        f" and each is a run directory: {workdir / SEEDS / '0'} and so on."
    )


def check_ensemble(runs: Mapping[Path, Origin]) -> None:
    """Refuses runs whose models do not write the same things, so that no mean of their probabilities can be taken.

    Args:
      runs: what each run directory holds.

    Raises:
      UserError: names the two directories, and the vocabulary or setting that differs.
    """
    (first, expected), *others = runs.items()
    for workdir, here in others:
        for side in ("source", "target"):
            if getattr(here, side) != getattr(expected, side):
                raise UserError(
                    f"{workdir} has another {side} vocabulary than {first}; the models of an ensemble need the same on"
                    " both sides. Train them on the same text with the same data settings."
                )
        if here.config.model.copy != expected.config.model.copy:
            raise UserError(
                f"model.copy is {here.config.model.copy} in {workdir} and {expected.config.model.copy} in {first};"
                " either all models of an ensemble copy or none does."
            )


def free_changes(workdir: Path, config: Config) -> list[str]:
    """The settings, a line each, in which a run goes on otherwise than it began, and may."""
    if not is_claimed(workdir):
        return []
    kept = read_config(workdir)
    return differences(kept, dataclasses.replace(kept, decode=config.decode, train=_with_free(kept, config)))


def _with_free(config: Config, other: Config) -> TrainConfig:
    free = {name: getattr(other.train, name) for name in _FREE}
    return dataclasses.replace(config.train, **free)


def _differences(old: Config, new: Config) -> list[str]:
    """`_all_differences`, but not of the search nor of what is shown along the way."""
    return _all_differences(old, dataclasses.replace(new, decode=old.decode, train=_with_free(new, old)))


def _all_differences(old: Config, new: Config) -> list[str]:
    """`differences`, but not of devices, of where a folder or files lie that both name, nor of what was published."""
    return differences(_what_counts(old), _what_counts(new))


def _what_counts(config: Config) -> Config:
    data = config.data
    changes: dict[str, Any] = {name: ("source", "target") for name in _FILES if getattr(data, name)}
    if data.corpus.startswith("files:"):
        changes["corpus"] = "files:"
    nothing: dict[str, Any] = {name: getattr(Config, name) for name in PUBLISHED}
    data = dataclasses.replace(data, data_dir=None, **changes)
    train = dataclasses.replace(config.train, init_from="run" if config.train.init_from else None)
    return dataclasses.replace(
        config, data=data, train=train, mesh=MeshConfig(), bleu_tokenizer=config.tokenizer, **nothing
    )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


# one training at a time


@contextlib.contextmanager
def locked(workdir: Path) -> Generator[None]:
    """Holds `workdir`, made if need be, for the block: two trainings in one would spoil each other's files.

    The file `lock` says who holds it, and is removed at the end. The system
    frees the lock itself when its process ends, however it comes. On a file
    system without locks a warning says that nobody is kept out. Folders that
    were made and are empty at the end are removed.

    Raises:
      UserError: another process trains there; or nothing may be written there.
    """
    above = _writable_folder(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file system of the system's own may refuse whoever asks
        raise UserError(f"{workdir} cannot be made ({error.strerror}). Choose another --workdir.") from error
    descriptor = _take(workdir / _LOCK)
    try:
        with undoing(partial(_remove_lock, workdir.absolute(), above)):  # still locked: see `_take`
            yield
    finally:
        os.close(descriptor)


def _writable_folder(workdir: Path) -> Path:
    """Returns `workdir`, or the nearest folder above it if it is still to be made; UserError where it cannot be."""
    try:
        folder = existing_folder(workdir)
    except UserError as error:
        raise UserError(f"--workdir: {error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"Nothing may be written in {folder}. Choose another --workdir.")
    return folder


def _take(path: Path) -> int:
    """Returns the descriptor of the lock file, locked and signed."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except IsADirectoryError:
            raise UserError(f"{path} is a folder where training keeps a file. Remove it.") from None
        try:
            if not _lock(descriptor, path):
                raise UserError(_in_use(path))
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                with naming(path):
                    _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed by its holder while we opened it


def _lock(descriptor: int, path: Path) -> bool:
    try:
        return try_lock(descriptor)
    except OSError as error:
        warnings.warn(
            f"The file system of {path.parent} has no locks ({error.strerror}): see to it yourself that no other"
            " process trains there.",
            stacklevel=2,
        )
        return True


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode(), 0)


def _in_use(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = f"process {holder['pid']} on {holder['host']} has been training there since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # not signed yet
        who = "another process trains there"
    return f"{path.parent} is in use: {who}. Wait for its end, stop it, or choose another --workdir."


def _remove_lock(folder: Path, above: Path) -> None:
    """Removes the lock of `folder`, and it and those over it, up to `above`, as far as they are empty."""
    (folder / _LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        while folder != above and above in folder.parents:
            folder.rmdir()
            folder = folder.parent
