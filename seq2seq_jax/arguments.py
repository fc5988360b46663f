"""Command-line arguments into dataclasses, by tyro; and mistakes in them into one short message.

Tyro reads the dataclasses for the options, their types and their help. What is
added here is how a mistake is told, the nearest valid name included: tyro's own
answer is a box of many lines. Options may be spelled with `-` or `_`.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import math
import os
import shlex
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from seq2seq_jax.errors import LONGEST_NAME, UserError, did_you_mean, nearest, not_plain, shortened, shown

Arguments = TypeVar("Arguments")

HELP = frozenset({"-h", "--h", "-help", "--help"})
LONGEST_PATH = 4095  # bytes, as Linux has it
MOST_COMBINATIONS = 1_000  # each takes tyro a tenth of a second


class Given(NamedTuple):
    """One option as it was typed: the name of its field, such as `model.hidden_size`, or `help`; and its values."""

    name: str
    values: list[str]


def read(cls: Any, arguments: Sequence[str]) -> list[Given]:
    """Returns the options in `arguments`, each with the values that follow it.

    `--name value`, `--name=value` and `--name value value` are understood, and
    `--data.columns a,b` as well as `--data.columns a b`, `--metrics` likewise. What begins with one
    dash is a value if it is a number or no letter follows.

    Args:
      cls: a dataclass; its fields are the options, nested ones joined by dots.
      arguments: of the command line.

    Raises:
      UserError: an unknown option, a value before the first option, or one that can be no name of a file.
    """
    options, given = options_of(cls), []
    for argument in arguments:
        if argument in HELP:
            given.append(Given("help", []))
        elif _is_option(argument):
            name, equals, value = argument.partition("=")
            given.append(Given(_known(name, options), [value] if equals else []))
        elif given:
            given[-1].values.append(argument)
        else:
            raise UserError(_unexpected(argument))
    return [_tidy(option, options[option.name]) if option.name in options else option for option in given]


def parse(cls: type[Arguments], given: Sequence[Given], *, default: Arguments | None, prog: str) -> Arguments:
    """Returns `default` with the options of `given` in place.

    A field annotated with `tyro.conf.arg(name="")` holds a dataclass whose own
    fields are the options: `--model.cell`, not `--settings.model.cell`.

    Args:
      cls: a dataclass; its fields are the options, nested ones joined by dots.
      given: from `read`.
      default: what holds where nothing is given, and what the help shows; None
        for the defaults of the fields, where those without one must be given.
      prog: the command as the user types it, for the help.

    Raises:
      UserError: an option is missing, or a value does not fit.
      SystemExit: with code 0, after the help was asked for and printed.
    """
    if any(option.name == "help" for option in given):
        tokens = ["--help"]  # whatever else is there
    else:
        if default is None:
            _check_complete(cls, given, prog)
        tokens = [token for option in given for token in _tokens(option)]
    try:
        with _quiet():
            start = tyro.MISSING_NONPROP if default is None else default
            return tyro.cli(cls, args=tokens, prog=prog, default=start, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        if error.code == 0:  # the help
            raise
    options = options_of(cls)
    for option in given:
        _check_values(option, options[option.name])
    raise UserError(f"These options make no sense to {prog}: {shortened(' '.join(tokens))}. See {prog} --help.")


def value_of(given: Sequence[Given], name: str) -> str | None:
    """Returns the last value given for option `name` (with underscores), or None."""
    values = values_of(given, name)
    return values[-1] if values else None


def values_of(given: Sequence[Given], name: str) -> list[str] | None:
    """Returns the values that were given last for option `name` (with underscores), or None where it was not given."""
    values = [option.values for option in given if option.name == name]
    return values[-1] if values else None


def combinations(cls: Any, sweeps: Sequence[str], given: Sequence[Given]) -> list[tuple[Given, ...]]:
    """Returns all combinations of values of some options, those of the last option one after another.

    Args:
      cls: a dataclass; its fields are the options, as of `read`.
      sweeps: each the name of a field and its values: `model.cell=lstm,gru`. A value that holds a comma
        stands in double quotes.
      given: the options beside them.

    Raises:
      UserError: no values, an empty one, an unknown field, one twice or also in `given`, or far too many combinations.
    """
    options, axes = options_of(cls), dict[str, list[Given]]()
    if not sweeps:
        raise UserError("--sweep takes a field and its values, as in model.cell=lstm,gru, and none was given.")
    for sweep in sweeps:
        typed, _, values = sweep.partition("=")
        name = typed.replace("-", "_")
        if name not in options:
            match = _nearest_option(name, list(options))
            hint = f" Did you mean {match}?" if match else ""
            raise UserError(f"--sweep {shortened(sweep)}: there is no field {shown(typed)}.{hint}")
        if name in axes:
            raise UserError(f"--sweep names {name} twice; give all its values at once.")
        if any(option.name == name for option in given):
            raise UserError(f"{name} is given by --sweep and by {_dashed(name)}; give it once.")
        axes[name] = [_tidy(Given(name, [value]), options[name]) for value in _listed(sweep, values)]
    if (number := math.prod(map(len, axes.values()))) > MOST_COMBINATIONS:
        raise UserError(f"--sweep makes {number:,} combinations, and {MOST_COMBINATIONS:,} at most are tried.")
    return list(itertools.product(*axes.values()))


def _listed(sweep: str, values: str) -> list[str]:
    """Returns the values between commas."""
    try:
        (listed,) = csv.reader([values], strict=True)
    except (csv.Error, ValueError) as error:
        said = f"--sweep {shortened(sweep)}: {error}"
        raise UserError(f"{said}; a value that holds a comma or quotes stands in double quotes.") from None
    if not listed or "" in listed:
        raise UserError(f"--sweep {shortened(sweep)}: a value is empty; it takes FIELD=VALUE,VALUE.")
    return listed


def options_of(cls: Any) -> dict[str, Any]:
    """Returns the type of every option of a dataclass by its dotted name, as in `model.hidden_size`.

    A field annotated with `tyro.conf.arg(name="")` adds nothing to the names of its own fields.
    """
    options: dict[str, Any] = {}
    annotated = get_type_hints(cls, include_extras=True)
    for name, hint in get_type_hints(cls).items():
        if not dataclasses.is_dataclass(hint):
            options[name] = hint
            continue
        unnamed = any(getattr(extra, "name", None) == "" for extra in getattr(annotated[name], "__metadata__", ()))
        prefix = "" if unnamed else f"{name}."
        options |= {prefix + inner: inner_hint for inner, inner_hint in options_of(hint).items()}
    return options


def _is_option(argument: str) -> bool:
    if argument.startswith("--"):
        return True
    with contextlib.suppress(ValueError):
        float(argument)  # -1, and -inf too
        return False
    return argument.startswith("-") and argument[1:2].isalpha()


def _known(typed: str, options: Iterable[str]) -> str:
    """Returns the field of an option as it was typed, or refuses it naming the nearest."""
    name = typed.lstrip("-")
    spelled = {option.replace("_", "-"): option for option in options}
    field = spelled.get(name.replace("_", "-"))
    if field and typed.startswith("--"):
        return field
    names = [*(spelled.values() if "_" in name else spelled), "help"]
    match = _nearest_option(name, names)
    raise UserError(f"Unknown option {shortened(typed)}. {f'Did you mean --{match}?' if match else 'See --help.'}")


def _nearest_option(name: str, options: Sequence[str]) -> str | None:
    """Returns the option nearest to `name`: to all of it, or to what follows its section."""
    last = {option.rpartition(".")[2]: option for option in reversed(options)}
    near = nearest(name, last)
    if near and near.startswith(name):
        return last[near]
    return nearest(name, options) or (last[near] if near else None)


def _unexpected(argument: str) -> str:
    hint = " Did you mean --config?" if argument.endswith(".py") else ""
    hint = " Did you mean --help?" if argument == "help" else hint
    return f"Unexpected argument {shortened(argument)}; options are given as --name value.{hint}"


def _tidy(option: Given, hint: Any) -> Given:
    """Returns an option with its values as tyro spells them; refuses what can be no text and no name of a file."""
    values, kinds = option.values, {hint, *get_args(hint)}
    if option.name == "data.columns" or _choices_of_many(hint):
        values = [name for value in values for name in value.split(",")]
    for value in values:
        flaw = _flaw_of_path(value) if Path in kinds else not_plain(value)
        if flaw:
            raise UserError(f"{_dashed(option.name)} {flaw}{value and f', got {shown(value)}'}.")
    if bool in kinds:
        values = [value.capitalize() if value.lower() in ("true", "false") else value for value in values]
    if types.NoneType in kinds and int in kinds:
        values = ["None" if value.lower() == "none" else value for value in values]
    return Given(option.name, values)


def _flaw_of_path(value: str) -> str:
    """Returns what keeps text from being the name of a file or folder, or "" where nothing does."""
    if not value:  # a shell's unset variable, which Path would take for the current folder
        return "is empty; name a file or folder, or leave it out"
    if flaw := not_plain(value):
        return flaw
    if max(len(os.fsencode(part)) for part in value.split("/")) > LONGEST_NAME:
        return f"holds a name of more than {LONGEST_NAME} bytes"
    return f"is longer than {LONGEST_PATH:,} bytes" if len(os.fsencode(value)) > LONGEST_PATH else ""


def _tokens(option: Given) -> list[str]:
    """Returns an option for tyro; a single value joined to it may begin with a dash."""
    name = _dashed(option.name)
    return [f"{name}={option.values[0]}"] if len(option.values) == 1 else [name, *option.values]


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_complete(cls: Any, given: Sequence[Given], prog: str) -> None:
    names = {option.name for option in given}
    missing = [_dashed(item.name) for item in dataclasses.fields(cls) if _has_no_default(item)]
    missing = [name for name in missing if name not in map(_dashed, names)]
    if missing:
        raise UserError(f"{prog} needs {' and '.join(missing)}. See {prog} --help.")


def _has_no_default(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _check_values(option: Given, hint: Any) -> None:
    """Refuses values that tyro cannot turn into `hint`; tried alone, so that the message names one option."""
    alone = dataclasses.make_dataclass("Alone", [("value", hint)])
    try:
        with _quiet():
            tokens = _tokens(Given("value", option.values))
            tyro.cli(alone, args=tokens, config=(tyro.conf.FlagConversionOff,))
    except SystemExit:
        got = f"got {shortened(shlex.join(option.values))}" if option.values else "and none was given"
        raise UserError(
            f"{_dashed(option.name)} takes {describe(hint)}, {got}.{_instead(hint, ' '.join(option.values))}"
        ) from None


def _instead(hint: Any, value: str) -> str:
    """Returns " Did you mean X?" for a choice misspelled, and for a whole number written as 1e3; else ""."""
    if get_origin(hint) is Literal:
        return did_you_mean(value, [str(choice) for choice in get_args(hint)])
    if choices := _choices_of_many(hint):
        wrong = next((word for word in value.split() if word not in choices), "")
        return did_you_mean(wrong, choices)
    if int in (hint, *get_args(hint)):
        with contextlib.suppress(ValueError, OverflowError):
            if float(value) == int(float(value)):
                return f" Did you mean {int(float(value))}?"
    return ""


def _choices_of_many(hint: Any) -> list[str]:
    """Returns the choices of which an option takes any number; none where it takes other values."""
    for kind in (hint, *get_args(hint)):
        inner = get_args(kind)
        if get_origin(kind) is tuple and Ellipsis in inner and get_origin(inner[0]) is Literal:
            return [str(choice) for choice in get_args(inner[0])]
    return []


def describe(hint: Any) -> str:
    """Returns a type in words: "a whole number", "two values", "one of a, b", "a number or None"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "only ") + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in inner)
    if choices := _choices_of_many(hint):
        return f"any of {', '.join(choices)}"
    if origin is tuple:
        return "any number of values" if Ellipsis in inner else f"{len(inner)} values"
    words = {int: "a whole number", float: "a number", bool: "True or False", types.NoneType: "None"}
    return words.get(hint, "a value")


@contextlib.contextmanager
def _quiet():
    """Keeps tyro's box away from the user; the help, on standard output, passes."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
