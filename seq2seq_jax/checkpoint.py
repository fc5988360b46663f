"""Checkpoints: Orbax behind save, restore and restore_params.

A checkpoint is a directory `checkpoints/STEP/` with the arrays of the training
state and a JSON, `progress`, of what the loop knows besides, of the run that it
belongs to (`Origin`) and of the version that wrote it. It appears whole or not
at all, and goes so; checksums tell a damaged one, and the file `newest` one that
was taken away. The latest are kept, and the best.

Only `Checkpoints`, which training has, writes here. Whoever reads sees whole
checkpoints alone and changes nothing.
"""

import json
import re
import shutil
import sys
import textwrap
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache, partial
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from seq2seq_jax import __version__, processes
from seq2seq_jax.cache import existing_folder, write_whole
from seq2seq_jax.errors import UserError
from seq2seq_jax.old_parameters import from_version_0_1
from seq2seq_jax.run_directory import Origin, check_origin
from seq2seq_jax.wording import counted

_PATIENCE = 24 * 3600
"""Seconds that a save may take, by a clock that somebody may set, or that goes on while a computer sleeps."""
_NEWEST = "newest"  # holds the step of the newest checkpoint that is whole
_TEMPORARY = (".orbax-checkpoint-tmp", ".deleted")  # within names of what is not there yet, or no more


