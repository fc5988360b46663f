"""A trained model at work: lines in, hypotheses out; and log-probabilities of given pairs."""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from seq2seq_jax import processes, run_directory, signals
from seq2seq_jax.build import abstract_params, ensemble_graph, model_graph
from seq2seq_jax.checkpoint import restore_params
from seq2seq_jax.config import Config, DecodeConfig, MeshConfig, ModelConfig, check_num_best
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.batching import round_up, similar_groups
from seq2seq_jax.data.encoded import EncodedSplit, Rows, encode_lines
from seq2seq_jax.data.pipeline import ALONE, Share, evaluation_batches
from seq2seq_jax.data.progress import ProgressCallback, silent
from seq2seq_jax.data.vocabulary import Copies, Vocabularies, load_vocabularies
from seq2seq_jax.decoding.beam import beam_search
from seq2seq_jax.decoding.greedy import greedy_search
from seq2seq_jax.decoding.hypotheses import Found
from seq2seq_jax.ensemble import Ensemble, together
from seq2seq_jax.losses import correct_tokens, token_losses
from seq2seq_jax.outputs import Predicted, scores
from seq2seq_jax.padded import Padded
from seq2seq_jax.run_directory import Origin
from seq2seq_jax.seq2seq import Seq2Seq
from seq2seq_jax.sharding import ROWS, WHOLE, by_rows, make_mesh, on_every_device, replicated, share_out
from seq2seq_jax.symbols import PAD
from seq2seq_jax.wording import counted, part_of

Params = dict[str, Any]
T = TypeVar("T")

SOURCE_MULTIPLE = 8
"""Source lengths are padded to a multiple of this, so that few searches are compiled."""
SMALLEST_BATCH = 16
"""Sentences that a search still takes out of their batch when others have ended: fewer run no faster."""
LONGEST_SOURCE = 5_000
"""Tokens of a source that is still searched for, or ten times data.max_length if that is more: a search takes time and
memory by the square of its length, and of such a line no model makes anything."""
EXTRA_LENGTH = 10
"""Output positions allowed beyond the ratio: a source of one word may need several."""


@dataclass(frozen=True)
class Details:
    """How a model comes to an output: computed by teacher forcing, once it is found.

    Attributes:
      source_tokens: text of each source token, tags and the end mark included.
      tokens: text of each output token, the end mark included.
      log_probs: of each output token given those before it, nats.
      weights: attention of each output token to each source token, rows of sum 1;
        None if the model has no attention. Of an ensemble the mean.
    """

    source_tokens: tuple[str, ...]
    tokens: tuple[str, ...]
    log_probs: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...] | None


class Hypothesis(NamedTuple):
    """One output line.

    Attributes:
      text: the line.
      score: log-probability over the length penalty, nats.
      cut: whether it ends only because it may be no longer, see `output_limits`.
      details: None unless asked for.
    """

    text: str
    score: float
    cut: bool = False
    details: Details | None = None

    @property
    def alignment(self) -> tuple[int, ...] | None:
        """For each output token, the end mark included, the index of the source token it attended to most."""
        if self.details is None or self.details.weights is None:
            return None
        return tuple(max(range(len(row)), key=row.__getitem__) for row in self.details.weights)


def _to_json(hypothesis: Hypothesis) -> list[Any]:
    details = hypothesis.details
    return [*hypothesis[:3], None if details is None else dataclasses.asdict(details)]


