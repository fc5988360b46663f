"""Which of several processes is behind, where no step comes any more: a line on standard error.

Processes wait for each other in every step, so that one that is stuck stops all. One
that has died is found by JAX itself, see `processes.HEARTBEAT_SECONDS`.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed  # JAX has no public way to the store that its processes share

from seq2seq_jax import processes

T = TypeVar("T")

BEHIND_SECONDS, EQUAL_SECONDS = 60.0, 600.0
"""Time without a new step after which it is told, where a process is behind, and where none is, as in a validation."""
_FOLDER = "seq2seq_jax/steps"


@contextlib.contextmanager
def watched(batches: Iterator[T], step: int) -> Generator[Iterator[T]]:
    """Gives the batches of the steps after `step`, while somebody watches that all processes come for theirs."""
    if processes.count() == 1:
        yield batches
        return
    dog = _Watchdog(step)
    try:
        yield dog.follow(batches)
    finally:
        dog.stopped.set()


class _Watchdog:
    """Tells the others this process's step; in the first process, also watches theirs."""

    def __init__(self, step: int) -> None:
        self.step, self.stopped = step, threading.Event()
        self._number, self._key = processes.count(), f"{_FOLDER}/{processes.index()}"
        self._first = processes.is_first()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def follow(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches, each of which begins a step."""
        for batch in batches:
            self.step += 1
            yield batch

    def _run(self) -> None:
        seen, since, told = {}, time.monotonic(), False
        pause = min(BEHIND_SECONDS / 10, 5.0)
        while not self.stopped.wait(pause):
            try:
                found = self._exchange()
            except jax.errors.JaxRuntimeError:  # the first process is gone, or going
                return
            if found != seen:
                seen, since, told = found, time.monotonic(), False
            steps = [place["step"] for place in found.values()]
            if self._first and not told and steps:
                quiet = time.monotonic() - since
                if quiet >= (BEHIND_SECONDS if min(steps) < max(steps) else EQUAL_SECONDS):
                    print(_standstill(found, self._number, quiet), file=sys.stderr, flush=True)
                    told = True

    def _exchange(self) -> dict[int, dict[str, Any]]:
        """Tells where this process is; returns where all are, by their numbers."""
        client = distributed.global_state.client
        assert client is not None  # there are several processes
        place = {"step": self.step, "host": socket.gethostname(), "pid": os.getpid()}
        client.key_value_set(self._key, json.dumps(place), allow_overwrite=True)
        if not self._first:
            return {}
        entries = client.key_value_dir_get(_FOLDER)
        return {int(key.rpartition("/")[2]): json.loads(value) for key, value in entries}


def _standstill(found: dict[int, dict[str, Any]], number: int, quiet: float) -> str:
    """Says where all processes are, those that are behind first."""
    order = sorted(found, key=lambda index: (found[index]["step"], index))
    places = [f"process {index} at step {place['step']:,} (pid {place['pid']} on {place['host']})"
              for index in order if (place := found[index])]  # fmt: skip
    missing = [f"process {index} at none" for index in range(number) if index not in found]
    return f"warning: no new step for {quiet:.0f} s: {'; '.join([*missing, *places])}"
