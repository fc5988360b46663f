"""Compiled programs, kept between runs in a folder that its user alone can write.

They are machine code: whoever can put a file there runs code in the next
process that reads it. So the folder is private to its user, and not used at all
where somebody else could replace it.
"""

import contextlib
import grp
import hashlib
import os
import pwd
import stat
import warnings
from pathlib import Path

from seq2seq_jax.cache import cache_dir


def keep_compiled_programs() -> None:
    """Has JAX keep programs in the cache folder for a quicker start the next time; warns where it is not safe.

    Each user has a folder of their own, also where they share SEQ2SEQ_JAX_CACHE.
    Programs for a CPU use whatever instructions it has: each kind of CPU that
    shares the folder has its own, too.
    """
    import jax

    try:
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line), "")
        folder, danger = make_private(cache_dir() / f"compiled-{os.getuid()}")
    except OSError:  # where nothing can be kept, all is compiled anew
        return
    if danger:
        warnings.warn(
            f"Compiled programs are not kept in {folder}: {danger}, and could put code of theirs there. Mend that"
            " and remove the folder, or set SEQ2SEQ_JAX_CACHE to one of your own.",
            stacklevel=2,
        )
        return
    kind = folder / hashlib.sha256(flags.encode()).hexdigest()[:16]
    jax.config.update("jax_compilation_cache_dir", str(kind))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many trifles add up


def make_private(folder: Path) -> tuple[Path, str]:
    """Makes a folder for its user alone.

    Returns:
      Where it lies, no link on the way; and who else could write in it, or
      replace it, or "".

    Raises:
      OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    folder = folder.resolve(strict=True)
    dangers = [_danger(folder, owners={os.getuid()}, sticky=0)]
    dangers += [_danger(path, owners={os.getuid(), 0}, sticky=stat.S_ISVTX) for path in folder.parents]
    danger = next(filter(None, dangers), "")
    if not danger:
        folder.chmod(0o700)
    return folder, danger


def _danger(folder: Path, owners: set[int], sticky: int) -> str:
    """Returns who but `owners` may write in a folder, or "".

    `sticky` is the bit of its mode by which nobody may replace in it what
    belongs to others, or 0 where that does not help.
    """
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if status.st_uid not in owners:
        return f"{folder} belongs to {_user(status.st_uid)}, who may write there"
    group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    if (group or status.st_mode & stat.S_IWOTH) and not status.st_mode & sticky:
        return f"other users may write in {folder}"
    return ""


def _is_own_group(group: int) -> bool:
    """Whether a group has this user only, as where every user has a group of the same name."""
    try:
        user, entry = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return (entry.gr_name, group) == (user.pw_name, user.pw_gid) and set(entry.gr_mem) <= {user.pw_name}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