def _from_json(text: str, score: float, cut: bool, details: dict[str, Any] | None) -> Hypothesis:
    if details is None:
        return Hypothesis(text, score, cut)
    weights = details.pop("weights")
    rest = {name: tuple(values) for name, values in details.items()}
    return Hypothesis(text, score, cut, Details(**rest, weights=weights and tuple(map(tuple, weights))))


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
      params: as `training.step` holds them; those of an ensemble by `ensemble.together`.
      decode: search settings; by default the run's own.
      mesh: devices that share the rows of every batch; by default those of this process.
      step: of the checkpoint that the parameters are from, where it is known; of an ensemble one for each model.
      ensemble: the models of one; by default there is that of `config` alone.
      share: which of how many processes this is: all are asked the same, each does its share, and all get the whole.
    """

    def __init__(
        self,
        config: Config,
        vocabularies: Vocabularies,
        params: Params,
        decode: DecodeConfig | None = None,
        mesh: Mesh | None = None,
        step: int | tuple[int, ...] | None = None,
        ensemble: Sequence[ModelConfig] = (),
        share: Share = ALONE,
    ):
        self.config, self.vocabularies = config, vocabularies
        self.decode, self.step, self.num_models = decode or config.decode, step, len(ensemble) or 1
        self._share = share
        self._mesh = mesh = mesh or make_mesh(MeshConfig(), jax.local_devices())
        self.params = params
        sizes = vocab_sizes(vocabularies)
        graph = ensemble_graph(ensemble, sizes, self.decode.ensemble) if ensemble else model_graph(config.model, sizes)
        self._graph = graph
        whole, rows = replicated(mesh), by_rows(mesh)
        jit = partial(jax.jit, compiler_options=compiler_options(mesh))
        search = partial(_search, graph, self.decode, mesh)
        # Programs take batches as they are, and place the rows, sooner than device_put would.
        self._search = jit(search, static_argnums=(4, 5), in_shardings=(whole, whole, rows, rows))
        self._search_tables = jit(partial(_search_tables, graph), out_shardings=whole)
        self._follow = jit(partial(_follow, graph, mesh), in_shardings=(whole, rows, rows))
        token_scores = partial(_token_scores, graph, config.train.rematerialize_every, mesh)
        self._token_scores = jit(token_scores, in_shardings=(whole, rows, rows))

    @overload
    def translate(
        self,
        lines: Iterable[str],
        *,
        details: bool = False,
        num_best: None = None,
        progress: ProgressCallback = silent,
    ) -> list[Hypothesis]: ...

    @overload
    def translate(
        self, lines: Iterable[str], *, details: bool = False, num_best: int, progress: ProgressCallback = silent
    ) -> list[list[Hypothesis]]: ...

    def translate(
        self,
        lines: Iterable[str],
        *,
        details: bool = False,
        num_best: int | None = None,
        progress: ProgressCallback = silent,
    ) -> list[Hypothesis] | list[list[Hypothesis]]:
        """Returns the best hypothesis for each line, in order; an empty line gives an empty one.

        So does, of score minus infinity, a line far longer than models read, see `LONGEST_SOURCE`.
        Warns of such lines, of lines longer than any in training or with symbols that the vocabulary
        lacks, of turns that were left out, and of best outputs that were cut.

        Turns of a dialogue stand before the line they belong to, the oldest first and tabs between.

        Args:
          lines: to translate.
          details: whether hypotheses have them, see `Details`.
          num_best: how many hypotheses of a beam to return for each line, best first, in a
            list; there may be fewer. None for one, in no list.
          progress: told of the lines that are done.

        Raises:
          TypeError: `lines` is one string, or not of strings.
          UserError: `num_best` are more than the beam holds, or the search is greedy.
        """
        if num_best is not None:
            check_num_best(num_best, self.decode)
        lines = _checked(lines, "lines")
        sources = encode_lines(self.vocabularies, lines).sources
        self._warn_of_long_lines(lines, sources.lengths)
        _warn_of_unknown(lines, sources, "source")
        self._warn_of_turns_left_out(lines, sources)
        found = self._hypotheses(sources, lines, num_best or 1, details, progress)
        best = [each[0] for each in found]
        self._warn_of_cut_outputs(best)
        return best if num_best is None else found

    def translate_ids(
        self, sources: Rows, lines: Sequence[str], *, details: bool = False, progress: ProgressCallback = silent
    ) -> list[Hypothesis]:
        """Returns the best hypothesis for each source, its ids and its line, in order, as `translate` does."""
        return [best for (best,) in self._hypotheses(sources, lines, 1, details, progress)]

    def _hypotheses(
        self, sources: Rows, lines: Sequence[str], num_best: int, details: bool, progress: ProgressCallback
    ) -> list[list[Hypothesis]]:
        """The best hypotheses for each source, as many as wanted or as there are."""
        empty = Hypothesis("", 0.0, details=Details((), (), (), ()) if details else None)
        beyond = sources.lengths > self.longest_source
        hypotheses = [[empty._replace(score=-np.inf, cut=True) if long else empty] for long in beyond]
        filled, done = np.flatnonzero((sources.lengths > 1) & ~beyond), 0
        here: list[int] = []
        for indices, source, max_lengths in self._of_share(self._batches(sources, filled)):
            texts = [lines[index] for index in indices]
            found = self._of_batch(source, max_lengths, texts, num_best, details)
            for index, each in zip(indices, found, strict=True):
                hypotheses[index] = each
            here += indices.tolist()
            done += len(indices) * self._share[1]
            progress("translating", min(done, len(filled)), len(filled))
        if self._share != ALONE:
            for rows in processes.gathered([[index, [_to_json(each) for each in hypotheses[index]]] for index in here]):
                for index, found in rows:
                    hypotheses[index] = [_from_json(*each) for each in found]
        return hypotheses

    def translate_batch(
        self, lines: Sequence[str], rows: int, width: int, *, num_best: int = 1, details: bool = False
    ) -> list[list[Hypothesis]]:
        """Returns the best hypotheses for each line, none of them empty, from one batch of a given shape.

        What is compiled depends on the shape, on `num_best` and on `details`, and on nothing else; without lines
        that is all that is done.

        Args:
          lines: at most `rows`.
          rows: of the batch, a multiple of the devices.
          width: ids of its sources; no line has more.
          num_best, details: as of `translate`.
        """
        sources = encode_lines(self.vocabularies, lines).sources
        max_lengths = np.ones(rows, np.int32)  # empty rows end at once
        max_lengths[: len(lines)] = output_limits(sources.lengths, self.decode.max_length_ratio)
        return self._of_batch(sources.padded(np.arange(len(lines)), rows, width), max_lengths, lines, num_best, details)

    @property
    def mesh(self) -> Mesh:
        """Devices that share the rows of every batch."""
        return self._mesh

    @property
    def search_parts(self) -> tuple[nnx.GraphDef, Params, Any]:
        """The model's structure, its parameters, and what every step of a search takes of them, see `SearchTables`."""
        return self._graph, self.params, self._tables

    def _of_batch(
        self, source: Padded, max_lengths: Int[np.ndarray, " B"], lines: Sequence[str], num_best: int, details: bool
    ) -> list[list[Hypothesis]]:
        """The best hypotheses for each line of a batch; there may be rows without one."""
        longest = self._longest(source.values.shape[1])
        found = self._search(self.params, self._tables, *self._placed((source, max_lengths)), longest, num_best)
        ranked = [self._ranked(found, rank, source, lines, details) for rank in range(num_best)]
        there = np.maximum((np.asarray(found.lengths) > 0).sum(1), 1)
        return [[rank[row] for rank in ranked[: there[row]]] for row in range(len(lines))]

    def _placed(self, rows: T) -> T:
        """Rows as a program takes them: as they are, but for several processes, where JAX wants to see them placed."""
        return rows if self._share == ALONE else jax.device_put(rows, by_rows(self._mesh))

    def _of_share(self, batches: Iterable[T]) -> Iterator[T]:
        """Those batches that are this process's to do."""
        number, count = self._share
        return islice(batches, number, None, count)

    def _ranked(self, found: Found, rank: int, source: Padded, lines: Sequence[str], details: bool) -> list[Hypothesis]:
        """The hypothesis of a rank for each source of a batch; `lines` has an entry for each that is no padding."""
        tokens, scores, cut = (np.asarray(part[:, rank]) for part in (found.tokens, found.scores, found.cut))
        copies = self.vocabularies.copies(lines)
        texts = self.vocabularies.target.decode(list(tokens[: len(lines)]), copies)
        more = self._details(source, found.tokens[:, rank], copies) if details else [None] * len(lines)
        return [Hypothesis(text, float(scores[row]), bool(cut[row]), more[row]) for row, text in enumerate(texts)]

    def score(self, sources: Iterable[str], targets: Iterable[str]) -> list[float]:
        """Returns the log-probability of each target, its end included, given its source, in nats.

        Warns of lines with symbols that the vocabulary lacks, and of turns that were left out.

        Raises:
          TypeError: as `translate`.
          ValueError: the numbers of lines differ.
        """
        sources, targets = _checked(sources, "sources"), _checked(targets, "targets")
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets; there must be one for each.")
        encoded = encode_lines(self.vocabularies, sources, targets)
        _warn_of_unknown(sources, encoded.sources, "source")
        self._warn_of_turns_left_out(sources, encoded.sources)
        _warn_of_unknown(targets, encoded.targets, "target")
        return (-self.token_scores(encoded).loss).tolist()

    def token_scores(self, encoded: EncodedSplit) -> TokenScores:
        """Teacher-forced losses of encoded pairs, in their order."""
        scores = TokenScores(*(np.zeros(len(encoded), kind) for kind in (np.float64, np.int64, np.int64)))
        pending = []
        for batch, indices in self._of_share(evaluation_batches(encoded, 64, self._mesh.size)):
            signals.look()
            pending.append((indices, self._token_scores(self.params, *self._placed(batch))))
        for indices, values in pending:
            for total, value in zip(scores, values, strict=True):
                total[indices] = np.asarray(value)[: len(indices)]
        return TokenScores(*processes.added_up(scores)) if self._share != ALONE else scores

    @property
    def params(self) -> Params:
        """Parameters; others may take their place, as they do while a model is trained."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = jax.device_put(params, replicated(self._mesh))
        self.forget_tables()

    def forget_tables(self) -> None:
        """Frees what is kept between two searches: it can be as large as the parameters."""
        self.__dict__.pop("_tables", None)

    @cached_property
    def _tables(self) -> Any:
        return self._search_tables(self._params)

    def _batches(self, sources: Rows, filled: Int[np.ndarray, " n"]) -> Iterator[tuple[np.ndarray, Padded, np.ndarray]]:
        """Yields sources of similar length: their indices, ids and longest outputs allowed."""
        rows = self._num_rows(len(filled))
        for group in similar_groups((-sources.lengths[filled],), rows):
            indices = filled[group]
            lengths = sources.lengths[indices]
            width = round_up(int(lengths.max()), SOURCE_MULTIPLE)
            max_lengths = np.ones(rows, np.int32)  # empty rows end at once
            max_lengths[: len(indices)] = output_limits(lengths, self.decode.max_length_ratio)
            signals.look()
            yield indices, sources.padded(indices, rows, width), max_lengths

    def _num_rows(self, num_lines: int) -> int:
        """Rows of a batch: the next power of two for few lines, so that they are answered quickly by few programs."""
        rows = min(1 << max(num_lines - 1, 0).bit_length(), self.decode.batch_size)
        return round_up(rows, self._mesh.size)

    @property
    def longest_source(self) -> int:
        """Most tokens of a source that is searched for."""
        return max(LONGEST_SOURCE, 10 * self.config.data.max_length)

    def _longest(self, width: int) -> int:
        return int(output_limits(np.array([width]), self.decode.max_length_ratio)[0])

    def _details(self, source: Padded, tokens: Int[Array, "B T"], copies: Sequence[Copies]) -> list[Details]:
        log_probs, weights = jax.tree.map(np.asarray, self._follow(self.params, self._placed(source), tokens))
        lengths, rows = np.asarray((tokens != PAD).sum(-1)), np.asarray(tokens)
        sources, target = self.vocabularies.source, self.vocabularies.target
        found = []
        for row, of_row in enumerate(copies):
            length, read = lengths[row], source.lengths[row]
            looked = None if weights is None else tuple(map(tuple, weights[:length, row, :read].tolist()))
            found.append(
                Details(
                    source_tokens=tuple(sources.entries(source.values[row, :read], of_row)),
                    tokens=tuple(target.entries(rows[row, :length], of_row)),
                    log_probs=tuple(log_probs[:length, row].tolist()),
                    weights=looked,
                )
            )
        return found

    def _warn_of_long_lines(self, lines: Sequence[str], lengths: Int[np.ndarray, " N"]) -> None:
        longest = self.config.data.max_length
        long = np.flatnonzero(lengths > longest)
        if len(long):
            first = lines[int(long[0])]
            warnings.warn(
                f"{len(long):,} of {counted(len(lines), 'line')} are longer than the {longest} tokens seen in training,"
                f" the first with {lengths[long[0]]}: {first[:40]!r}...; the output is likely to be poor. Split them.",
                stacklevel=3,
            )
        if number := int((lengths > self.longest_source).sum()):
            warnings.warn(
                f"{number:,} of {counted(len(lines), 'line')} have more than {self.longest_source:,} tokens, the most"
                " that are translated; each gets an empty line. Split them.",
                stacklevel=3,
            )

    def _warn_of_turns_left_out(self, lines: Sequence[str], sources: Rows) -> None:
        if number := len(sources.with_turns_left_out()):
            warnings.warn(
                f"{part_of(number, len(lines), 'source line')} read without the oldest turns, to fit data.max_length"
                f" {self.config.data.max_length}, as in training.",
                stacklevel=3,
            )

    def _warn_of_cut_outputs(self, hypotheses: Sequence[Hypothesis]) -> None:
        if number := sum(hypothesis.cut and hypothesis.score > -np.inf for hypothesis in hypotheses):
            warnings.warn(
                f"{number:,} of {counted(len(hypotheses), 'output')} reached the limit of decode.max_length_ratio"
                f" {self.decode.max_length_ratio:g} before an end; a larger --decode.max-length-ratio allows more.",
                stacklevel=3,
            )


def _warn_of_unknown(lines: Sequence[str], rows: Rows, side: str) -> None:
    unknown = rows.with_unknown()
    if len(unknown):
        some, first = part_of(len(unknown), len(lines), f"{side} line"), lines[int(unknown[0])]
        message = f"{some} read with unknown symbols, which the vocabulary lacks; the first: {first[:40]!r}"
        warnings.warn(message, stacklevel=3)


def output_limits(source_lengths: Int[np.ndarray, " N"], max_length_ratio: float) -> Int[np.ndarray, " N"]:
    """The most tokens of each output, for sources of so many; the end marks of both are counted."""
    return np.ceil(source_lengths * max_length_ratio).astype(np.int64) + EXTRA_LENGTH


def load(workdir: Path | str | Sequence[Path | str], decode: DecodeConfig | None = None) -> Translator:
    """Returns the translator of a run directory, with its best parameters; or of several, as an ensemble.

    The directory of several seeds, which `reproduce` makes, is that of all of them
    that were tested, see `run_directory.members`. What is set for a run and not for
    its model, such as the search, is that of the first. All devices of this process
    share the work, and so do all processes, where there are several.

    Raises:
      UserError: not a run directory, no checkpoint, a damaged file, files of different runs,
        or runs that make no ensemble, see `run_directory.check_ensemble`.
    """
    workdirs = [Path(workdir)] if isinstance(workdir, Path | str) else [Path(each) for each in workdir]
    workdirs = run_directory.members(workdirs)
    configs = run_directory.read_configs(workdirs)
    vocabularies, belong = [], {}
    for workdir, config in zip(workdirs, configs, strict=True):
        vocabularies.append(load_vocabularies(workdir / run_directory.VOCABULARY, copy=config.model.copy))
        belong[workdir] = origin(config, vocabularies[-1], run_directory.read_fingerprint(workdir))
    run_directory.check_ensemble(belong)
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    params, steps = [], []
    for workdir, belongs in belong.items():
        found, step = restore_params(workdir, params_on(mesh, belongs.config, vocabularies[0]), belongs)
        params.append(found)
        steps.append(step)
    new = partial(Translator, configs[0], vocabularies[0], decode=decode, share=processes.share())
    if len(workdirs) == 1:
        return new(params[0], step=steps[0])
    return new(together(params), step=tuple(steps), ensemble=[config.model for config in configs])


def params_on(mesh: Mesh, config: Config, vocabularies: Vocabularies) -> Params:
    """Shapes, dtypes and shardings of the parameters, to restore a checkpoint's into; each device holds all of them."""
    return on_every_device(abstract_params(config.model, vocab_sizes(vocabularies)), mesh)


