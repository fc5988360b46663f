"""What clients may ask of a server, and how many of them may wait."""

from dataclasses import dataclass, fields

from seq2seq_jax.errors import UserError

LONGEST_TIMEOUT = 86_400.0  # seconds


@dataclass(frozen=True)
class Limits:
    """Beyond these a request is refused, whole and at once."""

    max_tokens: int | None = None
    """Tokens of a text, its end mark included; by default data.max_length of the run. Programs are compiled for up to
    so many."""
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
        for item in fields(self):
            value, least = getattr(self, item.name), 2 if item.name == "max_tokens" else 1
            if value is not None and not value >= least:  # nan, too
                raise UserError(f"{_option(item.name)} must be {least} or more, got {value}.")
        if self.timeout > LONGEST_TIMEOUT:
            raise UserError(f"--timeout must be at most {LONGEST_TIMEOUT:,.0f} seconds, got {self.timeout:g}.")
        for name in ("max_client_lines", "max_lines"):
            if (value := getattr(self, name)) < self.max_texts:
                raise UserError(
                    f"{_option(name)} {value} is less than --max-texts {self.max_texts}: a request of that many texts"
                    f" would never be taken. Set {_option(name)} {self.max_texts} or more, or --max-texts {value}."
                )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
