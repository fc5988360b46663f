"""Text to ids and back: SentencePiece, words, characters.

Every vocabulary gives the ids 0 to 3 to padding, sequence begin, sequence end
and the unknown symbol. Text is taken as it is, without Unicode normalisation,
except for what is said here:

* `lowercase` lowercases it;
* SentencePiece and words make a run of ASCII white space (tabs too) one blank
  and drop it at both ends of a line. Characters keep every character.
* SentencePiece learns of a word of more than `_LONGEST_WORD` characters as of
  several, and of a line of more than `_LONGEST_PART` as of several. Nothing is
  left out, and what is encoded is not cut.

Characters that SentencePiece keeps for itself, its mark U+2581 among them, are
text like any other: it is given others in their place.

Where sources have tags, "walk<tab>V;PST" is the source walk with two of them.
Each tag is an entry of its own, after those of the text, and its id stands
before the text's.

Where turns of a dialogue stand before the source, "hello<tab>hi<tab>how are
you" is the source how are you with two of them. What stands between turns is
one entry, whatever the text consists of. Another one stands in the place of the
oldest turns where they are left out, so that the source fits `data.max_length`.
"""

import functools
import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import sentencepiece
from jaxtyping import Int

from seq2seq_jax.cache import write_whole
from seq2seq_jax.config import DataConfig, VocabularyKind
from seq2seq_jax.errors import UserError
from seq2seq_jax.symbols import BOS, EOS, NUM_SPECIAL, PAD, UNK

UNKNOWN_TEXT = "\u2047"  # what an unknown symbol is written as: the sign that SentencePiece uses

SPECIAL_NAMES = {PAD: "<pad>", BOS: "<s>", EOS: "</s>", UNK: UNKNOWN_TEXT}
"""What special symbols are called where tokens are shown one by one."""
BETWEEN_TURNS = "|"
WORD_MARK = "\u2581"
"""What the entries of SentencePiece begin with that begin a word."""

_BLOCK = 1_000  # lines read at once

# Of all characters of Unicode, SentencePiece 0.2.3 gives back all but these: it
# takes them for its own marks, or drops the line. Noncharacters, which no text
# should have, stand for them; text that has those is escaped.
_RESERVED = "\0\x1f\u2581\u2585"
_STAND_INS = "\ufdd0\ufdd1\ufdd2\ufdd3"
_ESCAPE = "\ufdd4"
_TO_STAND_INS = str.maketrans(
    dict(zip(_RESERVED, _STAND_INS, strict=True)) | {text: _ESCAPE + text for text in _STAND_INS + _ESCAPE}
)
_FROM_STAND_INS = dict(zip(_STAND_INS, _RESERVED, strict=True))
_STANDING_IN = re.compile(f"{_ESCAPE}(.?)|[{_STAND_INS}]", re.DOTALL)
# Characters: the time that unigram training takes grows with the square of what is longer.
_LONGEST_WORD, _LONGEST_PART = 1_000, 20_000
_OVERLONG_WORD = re.compile(f"[^ ]{{{_LONGEST_WORD}}}(?=[^ ])")
_PART = re.compile(f"(.{{1,{_LONGEST_PART}}})(?: |$)")  # of a line, up to a blank
_WHITE_SPACE = re.compile(r"\s+", re.ASCII)

Ids = Int[np.ndarray, " _"]
Copies = Mapping[str, int]
"""Of the tokens of a source that the vocabulary lacks, the id that stands for a copy of each."""