def origin(config: Config, vocabularies: Vocabularies, corpus: str | None) -> Origin:
    """What the checkpoints of a run belong to; `corpus` is the hash of its text."""
    return Origin(config, vocabularies.source.fingerprint, vocabularies.target.fingerprint, corpus)


def vocab_sizes(vocabularies: Vocabularies) -> tuple[int, int, int]:
    """Sizes of the source and target vocabulary, and how many of the source's entries are tags."""
    return vocabularies.source.size, vocabularies.target.size, vocabularies.source.num_tags


def _checked(lines: Iterable[str], name: str) -> list[str]:
    """Returns `lines` as a list, whatever they come from."""
    if isinstance(lines, str):
        raise TypeError(f"{name} is a list of lines, got one string; use [{lines[:40]!r}]")
    lines = list(lines)
    for index, line in enumerate(lines):
        if not isinstance(line, str):
            raise TypeError(f"{name}[{index}] is of type {type(line).__name__}, not text: {str(line)[:40]}")
    return lines


def _search_tables(graph: nnx.GraphDef, params: Params) -> Any:
    return nnx.merge(graph, params).search_tables()


def _search(
    graph: nnx.GraphDef,
    decode: DecodeConfig,
    mesh: Mesh,
    params: Params,
    tables: Any,
    source: Padded,
    max_lengths: Int[Array, " B"],
    max_length: int,
    num_best: int,
) -> Found:
    alpha = float(decode.length_penalty)

    def on_a_device(params: Params, tables: Any, source: Padded, max_lengths: Array) -> Found:
        model: Seq2Seq | Ensemble = nnx.merge(graph, params)
        encoded = model.encode(source)
        memory, carry = encoded._replace(state=None), jax.tree.map(lambda leaf: leaf[:, None], encoded.state)
        limits: dict[str, Any] = dict(max_lengths=max_lengths, max_length=max_length, smallest=SMALLEST_BATCH)
        step = partial(model.search_step, tables)
        if decode.beam_size == 1:
            return greedy_search(step, memory, carry, **limits, length_penalty=alpha)
        beam: dict[str, Any] = dict(beam_size=decode.beam_size, num_best=num_best)
        return beam_search(step, memory, carry, **limits, length_penalty=alpha, **beam)

    # Each device ends when its own sentences have.
    search = share_out(on_a_device, mesh, in_specs=(WHOLE, WHOLE, ROWS, ROWS), out_specs=ROWS)
    return search(params, tables, source, max_lengths)


