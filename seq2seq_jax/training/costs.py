"""What a training step costs: its matrix products, from its jaxpr, and its memory, from its compiled program.

XLA's own cost analysis would be the natural source of the first, but it counts
the body of a loop once, whatever the number of rounds, and a recurrent model is
all loops.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled

from seq2seq_jax.data.batching import BatchShape

PARTS = {
    "source_embedding": "embeddings",
    "target_embedding": "embeddings",
    "encoder": "encoder",
    "bridge_kernel": "bridge",
    "decoder": "decoder",
    "output_kernel": "output layer",
    "output_bias": "output layer",
}
"""Part of the model that each entry of the parameter tree belongs to."""


class Size(NamedTuple):
    """Numbers in some arrays, and the bytes they take."""

    count: int
    bytes: int


class Products(NamedTuple):
    """What the matrix products of a program take."""

    flops: int
    """Additions and multiplications."""
    bytes: int
    """Of their operands and results, every time: the traffic to memory if nothing stayed in a cache."""


class Memory(NamedTuple):
    """Bytes that an execution of a program holds on one device."""

    fixed: int
    """Arguments and results, those counted once that are written in each other's place."""
    temporary: int

    @property
    def total(self) -> int:
        """All bytes held at the peak."""
        return self.fixed + self.temporary


class ShapeCosts(NamedTuple):
    """A batch shape's part in an epoch, and what a step on it costs."""

    shape: BatchShape
    num_batches: int
    source_tokens: int
    """Real ones, in all its batches of the epoch."""
    target_tokens: int
    products: Products
    """Of a step, on each device."""
    memory: Memory | None
    compile_seconds: float
    step_seconds: float

    @property
    def positions(self) -> int:
        """Source and target positions of all its batches in the epoch."""
        return self.num_batches * self.shape.positions

    @property
    def padded_share(self) -> float:
        """Padding among them."""
        return 1 - (self.source_tokens + self.target_tokens) / self.positions if self.positions else 0.0


class Costs(NamedTuple):
    """What a run costs."""

    parts: dict[str, Size]
    """Parameters by part of the model."""
    state: Size
    """Parameters and everything else that is kept from step to step."""
    shapes: tuple[ShapeCosts, ...]
    available: int | None
    """Bytes that a step may use on each device, where that is known."""
    num_steps: int

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return sum(shape.num_batches for shape in self.shapes)

    @property
    def padded_share(self) -> float:
        """Padding positions of the epoch over all, source and target."""
        padding = sum(shape.padded_share * shape.positions for shape in self.shapes)
        return padding / sum(shape.positions for shape in self.shapes)

    @property
    def products(self) -> Products:
        """Of a step on each device, mean over the epoch."""
        sums = (sum(shape.num_batches * shape.products[n] for shape in self.shapes) for n in range(2))
        return Products(*(round(total / self.num_batches) for total in sums))

    @property
    def step_seconds(self) -> float:
        """Mean over the epoch."""
        return sum(shape.num_batches * shape.step_seconds for shape in self.shapes) / self.num_batches

    @property
    def target_tokens_per_second(self) -> float:
        """Real target tokens, all devices."""
        tokens = sum(shape.target_tokens for shape in self.shapes)
        return tokens / (self.num_batches * self.step_seconds)


def size(tree: Any) -> Size:
    """Returns the size of all arrays of a tree, which may be abstract."""
    leaves = jax.tree.leaves(tree)
    return Size(sum(leaf.size for leaf in leaves), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))


def parameters_by_part(params: dict[str, Any]) -> dict[str, Size]:
    """Returns the sizes of embeddings, encoder, decoder, output layer and whatever else there is."""
    parts: dict[str, list[Any]] = {part: [] for part in PARTS.values()}
    for name, param in params.items():
        parts.setdefault(PARTS.get(name, name), []).append(param)
    return {part: size(found) for part, found in parts.items() if found}


def products(jaxpr: Any) -> Products:
    """Returns what all `dot_general` of a jaxpr take, those of a scan times its length.

    A product of m by k with k by n takes 2 m k n operations. Products that are
    taken twice, as in rematerialisation, count twice. Of a conditional the
    dearest branch counts; the body of a while loop, whose rounds nobody knows,
    counts once. Within `jax.shard_map` the shapes are those of one device, and so
    are the counts.
    """
    flops = bytes_ = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            inner = [_product(equation)]
        else:
            inner = [products(part) for part in _inner_jaxprs(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        flops += rounds * sum(part.flops for part in inner)
        bytes_ += rounds * sum(part.bytes for part in inner)
    return Products(flops, bytes_)


def _product(equation: Any) -> Products:
    left, right = (variable.aval for variable in equation.invars)
    result = equation.outvars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    flops = 2 * result.size * math.prod(left.shape[axis] for axis in contracted)
    return Products(flops, size([left, right, result]).bytes)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters: bodies of loops, branches, called functions."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item


def memory(program: Compiled) -> Memory | None:
    """Returns what a compiled program needs on each device, or None where the compiler does not say."""
    found = program.memory_analysis()
    if found is None:
        return None
    fixed = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(fixed, found.temp_size_in_bytes)


def figures(number: float) -> str:
    """Returns a number with three significant figures, or with all of its whole part."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def megabytes(count: int) -> str:
    """Returns bytes as MB, millions of them."""
    return figures(count / 1e6)