@runtime_checkable
class LinePairs(Protocol):
    """Random access to the lines of a split."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[list[str], list[str]]:
        """The source and target lines from `start` up to `stop`."""
        ...


class Vocabulary(ABC):
    """Text to ids and back.

    Attributes:
      kind: unigram, bpe, words or characters.
      lowercase: whether text is lowercased first.
      size: number of ids, the four special ones and those of tags included.
      num_tags: entries, the last ones, that are tags of sources, or what stands between turns.
      unknown: ids that stand for what it lacks.
      left_out: ids that stand for turns that are left out.
    """

    kind: str
    lowercase: bool
    size: int
    num_tags: int = 0
    unknown: tuple[int, ...] = (UNK,)
    left_out: tuple[int, ...] = ()

    def encode(self, lines: Sequence[str]) -> list[Ids]:
        """Returns the int32 ids of each line, without begin and end."""
        return self._encode([line.lower() for line in lines] if self.lowercase else list(lines))

    def encode_sources(self, lines: Sequence[str]) -> list[Ids]:
        """Returns the ids of lines that are read: as `encode`, but with the tags of sources, or with their turns.

        Raises:
          UserError: sources have tags, and a line that is not empty has none; or it has more turns than were learnt.
        """
        return self.encode(lines)

    def decode(self, ids: Iterable[Sequence[int] | np.ndarray], copies: Sequence[Copies] = ()) -> list[str]:
        """Returns the text of each row of ids.

        A row is read up to its first end id; padding and begin are left out and
        an unknown symbol is written as `UNKNOWN_TEXT`.

        Args:
          ids: rows of them.
          copies: for every row the tokens that ids beyond the vocabulary stand for; by default there are none.
        """
        rows = [_content(row) for row in ids]
        if not rows:
            return []  # SentencePiece would take it for one row
        if not any(copies):
            return self._decode(rows)
        return self._decode_copies(rows, [{index: token for token, index in row.items()} for row in copies])

    def entries(self, ids: Sequence[int] | np.ndarray, copies: Copies | None = None) -> list[str]:
        """Returns the text of each id: an entry, a token that is copied, or the name of a special symbol or tag.

        Args:
          ids: of one row.
          copies: tokens that ids beyond the vocabulary stand for.
        """
        copied = {index: token for token, index in (copies or {}).items()}
        return [self._names.get(index) or copied[index] for index in map(int, ids)]

    def ids_in(self, other: "Vocabulary") -> Ids:
        """Returns for each id that of the same entry, special symbol or tag in another vocabulary; -1 for none."""
        theirs = {(index < NUM_SPECIAL, other._is_tag(index), name): index for index, name in other._names.items()}
        names = ((index < NUM_SPECIAL, self._is_tag(index), self._names[index]) for index in range(self.size))
        return np.array([theirs.get(name, -1) for name in names], np.int32)

    def _is_tag(self, index: int) -> bool:
        return index >= self.size - self.num_tags

    def grown(self, other: "Vocabulary") -> "Vocabulary":
        """Returns this vocabulary with the entries and tags of another of its kind that it lacks, behind its own.

        Raises:
          UserError: it consists of pieces of words.
        """
        raise UserError(
            f"A vocabulary of kind {self.kind} writes new words by the pieces that it has; leave train.grow_vocabulary"
            " out."
        )

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        return SPECIAL_NAMES | self._tag_names() | {index: text for text, index in self.entry_ids().items()}

    def _tag_names(self) -> dict[int, str]:
        return {}

    def copies(self, source: str) -> Copies:
        """Returns an id beyond the vocabulary for every token of a source that it lacks.

        It is `size` plus the first position of the token among those of the source.
        """
        (ids,), found = self.encode_sources([source]), {}
        tokens = self.source_tokens(source)
        for position, token in enumerate(tokens, len(ids) - len(tokens)):
            if ids[position] == UNK:
                found.setdefault(token, self.size + position)
        return found

    def tokens(self, line: str) -> list[str]:
        """Returns the text of each token, in the order of `encode`."""
        return self._split(line.lower() if self.lowercase else line)

    def source_tokens(self, source: str) -> list[str]:
        """Returns the text of each token of a source, in the order of `encode_sources`, without its tags."""
        return self.tokens(source)

    def plain(self) -> dict[str, Any]:
        """Returns what `runner.Vocabulary` is made of: plain values, and as `model` the bytes of SentencePiece's."""
        about = {"kind": self.kind, "lowercase": self.lowercase, "size": self.size}
        return about | {"tokens": [*self.entry_ids()]}

    @abstractmethod
    def entry_ids(self) -> dict[str, int]:
        """Returns the id of each entry by its text, special symbols and tags left out."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex hash; equal for vocabularies that give every line the same ids."""
        return _fingerprint(self.kind, self.lowercase, self._model())

    def save(self, directory: Path, name: str) -> None:
        """Writes `NAME.model` (SentencePiece) or `NAME.txt` (an entry a line), and `NAME.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / f"{name}{self._suffix}", self._model())
        head = {"kind": self.kind, "lowercase": self.lowercase, "size": self.size, "fingerprint": self.fingerprint}
        write_whole(directory / f"{name}.json", json.dumps(head, indent=2) + "\n")

    @staticmethod
    def load(directory: Path, name: str) -> "Vocabulary":
        """Returns the vocabulary that `save` wrote.

        Raises:
          UserError: a file is missing or is not what was written.
        """
        path = directory / f"{name}.json"
        try:
            head = json.loads(path.read_bytes())
            kind, lowercase, fingerprint = head["kind"], head["lowercase"], head["fingerprint"]
            path = directory / f"{name}{_KINDS[kind]._suffix}"
            model = path.read_bytes()
            if _fingerprint(kind, lowercase, model) != fingerprint:
                raise ValueError("content differs from what was saved")
            return _KINDS[kind]._from_model(model, kind, lowercase)
        except OSError as error:
            raise UserError(f"The vocabulary file {path} cannot be read ({error.strerror}). {_REMEDY}") from error
        except KeyError as error:
            raise UserError(f"The vocabulary file {path} is damaged (no {error} in it). {_REMEDY}") from error
        except (ValueError, TypeError, RuntimeError) as error:  # of which RecursionError is one
            raise UserError(f"The vocabulary file {path} is damaged ({error}). {_REMEDY}") from error

    _suffix: str

    @abstractmethod
    def _encode(self, lines: list[str]) -> list[Ids]: ...

    @abstractmethod
    def _decode(self, rows: list[list[int]]) -> list[str]: ...

    @abstractmethod
    def _decode_copies(self, rows: list[list[int]], copies: Sequence[Mapping[int, str]]) -> list[str]: ...

    @abstractmethod
    def _split(self, line: str) -> list[str]: ...

    @abstractmethod
    def _model(self) -> bytes: ...

    @classmethod
    @abstractmethod
    def _from_model(cls, model: bytes, kind: str, lowercase: bool) -> "Vocabulary": ...


def _fingerprint(kind: str, lowercase: bool, model: bytes) -> str:
    return hashlib.sha256(json.dumps([kind, lowercase]).encode() + b"\0" + model).hexdigest()


_NO_TEXT = "There is no text on {} of the training split"
_REMEDY = "Put it back from a copy of the run, or train again in a new run directory."


_FEW = 10  # texts


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model (Kudo and Richardson 2018)."""

    _suffix = ".model"

    def __init__(self, model: bytes, kind: str, lowercase: bool) -> None:
        self.kind, self.lowercase, self._proto = kind, lowercase, model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.vocab_size()

    def entry_ids(self) -> dict[str, int]:
        return {self._processor.id_to_piece(index): index for index in range(NUM_SPECIAL, self.size)}

    def plain(self) -> dict[str, Any]:
        return super().plain() | {"tokens": [], "model": self._proto}

    def _encode(self, lines: list[str]) -> list[Ids]:
        texts, encode = _to_stand_ins([_squeeze(line) for line in lines]), self._processor.encode
        # A list is encoded by a thread that is made for it, ten times the work of a text.
        rows = encode(texts, num_threads=1) if len(texts) > _FEW else map(encode, texts)
        return [np.array(row, np.int32) for row in rows]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return _from_stand_ins(self._processor.decode(rows, num_threads=1))

    def _decode_copies(self, rows: list[list[int]], copies: Sequence[Mapping[int, str]]) -> list[str]:
        pieces = [
            [found.get(i) or self._processor.id_to_piece(i) for i in row]
            for row, found in zip(rows, copies, strict=True)
        ]
        return _from_stand_ins([self._processor.decode_pieces(row) for row in pieces])

    def _split(self, line: str) -> list[str]:
        return self._processor.encode(_to_stand_ins([_squeeze(line)])[0], out_type=str)

    def _model(self) -> bytes:
        return self._proto

    @classmethod
    def _from_model(cls, model: bytes, kind: str, lowercase: bool) -> "SentencePieceVocabulary":
        if not model:  # which SentencePiece takes, and complains of when it is used
            raise ValueError("it is empty")
        return cls(model, kind, lowercase)


