"""Command-line arguments into dataclasses, by tyro; and mistakes in them into one short message.

Tyro reads the dataclasses for the options, their types and their help. What is
added here is how a mistake is told, the nearest valid name included: tyro's own
answer is a box of many lines. Options may be spelled with `-` or `_`.
"""

import contextlib
import dataclasses
import io
import types
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from seq2seq_jax.errors import UserError, did_you_mean, nearest

Arguments = TypeVar("Arguments")

HELP = ("-h", "--help")


class Given(NamedTuple):
    """One option as it was typed: its name without dashes, and its values."""

    name: str
    values: list[str]


def parse(cls: type[Arguments], given: Sequence[Given], *, default: Arguments | None, prog: str) -> Arguments:
    """Returns `default` with the options of `given` in place.

    A field annotated with `tyro.conf.arg(name="")` holds a dataclass whose own
    fields are the options: `--model.cell`, not `--settings.model.cell`.

    Args:
      cls: a dataclass; its fields are the options, nested ones joined by dots.
      given: from `split`.
      default: what holds where nothing is given, and what the help shows; None
        for the defaults of the fields, where those without one must be given.
      prog: the command as the user types it, for the help.

    Raises:
      UserError: an unknown option, one that is missing, or a value that does not fit.
      SystemExit: with code 0, after the help was asked for and printed.
    """
    options = options_of(cls)
    spelled = {name.replace("_", "-"): name for name in options}
    checked = [_check_name(option, spelled) for option in given]
    if default is None:
        _check_complete(cls, checked, prog)
    tokens = [token for name, values in checked for token in (f"--{name}", *values)]
    try:
        with _quiet():
            start = tyro.MISSING_NONPROP if default is None else default
            return tyro.cli(cls, args=tokens, prog=prog, default=start, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        if error.code == 0:  # the help
            raise
    for name, values in checked:
        _check_values(name, options[spelled[name]], values)
    raise UserError(f"These options make no sense to {prog}: {' '.join(tokens)}. See {prog} --help.")


def split(arguments: Sequence[str]) -> list[Given]:
    """Returns the options in `arguments`, each with the values that follow it.

    `--name value`, `--name=value` and `--name value value` are understood, and
    `--data.columns a,b` as well as `--data.columns a b`.

    Raises:
      UserError: something stands before the first option.
    """
    given: list[Given] = []
    for argument in arguments:
        if argument.startswith("--") or argument in HELP:
            name, equals, value = argument.partition("=")
            given.append(Given(name.lstrip("-"), [value] if equals else []))
        elif given:
            given[-1].values.append(argument)
        else:
            hint = " Did you mean --config?" if argument.endswith(".py") else ""
            raise UserError(f"Unexpected argument {argument}; options are given as --name value.{hint}")
    return [_split_commas(option) for option in given]


def value_of(given: Sequence[Given], name: str) -> str | None:
    """Returns the last value given for option `name` (with underscores), or None."""
    values = [option.values for option in given if option.name.replace("-", "_") == name]
    return values[-1][-1] if values and values[-1] else None


def options_of(cls: Any) -> dict[str, Any]:
    """Returns the type of every option of a dataclass by its dotted name, as in `model.hidden_size`."""
    options: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if not dataclasses.is_dataclass(hint):
            options[name] = hint
            continue
        prefix = "" if name == "settings" else f"{name}."
        options |= {prefix + inner: inner_hint for inner, inner_hint in options_of(hint).items()}
    return options


def _split_commas(option: Given) -> Given:
    if option.name != "data.columns":
        return option
    return Given(option.name, [name for value in option.values for name in value.split(",")])


def _check_name(option: Given, spelled: dict[str, str]) -> Given:
    """Returns the option with its name in tyro's spelling, or refuses it naming the nearest."""
    name = option.name.replace("_", "-")
    if name in spelled or name in ("h", "help"):
        return Given(name, option.values)
    match = nearest(option.name, spelled.values() if "_" in option.name else spelled)
    raise UserError(f"Unknown option --{option.name}. {f'Did you mean --{match}?' if match else 'See --help.'}")


def _check_complete(cls: Any, given: Sequence[Given], prog: str) -> None:
    names = {option.name.replace("-", "_") for option in given}
    required = [item.name for item in dataclasses.fields(cls) if _has_no_default(item)]
    missing = [f"--{name.replace('_', '-')}" for name in required if name not in names]
    if missing and not names & {"h", "help"}:
        raise UserError(f"{prog} needs {' and '.join(missing)}. See {prog} --help.")


def _has_no_default(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _check_values(name: str, hint: Any, values: list[str]) -> None:
    """Refuses values that tyro cannot turn into `hint`; tried alone, so that the message names one option."""
    alone = dataclasses.make_dataclass("Alone", [("value", hint)])
    try:
        with _quiet():
            tyro.cli(alone, args=["--value", *values], config=(tyro.conf.FlagConversionOff,))
    except SystemExit:
        got = f"got {' '.join(values)}" if values else "and none was given"
        choices = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
        raise UserError(f"--{name} takes {describe(hint)}, {got}.{did_you_mean(' '.join(values), choices)}") from None


def describe(hint: Any) -> str:
    """Returns a type in words: "a whole number", "two values", "one of a, b", "a number or None"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "only ") + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in inner)
    if origin is tuple:
        return "any number of values" if Ellipsis in inner else f"{len(inner)} values"
    words = {int: "a whole number", float: "a number", bool: "True or False", types.NoneType: "None"}
    return words.get(hint, "a value")


@contextlib.contextmanager
def _quiet():
    """Keeps tyro's box away from the user; the help, on standard output, passes."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