def _follow(
    graph: nnx.GraphDef, mesh: Mesh, params: Params, source: Padded, tokens: Int[Array, "B T"]
) -> tuple[Float[Array, "T B"], Float[Array, "T B S"] | None]:
    """Log-probabilities of given tokens by teacher forcing, and the attention weights."""

    def on_a_device(params: Params, source: Padded, tokens: Array) -> tuple[Array, Array | None]:
        model: Seq2Seq | Ensemble = nnx.merge(graph, params)
        target = Padded(tokens, (tokens != PAD).sum(-1))
        return model.each(lambda predicted, labels, _: -token_losses(scores(predicted), labels), source, target)

    out_specs = jax.sharding.PartitionSpec(None, *ROWS)  # time first
    return share_out(on_a_device, mesh, in_specs=(WHOLE, ROWS, ROWS), out_specs=out_specs)(params, source, tokens)


def _token_scores(
    graph: nnx.GraphDef,
    piece: int,
    mesh: Mesh,
    params: Params,
    source: Padded,
    target: Padded,
) -> tuple[Float[Array, " B"], Int[Array, " B"], Int[Array, " B"]]:
    """Of each row: nats, real tokens, tokens whose logit is the largest."""

    def on_a_device(params: Params, source: Padded, target: Padded) -> tuple[Array, Array, Array]:
        model: Seq2Seq | Ensemble = nnx.merge(graph, params)

        def read(predicted: Predicted, labels: Array, mask: Array) -> tuple[Array, Array, Array]:
            logits = scores(predicted)
            values = jnp.where(mask, token_losses(logits, labels), 0), mask, mask & correct_tokens(logits, labels)
            loss, tokens, correct = (value.reshape(-1, len(source.lengths)).sum(0) for value in values)
            return loss, tokens, correct

        return model.total(read, source, target, piece=piece)

    return share_out(on_a_device, mesh, in_specs=(WHOLE, ROWS, ROWS), out_specs=ROWS)(params, source, target)