class TokenVocabulary(Vocabulary):
    """A list of words or of characters, the most frequent first."""

    _suffix = ".txt"

    def __init__(self, tokens: Sequence[str], kind: str, lowercase: bool) -> None:
        self.kind, self.lowercase = kind, lowercase
        self._tokens = list(tokens)
        self._ids = {token: index for index, token in enumerate(self._tokens, NUM_SPECIAL)}
        self._texts = ["", "", "", UNKNOWN_TEXT, *self._tokens]
        self.size = len(self._texts)

    def entry_ids(self) -> dict[str, int]:
        return dict(self._ids)

    def grown(self, other: Vocabulary) -> "TokenVocabulary":
        return TokenVocabulary([*dict.fromkeys([*self.entry_ids(), *other.entry_ids()])], self.kind, self.lowercase)

    def _encode(self, lines: list[str]) -> list[Ids]:
        split = _SPLITTERS[self.kind]
        return [np.array([self._ids.get(token, UNK) for token in split(line)], np.int32) for line in lines]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        joint = " " if self.kind == "words" else ""
        return [joint.join(self._texts[index] for index in row) for row in rows]

    def _decode_copies(self, rows: list[list[int]], copies: Sequence[Mapping[int, str]]) -> list[str]:
        joint = " " if self.kind == "words" else ""
        texts = [[found.get(i) or self._texts[i] for i in row] for row, found in zip(rows, copies, strict=True)]
        return [joint.join(row) for row in texts]

    def _split(self, line: str) -> list[str]:
        return _SPLITTERS[self.kind](line)

    def _model(self) -> bytes:
        # As JSON strings, because a character can be a line feed.
        return "".join(json.dumps(token, ensure_ascii=False) + "\n" for token in self._tokens).encode()

    @classmethod
    def _from_model(cls, model: bytes, kind: str, lowercase: bool) -> "TokenVocabulary":
        return cls([json.loads(line) for line in model.decode().split("\n")[:-1]], kind, lowercase)


