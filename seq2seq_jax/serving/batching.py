"""Lines that wait are searched together: whatever has come while the batch before was searched."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from seq2seq_jax.serving.programs import Kind, Programs, Shape
from seq2seq_jax.translator import Hypothesis

Search = Callable[[Sequence[str], Kind, Shape], list[list[Hypothesis]]]
"""Hypotheses of some lines, best first, by the program of a kind and a shape."""

_WEIGHT = 0.1  # of the newest batch in the running mean of a line's seconds
_PAUSE = 0.1  # of the time that a batch took: while others wait, those it answered may come again so soon
_LONGEST_PAUSE = 0.01  # seconds


@dataclass(eq=False)
class _Waiting:
    line: str
    length: int
    kind: Kind
    found: "asyncio.Future[list[Hypothesis]]"

    def settle(self, result: list[Hypothesis] | Exception) -> None:
        if self.found.done():  # whoever asked has gone
            return
        if isinstance(result, Exception):
            self.found.set_exception(result)
        else:
            self.found.set_result(result)


class Batcher:
    """A queue of lines, and the one thread that searches them.

    A batch is the line that has waited longest and those of its kind nearest to it
    in length. No line is passed over more often than there are lines before it.

    Where several wait at a time, those who got an answer tend to ask again at once,
    and one batch of all is sooner done than two of some. So the next batch waits for
    as many as there were, for a tenth of the time that the last one took at most. A
    client alone never waits.

    Args:
      search: see `Search`.
      programs: which shapes there are.
      seen: called after each batch with its lines, its shape and the seconds that it took.
    """

    def __init__(
        self, search: Search, programs: Programs, seen: Callable[[int, Shape, float], None] = lambda *_: None
    ) -> None:
        self._search, self._programs, self._seen = search, programs, seen
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._expected, self._pause_ends = 0, 0.0
        self._thread = ThreadPoolExecutor(1, "search")
        self.seconds_of_a_line = 0.0
        """A running mean."""

    def put(self, lines: Sequence[str], lengths: Sequence[int], kind: Kind) -> "list[asyncio.Future[list[Hypothesis]]]":
        """Has lines wait for a search; a future that is cancelled before takes its line out again.

        Args:
          lines: none of them empty.
          lengths: ids of each, its end mark included.
          kind: of search.
        """
        loop = asyncio.get_running_loop()
        new = [_Waiting(line, length, kind, loop.create_future()) for line, length in zip(lines, lengths, strict=True)]
        self._waiting += new
        self._arrived.set()
        return [each.found for each in new]

    async def run(self) -> None:
        """Searches for ever, batch after batch. A batch that fails fails alone."""
        loop = asyncio.get_running_loop()
        while True:
            await self._pause()
            batch = self._next()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            kind, lines = batch[0].kind, [each.line for each in batch]
            shape = self._programs.fitting(kind, len(batch), max(each.length for each in batch))
            begin = time.monotonic()
            try:
                found = await loop.run_in_executor(self._thread, self._search, lines, kind, shape)
            except Exception as error:
                logging.exception("a search failed")
                for each in batch:
                    each.settle(error)
            else:
                for each, hypotheses in zip(batch, found, strict=True):
                    each.settle(hypotheses)
            self._note(kind, len(batch), shape, time.monotonic() - begin)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._pause_ends):
                while len(self._waiting) < self._expected:
                    self._arrived.clear()
                    await self._arrived.wait()

    def _next(self) -> list[_Waiting]:
        self._waiting = [each for each in self._waiting if not each.found.done()]
        if not self._waiting:
            return []
        first = self._waiting[0]
        alike = [each for each in self._waiting if each.kind == first.kind]
        alike.sort(key=lambda each: abs(each.length - first.length))
        batch = alike[: self._programs.most_rows(first.kind)]
        taken = set(map(id, batch))
        self._waiting = [each for each in self._waiting if id(each) not in taken]
        return batch

    def _note(self, kind: Kind, num_lines: int, shape: Shape, seconds: float) -> None:
        together = num_lines + len(self._waiting)
        self._expected = min(together, self._programs.most_rows(kind)) if together > 1 else 0
        self._pause_ends = asyncio.get_running_loop().time() + min(_PAUSE * seconds, _LONGEST_PAUSE)
        each = seconds / num_lines
        self.seconds_of_a_line += _WEIGHT * (each - self.seconds_of_a_line)
        self._seen(num_lines, shape, seconds)
