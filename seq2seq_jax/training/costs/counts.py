"""What a training step costs: its arrays, its matrix products, and the bytes that its program holds.

Products are counted in the jaxpr. XLA's own cost analysis would be their
natural source, but it counts the body of a loop once, whatever the number of
rounds, and a recurrent model is all loops.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params
from jax.stages import Compiled

PARTS = {
    "source_table": "embeddings",
    "target_table": "embeddings",
    "encoder": "encoder",
    "bridge": "bridge",
    "decoder": "decoder",
    "output": "output layer",
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


class Footprint(NamedTuple):
    """Bytes that an execution of a program holds on one device."""

    fixed: int
    """Arguments and results, those counted once that are written in each other's place."""
    temporary: int

    @property
    def total(self) -> int:
        """All bytes held at the peak."""
        return self.fixed + self.temporary


def size(tree: Any) -> Size:
    """Returns the size of all arrays of a tree, which may be abstract."""
    leaves = jax.tree.leaves(tree)
    return Size(sum(leaf.size for leaf in leaves), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))


def size_on_a_device(tree: Any) -> Size:
    """Returns the size of what one device holds of the abstract arrays of a tree."""
    shares = [jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return size(shares)


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
            inner = [products(part) for part in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        flops += rounds * sum(part.flops for part in inner)
        bytes_ += rounds * sum(part.bytes for part in inner)
    return Products(flops, bytes_)


def loop_rounds(jaxpr: Any) -> int:
    """Returns how many rounds of loops a jaxpr has, one after another; of a while loop, whose number nobody knows, 1.

    Each waits for the one before it, so that their latency is time that no device saves.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [loop_rounds(part) for part in jaxprs_in_params(equation.params)]
        match equation.primitive.name:
            case "scan":
                total += equation.params["length"] * max(1, *inner)
            case "while":
                total += max(1, *inner)
            case "cond":
                total += max(inner)
            case _:
                total += sum(inner)
    return total


def _product(equation: Any) -> Products:
    left, right = (variable.aval for variable in equation.invars)
    result = equation.outvars[0].aval
    (contracted, _), _ = equation.params["dimension_numbers"]
    flops = 2 * result.size * math.prod(left.shape[axis] for axis in contracted)
    return Products(flops, size([left, right, result]).bytes)


def footprint(program: Compiled) -> Footprint | None:
    """Returns what a compiled program holds on each device, or None where the compiler does not say."""
    found = program.memory_analysis()
    if found is None:
        return None
    fixed = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Footprint(fixed, found.temp_size_in_bytes)