class _WithTags(Vocabulary):
    """A vocabulary of text, and behind its entries some that only sources have."""

    def __init__(self, prefix: str, text: Vocabulary, num_tags: int) -> None:
        self.kind, self.lowercase = prefix + text.kind, text.lowercase
        self._text, self.num_tags, self.size = text, num_tags, text.size + num_tags

    def entry_ids(self) -> dict[str, int]:
        return self._text.entry_ids()

    def _encode(self, lines: list[str]) -> list[Ids]:
        return self._text._encode(lines)

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return self._text._decode(self._without_tags(rows))

    def _decode_copies(self, rows: list[list[int]], copies: Sequence[Mapping[int, str]]) -> list[str]:
        return self._text._decode_copies(self._without_tags(rows), copies)

    def _without_tags(self, rows: list[list[int]]) -> list[list[int]]:
        """A model may write a tag, which is no text."""
        tags = range(self._text.size, self.size)
        return [[UNK if index in tags else index for index in row] for row in rows]

    def _split(self, line: str) -> list[str]:
        return self._text._split(line)

    def _joined(self, head: Mapping[str, Any]) -> bytes:
        """Returns the bytes that `_parts` takes apart again."""
        return json.dumps(head, ensure_ascii=False).encode() + b"\n" + self._text._model()


def _parts(model: bytes, kind: str, prefix: str, lowercase: bool) -> tuple[dict[str, Any], Vocabulary]:
    head, _, rest = model.partition(b"\n")
    kind = kind.removeprefix(prefix)
    return json.loads(head), _KINDS[kind]._from_model(rest, kind, lowercase)


