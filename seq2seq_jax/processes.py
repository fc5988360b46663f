"""Several processes that train as one, on one machine or many, by JAX's own distributed runtime.

All run the same commands in the same order. The first one writes and prints;
the others follow it. A process by itself is the first one, and nothing here does
anything in it.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from seq2seq_jax.errors import UserError
from seq2seq_jax.signals import end

HEARTBEAT_SECONDS = 30
"""Silence after which a process counts as dead, and ends the others."""


LOST = 75
"""Exit code of a process that cannot go on without another one: EX_TEMPFAIL, worth another try."""


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes. To be called before JAX looks for devices.

    Args:
      coordinator: HOST:PORT at which the first process is met; by default what the cluster says.
      num_processes: how many there are; by default likewise.
      process_id: of this one, from 0; by default likewise.

    Raises:
      UserError: no cluster is found, or the others are not.
    """
    # Programs whose devices meet others' wait for each other, so they may not run one after another in this thread.
    jax.config.update("jax_cpu_enable_async_dispatch", True)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise UserError(
            f"The other processes were not found: {reason} Where SLURM, Cloud TPU, Kubernetes or Open MPI does not name"
            " them, give --coordinator HOST:PORT, --num-processes and --process-id."
        ) from error


@contextlib.contextmanager
def others_needed() -> Generator[None]:
    """A block that fails where another process is gone: this one then says so and ends, with `LOST`, at once.

    JAX itself ends it, by SIGABRT and after a message of its own, where it is the
    first process that is gone.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0][:300]
        print(
            f"error: process {index()} of {count()} cannot go on without another one: {reason}\nLook at what the others"
            " said last. The same command in all of them resumes from the last checkpoint.",
            file=sys.stderr,
        )
        end(LOST)  # JAX's own end would wait for the others


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """Which this is, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this process writes and prints."""
    return index() == 0


def share() -> tuple[int, int]:
    """Which of how many processes this is: its share of what all of them do together."""
    return index(), count()


def gathered(value: Any) -> list[Any]:
    """Returns what each process gives, a JSON value, in their order. All have to call it."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(text)], np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def meet() -> None:
    """Waits for all processes to come here."""
    gathered(None)


def by_first(do: Callable[[], Any]) -> Any:
    """Returns to all what the first process's `do()` returns, a JSON value; no other calls it.

    Raises:
      UserError: it does there, and then everywhere.
    """
    if count() == 1:
        return do()
    told: dict[str, Any] = {}
    raised: BaseException | None = None
    if is_first():
        try:
            told = {"value": do()}
        except UserError as error:
            told, raised = {"refused": str(error)}, error
    told = gathered(told)[0]
    if "refused" in told:
        raise raised or UserError(told["refused"])
    return told["value"]


@contextlib.contextmanager
def in_first(context: AbstractContextManager[Any]) -> Generator[None]:
    """Enters `context` in the first process alone, and the block in all once that is done.

    Raises:
      UserError: `context` does there, and then everywhere.
    """
    with contextlib.ExitStack() as stack:
        by_first(lambda: stack.enter_context(context) and None)
        yield


def first_before_others(do: Callable[[], Any]) -> Any:
    """Returns this process's own `do()`, which the others call once the first one has: it leaves files for them."""
    if count() == 1:
        return do()
    found: list[Any] = []
    by_first(lambda: found.append(do()))
    return found[0] if found else do()


def on_host(tree: Any) -> Any:
    """Returns arrays as NumPy's, whole, wherever their parts lie. All processes have to call it."""

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def from_host(tree: Any, shardings: Any) -> Any:
    """Places arrays that every process has whole, as `shardings` say."""

    def placed(leaf: np.ndarray, sharding: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at])

    return jax.tree.map(placed, tree, shardings)


def everywhere(tree: Any, sharding: Any) -> Any:
    """Places small arrays, the same in every process, all of them as `sharding` says."""
    if count() == 1:
        return jax.device_put(tree, sharding)
    return from_host(jax.tree.map(np.asarray, tree), jax.tree.map(lambda _: sharding, tree))


def parts_here(array: jax.Array) -> list[np.ndarray]:
    """What this process holds of an array; of parts that several devices hold, those of the first of them alone."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return [np.asarray(array)]
    return [np.asarray(shard.data) for shard in array.addressable_shards if shard.replica_id == 0]


def added_up(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the sums over all processes of their vectors. All have to call it."""
    if count() == 1:
        return list(arrays)

    def total(array: np.ndarray) -> np.ndarray:
        rows = multihost_utils.process_allgather(array.view(np.uint8))  # bytes: JAX would make float32 of float64
        return np.ascontiguousarray(rows).view(array.dtype).sum(0)

    return [total(array) for array in arrays]
