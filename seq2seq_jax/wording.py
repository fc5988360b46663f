"""Words of the lines that are printed."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: "1 pair", "2,000 pairs"; `plural` where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def part_of(number: int, total: int, noun: str) -> str:
    """Returns the beginning of a sentence on some of many: "1 of 40 targets is", "2 of 40 targets are"."""
    return f"{number:,} of {counted(total, noun)} {'is' if number == 1 else 'are'}"