class TaggedVocabulary(_WithTags):
    """A vocabulary of text, and behind its entries an unknown tag and those that sources have.

    Args:
      text: what stands before the tab of a source.
      tags: what stands behind it, cut at the separator.
      separator: of tags.
    """

    _suffix = ".tagged"

    def __init__(self, text: Vocabulary, tags: Sequence[str], separator: str) -> None:
        super().__init__(_TAGGED, text, len(tags) + 1)
        self._tags, self._separator = list(tags), separator
        self._ids = {tag: index for index, tag in enumerate(self._tags, text.size + 1)}
        self.unknown = (UNK, text.size)

    def plain(self) -> dict[str, Any]:
        tags = {"tags": self._ids, "separator": self._separator, "unknown_tag": self._text.size}
        return self._text.plain() | tags | {"size": self.size}

    def grown(self, other: Vocabulary) -> "TaggedVocabulary":
        tags = [*self._tags, *(other._tags if isinstance(other, TaggedVocabulary) else ())]
        return TaggedVocabulary(self._text.grown(other), [*dict.fromkeys(tags)], self._separator)

    def _tag_names(self) -> dict[int, str]:
        return {self._text.size: UNKNOWN_TEXT} | {index: tag for tag, index in self._ids.items()}

    def encode_sources(self, lines: Sequence[str]) -> list[Ids]:
        rows, texts = [], []
        for line in lines:
            text, tab, tags = line.rpartition("\t")
            if line and not tab:
                raise UserError(
                    f"The source {line[:60]!r} has no tab and tags behind it, as every source of this model has; write"
                    f" SOURCE<tab>TAG{self._separator}TAG."
                )
            found = [self._ids.get(tag, self._text.size) for tag in split_tags(tags, self._separator)]
            rows.append(np.array(found, np.int32))
            texts.append(text)
        return [np.concatenate(parts) for parts in zip(rows, self.encode(texts), strict=True)]

    def source_tokens(self, source: str) -> list[str]:
        return self.tokens(source.rpartition("\t")[0])

    def _model(self) -> bytes:
        return self._joined({"separator": self._separator, "tags": self._tags})

    @classmethod
    def _from_model(cls, model: bytes, kind: str, lowercase: bool) -> "TaggedVocabulary":
        head, text = _parts(model, kind, _TAGGED, lowercase)
        return cls(text, head["tags"], head["separator"])


class DialogueVocabulary(_WithTags):
    """A vocabulary of text, and behind its entries what stands between turns and what stands for turns left out.

    Args:
      text: of turns.
      context_turns: most turns before the source.
      max_length: tokens of a source, end mark included, beyond which its oldest turns are left out.
    """

    _suffix = ".dialogue"

    def __init__(self, text: Vocabulary, context_turns: int, max_length: int) -> None:
        super().__init__(_DIALOGUE, text, 2)
        self._context_turns, self._max_length = context_turns, max_length
        self._between, left_out = range(text.size, self.size)
        self.left_out = (left_out,)

    def plain(self) -> dict[str, Any]:
        turns = {"between": self._between, "left_out": self.left_out[0], "max_length": self._max_length}
        return self._text.plain() | turns | {"size": self.size}

    def grown(self, other: Vocabulary) -> "DialogueVocabulary":
        return DialogueVocabulary(self._text.grown(other), self._context_turns, self._max_length)

    def _tag_names(self) -> dict[int, str]:
        return {self._between: BETWEEN_TURNS, self.left_out[0]: "..."}

    def encode_sources(self, lines: Sequence[str]) -> list[Ids]:
        turns = [self._turns(line) for line in lines]
        ids = iter(self.encode([turn for each in turns for turn in each]))
        return [
            np.array(self._fitting([next(ids).tolist() for _ in each], self._between, self.left_out[0]), np.int32)
            for each in turns
        ]

    def source_tokens(self, source: str) -> list[str]:
        return self._fitting([self.tokens(turn) for turn in self._turns(source)], "\t", "\t")

    def _turns(self, line: str) -> list[str]:
        turns = line.split("\t")
        if len(turns) > self._context_turns + 1:
            raise UserError(
                f"The source {line[:60]!r} has {len(turns)} turns, with tabs between, and this model reads"
                f" {self._context_turns + 1} (data.context_turns and the source); leave out the oldest."
            )
        return turns

    def _fitting(self, turns: list[list[Any]], between: Any, left_out: Any) -> list[Any]:
        """Returns the turns joined; as few of the oldest as need be are left out, and the source never."""
        joined: list[Any] = []
        for number in range(len(turns)):
            joined = [left_out] if number else []
            for turn in turns[number:-1]:
                joined += [*turn, between]
            joined += turns[-1]
            if len(joined) < self._max_length:
                break
        return joined

    def _model(self) -> bytes:
        return self._joined({"context_turns": self._context_turns, "max_length": self._max_length})

    @classmethod
    def _from_model(cls, model: bytes, kind: str, lowercase: bool) -> "DialogueVocabulary":
        head, text = _parts(model, kind, _DIALOGUE, lowercase)
        return cls(text, head["context_turns"], head["max_length"])