class Checkpoints:
    """The checkpoints of one run, to be written. `close` waits until the last one is on disk.

    What a killed process left unfinished is removed. The run directory is
    locked by the caller, see `run_directory.locked`. Of several processes all call
    the same methods, the first one writes and deletes, and each has to see its files.
    """

    def __init__(self, workdir: Path, origin: Origin):
        _quiet_libraries()
        self._workdir, self._origin = workdir, origin
        self._directory = (workdir / "checkpoints").absolute()
        processes.by_first(self._prepare)
        self._saver = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(**_alone())),
            timeout_secs=_PATIENCE,
            **_alone(),
        )
        self._best: int | None = None  # by the newest checkpoint

    def _prepare(self) -> None:
        existing_folder(self._directory)  # which refuses a file in its place
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in self._directory.iterdir():
            if any(mark in path.name for mark in _TEMPORARY):
                shutil.rmtree(path)

    def save(self, step: int, state: dict[str, Any], loop_state: dict[str, Any]) -> None:
        """Starts to save; copies are taken at once, so the arrays may be donated afterwards.

        Args:
          step: names the directory; a checkpoint of the same step is replaced.
          state: arrays.
          loop_state: plain values. The checkpoint of `loop_state["best_step"]`, if any, is kept too.

        Raises:
          UserError: the disk is full, now or when the last checkpoint was written.
        """
        if processes.count() > 1:
            state = processes.on_host(state)
            if not processes.is_first():
                return
        with _failed_save_told(self._directory):
            self._finish()
            if step in _steps(self._directory):
                (self._directory / _NEWEST).unlink(missing_ok=True)
                self._delete(step)
            content: dict[str, Any] = {"version": __version__, "origin": self._origin.as_json()}
            content |= {"progress": loop_state, "checksums": _checksums(state)}
            content["digest"] = _digest(content)
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(content))
            self._saver.save(self._directory / str(step), args=arguments)
            self._best = loop_state.get("best_step")

    def restore(self, abstract_state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]] | None:
        """Returns the arrays and the loop state of the newest whole checkpoint, or None if there is none.

        Args:
          abstract_state: shapes, dtypes and shardings.

        Returns:
          The arrays, the loop state, and a message for every damaged checkpoint that was passed over
          (they are deleted).

        Raises:
          UserError: there are checkpoints, and all are damaged, or they belong to another run or another version.
        """
        if processes.count() > 1:
            return self._restore_together(abstract_state)
        return self._restore(abstract_state)

    def _restore_together(
        self, abstract_state: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], list[str]] | None:
        """The first process finds the checkpoint that is whole, and deletes what is not; all read it."""
        arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract_state)
        found: list[Any] = []

        def find() -> Any:
            found.append(self._restore(arrays))
            return found[0] and (_newest(self._directory), *found[0][1:])

        if (told := processes.by_first(find)) is None:
            return None
        step, progress, complaints = told
        state = found[0][0] if found else self._read(step, arrays)[0]
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
        return processes.from_host(state, shardings), progress, complaints

    def _restore(self, abstract_state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]] | None:
        steps = _steps(self._directory)
        complaints = _missing(self._directory, _newest(self._directory), steps)
        for step in steps:
            try:
                state, loop_state = self._read(step, abstract_state)
            except UserError:
                raise
            except Exception as error:  # whatever a library makes of a damaged file
                complaints.append(_damaged(self._directory / str(step), error))
                continue
            self._note_newest(step)
            for damaged in steps[: steps.index(step)]:
                self._delete(damaged)
            self._best = loop_state.get("best_step")
            return state, loop_state, complaints
        if complaints:
            raise UserError("\n".join([*complaints, "No other is left: remove the run directory to begin anew."]))
        return None

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          UserError: the disk is full.
        """
        with _failed_save_told(self._directory):
            if processes.is_first():
                self._finish()
        self._saver.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the last save, unless it is an interrupt that ends the block."""
        if kind is None:
            self.close()
        elif issubclass(kind, Exception):
            with suppress(Exception):  # the first is told
                self.close()

    def _read(self, step: int, abstract_state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        path = self._directory / str(step)
        content = _content(path)
        _check_trainable(path, content)
        _check_origin(path, content, self._workdir, self._origin)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler(), **_alone()) as checkpointer:
            state = checkpointer.restore(path / "state", args=ocp.args.StandardRestore(abstract_state))
        if _checksums(state) != content["checksums"]:
            raise ValueError("checksums differ")
        return state, content["progress"]

    def _finish(self) -> None:
        """Waits for the last save; only when it is there may those go whose place it takes."""
        self._saver.wait_until_finished()
        steps = _steps(self._directory)
        if steps:
            self._note_newest(steps[0])
        for old in steps[self._origin.config.train.keep_checkpoints :]:
            if old != self._best:
                self._delete(old)

    def _note_newest(self, step: int) -> None:
        if _newest(self._directory) != step:
            write_whole(self._directory / _NEWEST, f"{step}\n")

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint, which is gone at once: no reader meets half of it."""
        gone = self._directory / f"{step}{_TEMPORARY[1]}"
        (self._directory / str(step)).rename(gone)
        shutil.rmtree(gone)


def restore_params(workdir: Path, abstract_params: dict[str, Any], origin: Origin) -> tuple[dict[str, Any], int]:
    """Returns the parameters of the best checkpoint (the newest, where none was evaluated) and its step.

    They are the moving average, where the run keeps one.

    Where that one is damaged or gone the newest whole one takes its place, with a
    warning. Nothing is changed, and the run may be trained meanwhile: where
    training deletes a checkpoint that was about to be read, all is looked at anew.
    Parameters of version 0.1 are renamed.

    Raises:
      UserError: there is no checkpoint, all are damaged, or they belong to another run or a newer version.
    """
    _quiet_libraries()
    while True:
        with suppress(_Deleted):
            return _restore_params(workdir, abstract_params, origin)


class _Deleted(Exception):
    """A checkpoint that was listed is no longer there: the run goes on."""


class _Damaged(Exception):
    """A checkpoint cannot be read, and why."""


def _restore_params(workdir: Path, abstract_params: dict[str, Any], origin: Origin) -> tuple[dict[str, Any], int]:
    directory = (workdir / "checkpoints").absolute()
    newest, steps = _newest(directory), _steps(directory)  # in this order: training may have saved another meanwhile
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint yet; train it first.")
    complaints = _missing(directory, newest, steps)
    best = _best_step(directory, steps)
    if best not in steps:
        if _steps(directory) != steps:
            raise _Deleted
        complaints.append(f"Checkpoint {directory / str(best)}, the best, is gone.")
    for step in sorted(steps, key=lambda step: step != best):  # the best one first
        try:
            params = _read_params(directory / str(step), abstract_params, workdir, origin)
        except _Damaged as damage:
            complaints.append(str(damage))
            continue
        if complaints:
            warnings.warn("\n".join([*complaints, f"That of step {step:,} takes its place."]), stacklevel=3)
        return params, step
    raise UserError("\n".join([*complaints, "No other is left: remove the run directory and train anew."]))


def average_params(
    workdir: Path, abstract_params: dict[str, Any], origin: Origin, last: int
) -> tuple[dict[str, Any], list[int]]:
    """Returns the mean of the parameters of the `last` newest checkpoints, and their steps, the newest first.

    The best checkpoint is not one of them where it is older than the
    `train.keep_checkpoints` newest: those between are gone. Sums are taken in
    float64 on the host. Nothing is changed, and the run may be trained meanwhile.

    Raises:
      UserError: there are not so many, one is damaged, or they belong to another run or a newer version.
    """
    _quiet_libraries()
    while True:
        with suppress(_Deleted):
            return _average_params(workdir, abstract_params, origin, last)


def _average_params(
    workdir: Path, abstract_params: dict[str, Any], origin: Origin, last: int
) -> tuple[dict[str, Any], list[int]]:
    directory = (workdir / "checkpoints").absolute()
    newest, keep = _newest(directory), origin.config.train.keep_checkpoints
    steps = _steps(directory)[:keep]
    if len(steps) < last:
        raise UserError(
            f"{workdir} holds {counted(len(steps), 'latest checkpoint')}, and --last is {last}. It keeps up to"
            f" train.keep_checkpoints {keep} beside the best one: average fewer, or train with more elsewhere."
        )
    if complaints := _missing(directory, newest, steps):
        raise UserError("\n".join(complaints))
    total: Any = 0.0
    for step in steps[:last]:
        try:
            params = _read_params(directory / str(step), abstract_params, workdir, origin)
        except _Damaged as damage:
            raise UserError(f"{damage} Average those after it, or train on.") from damage
        params = jax.tree.map(partial(np.asarray, dtype=np.float64), params)
        total = jax.tree.map(np.add, total, params) if step != steps[0] else params
    mean = jax.tree.map(lambda array, like: (array / last).astype(like.dtype), total, abstract_params)
    return mean, steps[:last]


def _steps(directory: Path) -> list[int]:
    """The steps whose checkpoints are whole, the newest first."""
    names = [path.name for path in directory.glob("*")]
    return sorted((int(name) for name in names if name.isdecimal() and name == str(int(name))), reverse=True)


def _newest(directory: Path) -> int | None:
    """The step of the newest checkpoint that training has seen whole, or None where it left no note."""
    try:
        return int((directory / _NEWEST).read_bytes())
    except (OSError, ValueError):
        return None


def _missing(directory: Path, newest: int | None, steps: list[int]) -> list[str]:
    """What to say where the newest checkpoint is not among those that are there."""
    if newest is None or not steps or newest <= steps[0]:
        return []
    return [f"Checkpoint {directory / str(newest)}, the newest, is gone."]


def _best_step(directory: Path, steps: list[int]) -> int:
    """The step that the newest readable checkpoint calls the best, or the newest."""
    for step in steps:
        try:
            return _content(directory / str(step))["progress"].get("best_step") or step
        except UserError:
            raise
        except Exception:  # damaged; told when its parameters are read
            continue
    return steps[0]


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has got as far as its first checkpoint."""
    return bool(_steps(workdir / "checkpoints"))


