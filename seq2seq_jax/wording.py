"""Words and numbers of the lines that are printed."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: "1 pair", "2,000 pairs"; `plural` where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def part_of(number: int, total: int, noun: str) -> str:
    """Returns the beginning of a sentence on some of many: "1 of 40 targets is", "2 of 40 targets are"."""
    return f"{number:,} of {counted(total, noun)} {'is' if number == 1 else 'are'}"


def figures(number: float) -> str:
    """Returns a number with three significant figures, or with all of its whole part."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def megabytes(count: int) -> str:
    """Returns bytes as MB, millions of them."""
    return figures(count / 1e6)


def duration(seconds: float) -> str:
    """Returns seconds in the two units that matter: "2 s", "1 min 39 s", "1,000 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
