"""Freed memory stays with the process, and programs use it again."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
from seq2seq_jax.cpu import keep_freed_memory
import ctypes

def pages():
    "Pages that the system filled for 20 blocks of 64 MiB, each freed before the next."
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = libc.malloc(64 * 2**20)
        ctypes.memset(block, 1, 64 * 2**20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

made = "keep" in sys.argv and keep_freed_memory()
pages()
print(made, pages())
"""


PROGRAM = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from seq2seq_jax.cpu import compiler_options, keep_freed_memory, run_in_calling_thread
from seq2seq_jax.sharding import one_device

if "calling" in sys.argv:
    run_in_calling_thread()
thin = jnp.ones((6_000, 8))
options = compiler_options(one_device())
program = jax.jit(lambda x: jnp.sin(x @ x.T).sum(axis=0), compiler_options=options).lower(thin).compile()
assert program.memory_analysis().temp_size_in_bytes > 100e6
made = keep_freed_memory()

def pages():
    "Pages that the system filled for one execution."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(thin))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

# The median: a small block that settles in freed memory sends a few executions to new pages, at no set time.
print(made, int(statistics.median(pages() for _ in range(21))))
"""


def run(*arguments, program=PAGES, **environment):
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    made, pages = result.stdout.split()
    return made == "True", int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_large_blocks_are_used_again_without_new_pages():
    assert run()[1] > 1_000  # by default every block comes fresh from the system
    made, pages = run("keep")
    assert made and pages < 100


def test_what_the_user_has_tuned_is_left_alone():
    assert not run("keep", MALLOC_ARENA_MAX="2")[0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_a_program_in_the_calling_thread_finds_its_memory_again():
    environment = {"JAX_PLATFORMS": "cpu"}
    elsewhere, here = (run(*where, program=PROGRAM, **environment) for where in ((), ("calling",)))
    assert elsewhere[0] and here[0]
    assert elsewhere[1] > 30_000  # no other thread's arena holds an array of 144 MB
    assert here[1] < 1_000


DEVICES = """
import jax, sys
from seq2seq_jax.cpu import share_cores
if "late" in sys.argv:
    jax.devices()
share_cores(3)
print(jax.device_count())
"""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("said", "when", "expected"),
    [
        ({}, "early", min(3, CORES)),
        ({}, "late", 1),
        ({"JAX_NUM_CPU_DEVICES": "5"}, "early", 5),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "early", 4),
    ],
)
def test_every_core_is_a_device_unless_it_is_too_late_or_the_user_has_said_how_many(repository, said, when, expected):
    others = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    command = [sys.executable, "-c", DEVICES, when]
    done = subprocess.run(command, cwd=repository, env=others | said, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == expected
