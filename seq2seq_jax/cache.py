"""Where prepared things are kept, and how files and folders appear whole, wherever they are."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from seq2seq_jax.checksums import find_damage, write_checksums
from seq2seq_jax.errors import UserError
from seq2seq_jax.signals import undoing

_STALE_SECONDS = 24 * 3600  # what is older, and that nobody holds, was left by a killed process
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # which only writing can meet
_PARTIAL = ".seq2seq_jax.partial"  # ends a name that nobody else gives
_RANDOM_NAME = re.compile(r"\.[a-z0-9_]{8,16}" + re.escape(_PARTIAL))


def cache_dir() -> Path:
    """Returns the user's cache folder of this package; it need not exist yet.

    SEQ2SEQ_JAX_CACHE if set, else seq2seq_jax under XDG_CACHE_HOME, else
    ~/.cache/seq2seq_jax.

    Raises:
      UserError: there is no home folder.
    """
    try:
        if named := os.environ.get("SEQ2SEQ_JAX_CACHE"):
            return Path(named).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base).expanduser().absolute() / "seq2seq_jax"
    except RuntimeError as error:  # of expanduser and home
        raise UserError(f"There is no place for the cache folder: {error} Set SEQ2SEQ_JAX_CACHE to one.") from error


@contextlib.contextmanager
def whole_directory(final: Path) -> Generator[Path]:
    """Gives a new empty folder to fill, which becomes `final` when the block ends.

    If the block raises, the folder is removed and `final` is untouched. The folder
    gets checksums, by which `is_whole` knows it. If another process made `final`
    meanwhile, its folder is kept: whatever goes by this function is named by its
    content. A `final` that is damaged is replaced, with a warning.

    Raises:
      OSError: the folder cannot be made or renamed, or a damaged one not removed.
    """
    with _folder_beside(final) as beside:
        with _held(beside):
            yield beside
        write_checksums(beside, final.name)
        damage = find_damage(final) if os.path.lexists(final) else None
        if damage:
            _discard(final)
        with contextlib.suppress(FileExistsError):
            _rename(beside, final)
        if damage:
            warnings.warn(f"{final} was damaged ({damage}) and has been made again.", stacklevel=3)


@contextlib.contextmanager
def new_directory(final: Path) -> Generator[Path]:
    """Gives a new empty folder to fill, which becomes `final` when the block ends; if it raises, nothing is left.

    Raises:
      OSError: the folder cannot be made or renamed; FileExistsError where there is a filled `final` already.
    """
    with _folder_beside(final) as beside:
        with _held(beside):
            yield beside
        _rename(beside, final)


@contextlib.contextmanager
def _folder_beside(final: Path) -> Generator[Path]:
    """A new folder beside `final`, which is gone when the block ends, unless it has been renamed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final.parent)
    beside = Path(tempfile.mkdtemp(prefix=".", suffix=_PARTIAL, dir=final.parent))
    with undoing(partial(shutil.rmtree, beside, ignore_errors=True)):
        yield beside


def is_whole(folder: Path) -> bool:
    """Returns whether `folder` is there and is, byte for byte, what `whole_directory` made."""
    return find_damage(folder) is None


@contextlib.contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """Gives a binary file to write, which becomes `path` when the block ends well, and of which nothing is left if not.

    It is written beside `path` under a name that no other file has. A link stays
    a link: the file that it names is replaced. A file keeps its permissions; a
    new one, and folders made for it, get those of the process.

    Raises:
      OSError: the file cannot be made, written or renamed.
    """
    final = Path(os.path.realpath(path))
    mode = _permissions(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final.parent)
    beside = final.with_name(f".{secrets.token_hex(8)}{_PARTIAL}")
    with naming(path), undoing(partial(beside.unlink, missing_ok=True)):
        with beside.open("xb") as file, _held(beside):
            if mode is not None:
                with contextlib.suppress(OSError):  # a file system without permissions
                    os.fchmod(file.fileno(), mode)
            yield file
        os.replace(beside, final)


def write_whole(path: Path, content: str | bytes) -> None:
    """Makes `content`, text as UTF-8, the whole of the file `path`: no reader sees half of it. See `whole_file`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def naming(place: object) -> Generator[None]:
    """Has the error of a disk that fills in the block name `place`: the system does not say what it could not write."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(place)
        raise


@contextlib.contextmanager
def writing_to(folder: Path, setting: str) -> Generator[None]:
    """Tells what the user can do where the block cannot write to `folder`.

    Args:
      folder: what the block makes.
      setting: what names another place for it.

    Raises:
      UserError: the disk is full, the folder closed to us, or something in its way.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises RuntimeError whatever happens
        there = existing_folder(folder.parent, setting)
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT) or re.search("No space left|quota exceeded", str(error)):
            free = shutil.disk_usage(there).free
            raise UserError(
                f"No space left on the disk of {there} ({free / 1e6:,.0f} MB free); free some,"
                f" or set {setting} to a folder elsewhere."
            ) from error
        if code is None or code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # no fault of the folder's
            raise
        raise UserError(
            f"Cannot write {folder} ({os.strerror(code)}); set {setting} to a folder that can be written."
        ) from error


def existing_folder(path: Path, setting: str = "") -> Path:
    """Returns the nearest existing folder at or above `path`: on its disk `path` will be.

    Args:
      path: need not exist.
      setting: what names another place for it, for the message.

    Raises:
      UserError: a file or a link to nothing stands where a folder would have to be.
    """
    full = Path(os.path.abspath(path))
    found = next(folder for folder in (full, *full.parents) if os.path.lexists(folder))
    if os.path.isdir(found):
        return found
    kind = "a file" if os.path.exists(found) else "a link to nothing"
    other = f"set {setting} to another folder" if setting else "choose another folder"
    raise UserError(f"There can be no folder {path}: {found} is {kind}. Move it away, or {other}.")


def try_lock(descriptor: int) -> bool:
    """Whether an open file or folder is now locked for this process; its end, however it comes, frees it.

    Raises:
      OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _permissions(path: Path) -> int | None:
    """Returns the permission bits of a file, or None where there is none."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _discard(path: Path) -> None:
    """Removes whatever is at `path`, at one stroke to those who look."""
    away = Path(tempfile.mkdtemp(prefix=".", suffix=_PARTIAL, dir=path.parent))
    try:
        path.rename(away / path.name)
    finally:
        shutil.rmtree(away, ignore_errors=True)


def _rename(folder: Path, final: Path) -> None:
    folder.chmod(0o777 & ~_umask())  # mkdtemp makes it private; a shared data_dir is read by others
    try:
        folder.rename(final)
    except OSError as error:  # a filled folder there answers ENOTEMPTY or EEXIST, as the system likes
        if final.is_dir():
            raise FileExistsError(str(final)) from error
        raise


@contextlib.contextmanager
def _held(path: Path) -> Generator[None]:
    """Locks `path` for the block, so that no other process takes it for stale. Without locks none ever does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(parent: Path) -> None:
    """Removes what killed processes left half-written in `parent`."""
    for path in parent.glob(f"*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            if _RANDOM_NAME.fullmatch(path.name) and _is_stale(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_stale(path: Path) -> bool:
    if time.time() - path.lstat().st_mtime < _STALE_SECONDS:
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Returns the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
