"""Writes the pages that are made from the code: every setting, every command, every public name."""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import seq2seq_jax
from seq2seq_jax import cli
from seq2seq_jax.arguments import describe
from seq2seq_jax.config import Bounds, Config
from seq2seq_jax.serving.limits import Limits


def write(folder: Path) -> None:
    """Writes `settings.md`, `commands.md` and `names.md` where they have changed."""
    folder.mkdir(exist_ok=True)
    for name, lines in (("settings", settings()), ("commands", commands()), ("names", names())):
        text, path = "".join(f"{line}\n" for line in lines), folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def settings() -> Iterator[str]:
    """Every field of a configuration, by its section."""
    yield "# Settings"
    yield ""
    yield "Each is a field of a config, and an option of `train`, `reproduce` and `plan`: `--model.hidden-size 256`."
    hints = typing.get_type_hints(Config)
    sections = [item.name for item in dataclasses.fields(Config) if dataclasses.is_dataclass(hints[item.name])]
    for name in sections:
        cls = hints[name]
        yield from ("", f"## {name}", "", inspect.getdoc(cls) or "", "")
        yield from _fields(cls, f"{name}.")
    yield from ("", "## Beside the sections", "")
    yield from _fields(Config, "", without=sections)


def commands() -> Iterator[str]:
    """Every command with its options."""
    yield "# Commands"
    yield ""
    yield "`seq2seq-jax COMMAND` and `python -m seq2seq_jax COMMAND` are the same. `--help` lists the options."
    for name, command in cli.COMMANDS.items():
        arguments: Any = command.arguments
        yield from ("", f"## {name}", "", inspect.getdoc(arguments) or "", "")
        hidden = ("settings", "decode", "processes", "limits")
        yield from _fields(arguments, "--", without=hidden)
        given = {item.name for item in dataclasses.fields(arguments)}
        if "limits" in given:
            yield from _fields(Limits, "--")
        if "settings" in given:
            yield from ("", "And every [setting](settings.md) as `--section.field VALUE`.")
        if "decode" in given:
            yield from ("", "And every [setting of the search](settings.md#decode) as `--decode.field VALUE`.")
        if "processes" in given:
            yield from (
                "",
                "Several processes: `--distributed`, or `--coordinator`, `--num-processes`, `--process-id`.",
            )


def names() -> Iterator[str]:
    """What `import seq2seq_jax` gives, but for the settings."""
    yield "# From Python"
    yield ""
    for name in seq2seq_jax.__all__:
        value = getattr(seq2seq_jax, name)
        if name.endswith("Config"):
            continue
        where = f"{value.__module__}.{name}"
        kind = "autofunction" if inspect.isfunction(value) else "autoclass"
        yield from ("```{eval-rst}", f".. {kind}:: {where}")
        if kind == "autoclass" and name != "UserError":
            yield "   :members:"
        yield from ("```", "")


def _fields(cls: Any, prefix: str, without: Any = ()) -> Iterator[str]:
    """Each field with its kind, its default and what it does."""
    texts, hints = texts_of(cls), typing.get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        if item.name in without:
            continue
        name = f"{prefix}{item.name.replace('_', '-') if prefix == '--' else item.name}"
        yield f"`{name}`"
        yield f": {' '.join(texts[item.name].split())}"
        yield f"  *{_kind(hints[item.name])}; {_default(item)}*"
        yield ""


def texts_of(cls: Any) -> dict[str, str]:
    """The text below each field of a dataclass, those it inherits included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        (tree,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    found[field.target.id] = str(below.value.value)
    return found


def _kind(hint: Any) -> str:
    bounds = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Bounds)]
    hint = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    text = describe(hint)
    return f"{text}, {bounds[0].least:g} to {bounds[0].largest:g}" if bounds else text


def _default(item: dataclasses.Field) -> str:
    return "must be given" if item.default is dataclasses.MISSING else f"default `{item.default!r}`"