def split_tags(tags: str, separator: str) -> list[str]:
    """Returns tags one by one, without blanks around them; none of an empty text."""
    return [tag.strip() for tag in tags.split(separator) if tag.strip()]


_TAGGED, _DIALOGUE = "tagged ", "dialogue "
_KINDS: dict[str, type[Vocabulary]] = {
    "unigram": SentencePieceVocabulary,
    "bpe": SentencePieceVocabulary,
    "words": TokenVocabulary,
    "characters": TokenVocabulary,
}
_KINDS |= {_TAGGED + kind: TaggedVocabulary for kind in _KINDS} | {
    _DIALOGUE + kind: DialogueVocabulary for kind in _KINDS
}


def _split_words(line: str) -> list[str]:
    squeezed = _squeeze(line)
    return squeezed.split(" ") if squeezed else []


_SPLITTERS: dict[str, Any] = {"words": _split_words, "characters": list}


@dataclass(frozen=True)
class Vocabularies:
    """The vocabularies of both sides; one and the same object when joint.

    Attributes:
      copy: whether a token of a target that the vocabulary lacks, and its source
        has, is a copy with an id of its own, see `Vocabulary.copies`.
    """

    source: Vocabulary
    target: Vocabulary
    copy: bool = False

    @property
    def joint(self) -> bool:
        """Whether both sides have the same."""
        return self.source is self.target

    def copies(self, sources: Sequence[str]) -> list[Copies]:
        """Returns for each source what may be copied of it."""
        return [self.source.copies(line) if self.copy else {} for line in sources]


def build_vocabularies(config: DataConfig, train: LinePairs) -> Vocabularies:
    """Returns the vocabularies of a training split; equal for equal text.

    Raises:
      UserError: a side has no text at all, too few different pieces or too many
        characters for `data.vocab_size`, or nothing as frequent as `data.min_frequency`.
        Sides of different kinds are refused one at a time.
    """
    kinds = config.vocabulary, config.target_vocabulary or config.vocabulary
    if config.joint_vocabulary:
        sides = {"both sides": _Side(config, train, kinds[0], (0, 1))}
    else:
        sides = {
            "the source side": _Side(config, train, kinds[0], (0,)),
            "the target side": _Side(config, train, kinds[1], (1,)),
        }
    built: list[Vocabulary] = []
    refusals: dict[str, _Refusal] = {}
    for where, side in sides.items():
        try:
            built.append(_build(side))
        except _Refusal as refusal:
            refusals[where] = refusal
            if kinds[0] != kinds[1]:  # one value need not suit both, and the bounds may be of different settings
                raise UserError(_explain(refusals, {})) from refusal
    if refusals:
        fewest = {where: _num_required(side) for where, side in sides.items() if side.kind not in _SPLITTERS}
        raise UserError(_explain(refusals, fewest))
    if config.context_turns:
        built[0] = DialogueVocabulary(built[0], config.context_turns, config.max_length)
    if config.features:
        built[0] = TaggedVocabulary(built[0], _count_tags(config, train), config.features_separator)
    return Vocabularies(built[0], built[0] if config.joint_vocabulary else built[1])


def _count_tags(config: DataConfig, train: LinePairs) -> list[str]:
    """Returns the tags of all sources, the most frequent first."""
    counts = Counter[str]()
    for start in range(0, len(train), _BLOCK):
        for source in train.read(start, min(start + _BLOCK, len(train)))[0]:
            counts.update(split_tags(source.rpartition("\t")[2], config.features_separator))
    if not counts:
        raise UserError(f"data.features {config.features}: no source of the training split has a tag.")
    return sorted(counts, key=lambda tag: (-counts[tag], tag))


def save_vocabularies(vocabularies: Vocabularies, directory: Path) -> None:
    """Writes `joint.*`, or `source.*` and `target.*`, into `directory`; the files appear whole."""
    if vocabularies.joint:
        vocabularies.source.save(directory, "joint")
        return
    (directory / "joint.json").unlink(missing_ok=True)
    vocabularies.source.save(directory, "source")
    vocabularies.target.save(directory, "target")


