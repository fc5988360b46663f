"""What stands in a program that JAX hands to the compiler."""

from collections.abc import Iterator
from typing import Any

from jax.extend.core import Jaxpr, jaxprs_in_params


def operations(jaxpr: Jaxpr, name: str | None = None) -> Iterator[Any]:
    """All operations, or those of one name, those inside others too; of a choice those of its last branch."""
    for operation in jaxpr.eqns:
        if name in (None, operation.primitive.name):
            yield operation
        inner = list(jaxprs_in_params(operation.params))
        for part in inner[-1:] if operation.primitive.name == "cond" else inner:
            yield from operations(part, name)


def products(jaxpr: Jaxpr) -> list[tuple[int, ...]]:
    """Shapes of what its matrix products give."""
    return [product.outvars[0].aval.shape for product in operations(jaxpr, "dot_general")]
