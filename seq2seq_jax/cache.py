"""Where prepared things are kept, and how a folder appears there whole."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

_STALE_SECONDS = 24 * 3600  # nobody writes one folder for a day: what is older was left by a killed process


def cache_dir() -> Path:
    """Returns the user's cache folder of this package; it need not exist yet.

    SEQ2SEQ_JAX_CACHE if set, else seq2seq_jax under XDG_CACHE_HOME, else
    ~/.cache/seq2seq_jax.
    """
    if named := os.environ.get("SEQ2SEQ_JAX_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser().absolute() / "seq2seq_jax"


@contextlib.contextmanager
def whole_directory(final: Path) -> Generator[Path]:
    """Gives a new empty folder to fill, which becomes `final` when the block ends.

    If the block raises, the folder is removed and `final` is untouched. If
    another process made `final` meanwhile, its folder is kept: whatever goes by
    this function is named by its content.

    Raises:
      OSError: the folder cannot be made or renamed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final.parent)
    beside = Path(tempfile.mkdtemp(prefix=f"{final.name}.", suffix=".partial", dir=final.parent))
    try:
        yield beside
        beside.chmod(0o777 & ~_umask())  # mkdtemp makes it private; a shared data_dir is read by others
        with contextlib.suppress(FileExistsError):
            _rename(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes `text` beside `path` and renames it, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _rename(folder: Path, final: Path) -> None:
    try:
        folder.rename(final)
    except OSError as error:  # a filled folder there answers ENOTEMPTY or EEXIST, as the system likes
        if final.is_dir():
            raise FileExistsError(str(final)) from error
        raise


def _remove_stale(parent: Path) -> None:
    """Removes what killed processes left half-written in `parent`."""
    for path in parent.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _umask() -> int:
    """Returns the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
