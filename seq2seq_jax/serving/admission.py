"""How many texts are taken and not yet answered, in all and of each client."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Generator

from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.serving.requests import Refusal
from seq2seq_jax.wording import counted


class Admission:
    """Takes texts as long as the limits allow.

    Args:
      limits: of which `max_lines`, `max_client_lines` and `timeout` are looked at.
      seconds_of_a_line: how long one takes at present, for what those are told who come too early.

    Attributes:
      total: texts that are taken and not yet answered.
    """

    def __init__(self, limits: Limits, seconds_of_a_line: Callable[[], float]) -> None:
        self._limits, self._seconds_of_a_line = limits, seconds_of_a_line
        self.total = 0
        self._of_client = Counter[str]()

    @contextlib.contextmanager
    def taken(self, client: str, number: int) -> Generator[None]:
        """A block within which so many texts of a client are worked on.

        Raises:
          Refusal: 429 where this client has too many, 503 where all together have.
        """
        of_client, limits = self._of_client[client], self._limits
        if of_client + number > limits.max_client_lines:
            has = counted(of_client, "text")
            message = f"{has} of this client wait for an answer, and {limits.max_client_lines:,} may."
            raise Refusal(429, message, self._wait(of_client))
        if self.total + number > limits.max_lines:
            message = f"{counted(self.total, 'text')} wait for an answer, and {limits.max_lines:,} may."
            raise Refusal(503, message, self._wait(self.total))
        self.total += number
        self._of_client[client] += number
        try:
            yield
        finally:
            self.total -= number
            self._of_client[client] -= number
            if not self._of_client[client]:
                del self._of_client[client]

    def _wait(self, number: int) -> int:
        """Whole seconds in which half of so many texts are answered."""
        return min(max(math.ceil(number * self._seconds_of_a_line() / 2), 1), math.ceil(self._limits.timeout))
