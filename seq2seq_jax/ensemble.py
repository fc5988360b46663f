"""Several models as one: what they say of the next token is averaged at every step."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from seq2seq_jax.config import Mixture
from seq2seq_jax.outputs import Predicted, scores, wide
from seq2seq_jax.padded import Padded
from seq2seq_jax.seq2seq import Encoded, SearchTables, Seq2Seq


class Ensemble(nnx.Module):
    """Models side by side, which search and evaluation use as they use a `Seq2Seq`.

    Args:
      models: of the same vocabularies; sizes, cells, decoders and attention may differ.
        All of them copy or none does, for only then are their scores of the same things.
      kind: of mean, see `mixture`.
    """

    def __init__(self, models: Sequence[Seq2Seq], kind: Mixture) -> None:
        self.models, self.kind = nnx.List(models), kind

    def encode(self, source: Padded) -> Encoded:
        """Has every model read the source, ids [B, S]. Memory and state are tuples, an entry for each."""
        encoded = [model.encode(source) for model in self.models]
        return Encoded(tuple(each._replace(state=None) for each in encoded), tuple(each.state for each in encoded))

    def search_tables(self) -> tuple[SearchTables, ...]:
        """Returns what `search_step` needs besides a sentence's own state."""
        return tuple(model.search_tables() for model in self.models)

    def search_step(
        self, tables: tuple[SearchTables, ...], encoded: Encoded, state: tuple[Any, ...], tokens: Int[Array, "B K"]
    ) -> tuple[tuple[Any, ...], Float[Array, "B K W"]]:
        """Scores of what can come next for K hypotheses a sentence; as `Seq2Seq.search_step`, of all models."""
        return self.attending_step(tables, encoded, state, tokens)[:2]

    def attending_step(
        self, tables: tuple[SearchTables, ...], encoded: Encoded, state: tuple[Any, ...], tokens: Int[Array, "B K"]
    ) -> tuple[tuple[Any, ...], Float[Array, "B K W"], Float[Array, "B K S"] | None]:
        """As `search_step`, and the mean of the attention weights, where all models have some."""
        each = zip(self.models, tables, encoded.memory, state, strict=True)
        found = [model.attending_step(own, memory, now, tokens) for model, own, memory, now in each]
        said = mixture([said for _, said, _ in found], self.kind)
        return tuple(now for now, _, _ in found), said, mean_weights([weights for _, _, weights in found])

    def total(
        self,
        read: Callable[[Predicted, Int[Array, " N"], Array], Any],
        source: Padded,
        target: Padded,
        *,
        piece: int = 0,
    ) -> Any:
        """Sum over the target, by teacher forcing, of what `read` makes of each position, as `Seq2Seq.total`.

        Args:
          read: see there; what is predicted are the mixed scores.
          source, target: ids.
          piece: source positions that an encoder reads at once, see `recurrence.in_pieces`.
        """
        return jax.tree.map(lambda leaf: leaf.sum(0), self.each(read, source, target, piece=piece)[0])

    def each(
        self,
        read: Callable[[Predicted, Int[Array, " B"], Array], Any],
        source: Padded,
        target: Padded,
        *,
        piece: int = 0,
    ) -> tuple[Any, Float[Array, "T B S"] | None]:
        """As `Seq2Seq.each`: all decode all positions first. The weights are the mean, None where a model has none."""
        encoded = [model.encode(source, piece=piece) for model in self.models]
        features = [model.decode(memory, target.values) for model, memory in zip(self.models, encoded, strict=True)]

        def look(position: tuple[Any, Array, Array]) -> Any:
            now, labels, mask = position
            of_each = zip(self.models, jax.tree.map(lambda leaf: leaf[None], now), encoded, strict=True)
            found = [scores(model.predict(features, memory.copies)) for model, features, memory in of_each]
            return read(Predicted(mixture(found, self.kind)), labels, mask)

        return jax.lax.map(look, (features, target.values.T, target.mask.T)), mean_weights(
            [feature.weights for feature in features]
        )


def mean_weights(of_each: Sequence[Float[Array, "*N S"] | None]) -> Float[Array, "*N S"] | None:
    """The mean of attention weights; None where a model has none."""
    weights = [found for found in of_each if found is not None]
    return sum(weights[1:], weights[0]) / len(weights) if len(weights) == len(of_each) else None


def mixture(each: Sequence[Float[Array, "*N W"]], kind: Mixture) -> Float[Array, "*N W"]:
    """Unnormalised log-probabilities of the mean of some distributions, in float32.

    Args:
      each: unnormalised log-probabilities of the same things.
      kind: `linear`, the mean of probabilities; or `log_linear`, of log-probabilities
        (their geometric mean, which does not sum to 1 by itself).
    """
    log_probs = jnp.stack([jax.nn.log_softmax(wide(x)) for x in each])
    return jax.nn.logsumexp(log_probs, axis=0) if kind == "linear" else log_probs.mean(0)


def together(params: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parameters of an `Ensemble`, from those of its models."""
    return {"models": dict(enumerate(params))}