def check_trainable(workdir: Path) -> None:
    """Refuses a run directory whose newest checkpoint another version wrote, so that this one cannot go on from there.

    Raises:
      UserError: names the checkpoint and the versions.
    """
    if newest := _newest_content((workdir / "checkpoints").absolute()):
        _check_trainable(*newest)


def check_belongs(workdir: Path, origin: Origin) -> None:
    """Refuses a run directory whose newest checkpoint belongs to another run: its config.json may be lost or changed.

    Raises:
      UserError: names what differs.
    """
    if newest := _newest_content((workdir / "checkpoints").absolute()):
        _check_origin(*newest, workdir, origin)


def version_of(workdir: Path) -> str | None:
    """Returns the version of seq2seq-jax that wrote the newest checkpoint of a run; None without one.

    Raises:
      UserError: it is a newer version than this.
    """
    newest = _newest_content((workdir / "checkpoints").absolute())
    return newest and newest[1].get("version", "0.1")


def _newest_content(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of which `_content` can be read, and that."""
    for step in _steps(directory):
        path = directory / str(step)
        try:
            return path, _content(path)
        except UserError:
            raise
        except Exception:  # damaged; told when it is restored
            continue
    return None


def _content(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside the arrays; UserError where a newer version wrote it."""
    _quiet_libraries()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler(), **_alone()) as checkpointer:
        content: dict[str, Any] = checkpointer.restore(path / "progress")
    if content.get("digest", digest := _digest(content)) != digest:
        raise ValueError("checksums differ")
    if _numbers(content.get("version", "0.1")) > _numbers(__version__):
        raise UserError(
            f"Checkpoint {path} was written by version {content['version']} of seq2seq-jax, and this is version"
            f" {__version__}, which cannot read it. Use that version, or a newer one."
        )
    return content


def _numbers(version: str) -> list[int]:
    """A version to compare with others."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _check_trainable(path: Path, content: dict[str, Any]) -> None:
    if "version" not in content:
        raise UserError(
            f"Checkpoint {path} was written by version 0.1 of seq2seq-jax. This version, {__version__}, reads it for"
            " translate, score and evaluate, but cannot go on training it. Choose another --workdir, or train with"
            " version 0.1."
        )
    if steps := content.get("progress", {}).get("averaged"):
        raise UserError(
            f"Checkpoint {path} is the average of those of steps {', '.join(map(str, steps))}: it is read by translate,"
            " score and evaluate, and cannot be trained. Choose another --workdir."
        )
    if content.get("progress", {}).get("reproduced"):
        raise UserError(
            f"Checkpoint {path} is the best of a seed that was trained by reproduce: it is read by translate, score and"
            " evaluate, and cannot be trained. Choose another --workdir."
        )


def _check_origin(path: Path, content: dict[str, Any], workdir: Path, origin: Origin) -> None:
    if "origin" in content:  # which the first checkpoints lack
        check_origin(workdir, path, content["origin"], origin)


def _read_params(path: Path, abstract_params: dict[str, Any], workdir: Path, origin: Origin) -> dict[str, Any]:
    """A checkpoint's parameters to be used, where `abstract_params` wants them; `_Damaged` or `_Deleted` if it is."""
    try:
        return _read_any_version(path, abstract_params, workdir, origin)
    except UserError:
        raise
    except Exception as error:  # whatever a library makes of a damaged file
        if int(path.name) not in _steps(path.parent):
            raise _Deleted from error
        raise _Damaged(_damaged(path, error)) from error


