"""Text pairs before preparation: named streams, whatever they come from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seq2seq_jax.config import DataConfig
from seq2seq_jax.errors import UserError, did_you_mean

Pair = tuple[str, str]
"""Source and target; tags of the source, where a corpus has them, follow it after a tab, and turns of the dialogue
before it, where they are wanted, stand before it with tabs between."""
TAB = "\t"
Stream = Callable[[], Iterator[Pair]]
"""Starts a new pass over the (source, target) lines of a split."""

_VALIDATION_NAMES = ("valid", "dev", "val")  # other usual names of a validation split


@dataclass(frozen=True)
class RawCorpus:
    """Splits that can be read from start to end.

    Attributes:
      source: name of the column that is read.
      target: name of the column that is written.
      splits: a stream for each split, under the split's own name.
      signature: JSON value that is the same only if nothing was touched, such as sizes and times of files.
      newest: last modification of anything behind it, in seconds since 1970; 0 if it cannot change.
      largest_train: split that serves as train if none is called so.
      notes: what the user should be told.
    """

    source: str
    target: str
    splits: dict[str, Stream]
    signature: Any
    newest: float = 0.0
    largest_train: str | None = None
    notes: tuple[str, ...] = ()


def named_path(field: str, name: str) -> Path:
    """Returns the absolute path that a field of the configuration names; nothing need be there.

    Raises:
      UserError: nothing can have this name, or there is no way to it.
    """
    try:
        path = Path(name).expanduser().absolute()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError as error:  # of expanduser
        raise UserError(f"{field} {name}: there is no such user, or no home folder.") from error
    except (OSError, ValueError) as error:  # ValueError for NUL and for what is no Unicode
        reason = error.strerror if isinstance(error, OSError) else "no file can have such a name"
        shown = ascii(name if len(name) <= 60 else name[:57] + "...")
        raise UserError(f"{field} {shown}: {reason}.") from error
    return path


def name_splits(raw: RawCorpus, train: str) -> RawCorpus:
    """Returns `raw` with the split `train` under the name train, and a validation split under the name validation.

    Raises:
      UserError: there is no split called `train`.
    """
    splits, notes = dict(raw.splits), list(raw.notes)
    if train == "train" and train not in splits and raw.largest_train:
        train = raw.largest_train
        notes.append(f"train: the split {train}, the largest there; data.train_split names another")
    if train not in splits:
        raise UserError(
            f"There is no split {train} to train on; the corpus has {', '.join(sorted(splits)) or 'none'}."
            f"{did_you_mean(train, splits)} data.train_split names the one to use."
        )
    ordered = {"train": splits.pop(train)}
    splits.pop("train", None)
    for name in _VALIDATION_NAMES:
        if name in splits and "validation" not in splits:
            splits["validation"] = splits.pop(name)
            notes.append(f"validation: the split {name}")
    if "validation" in splits:
        ordered["validation"] = splits.pop("validation")
    return replace(raw, splits=ordered | dict(sorted(splits.items())), notes=tuple(notes))


def resolve_columns(
    config: DataConfig, columns: Sequence[str], defaults: tuple[str, str] | None, where: str
) -> tuple[str, ...]:
    """Returns the columns to read and to write, and that of the source's tags, or turns before it, if they are wanted.

    A side that is not given is the corpus's own default; or the other one, if
    the given side names one of the two.

    Args:
      config: says which, in data.source, data.target, data.features and data.turns.
      columns: the columns there are.
      defaults: source and target of the corpus's own, if it has them.
      where: what has these columns, for messages.

    Raises:
      UserError: a column is not there, not chosen, or chosen twice.
    """
    source, target = config.source, config.target
    others = {field: name for field in ("features", "turns") if (name := getattr(config, field)) is not None}
    have = f"{where} has the columns {', '.join(columns)}"
    for field, name in (("source", source), ("target", target), *others.items()):
        if name is not None and name not in columns:
            raise UserError(f"data.{field} {name}: there is no such column; {have}.{did_you_mean(name, columns)}")
    if defaults and source is None and target is None:
        source, target = defaults
    sides = [column for column in columns if column not in others.values()]
    pair = defaults or (tuple(sides) if len(sides) == 2 else ())
    if source is None and target in pair:
        source = pair[1 - pair.index(target)]
    elif target is None and source in pair:
        target = pair[1 - pair.index(source)]
    if source is None or target is None:
        raise UserError(f"{have}; say with data.source and data.target which is read and which is written.")
    if source == target:
        raise UserError(f"data.source and data.target are both {source}; {have}.")
    for field, name in others.items():
        if name in (source, target):
            raise UserError(
                f"data.{field} and data.{'source' if name == source else 'target'} are both {name}; {have}."
            )
    third = config.turns if config.context_turns else config.features
    return (source, target) if third is None else (source, target, third)


def as_pair(columns: Sequence[str]) -> Pair:
    """Returns source and target of a line's columns, as `resolve_columns` orders them: tags follow the source."""
    source, target, *tags = columns
    return (f"{source}{TAB}{tags[0].replace(TAB, ' ')}" if tags else source), target
