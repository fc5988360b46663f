"""What clients may ask of a server, and how many of them may wait."""

from dataclasses import dataclass

from seq2seq_jax.errors import UserError

LONGEST_TIMEOUT = 86_400.0  # seconds


@dataclass(frozen=True)
class Limits:
    """Beyond these a request is refused, whole and at once."""

    max_tokens: int | None = None
    """Tokens of a text, its end mark included; by default data.max_length of the run."""
    max_texts: int = 64
    """Texts of a request."""
    max_body: int = 65_536
    """Bytes of a request."""
    max_lines: int = 1_024
    """Texts of all clients that are taken and not yet answered; who comes then is told to come again (503)."""
    max_client_lines: int = 256
    """The same of one client's address (429)."""
    timeout: float = 60.0
    """Seconds that a request may take, and a client to send it."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise UserError(f"--timeout must be more than 0 and at most {LONGEST_TIMEOUT:,.0f}, got {self.timeout:g}.")
        for name, least in (
            ("max_tokens", 2),
            ("max_texts", 1),
            ("max_body", 1),
            ("max_lines", 1),
            ("max_client_lines", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{_option(name)} must be {least} or more, got {value}.")
        for name in ("max_client_lines", "max_lines"):
            if (value := getattr(self, name)) < self.max_texts:
                raise UserError(
                    f"{_option(name)} {value} is less than --max-texts {self.max_texts}: a request of that many texts"
                    f" would never be taken. Set {_option(name)} {self.max_texts} or more, or --max-texts {value}."
                )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
