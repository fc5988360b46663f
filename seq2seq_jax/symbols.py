"""Ids with a meaning of their own, the same in every vocabulary."""

PAD, BOS, EOS, UNK = range(4)
"""Padding, sequence begin, sequence end, unknown."""
NUM_SPECIAL = 4
