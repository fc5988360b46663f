"""A trained model at work: lines in, hypotheses out; and log-probabilities of given pairs."""

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from seq2seq_jax import run_directory, signals
from seq2seq_jax.checkpoint import restore_params
from seq2seq_jax.config import Config, DecodeConfig
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.encoded import EncodedSplit, encode_lines
from seq2seq_jax.data.pipeline import evaluation_batches
from seq2seq_jax.data.progress import Progress, silent
from seq2seq_jax.data.vocabulary import Vocabularies, load_vocabularies
from seq2seq_jax.decoding.beam import beam_search
from seq2seq_jax.decoding.greedy import greedy_search
from seq2seq_jax.decoding.hypotheses import Found
from seq2seq_jax.losses import correct_tokens, token_losses
from seq2seq_jax.model import SearchTables, Seq2Seq, abstract_params, model_graph
from seq2seq_jax.run_directory import Origin
from seq2seq_jax.symbols import PAD

Params = dict[str, Any]

SOURCE_MULTIPLE = 8
"""Source lengths are padded to a multiple of this, so that few searches are compiled."""
SMALLEST_BATCH = 16
"""Sentences that a search still takes out of their batch when others have ended: fewer run no faster."""
EXTRA_LENGTH = 10
"""Output positions allowed beyond the ratio: a source of one word may need several."""


class Hypothesis(NamedTuple):
    """One output line.

    Attributes:
      text: the line.
      score: log-probability over the length penalty, nats.
      alignment: for each output token (entry of the vocabulary, the end
        included) the index of the source token it attended to most; None unless
        asked for.
    """

    text: str
    score: float
    alignment: tuple[int, ...] | None = None


class TokenScores(NamedTuple):
    """Of teacher-forced targets: nats of each sentence, real tokens of it, and those predicted right."""

    loss: Float[np.ndarray, " N"]
    tokens: Int[np.ndarray, " N"]
    correct: Int[np.ndarray, " N"]