def _read_any_version(path: Path, abstract_params: dict[str, Any], workdir: Path, origin: Origin) -> dict[str, Any]:
    """A checkpoint's parameters, those of version 0.1 renamed."""
    content = _content(path)
    _check_origin(path, content, workdir, origin)
    if "version" in content:
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract_params)
        averaged = any(name.startswith("['average']") for name in content["checksums"])
        return _read_arrays(path, "average" if averaged else "params", abstract_params, arguments, content["checksums"])
    names = _names(path)
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    params = from_version_0_1(_read_arrays(path, "params", names, arguments, content["checksums"]))
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, abstract_params):
        raise ValueError("its parameters are those of another model")
    return jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), params, abstract_params)


def _names(path: Path) -> dict[Any, Any]:
    """The tree of a checkpoint's parameters, as it says itself."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), **_alone()) as checkpointer:
        tree = checkpointer.metadata(path / "state").item_metadata.tree["params"]

    def with_numbers(tree: Any) -> Any:  # keys are text there
        if not isinstance(tree, dict):
            return 0
        return {int(key) if key.isdecimal() else key: with_numbers(inner) for key, inner in tree.items()}

    return with_numbers(tree)


def _read_arrays(
    path: Path, name: str, tree: dict[Any, Any], arguments: dict[Any, Any], checksums: dict[str, int]
) -> Any:
    """Arrays of this tree, kept by this name; how and where to each is put is said by Orbax's `arguments`."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), **_alone()) as checkpointer:
        restored = checkpointer.restore(
            path / "state",
            args=ocp.args.PyTreeRestore(item={name: tree}, restore_args={name: arguments}, partial_restore=True),
        )
    if any(checksums[leaf] != checksum for leaf, checksum in _checksums(restored).items()):
        raise ValueError("checksums differ")
    return restored[name]


def check_disk_space(workdir: Path, abstract_state: dict[str, Any], keep: int) -> None:
    """Refuses a disk that cannot hold the checkpoints of this run: so many, the best, and the one being written.

    Raises:
      UserError: with the space needed and the space there is.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state))
    needed, free = size * (keep + 2), shutil.disk_usage(existing_folder(workdir)).free
    if free < needed:
        raise UserError(
            f"The checkpoints of this run need {needed / 1e6:,.0f} MB, and the disk of {workdir} has"
            f" {free / 1e6:,.0f} MB left; free some, or choose another --workdir."
        )


def _alone() -> dict[str, Any]:
    """Arguments of Orbax by which a process reads and writes without waiting for others."""
    if processes.count() == 1:
        return {}
    own = processes.index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    return {"multiprocessing_options": options}


def _checksums(state: dict[str, Any]) -> dict[str, int]:
    """CRC-32 of every array's bytes, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): zlib.crc32(np.asarray(leaf).tobytes()) for path, leaf in leaves}


def _digest(content: dict[str, Any]) -> int:
    """CRC-32 of all of the JSON but the digest itself."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


@cache
def _quiet_libraries() -> None:
    """Leaves errors to the exceptions that bring them here, for Orbax and TensorStore also print them, many times over.

    When a read or a write fails, those beside it end on an event loop that Orbax
    has closed, each with a traceback from a thread of its own.
    """
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)  # which tells of the writes beside the first that failed
    before = sys.unraisablehook

    def hook(failure: Any) -> None:
        if str(failure.exc_value) != "Event loop is closed":
            before(failure)

    sys.unraisablehook = hook


@contextmanager
def _failed_save_told(directory: Path) -> Generator[None]:
    try:
        yield
    except TimeoutError as error:
        raise UserError(
            f"A save in {directory} took too long, by a clock that may have been set: that checkpoint is lost,"
            " those before it are kept. The same command resumes from the last of them."
        ) from error
    except Exception as error:  # TensorStore keeps nothing of the system's error but its words
        if not any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
            raise
        raise UserError(
            f"No space left on the disk of {directory}: the checkpoint under way is lost, those before it are kept."
            " Free some space; the same command resumes from the last of them."
        ) from error


def _damaged(path: Path, error: Exception) -> str:
    return f"Checkpoint {path} is damaged ({_brief(error)})."


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error).strip().partition("\n")[0], 160, placeholder=" …") or type(error).__name__
