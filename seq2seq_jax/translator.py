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
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from seq2seq_jax import processes, programs, run_directory, signals
from seq2seq_jax.build import abstract_params, ensemble_graph, model_graph
from seq2seq_jax.checkpoint import restore_params
from seq2seq_jax.config import Config, DecodeConfig, MeshConfig, ModelConfig, check_num_best
from seq2seq_jax.constraints import NO_CONSTRAINTS, Constraints, read_constraints
from seq2seq_jax.cpu import compiler_options
from seq2seq_jax.data.batching import round_up, similar_groups
from seq2seq_jax.data.encoded import EncodedSplit, Rows, encode_lines
from seq2seq_jax.data.pipeline import ALONE, Share, evaluation_batches
from seq2seq_jax.data.progress import ProgressCallback, silent
from seq2seq_jax.data.vocabulary import Copies, Vocabularies, load_vocabularies
from seq2seq_jax.decoding.hypotheses import Found
from seq2seq_jax.decoding.rules import Asked
from seq2seq_jax.ensemble import together
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.run_directory import Origin
from seq2seq_jax.sharding import by_rows, make_mesh, on_every_device, replicated
from seq2seq_jax.symbols import PAD, UNK
from seq2seq_jax.wording import counted, part_of

Params = dict[str, Any]
T = TypeVar("T")