def load_vocabularies(directory: Path, *, copy: bool = False) -> Vocabularies:
    """Returns the vocabularies that `save_vocabularies` wrote; `copy`: see `Vocabularies`.

    Raises:
      UserError: they are missing or damaged.
    """
    if not any((directory / f"{name}.json").exists() for name in ("joint", "source", "target")):
        raise UserError(f"There is no vocabulary in {directory}. {_REMEDY}")
    if (directory / "joint.json").exists():
        joint = Vocabulary.load(directory, "joint")
        return Vocabularies(joint, joint, copy)
    return Vocabularies(Vocabulary.load(directory, "source"), Vocabulary.load(directory, "target"), copy)


class _Side(NamedTuple):
    """The text that a vocabulary is made of: columns of the training split, 0 for sources and 1 for targets."""

    config: DataConfig
    train: LinePairs
    kind: VocabularyKind
    columns: tuple[int, ...]


class _Refusal(Exception):
    """What is wrong with a setting for the text of one side, and the bound of the values that are right."""

    def __init__(self, problem: str, *, at_least: int | None = None, at_most: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.at_least, self.at_most = problem, at_least, at_most  # {} in the problem is the side


def _explain(refusals: dict[str, _Refusal], fewest: dict[str, int]) -> str:
    """Returns one message for all sides, with the values that suit them all.

    Args:
      refusals: of the sides that were refused.
      fewest: entries that the SentencePiece vocabulary of each side must have.
    """
    wheres: dict[str, list[str]] = {}
    for where, refusal in refusals.items():
        wheres.setdefault(refusal.problem, []).append(where)
    problems = ". ".join(problem.format(" and ".join(sides)) for problem, sides in wheres.items())
    upper = {where: refusal.at_most for where, refusal in refusals.items() if refusal.at_most is not None}
    lower = {where: refusal.at_least for where, refusal in refusals.items() if refusal.at_least is not None}
    if upper:
        lower |= {where: number for where, number in fewest.items() if number > min(upper.values())}
    bounds = [f"{number} or less for {where}" for where, number in upper.items()]
    bounds += [f"{number} or more for {where}" for where, number in lower.items()]
    every = f" ({', '.join(bounds)})" if len({*upper.values(), *lower.values()}) > 1 else ""
    if upper and lower:
        return (
            f"{problems}. No value suits both sides{every}; set data.joint_vocabulary True, or data.vocabulary words."
        )
    if upper:
        return f"{problems}; use {min(upper.values())} or less{every}."
    return f"{problems}; use {max(lower.values())} or more{every}." if lower else f"{problems}."


def _build(side: _Side) -> Vocabulary:
    return _build_tokens(side) if side.kind in _SPLITTERS else _build_sentencepiece(side)


def _build_tokens(side: _Side) -> Vocabulary:
    config, kind = side.config, side.kind
    counts = _count(_lines(side), _SPLITTERS[kind])
    if not counts:
        raise _Refusal(_NO_TEXT)
    frequent = [token for token, count in counts.items() if count >= config.min_frequency]
    if not frequent:
        unit = kind.removesuffix("s")
        problem = f"No {unit} of {{}} occurs as often as data.min_frequency {config.min_frequency}"
        raise _Refusal(problem, at_most=max(counts.values()))
    frequent.sort(key=lambda token: (-counts[token], token))
    return TokenVocabulary(frequent[: config.vocab_size - NUM_SPECIAL], kind, config.lowercase)


def _count(lines: Iterable[str], split: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(split(line))
    return counts


def _build_sentencepiece(side: _Side) -> Vocabulary:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_trained_text(side),
            model_writer=model,
            model_type=side.kind,
            vocab_size=side.config.vocab_size,
            # Corpora of one task are clean enough: a character that occurs in
            # training text is never unknown.
            character_coverage=1.0,
            byte_fallback=False,
            normalization_rule_name="identity",
            max_sentence_length=1 << 24,  # bytes, more than any part has; longer ones would be left out silently
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            # With a real blank, which text has as U+2581: by their usual names
            # SentencePiece would not learn from text that has "<s>" in it.
            pad_piece="< pad >",
            bos_piece="< begin >",
            eos_piece="< end >",
            unk_piece="< unknown >",
            unk_surface=UNKNOWN_TEXT,
            num_threads=1,  # pieces differ with the number of threads
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise _refusal(error, side) from error
    return SentencePieceVocabulary(model.getvalue(), side.kind, side.config.lowercase)


def _refusal(error: Exception, side: _Side) -> _Refusal:
    """Returns what SentencePiece's refusal means."""
    text, size = str(error), f"data.vocab_size {side.config.vocab_size}"
    if match := re.search(r"size too high \(\d+\).*<= (\d+)", text):
        return _Refusal(f"{size} is more than the text of {{}} supports", at_most=int(match[1]))
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        problem = f"{size} is less than the different characters of {{}} and the special symbols take"
        return _Refusal(problem, at_least=int(match[1]))
    if "sentences_.empty()" in text:
        return _Refusal(_NO_TEXT)
    words = text.replace("{", "{{").replace("}", "}}")
    return _Refusal(f"SentencePiece makes no {side.kind} vocabulary of {size} from the text of {{}} ({words})")


def _num_required(side: _Side) -> int:
    """Returns the entries that a SentencePiece vocabulary must have: every character, and the blank."""
    return NUM_SPECIAL + len(set(" ").union(*_trained_text(side)))


def _trained_text(side: _Side) -> Iterator[str]:
    """Yields the lines that SentencePiece learns from, as it gets them."""
    for line in _sample(side):
        (line,) = _to_stand_ins([_squeeze(line)])
        if len(line) > _LONGEST_WORD:
            line = _OVERLONG_WORD.sub(r"\g<0> ", line)
        yield from [line] if len(line) <= _LONGEST_PART else _PART.findall(line)


def _lines(side: _Side) -> Iterator[str]:
    for start in range(0, len(side.train), _BLOCK):
        yield from _block(side, start)


def _sample(side: _Side) -> Iterator[str]:
    """Yields all lines, or of a large corpus a fixed random choice of blocks, see `data.vocabulary_sample`."""
    blocks = np.random.RandomState(0).permutation(-(-len(side.train) // _BLOCK))
    num_characters = 0
    for block in blocks:
        for line in _block(side, int(block) * _BLOCK):
            yield line
            num_characters += len(line)
        if num_characters > side.config.vocabulary_sample:
            return


def _block(side: _Side, start: int) -> Iterator[str]:
    config, train = side.config, side.train
    pairs = train.read(start, min(start + _BLOCK, len(train)))
    for column in side.columns:
        for line in pairs[column]:
            text = line
            if config.features and column == 0:
                text = line.rpartition("\t")[0]
            if config.context_turns and column == 0:  # the turns before it are sources or targets of other pairs
                text = line.rpartition("\t")[2]
            yield text.lower() if config.lowercase else text


def _squeeze(line: str) -> str:
    even = line.isprintable() and "  " not in line  # tabs and the like are not printable; four times as fast
    return (line if even else _WHITE_SPACE.sub(" ", line)).strip(" ")


def _to_stand_ins(lines: list[str]) -> list[str]:
    """Returns lines without the characters that SentencePiece keeps for itself; `_from_stand_ins` undoes it."""
    text = "".join(lines)
    if not any(character in text for character in _RESERVED + _STAND_INS + _ESCAPE):
        return lines
    return [line.translate(_TO_STAND_INS) for line in lines]


def _from_stand_ins(lines: list[str]) -> list[str]:
    text = "".join(lines)
    if not any(character in text for character in _STAND_INS + _ESCAPE):
        return lines
    return [_STANDING_IN.sub(lambda match: _FROM_STAND_INS.get(match[0], match[1] or ""), line) for line in lines]


def _content(row: Sequence[int] | np.ndarray) -> list[int]:
    """Returns the ids before the first end id, without padding and begin."""
    ids = row.tolist() if isinstance(row, np.ndarray) else [int(index) for index in row]
    if EOS in ids:
        ids = ids[: ids.index(EOS)]
    return [index for index in ids if index not in (PAD, BOS)]
