"""A split in memory, and toy text, for tests of what comes after the corpora."""

from collections.abc import Sequence

import numpy as np


class Pairs:
    """Text pairs behind the interface of a corpus's split; counts its reads."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self.sources, self.targets = list(sources), list(targets)
        self.num_reads = 0

    def __len__(self) -> int:
        return len(self.sources)

    def read(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        self.num_reads += 1
        return self.sources[start:stop], self.targets[start:stop]


def toy_pairs(count: int, seed: int = 0) -> Pairs:
    """Returns sentences of 1 to 12 words of a small made-up language, and their words reversed."""
    random = np.random.default_rng(seed)
    syllables = np.array(["ba", "do", "ke", "li", "mu", "rä", "sé", "to", "vi", "zu"])
    words = ["".join(random.choice(syllables, random.integers(1, 4))) for _ in range(60)]
    sources = [" ".join(random.choice(words, random.integers(1, 13))) for _ in range(count)]
    return Pairs(sources, [" ".join(reversed(source.split(" "))) for source in sources])
