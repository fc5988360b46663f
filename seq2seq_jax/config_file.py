"""Config files, Python with `get_config() -> Config`: where they are, and what is wrong in one, told with its line."""

import dataclasses
import re
import traceback
from pathlib import Path
from typing import Any, get_type_hints

from seq2seq_jax.config import Config
from seq2seq_jax.errors import UserError, did_you_mean, nearest, shortened, shown

CONFIGS = "configs"
"""Folder of config files: in the current one, in a checkout, and in the installed package."""


def find_config(named: str | None, repository: Path | None = None) -> Path:
    """Returns the config file of that name, or the default one; where there is none, the path that was asked for.

    A file is named by its path, or by what it is called in a folder `configs/`:
    `default`, `default.py` and `configs/default.py` are one.

    Args:
      named: a path or a name.
      repository: whose `configs/` is looked through first. Next come that of the
        current folder and the one that comes with the package.
    """
    path = Path(CONFIGS) / "default.py" if named is None else Path(named)
    if named is not None and path.exists():
        return path
    name = path.relative_to(CONFIGS) if path.parts[:1] == (CONFIGS,) else path
    folders = [*([repository / CONFIGS] if repository else []), *_folders()]
    files = [folder / name.with_suffix(".py") for folder in folders if len(name.parts) == 1]
    return next((file for file in files if file.is_file()), path)


def load_config(path: Path) -> Config:
    """Returns what the file's `get_config()` returns.

    Raises:
      UserError: there is no such file (the nearest one is named), it is not
        Python, has no `get_config`, raises or ends the program, or returns
        something else.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; --config names one file in it.")
    if not path.is_file():
        if path.exists():
            raise UserError(f"{path} is not a file; a config file is Python.")  # a device or pipe might never end
        raise UserError(f"There is no config file {path}.{_nearest_file(path)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); a config file is Python.") from None
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    config = _run(path, text, names)
    if not isinstance(config, Config):
        raise UserError(f"{path}: get_config() must return a seq2seq_jax.config.Config, got {shown(config)}.")
    return config


def _run(path: Path, text: str, names: dict[str, Any]) -> object:
    try:
        exec(compile(text, str(path), "exec"), names)  # not imported: a stale cache of bytecode is of no use here
        if "get_config" not in names:
            functions = [name for name, value in names.items() if callable(value)]
            hint = did_you_mean("get_config", functions)
            raise UserError(f"there is no function get_config() -> Config in it.{hint}")
        return names["get_config"]()
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise UserError(f"{error.filename or path}{line}: {error.msg}.") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a config file does not end the program
        raise UserError(f"{path}{_line(error, path)}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    """Returns a message for what a config file raised."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SystemExit):
        said = _text(error.code)
        return f"it ends the program instead of returning a Config{'' if said in ('None', '0') else f': {said}'}"
    words = _text(error)
    keyword = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", words)
    if keyword and keyword[1] in _sections():
        return _unknown_field(keyword[1], keyword[2])
    return f"{type(error).__name__}: {words}"


def _text(value: object) -> str:
    """Returns a value as text, whatever it does when asked."""
    try:
        return shortened(str(value))
    except Exception:
        return shown(value)


def _unknown_field(cls: str, name: str) -> str:
    """Returns a message with the section that does have this field, or else the nearest field of the class."""
    sections = _sections()
    prefix, known = sections[cls]
    elsewhere = [other + name for other, items in sections.values() if name in items]
    match = nearest(name, known)
    suggestions = elsewhere or ([prefix + match] if match else [])
    hint = f"Did you mean {suggestions[0]}?" if suggestions else f"{cls} has {', '.join(known)}."
    return f"Unknown config field {prefix}{name}. {hint}"


def _sections() -> dict[str, tuple[str, list[str]]]:
    """Returns, for each class of the configuration, its prefix ("model.") and its fields."""
    hints = {name: hint for name, hint in get_type_hints(Config).items() if dataclasses.is_dataclass(hint)}
    classes = {"": Config} | {f"{name}.": hint for name, hint in hints.items()}
    return {cls.__name__: (prefix, list(get_type_hints(cls))) for prefix, cls in classes.items()}


def _line(error: BaseException, path: Path) -> str:
    """Returns ", line N" for the innermost line of the file itself, or "" where it took no part."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _folders() -> list[Path]:
    """Returns the folders of config files that are looked through whatever is asked for."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / CONFIGS, package.parent / CONFIGS
    return [Path(CONFIGS), installed if installed.is_dir() else checkout]


def _nearest_file(path: Path) -> str:
    """Returns a suggestion among the config files of the folder asked for, and of those that are always looked through.

    The nearer to the front of these folders, the sooner a name counts.
    """
    folders = [path.parent, *_folders()]
    files = [file for folder in reversed(folders) for file in sorted(folder.glob("*.py"))]
    by_stem = {file.stem: file for file in files if _has_config(file)}
    match = nearest(path.stem, by_stem)
    if match:
        return f" Did you mean {by_stem[match]}?"
    return f" There are {', '.join(sorted(by_stem))}." if by_stem else ""


def _has_config(file: Path) -> bool:
    try:
        return file.is_file() and "def get_config(" in file.read_text(errors="replace")
    except OSError:  # not ours to read
        return False