SOURCE_MULTIPLE = 8
"""Source lengths are padded to a multiple of this, so that few searches are compiled."""
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
        self.avoided = self._avoided()
        self.graph = graph = (
            ensemble_graph(ensemble, sizes, self.decode.ensemble) if ensemble else model_graph(config.model, sizes)
        )
        whole, rows = replicated(mesh), by_rows(mesh)
        jit = partial(jax.jit, compiler_options=compiler_options(mesh))
        self._attends = all(each.attention != "none" for each in ensemble or [config.model])
        for name in ("replace_unknown", "coverage_penalty"):
            if getattr(self.decode, name):
                self.check_attention(f"decode.{name}")
        search = partial(programs.search, graph, self.decode, self.avoided, mesh)
        # Programs take batches as they are, and place the rows, sooner than device_put would.
        self._search = jit(search, static_argnums=(5, 6), in_shardings=(whole, whole, rows, rows, rows))
        self._search_tables = jit(partial(programs.search_tables, graph), out_shardings=whole)
        self._follow = jit(partial(programs.follow, graph, mesh), in_shardings=(whole, rows, rows))
        token_scores = partial(programs.token_scores, graph, config.train.rematerialize_every, mesh)
        self._token_scores = jit(token_scores, in_shardings=(whole, rows, rows))

    @overload
    def translate(
        self,
        lines: Iterable[str],
        *,
        details: bool = False,
        num_best: None = None,
        prefixes: Sequence[str] | None = None,
        required: Sequence[Sequence[str]] | None = None,
        first_line: int = 1,
        progress: ProgressCallback = silent,
    ) -> list[Hypothesis]: ...

    @overload
    def translate(
        self,
        lines: Iterable[str],
        *,
        details: bool = False,
        num_best: int,
        prefixes: Sequence[str] | None = None,
        required: Sequence[Sequence[str]] | None = None,
        first_line: int = 1,
        progress: ProgressCallback = silent,
    ) -> list[list[Hypothesis]]: ...

    def translate(
        self,
        lines: Iterable[str],
        *,
        details: bool = False,
        num_best: int | None = None,
        prefixes: Sequence[str] | None = None,
        required: Sequence[Sequence[str]] | None = None,
        first_line: int = 1,
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
            list; there may be fewer. None for one, in no list. Where outputs are drawn
            (`decode.sample`), how many to draw, in the order in which they were.
          prefixes: how the output of each line begins; empty for anyhow.
          required: phrases that the output of each line has.
          first_line: number of the first line, by which outputs are drawn, and messages name lines.
          progress: told of the lines that are done.

        Raises:
          TypeError: `lines` is one string, or not of strings.
          ValueError: there is not one of `prefixes` or `required` for each line.
          UserError: `num_best` are more than the beam holds, or the search is greedy; or
            a prefix or phrase has symbols that the vocabulary lacks.
        """
        if num_best is not None:
            check_num_best(num_best, self.decode)
        lines = _checked(lines, "lines")
        sources = encode_lines(self.vocabularies, lines).sources
        self._warn_of_long_lines(lines, sources.lengths)
        _warn_of_unknown(lines, sources, "source")
        self._warn_of_turns_left_out(lines, sources)
        asked = read_constraints(self.vocabularies, lines, prefixes, required, first_line)
        if asked.phrases is not None and (self.decode.sample or self.decode.groups > 1):
            name = "sample" if self.decode.sample else "groups"
            raise UserError(f"Phrases that outputs must have are sought by one beam; leave decode.{name} out.")
        found = self._hypotheses(sources, lines, num_best or 1, details, progress, asked, first_line)
        best = [each[0] for each in found]
        self._warn_of_cut_outputs(best)
        self._warn_of_no_output(best, sources.lengths, first_line)
        return best if num_best is None else found

    def translate_ids(
        self, sources: Rows, lines: Sequence[str], *, details: bool = False, progress: ProgressCallback = silent
    ) -> list[Hypothesis]:
        """Returns the best hypothesis for each source, its ids and its line, in order, as `translate` does."""
        return [best for (best,) in self._hypotheses(sources, lines, 1, details, progress)]

    def _hypotheses(
        self,
        sources: Rows,
        lines: Sequence[str],
        num_best: int,
        details: bool,
        progress: ProgressCallback,
        constraints: Constraints = NO_CONSTRAINTS,
        first_line: int = 1,
    ) -> list[list[Hypothesis]]:
        """The best hypotheses for each source, as many as wanted or as there are."""
        empty = Hypothesis("", 0.0, details=Details((), (), (), ()) if details else None)
        beyond = sources.lengths > self.longest_source
        hypotheses = [[empty._replace(score=-np.inf, cut=True) if long else empty] for long in beyond]
        filled, done = np.flatnonzero((sources.lengths > 1) & ~beyond), 0
        here: list[int] = []
        for indices, source, max_lengths in self._of_share(self._batches(sources, filled)):
            max_lengths, longest = self._with_room(source, max_lengths, constraints.num_tokens(indices))
            numbers = np.zeros(len(max_lengths), np.int32)
            numbers[: len(indices)] = first_line + indices
            limits, asked = programs.Limits(max_lengths, numbers), constraints.asked(indices, len(max_lengths))
            texts = [lines[index] for index in indices]
            found = self._of_batch(source, limits, asked, longest, texts, num_best, details)
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
        that is all that is done. Outputs that are drawn are those of `translate` with the line alone.

        Args:
          lines: at most `rows`.
          rows: of the batch, a multiple of the devices.
          width: ids of its sources; no line has more.
          num_best, details: as of `translate`.
        """
        sources, numbers = encode_lines(self.vocabularies, lines).sources, np.ones(rows, np.int32)
        lengths = np.ones(rows, np.int32)  # empty rows end at once
        lengths[: len(lines)] = self.output_limits(sources.lengths)
        (longest,) = self.output_limits(np.array([width])).tolist()
        source, limits = sources.padded(np.arange(len(lines)), rows, width), programs.Limits(lengths, numbers)
        return self._of_batch(source, limits, Asked(), longest, lines, num_best, details)

    def output_limits(self, source_lengths: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The most tokens of each output, of which nothing but the settings of the search asks anything."""
        least = self.decode.min_length and self.decode.min_length + EXTRA_LENGTH
        return np.maximum(output_limits(source_lengths, self.decode.max_length_ratio), least)

    def text(self, source: Padded, tokens: Int[np.ndarray, "B T"], line: str) -> str:
        """The text of an output or its beginning, in the first row, given the line and its ids there."""
        return self._texts(source, tokens, [line])[0][0]

    @property
    def mesh(self) -> Mesh:
        """Devices that share the rows of every batch."""
        return self._mesh

    @property
    def tables(self) -> Any:
        """What every step of a search takes of the parameters, see `SearchTables`."""
        return self._tables

    def _of_batch(
        self,
        source: Padded,
        limits: programs.Limits,
        asked: Asked,
        longest: int,
        lines: Sequence[str],
        num_best: int,
        details: bool,
    ) -> list[list[Hypothesis]]:
        """The best hypotheses for each line of a batch; there may be rows without one."""
        rows = self._placed((source, limits, asked))
        found = self._search(self.params, self._tables, *rows, longest, num_best)
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
        texts, copies = self._texts(source, tokens, lines)
        more = self._details(source, found.tokens[:, rank], copies) if details else [None] * len(lines)
        return [Hypothesis(text, float(scores[row]), bool(cut[row]), more[row]) for row, text in enumerate(texts)]

    def _texts(
        self, source: Padded, tokens: Int[np.ndarray, "B T"], lines: Sequence[str]
    ) -> tuple[list[str], list[Copies]]:
        """The text of the output of each line, and the copies in it."""
        copies = self.vocabularies.copies(lines)
        if self.decode.replace_unknown:
            tokens, copies = self._without_unknown(source, tokens, lines, copies)
        return self.vocabularies.target.decode(list(tokens[: len(lines)]), copies), copies

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
            max_lengths[: len(indices)] = self.output_limits(lengths)
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

    def _with_room(
        self, source: Padded, limits: Int[np.ndarray, " B"], num_asked: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " B"], int]:
        """Limits that leave room for what is asked of some outputs, and one for the batch."""
        needed = np.zeros_like(limits)
        needed[: len(num_asked)] = np.where(num_asked > 0, num_asked + EXTRA_LENGTH, 0)
        limits = np.maximum(limits, needed)
        (by_width,) = self.output_limits(np.array([source.values.shape[1]])).tolist()
        return limits, max(by_width, round_up(int(limits.max()), SOURCE_MULTIPLE) if needed.any() else 0)

    def _avoided(self) -> list[list[int]]:
        """Token ids of each phrase that no output has.

        Raises:
          UserError: one has a symbol that the vocabulary lacks, or no text.
        """
        if not self.decode.avoid:
            return []
        found = [ids.tolist() for ids in self.vocabularies.target.encode(self.decode.avoid)]
        for phrase, ids in zip(self.decode.avoid, found, strict=True):
            if not ids or not set(self.vocabularies.target.unknown).isdisjoint(ids):
                trouble = "has symbols that the vocabulary lacks" if ids else "has no text"
                raise UserError(f"decode.avoid {phrase[:60]!r} {trouble}; leave it out: no output has it.")
        return found

    def check_attention(self, what: str) -> None:
        """Refuses, where a model has no attention, what goes by it.

        Raises:
          UserError: names `what`.
        """
        if not self._attends:
            raise UserError(f"{what} goes by attention, and model.attention is none; leave it out.")

    def _without_unknown(
        self, source: Padded, tokens: Int[np.ndarray, "B T"], lines: Sequence[str], copies: Sequence[Copies]
    ) -> tuple[Int[np.ndarray, "B T"], list[Copies]]:
        """Tokens with copies of source tokens where they are unknown: of those attended to most."""
        unknown = tokens[: len(lines)] == UNK
        if not unknown.any():
            return tokens, list(copies)
        _, weights = self._follow(self.params, self._placed(source), tokens)
        weights, tokens = np.asarray(weights), tokens.copy()
        replaced = [dict(each) for each in copies]
        for row, place in np.argwhere(unknown):
            text = self.vocabularies.source.source_tokens(lines[row])
            first = int(source.lengths[row]) - 1 - len(text)  # after tags, before the end mark
            best = first + int(weights[place, row, first : first + len(text)].argmax())
            tokens[row, place] = replaced[row].setdefault(text[best - first], self.vocabularies.source.size + best)
        return tokens, [*replaced]

    def _details(
        self, source: Padded, tokens: Int[Array | np.ndarray, "B T"], copies: Sequence[Copies]
    ) -> list[Details]:
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

    def _warn_of_no_output(self, best: Sequence[Hypothesis], lengths: Int[np.ndarray, " N"], first_line: int) -> None:
        nothing = [
            index
            for index, hypothesis in enumerate(best)
            if hypothesis.score == -np.inf and lengths[index] <= self.longest_source
        ]
        if nothing:
            warnings.warn(
                f"The search came to no output that fits what is asked (prefix, required and avoided phrases,"
                " decode.min_length, decode.no_repeat_ngram) for"
                f" {len(nothing):,} of {counted(len(best), 'line')}, the first of them line {first_line + nothing[0]};"
                " each gets an empty line. Ask for less, or widen the beam.",
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