class Translator:
    """Parameters, vocabularies and search settings, ready to use.

    Args:
      config: the run's configuration.
      vocabularies: of both sides.
      params: as `training.step` holds them.
      decode: search settings; by default the run's own.
      batch_sharding: where batches go; by default to the default device.
    """

    def __init__(
        self,
        config: Config,
        vocabularies: Vocabularies,
        params: Params,
        decode: DecodeConfig | None = None,
        batch_sharding: Sharding | None = None,
    ):
        self.config, self.vocabularies, self.params = config, vocabularies, params
        self.decode = decode or config.decode
        self._sharding = batch_sharding
        graph = model_graph(config.model, vocab_sizes(vocabularies))
        # Rows of one device only: to take some out of a batch that several share, they would have to meet.
        smallest = self.decode.batch_size if self._num_devices > 1 else SMALLEST_BATCH
        jit = partial(jax.jit, compiler_options=compiler_options())
        self._search = jit(partial(_search, graph, self.decode, smallest), static_argnames="max_length")
        self._search_tables = jit(partial(_search_tables, graph))
        self._align = jit(partial(_align, graph))
        self._token_scores = jit(partial(_token_scores, graph, config.train.rematerialize_every))

    def translate(
        self, lines: Sequence[str], *, alignments: bool = False, progress: Progress = silent
    ) -> list[Hypothesis]:
        """Returns the best hypothesis for each line, in order; an empty line gives an empty one."""
        if isinstance(lines, str):
            raise TypeError(f"lines is a list of lines, got one string; use [{lines[:40]!r}]")
        encoded = encode_lines(self.vocabularies, lines)
        self._warn_of_long_lines(lines, encoded.source_lengths)
        hypotheses = [Hypothesis("", 0.0, () if alignments else None)] * len(lines)
        filled, done = np.flatnonzero(encoded.source_lengths > 1), 0
        for indices, source, max_lengths in self._batches(encoded, filled):
            found = self._search(
                self.params, self._tables, source, max_lengths, max_length=self._longest(source.shape[1])
            )
            tokens, scores = np.asarray(found.tokens[:, 0]), np.asarray(found.scores[:, 0])
            texts = self.vocabularies.target.decode(list(tokens[: len(indices)]))
            aligned = self._alignment(source, found.tokens[:, 0]) if alignments else [None] * len(indices)
            for row, index in enumerate(indices):
                hypotheses[index] = Hypothesis(texts[row], float(scores[row]), aligned[row])
            done += len(indices)
            progress("translating", done, len(filled))
        return hypotheses

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """Returns the log-probability of each target, its end included, given its source, in nats."""
        return (-self.token_scores(encode_lines(self.vocabularies, sources, targets)).loss).tolist()

    def token_scores(self, encoded: EncodedSplit) -> TokenScores:
        """Teacher-forced losses of encoded pairs, in their order."""
        scores = TokenScores(*(np.zeros(len(encoded), kind) for kind in (np.float64, np.int64, np.int64)))
        pending = []
        for batch, indices in evaluation_batches(encoded, 64, self._num_devices):
            signals.look()
            pending.append((indices, self._token_scores(self.params, self._put(batch.source), self._put(batch.target))))
        for indices, values in pending:
            for total, value in zip(scores, values, strict=True):
                total[indices] = np.asarray(value)[: len(indices)]
        return scores

    @property
    def params(self) -> Params:
        """Parameters; others may take their place, as they do while a model is trained."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = params
        self.forget_tables()

    def forget_tables(self) -> None:
        """Frees what is kept between two searches: it can be as large as the parameters."""
        self.__dict__.pop("_tables", None)

    @cached_property
    def _tables(self) -> SearchTables:
        return self._search_tables(self._params)

    def _batches(
        self, encoded: EncodedSplit, filled: Int[np.ndarray, " n"]
    ) -> Iterator[tuple[np.ndarray, Array | np.ndarray, Array | np.ndarray]]:
        """Yields sources of similar length: their indices, ids and longest outputs allowed."""
        order = filled[np.argsort(-encoded.source_lengths[filled], kind="stable")]
        rows = self._num_rows(len(order))
        for start in range(0, len(order), rows):
            indices = order[start : start + rows]
            lengths = encoded.source_lengths[indices]
            width = -(-int(lengths.max()) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
            max_lengths = np.ones(rows, np.int32)  # empty rows end at once
            max_lengths[: len(indices)] = (
                np.ceil(lengths * self.decode.max_length_ratio).astype(np.int32) + EXTRA_LENGTH
            )
            signals.look()
            yield indices, self._put(encoded.sources.padded(indices, rows, width)), self._put(max_lengths)

    def _num_rows(self, num_lines: int) -> int:
        """Rows of a batch: one for a single line, so that a prompt answers quickly."""
        rows = 1 if num_lines == 1 else self.decode.batch_size
        return -(-rows // self._num_devices) * self._num_devices

    @property
    def _num_devices(self) -> int:
        return len(self._sharding.device_set) if self._sharding else 1

    def _longest(self, width: int) -> int:
        return int(np.ceil(width * self.decode.max_length_ratio)) + EXTRA_LENGTH

    def _put(self, array: np.ndarray) -> Array | np.ndarray:
        """Spreads rows over the devices; for one, the compiled program takes the array as it is, the sooner."""
        return jax.device_put(array, self._sharding) if self._sharding else array

    def _alignment(self, source: Array | np.ndarray, tokens: Array) -> list[tuple[int, ...]]:
        best = np.asarray(self._align(self.params, source, tokens))
        lengths = np.asarray((tokens != PAD).sum(-1))
        return [tuple(row[:length].tolist()) for row, length in zip(best, lengths, strict=True)]

    def _warn_of_long_lines(self, lines: Sequence[str], lengths: Int[np.ndarray, " N"]) -> None:
        longest = self.config.data.max_length
        long = np.flatnonzero(lengths > longest)
        if len(long):
            first = lines[int(long[0])]
            warnings.warn(
                f"{len(long)} of {len(lines)} lines are longer than the {longest} tokens seen in training, the first"
                f" with {lengths[long[0]]}: {first[:40]!r}...; the output is likely to be poor. Split them.",
                stacklevel=3,
            )


def load(workdir: Path | str, decode: DecodeConfig | None = None) -> Translator:
    """Returns the translator of a run directory, with its best parameters.

    Raises:
      UserError: not a run directory, no checkpoint, a damaged file, or files of different runs.
    """
    workdir = Path(workdir)
    config = run_directory.read_config(workdir)
    vocabularies = load_vocabularies(workdir / run_directory.VOCABULARY)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_params(config.model, vocab_sizes(vocabularies)),
    )
    params, _ = restore_params(workdir, abstract, origin(config, vocabularies, run_directory.read_fingerprint(workdir)))
    return Translator(config, vocabularies, params, decode)


def origin(config: Config, vocabularies: Vocabularies, corpus: str | None) -> Origin:
    """What the checkpoints of a run belong to; `corpus` is the hash of its text."""
    return Origin(config, vocabularies.source.fingerprint, vocabularies.target.fingerprint, corpus)


def vocab_sizes(vocabularies: Vocabularies) -> tuple[int, int]:
    """Sizes of the source and target vocabulary."""
    return vocabularies.source.size, vocabularies.target.size


def _search_tables(graph: nnx.GraphDef, params: Params) -> SearchTables:
    return nnx.merge(graph, params).search_tables()


def _search(
    graph: nnx.GraphDef,
    decode: DecodeConfig,
    smallest: int,
    params: Params,
    tables: SearchTables,
    source: Array,
    max_lengths: Array,
    *,
    max_length: int,
) -> Found:
    model: Seq2Seq = nnx.merge(graph, params)
    memory, carry = model.encode(source)
    carry = jax.tree.map(lambda leaf: leaf[:, None], carry)
    limits: dict[str, Any] = dict(max_lengths=max_lengths, max_length=max_length, smallest=smallest)
    step = partial(model.decode_step, tables)
    alpha = float(decode.length_penalty)
    if decode.beam_size == 1:
        return greedy_search(step, memory, carry, **limits, length_penalty=alpha)
    beam: dict[str, Any] = dict(beam_size=decode.beam_size, num_best=1)
    return beam_search(step, memory, carry, **limits, length_penalty=alpha, **beam)


def _align(graph: nnx.GraphDef, params: Params, source: Array, tokens: Array) -> Int[Array, "B T"]:
    model: Seq2Seq = nnx.merge(graph, params)
    _, weights = model(source, tokens)
    if weights is None:
        raise ValueError("a model without attention aligns nothing")
    return weights.argmax(-1).T


def _token_scores(
    graph: nnx.GraphDef, segment: int, params: Params, source: Array, target: Array
) -> tuple[Array, Array, Array]:
    """Of each row: nats, real tokens, tokens whose logit is the largest."""
    model: Seq2Seq = nnx.merge(graph, params)

    def read(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
        mask = labels != PAD
        values = jnp.where(mask, token_losses(logits, labels), 0), mask, mask & correct_tokens(logits, labels)
        loss, tokens, correct = (value.reshape(-1, len(source)).sum(0) for value in values)
        return loss, tokens, correct

    return model.total(read, source, target, segment=segment)
