"""What stands in a compiled program, read off its text (XLA's HLO)."""

import collections as counting
import math
import re

from seq2seq_jax.training.costs.collectives import collectives as of_program
from seq2seq_jax.training.costs.collectives import computations


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """How often devices meet, by kind, inside loops and outside of them."""
    found = {"inside": counting.Counter(), "outside": counting.Counter()}
    for each in of_program(hlo):
        found["inside" if each.in_loop else "outside"][each.kind] += 1
    return {place: dict(counts) for place, counts in found.items()}


def flops_of_products(hlo: str) -> int:
    """Additions and multiplications of all matrix products; those of a loop as often as it is known to run."""
    bodies = computations(hlo)
    (entry,) = re.findall(r"^ENTRY %?([\w.-]+) ", hlo, re.M)

    def flops(name: str) -> int:
        text, total = bodies[name], 0
        shapes = dict(re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", text))
        size = lambda shape: math.prod(int(n) for n in shape.split(",") if n)  # noqa: E731
        for line in text.splitlines():
            if found := re.search(r"= \w+\[([\d,]*)\]\S* dot\(%([\w.-]+),.*lhs_contracting_dims=\{([\d,]*)\}", line):
                result, left, contracted = found.groups()
                lengths = shapes[left].split(",")
                total += 2 * size(result) * math.prod(int(lengths[int(axis)]) for axis in contracted.split(",") if axis)
            rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"(?:calls|to_apply|body)=%?([\w.-]+)", line):
                total += (int(rounds[1]) if rounds else 1) * flops(called)
            if branches := re.search(r"branch_computations=\{(.*?)\}", line):
                total += max(flops(branch.strip(" %")) for branch in branches[1].split(","))
        return total

    return flops(entry)
