"""The C library's memory allocator, told to keep what a program frees."""

import ctypes
import os
import platform

# Numbers of malloc.h, which have been the same in every release of glibc that Python runs on.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Lets the process keep freed memory for its next use instead of giving it back to the system.

    Every execution of a compiled program on a CPU allocates its temporary
    arrays anew. By glibc's defaults large ones come fresh from the system, which
    fills every page with zeros on its first touch: for a training step of a few
    hundred megabytes a tenth of the time. The process then holds on to the most
    it has ever needed.

    Call it before JAX is imported, for the threads that JAX starts. Nothing
    happens without glibc, or where the user has tuned it (MALLOC_* or
    GLIBC_TUNABLES in the environment).

    Returns:
      Whether the settings were made.
    """
    tuned = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        _MMAP_MAX: 0,  # large blocks too come from the heap,
        _ARENA_MAX: 1,  # of which there is one: the heaps of other threads cannot hold a large block
        _TRIM_THRESHOLD: -1,  # never shrink it
        _TOP_PAD: 64 * 2**20,  # and let it grow in few, large strides
    }
    return all(mallopt(name, value) for name, value in settings.items())
