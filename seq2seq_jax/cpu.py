"""What makes programs quicker on a CPU: where they run, how they are compiled, what becomes of the memory they free."""

import contextlib
import ctypes
import os
import platform

import jax
from jax.sharding import Mesh

# Numbers of malloc.h, which have been the same in every release of glibc that Python runs on.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4

PEAK_FACTOR = 2
"""What a program's memory may grow to, kept so, for each byte that it needs at once: small blocks settle in what a
large one has left, and the next large one goes beside it. Measured: 1.1 with one batch shape, 1.2 with twelve."""


def compiler_options(mesh: Mesh) -> dict[str, int] | None:
    """Returns the options of `jax.jit` for this package's programs on these devices.

    A CPU's code from LLVM's first level of optimisation runs as fast as from
    the third, which is XLA's default, for nearly all of the time goes to
    products, whose code is a library's; and it is there sooner.
    """
    return {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None


def run_in_calling_thread() -> None:
    """Lets programs on a CPU run, and allocate, in the thread that calls them: what `keep_freed_memory` works for.

    Call it before JAX has looked for devices. Nothing changes on a GPU or TPU, nor
    where several processes work together: a program that waits for others would
    keep its thread from what they wait for.
    """
    if not jax.distributed.is_initialized():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def share_cores(num_runs: int) -> None:
    """Makes as many CPU devices as there are cores, at most one for each of several runs that are trained as one.

    The cores then take a run each. One run by itself has little for a second core:
    that of the default experiment is no slower on one.

    Nothing happens once JAX has looked for devices, where the user has said how many
    (`JAX_NUM_CPU_DEVICES`, or in `XLA_FLAGS`), nor on a GPU or TPU.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] < 1 and "host_platform_device_count" not in flags:
        # Not every system says which cores a process may use.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # what JAX says when it has its devices already
            jax.config.update("jax_num_cpu_devices", min(cores, num_runs))


def keep_freed_memory() -> bool:
    """Lets the main thread keep freed memory for its next use instead of giving it back to the system.

    Every execution of a compiled program on a CPU allocates its temporary
    arrays anew. By glibc's defaults large ones come fresh from the system, which
    fills every page with zeros on its first touch: for a training step of a few
    hundred megabytes a tenth of the time. The process then holds on to the most
    it has ever needed, and to gaps, see `PEAK_FACTOR`.

    Call it after compilation, whose own blocks would make more gaps. Nothing
    happens without glibc, or where the user has tuned it (MALLOC_* or
    GLIBC_TUNABLES in the environment).

    Returns:
      Whether the settings were made.
    """
    if not _is_untuned_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        _MMAP_MAX: 0,  # large blocks too come from the heap;
        _TRIM_THRESHOLD: -1,  # never shrink it,
        _TOP_PAD: 64 * 2**20,  # and let it grow in few, large strides
    }
    return all(mallopt(name, value) for name, value in settings.items())


def _is_untuned_glibc() -> bool:
    tuned = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    return platform.libc_ver()[0] == "glibc" and not tuned
