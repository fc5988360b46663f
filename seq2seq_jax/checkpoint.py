"""Checkpoints: Orbax behind save, restore and restore_params.

A checkpoint is a directory `checkpoints/STEP/` with the arrays of the training
state and a JSON of what the loop knows besides (`progress`). It appears whole or
not at all; the checksums in the JSON tell a damaged one. Two latest are kept,
and the best.
"""

import shutil
import sys
import textwrap
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import existing_folder

KEEP_LATEST = 2

Progress = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. `close` waits until the last one is on disk."""

    def __init__(self, workdir: Path):
        self._directory = (workdir / "checkpoints").absolute()
        self._manager = _manager(self._directory)

    def save(self, step: int, state: dict[str, Any], progress: Progress) -> None:
        """Starts to save; copies are taken at once, so the arrays may be donated afterwards.

        Args:
          step: names the directory; a checkpoint of the same step is replaced.
          state: arrays.
          progress: plain values. `progress["best_step"]`, if any, is kept too.

        Raises:
          UserError: the disk is full, now or when the last checkpoint was written.
        """
        with _full_disk_told(self._directory):
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                self._manager.delete(step)
            for old in self._superfluous(progress.get("best_step")):
                self._manager.delete(old)
            content = {"progress": progress, "checksums": _checksums(state)}
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(content))
            self._manager.save(step, args=arguments, force=True)

    def restore(self, abstract_state: dict[str, Any]) -> tuple[dict[str, Any], Progress, list[str]] | None:
        """Returns state and progress of the newest whole checkpoint, or None if there is none.

        Args:
          abstract_state: shapes, dtypes and shardings.

        Returns:
          The state, the progress, and a message for every damaged checkpoint that was passed over
          (they are deleted).

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        complaints: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, progress = self._read(step, abstract_state)
            except Exception as error:  # whatever a library makes of a damaged file
                complaints.append(f"Checkpoint {self._directory / str(step)} is damaged ({_brief(error)}).")
                continue
            for damaged in (later for later in self._manager.all_steps() if later > step):
                self._manager.delete(damaged)
            return state, progress, complaints
        if complaints:
            raise UserError("\n".join([*complaints, "No other is left: remove the run directory to begin anew."]))
        return None

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          UserError: the disk is full.
        """
        with _full_disk_told(self._directory):
            self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step: int, abstract_state: dict[str, Any]) -> tuple[dict[str, Any], Progress]:
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), progress=ocp.args.JsonRestore())
        restored: Any = self._manager.restore(step, args=arguments)
        if _checksums(restored.state) != restored.progress["checksums"]:
            raise ValueError("checksums differ")
        return restored.state, restored.progress["progress"]

    def _superfluous(self, best_step: int | None) -> list[int]:
        """Steps to delete so that with the one about to be saved `KEEP_LATEST` remain, and the best."""
        older = sorted(self._manager.all_steps())[: -KEEP_LATEST + 1 or None]
        return [step for step in older if step != best_step]


def restore_params(workdir: Path, abstract_params: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Returns the parameters of the best checkpoint (the newest, where none was evaluated) and its step.

    Where that one is damaged the newest whole one takes its place, with a warning.

    Raises:
      UserError: there is no checkpoint, or all are damaged.
    """
    directory = (workdir / "checkpoints").absolute()
    newest_first = sorted((int(path.name) for path in directory.glob("*") if path.name.isdigit()), reverse=True)
    if not newest_first:
        raise UserError(f"{workdir} holds no checkpoint yet; train it first.")
    manager, complaints = _manager(directory), []
    best = _best_step(manager, newest_first)
    for step in sorted(newest_first, key=lambda step: step != best):  # the best one first
        try:
            params = _read_params(manager, directory, step, abstract_params)
        except Exception as error:  # whatever a library makes of a damaged file
            complaints.append(f"Checkpoint {directory / str(step)} is damaged ({_brief(error)}).")
            continue
        if complaints:
            warnings.warn("\n".join([*complaints, f"That of step {step:,} takes its place."]), stacklevel=2)
        return params, step
    raise UserError("\n".join([*complaints, "No other is left: remove the run directory and train anew."]))


def _best_step(manager: ocp.CheckpointManager, newest_first: list[int]) -> int:
    """The step that the newest readable checkpoint calls the best, or the newest."""
    for step in newest_first:
        try:
            return _content(manager, step)["progress"].get("best_step") or step
        except Exception:  # damaged; told when its parameters are read
            continue
    return newest_first[0]


def _content(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    restored: Any = manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
    return restored.progress


def _read_params(
    manager: ocp.CheckpointManager, directory: Path, step: int, abstract_params: dict[str, Any]
) -> dict[str, Any]:
    checksums, target = _content(manager, step)["checksums"], {"params": abstract_params}
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(directory / str(step) / "state", args=arguments)
    if any(checksums[name] != checksum for name, checksum in _checksums(restored).items()):
        raise ValueError("checksums differ")
    return restored["params"]


def check_disk_space(workdir: Path, abstract_state: dict[str, Any]) -> None:
    """Refuses a disk that cannot hold the checkpoints of this run.

    Raises:
      UserError: with the space needed and the space there is.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state))
    needed, free = size * (KEEP_LATEST + 2), shutil.disk_usage(existing_folder(workdir)).free
    if free < needed:
        raise UserError(
            f"The checkpoints of this run need {needed / 1e6:,.0f} MB, and the disk of {workdir} has"
            f" {free / 1e6:,.0f} MB left; free some, or choose another --workdir."
        )


def _manager(directory: Path) -> ocp.CheckpointManager:
    _quiet_libraries()
    options = ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True)
    return ocp.CheckpointManager(directory, options=options)


def _checksums(state: dict[str, Any]) -> dict[str, int]:
    """CRC-32 of every array's bytes, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): zlib.crc32(np.asarray(leaf).tobytes()) for path, leaf in leaves}


@cache
def _quiet_libraries() -> None:
    """Leaves errors to the exceptions that bring them here, for Orbax and TensorStore also print them, many times over.

    When a read or a write fails, those beside it end on an event loop that Orbax
    has closed, each with a traceback from a thread of its own.
    """
    logging.set_verbosity(logging.FATAL)
    before = sys.unraisablehook

    def hook(failure: Any) -> None:
        if str(failure.exc_value) != "Event loop is closed":
            before(failure)

    sys.unraisablehook = hook


@contextmanager
def _full_disk_told(directory: Path) -> Generator[None]:
    try:
        yield
    except Exception as error:  # TensorStore keeps nothing of the system's error but its words
        if not any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
            raise
        raise UserError(
            f"No space left on the disk of {directory}: the checkpoint under way is lost, those before it are kept."
            " Free some space; the same command resumes from the last of them."
        ) from error


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error).strip().partition("\n")[0], 160, placeholder=" …") or type(error).__name__
