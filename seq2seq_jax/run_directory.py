"""The files of a run directory, and whose it is.

config.json  vocabulary/  checkpoints/STEP/  metrics.jsonl  evaluations/
"""

import os
from pathlib import Path

from seq2seq_jax.cache import write_whole
from seq2seq_jax.config import Config, differences, from_json, to_json
from seq2seq_jax.errors import UserError, nearest

VOCABULARY = "vocabulary"
"""Folder of the vocabularies."""


def read_config(workdir: Path) -> Config:
    """Returns the configuration of the run in `workdir`.

    Raises:
      UserError: it is not a run directory, or its configuration is damaged.
    """
    path = workdir / "config.json"
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        near = nearest(workdir.name, [run.parent.name for run in sorted(workdir.parent.glob("*/config.json"))])
        hint = f" Did you mean {workdir.parent / near}?" if near else ""
        raise UserError(f"{workdir} is not a run directory: there is no {path}.{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; it must be the file that training wrote.") from None
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def is_claimed(workdir: Path) -> bool:
    """Whether a run has begun in `workdir`; what lies there otherwise is the rest of one that never did."""
    return (workdir / "config.json").exists()


def claim(workdir: Path, config: Config) -> None:
    """Makes `workdir` the run directory of `config`: from here on it is resumed, and no other run may use it."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "config.json", to_json(config))


def existing_folder(workdir: Path) -> Path:
    """Returns `workdir`, or the nearest folder above it if it is still to be made.

    Raises:
      UserError: no folder can be made there.
    """
    path = workdir.absolute()
    nearest_path = next(found for found in (path, *path.parents) if found.exists() or found.is_symlink())
    if not nearest_path.exists():
        raise UserError(f"{workdir} cannot be a run directory: {nearest_path} is a link to nothing. Remove it.")
    if not nearest_path.is_dir():
        raise UserError(f"{workdir} cannot be a run directory: {nearest_path} is a file. Choose another --workdir.")
    if not os.access(nearest_path, os.W_OK | os.X_OK):
        raise UserError(f"Nothing may be written in {nearest_path}. Choose another --workdir.")
    return nearest_path


def check_is_free(workdir: Path, config: Config) -> None:
    """Refuses a directory that is not for a run of `config`.

    Raises:
      UserError: it cannot be written, or it holds a run of another configuration; the differing fields are named.
    """
    existing_folder(workdir)
    changed = differences(read_config(workdir), config) if is_claimed(workdir) else []
    if changed:
        fields = "\n  ".join(changed)
        raise UserError(
            f"{workdir} holds a run of another configuration (there -> here):\n  {fields}\n"
            "Choose another --workdir, or set these fields as they were to resume that run, or remove it."
        )
