"""The C library's memory allocator, told to keep what a program frees."""

import ctypes
import os
import platform

# Numbers of malloc.h, which have been the same in every release of glibc that Python runs on.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8

PEAK_FACTOR = 4
"""What a program's memory may grow to, kept so, for each byte that it needs at once: small blocks settle in what a
large one has left, and the next large one goes beside it. Measured: 2 to 4."""


def keep_freed_memory() -> bool:
    """Lets the process keep freed memory for its next use instead of giving it back to the system.

    Every execution of a compiled program on a CPU allocates its temporary
    arrays anew. By glibc's defaults large ones come fresh from the system, which
    fills every page with zeros on its first touch: for a training step of a few
    hundred megabytes a tenth of the time. The process then holds on to the most
    it has ever needed, and to gaps, see `PEAK_FACTOR`.

    Call it before JAX is imported, for the threads that JAX starts. Nothing
    happens without glibc, or where the user has tuned it (MALLOC_* or
    GLIBC_TUNABLES in the environment).

    Returns:
      Whether the settings were made.
    """
    if not _is_untuned_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        _MMAP_MAX: 0,  # large blocks too come from the heap,
        _ARENA_MAX: 1,  # of which there is one: the heaps of other threads cannot hold a large block
        _TRIM_THRESHOLD: -1,  # never shrink it
        _TOP_PAD: 64 * 2**20,  # and let it grow in few, large strides
    }
    return all(mallopt(name, value) for name, value in settings.items())


def return_freed_memory() -> None:
    """Undoes `keep_freed_memory`, for programs so large that only what they need at once fits."""
    if not _is_untuned_glibc():
        return
    libc = ctypes.CDLL(None)
    defaults = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20, _TOP_PAD: 0}
    for name, value in defaults.items():
        libc.mallopt(name, value)
    libc.malloc_trim(0)


def _is_untuned_glibc() -> bool:
    tuned = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    return platform.libc_ver()[0] == "glibc" and not tuned
