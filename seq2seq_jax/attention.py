"""Attention: the score of every source position, the window that is looked at, and the weighted sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from seq2seq_jax.linear import Linear, Weights
from seq2seq_jax.products import matmul


class Memory(NamedTuple):
    """What the decoder sees of the source; every sentence has it once, whatever looks at it."""

    keys: Float[Array, "B S A"]
    """The encoder's outputs as the scores want them."""
    values: Float[Array, "B S E"]
    """The encoder's outputs, of which the context is a weighted sum."""
    mask: Bool[Array, "B S"]
    """True at real positions."""


class Past(NamedTuple):
    """What attention at a step needs to know of the steps before; None for nothing."""

    window: Any
    coverage: Any
    """Sum of the weights so far, [B, S]."""


class Attended(NamedTuple):
    """What attention gives to a step; None for what there is not."""

    context: Any = None
    """[B, E]."""
    weights: Float[Array, "B S"] | None = None
    """Exactly 0 where the mask is False. Over all positions they sum to 1; a row with no True gets all zeros."""
    past: Past | None = None
    repeated: Float[Array, " B"] | None = None
    """Attention to what has had it before, the sum over positions of min(weight, coverage)."""


# ---- scores


class Dot(nnx.Module):
    """`q . m`, Luong et al. 2015, equation 8.

    Args:
      query_size: H, features of what asks: the decoder's hidden state.
      memory_size: E, features of the encoder's outputs.
      weights: draws first values; this score has none.

    Attributes:
      window: what is looked at: everything, unless another takes its place.
    """

    def __init__(self, query_size: int, memory_size: int, weights: Weights) -> None:
        self.window = Window()

    def memory(self, outputs: Float[Array, "B S E"], mask: Bool[Array, "B S"]) -> Memory:
        """Lays out what the encoder put out: done once for a sentence."""
        return Memory(self.keys(outputs), self.values(outputs), mask)

    def keys(self, outputs: Float[Array, "B S E"]) -> Float[Array, "B S A"]:
        """The encoder's outputs as `scores` wants them."""
        return outputs

    def values(self, outputs: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        """The encoder's outputs as they are summed."""
        return outputs

    def start(self, mask: Bool[Array, "B S"]) -> Past:
        """The past before the first step."""
        return Past(self.window.start(mask), None)

    def scores(self, query: Float[Array, "*B H"], keys: Float[Array, "*B S A"]) -> Float[Array, "*B S"]:
        """How well each source position fits.

        Raises:
          ValueError: the keys are not for such queries.
        """
        if keys.shape[-1] != query.shape[-1]:
            shapes = f"queries are {list(query.shape)} and keys {list(keys.shape)}"
            raise ValueError(f"{type(self).__name__} attention: {shapes}; their last axes must be equal.")
        return jnp.einsum("...h,...sh->...s", query, keys)

    def __call__(self, query: Float[Array, "B H"], memory: Memory, past: Past) -> Attended:
        """Attends from one decoder state to the source positions.

        Raises:
          ValueError: there is no memory.
        """
        _check(self, memory)
        weights, window = self.window(self.scores(query, memory.keys), query, memory.mask, past.window)
        context = jnp.einsum("bs,bse->be", weights, memory.values)
        return Attended(context, weights, past._replace(window=window))


class ScaledDot(Dot):
    """`q . m / sqrt(H)`, Vaswani et al. 2017, equation 1."""

    def scores(self, query: Float[Array, "*B H"], keys: Float[Array, "*B S A"]) -> Float[Array, "*B S"]:
        return super().scores(query, keys) * query.shape[-1] ** -0.5


class General(Dot):
    """`q . W m`, Luong et al. 2015, equation 8."""

    def __init__(self, query_size: int, memory_size: int, weights: Weights) -> None:
        super().__init__(query_size, memory_size, weights)
        self.key_kernel = nnx.Param(weights.matrix(memory_size, query_size))

    def keys(self, outputs: Float[Array, "B S E"]) -> Float[Array, "B S A"]:
        return matmul(outputs, self.key_kernel[...].astype(outputs.dtype))


class Location(Dot):
    """`W q`, Luong et al. 2015, equation 9: a score for each of the first P positions, whatever stands there.

    Args:
      num_positions: P; positions beyond them are not attended to.
    """

    def __init__(self, query_size: int, memory_size: int, weights: Weights, *, num_positions: int) -> None:
        super().__init__(query_size, memory_size, weights)
        self.positions = Linear([query_size], weights.matrix(query_size, num_positions))
        self.num_positions = num_positions

    def memory(self, outputs: Float[Array, "B S E"], mask: Bool[Array, "B S"]) -> Memory:
        return Memory(outputs, outputs, mask & (jnp.arange(mask.shape[1]) < self.num_positions))

    def scores(self, query: Float[Array, "B H"], keys: Float[Array, "B S A"]) -> Float[Array, "B S"]:
        length = keys.shape[1]
        return jnp.pad(self.positions(query)[:, :length], ((0, 0), (0, max(length - self.num_positions, 0))))


class Additive(General):
    """`v . tanh(W q + U m)`, Bahdanau et al. 2015, appendix A.1.2; with coverage c `+ w c`, See et al. 2017, eq. 11.

    Args:
      coverage: whether the score knows how much attention a position has had.
    """

    def __init__(self, query_size: int, memory_size: int, weights: Weights, *, coverage: bool = False) -> None:
        super().__init__(query_size, memory_size, weights)
        self.query = Linear([query_size], weights.matrix(query_size, query_size))
        self.score = nnx.Param(weights.matrix(query_size, 1)[:, 0])
        self.coverage = nnx.Param(weights.matrix(1, query_size)[0]) if coverage else None

    def start(self, mask: Bool[Array, "B S"]) -> Past:
        return super().start(mask)._replace(coverage=None if self.coverage is None else jnp.zeros(mask.shape))

    def scores(self, query: Float[Array, "B H"], keys: Float[Array, "B S A"]) -> Float[Array, "B S"]:
        # v comes once for every row, so that a loop adds up its gradients row by row.
        v = jnp.broadcast_to(self.direction().astype(query.dtype), query.shape)
        return additive_scores(self.query(query), keys, v)

    def direction(self) -> Float[Array, " A"]:
        """v."""
        return self.score[...]

    def __call__(self, query: Float[Array, "B H"], memory: Memory, past: Past) -> Attended:
        if self.coverage is None:
            return super().__call__(query, memory, past)
        _check(self, memory)
        covered = past.coverage[..., None].astype(query.dtype) * self.coverage[...].astype(query.dtype)
        attended = super().__call__(query, memory._replace(keys=memory.keys + covered), past)
        weights, now = attended.weights, attended.past
        assert weights is not None and now is not None
        repeated = jnp.minimum(weights, past.coverage).sum(-1)
        return attended._replace(past=now._replace(coverage=past.coverage + weights), repeated=repeated)


class Concat(Additive):
    """`v . tanh(W [q; m])`, Luong et al. 2015, equation 8: the additive score, with W drawn as one matrix."""

    def __init__(self, query_size: int, memory_size: int, weights: Weights) -> None:
        super().__init__(query_size, memory_size, weights)
        of_query, of_memory = jnp.split(weights.matrix(query_size + memory_size, query_size), [query_size])
        self.query, self.key_kernel = Linear([query_size], of_query), nnx.Param(of_memory)


class NormedAdditive(Additive):
    """`g v / |v| . tanh(W q + U m + b)`: additive with v normalised, as Salimans and Kingma 2016 do with weights.

    g begins at 1 / sqrt(A), and b at zero.
    """

    def __init__(self, query_size: int, memory_size: int, weights: Weights, *, coverage: bool = False) -> None:
        super().__init__(query_size, memory_size, weights, coverage=coverage)
        self.length = nnx.Param(jnp.asarray(query_size**-0.5))
        self.bias = nnx.Param(jnp.zeros(query_size))

    def keys(self, outputs: Float[Array, "B S E"]) -> Float[Array, "B S A"]:
        return super().keys(outputs) + self.bias[...].astype(outputs.dtype)

    def direction(self) -> Float[Array, " A"]:
        return self.length[...] * self.score[...] / jnp.linalg.norm(self.score[...])


def _check(score: Dot, memory: Memory) -> None:
    if memory is None:
        name = type(score).__name__
        raise ValueError(f"{name} attention has no memory; give the decoder's step what its memory() returns.")


# ---- several at once


class Heads(General):
    """Dot products side by side, each over projections of its own (Vaswani et al. 2017, section 3.2.2).

    The weights that a step reports are the mean over the heads.

    Args:
      num_heads: a divisor of H and of E.
    """

    def __init__(self, query_size: int, memory_size: int, weights: Weights, *, num_heads: int) -> None:
        super().__init__(query_size, memory_size, weights)
        self.num_heads = num_heads
        self.query = Linear([query_size], weights.matrix(query_size, query_size))
        self.value_kernel = nnx.Param(weights.matrix(memory_size, memory_size))
        self.context = Linear([memory_size], weights.matrix(memory_size, memory_size))

    def values(self, outputs: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        return matmul(outputs, self.value_kernel[...].astype(outputs.dtype))

    def split(self, x: Float[Array, "*B H"]) -> Float[Array, "*B N D"]:
        """The features of each head by themselves."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def __call__(self, query: Float[Array, "B H"], memory: Memory, past: Past) -> Attended:
        _check(self, memory)
        keys, values = (jnp.swapaxes(self.split(x), 1, 2) for x in (memory.keys, memory.values))  # [B, N, S, D]
        scores = self.scores(self.split(self.query(query)), keys)
        weights, window = self.window(scores, query, memory.mask, past.window)
        context = jnp.einsum("bns,bnsd->bnd", weights, values).reshape(memory.values.shape[0], -1)
        return Attended(self.context(context), weights.mean(1), past._replace(window=window))


class ScaledHeads(Heads):
    """Dot products of several heads, each over the square root of its features (Vaswani et al. 2017, equation 1)."""

    def scores(self, query: Float[Array, "*B H"], keys: Float[Array, "*B S A"]) -> Float[Array, "*B S"]:
        return super().scores(query, keys) * query.shape[-1] ** -0.5


class AdditiveHeads(Heads):
    """Additive scores of several heads, `v . tanh(q + k)` over the features of each (RNMT+, Chen et al. 2018)."""

    def __init__(self, query_size: int, memory_size: int, weights: Weights, *, num_heads: int) -> None:
        super().__init__(query_size, memory_size, weights, num_heads=num_heads)
        self.score = nnx.Param(weights.matrix(query_size, 1)[:, 0])

    def scores(self, query: Float[Array, "*B H"], keys: Float[Array, "*B S A"]) -> Float[Array, "*B S"]:
        v = jnp.broadcast_to(self.split(self.score[...].astype(query.dtype)), query.shape)
        return additive_scores(query, keys, v)


# ---- where to look


class Window(nnx.Module):
    """Everywhere."""

    def start(self, mask: Bool[Array, "B S"]) -> Any:
        """What a window needs to know of the past before the first step."""
        return None

    def __call__(
        self, scores: Float[Array, "B *N S"], query: Float[Array, "B H"], mask: Bool[Array, "B S"], past: Any
    ) -> tuple[Float[Array, "B *N S"], Any]:
        """Attention weights from scores, and the past of the next step."""
        return masked_softmax(scores, _for_heads(mask, scores)), past


class LocalM(Window):
    """The positions around the target's own, within `size` to either side (Luong et al. 2015, local-m)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def start(self, mask: Bool[Array, "B S"]) -> Any:
        return jnp.zeros(len(mask))  # a sum of numbers with fractions is solved without a loop, see `affine`

    def __call__(
        self, scores: Float[Array, "B *N S"], query: Float[Array, "B H"], mask: Bool[Array, "B S"], past: Any
    ) -> tuple[Float[Array, "B *N S"], Any]:
        # Where the target is longer than the source, its last positions stay in view.
        middle = jnp.minimum(past, mask.sum(-1) - 1)
        near = jnp.abs(jnp.arange(mask.shape[-1]) - middle[:, None]) <= self.size
        return masked_softmax(scores, _for_heads(mask & near, scores)), past + 1


class LocalP(Window):
    """The positions around a predicted one, `p = S sigmoid(v . tanh(W q))` (Luong et al. 2015, equations 9 and 10).

    The weights within `size` of p are multiplied by a Gaussian of standard
    deviation size / 2 around it. They then no longer sum to 1.
    """

    def __init__(self, query_size: int, weights: Weights, size: int) -> None:
        self.size = size
        self.query = Linear([query_size], weights.matrix(query_size, query_size))
        self.position = nnx.Param(weights.matrix(query_size, 1)[:, 0])

    def __call__(
        self, scores: Float[Array, "B *N S"], query: Float[Array, "B H"], mask: Bool[Array, "B S"], past: Any
    ) -> tuple[Float[Array, "B *N S"], Any]:
        wide = jnp.promote_types(query.dtype, jnp.float32)
        v = jnp.broadcast_to(self.position[...], query.shape).astype(wide)  # once for every row, as in Additive
        share = jax.nn.sigmoid((jnp.tanh(self.query(query)).astype(wide) * v).sum(-1))
        middle = share * mask.sum(-1)
        distance = jnp.arange(mask.shape[-1]) - middle[:, None]
        weights = masked_softmax(scores, _for_heads(mask & (jnp.abs(distance) <= self.size), scores))
        gaussian = jnp.exp(-2 * jnp.square(distance / self.size)).astype(weights.dtype)
        return weights * _for_heads(gaussian, scores), past


def _for_heads(x: Array, scores: Array) -> Array:
    """[B, S] as [B, N, S] where there are N heads."""
    return jnp.broadcast_to(x.reshape(x.shape[0], *(1,) * (scores.ndim - 2), x.shape[-1]), scores.shape)


def masked_softmax(scores: Float[Array, "... S"], mask: Bool[Array, "... S"]) -> Float[Array, "... S"]:
    """Softmax over the True positions, in float32; exactly 0 elsewhere, also where a row has no True."""
    lowest = jnp.finfo(jnp.float32).min
    scores32 = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = jax.nn.softmax(jnp.where(mask, scores32, lowest), axis=-1)
    return jnp.where(mask, weights, 0).astype(scores.dtype)


@jax.custom_vjp
def additive_scores(
    query: Float[Array, "*B A"], keys: Float[Array, "*B S A"], v: Float[Array, "*B A"]
) -> Float[Array, "*B S"]:
    """`v . tanh(query + key)` for every source position.

    The sum under the tanh, by far the largest array here, is formed again in the
    backward pass and never kept over the time loop.
    """
    return (_squashed(query, keys) * v[..., None, :]).sum(-1)


def _squashed(query: Array, keys: Array) -> Array:
    return jnp.tanh(query[..., None, :] + keys)


def _additive_backward(residuals: tuple[Array, ...], d_scores: Array) -> tuple[Array, ...]:
    query, keys, v = residuals
    squashed = _squashed(query, keys)
    d_sum = d_scores[..., None] * v[..., None, :] * (1 - squashed * squashed)
    return d_sum.sum(-2), d_sum, (d_scores[..., None] * squashed).sum(-2)


additive_scores.defvjp(lambda *inputs: (additive_scores(*inputs), inputs), _additive_backward)
