"""Config files are Python, so anything can be in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.arguments import options_of
from seq2seq_jax.config import Config
from tests.doors.doorway import Doorway, Reached, cases, enter
from tests.doors.strategies import HOSTILE

pytestmark = pytest.mark.usefixtures("paths_only")


@pytest.fixture(scope="module", autouse=True)
def nothing_to_prepare(compiled: None) -> Iterator[None]:
    """`train` ends as soon as it has a config: what comes of its values is another door's."""
    from seq2seq_jax import cli
    from seq2seq_jax.training import loop

    def train(config: Any, workdir: Path) -> None:
        raise Reached(config)

    with mock.patch.object(cli, "_configure_jax"), mock.patch.object(loop, "train", train):
        yield


SECTIONS = sorted({name.partition(".")[0] for name in options_of(Config) if "." in name})
CLASSES = [f"{section.capitalize()}Config" for section in SECTIONS]
DEEP = "brackets"  # a hundred thousand of them
FIELDS = sorted({name.rpartition(".")[2] for name in options_of(Config)})

literals = st.sampled_from(
    ["0", "-1", "1.5", "10**30", "float('nan')", "None", "True", "'words'", "'\\0'", "'\\udc80'", "()", "[1]", "{}"]
    + ["...", "object()", "lambda: 0", "Config", "print", "Rude()", "type", "1j", "b'x'", "range(3)", "'x' * 10**5"]
)
RUDE = """
class Rude(str):
    def __repr__(self):
        raise RuntimeError("no")
    __str__ = __hash__ = __eq__ = __format__ = __bool__ = __repr__
class Raising(Exception):
    def __str__(self):
        raise ValueError("no words")
def deep(n):
    return [deep(n - 1)] if n else 0
"""
exits = st.sampled_from(
    ["sys.exit('data is missing')", "sys.exit()", "sys.exit(0)", "sys.exit(3)", "sys.exit(Rude())", "exit()", "quit(1)"]
    + ["raise SystemExit", "raise KeyError('a')", "raise Raising", "raise Raising()", "raise Exception", "assert False"]
    + ["1 / 0", "deep(10**5)", "undefined", "import nowhere", "from seq2seq_jax import nothing", "open('missing')"]
    + ["raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'why')", "raise OSError(24, 'Too many open files')"]
    + ["raise MemoryError", "raise RecursionError", "raise StopIteration", "raise GeneratorExit", "raise OSError"]
    + ["raise ExceptionGroup('many', [ValueError(1)])", "raise BaseException('odd')", "raise Warning('careful')"]
    + ["raise KeyboardInterrupt", "raise BrokenPipeError", "raise EOFError", "int('9' * 5000)", "open('a\\0b')"]
    + ["raise SyntaxError", "raise SyntaxError('words')", "exec('(')", "raise UnicodeError", "raise TypeError(b'x')"]
)
returns = st.one_of(
    literals,
    st.builds(lambda cls: f"{cls}()", st.sampled_from(["Config", *CLASSES])),
    st.builds(
        lambda section, name, value: f"Config({section}={section.capitalize()}Config({name}={value}))",
        st.sampled_from(SECTIONS),
        st.one_of(st.sampled_from(FIELDS), st.sampled_from(["hiden_size", "x", "names", "Model"])),
        literals,
    ),
    st.builds(lambda name, value: f"Config({name}={value})", st.sampled_from([*FIELDS, *SECTIONS, "modle"]), literals),
    st.builds(lambda cls: f"Config({cls}())", st.sampled_from(CLASSES)),
)
HEAD = f"import sys\nfrom seq2seq_jax.config import *\n{RUDE}\n"


@st.composite
def config_source(draw: st.DrawFn) -> str:
    """A config file that goes wrong on import, in get_config, or by what it returns."""
    kind = draw(st.sampled_from(["import", "call", "return", "return", "return", "shape"]))
    if kind == "import":
        return f"{draw(exits)}\ndef get_config():\n    return Config()\n"
    if kind == "call":
        return f"def get_config():\n    {draw(exits)}\n    return Config()\n"
    if kind == "return":
        return f"def get_config():\n    return {draw(returns)}\n"
    return draw(
        st.sampled_from(
            ["get_config = 3\n", "get_config = Config\n", "class get_config: pass\n", "def get_cofnig(): pass\n", ""]
            + ["def get_config(needed): pass\n", "async def get_config(): pass\n", "def get_config(): yield Config()\n"]
            + [
                "get_config = Rude()\n",
                "get_config = None\n",
                "get_config = lambda: get_config()\n",
                "def get_config(\n",
            ]
            + [
                "def get_config():\n\treturn Config()\n        return 1\n",
                "from __future__ import nothing\n",
                "(" * 500,
            ]
            + ["x = " + "[" * 300 + "]" * 300 + "\n", "x = " + "-" * 10_000 + "1\n", "def get_config(): return\n"]
            + ["x = 1" + " + 1" * 20_000 + "\n", "# coding: nowhere\n", "sys.modules.clear\n", "'''", "\f\n", "if 1:\n"]
        )
    )


@cases(700)
@given(source=config_source())
def test_a_config_file_that_goes_wrong(doorway: Doorway, source: str) -> None:
    with doorway.room("config files", doorway.base / "cache") as room:
        (room / "mine.py").write_text(HEAD + source)
        outcome = enter("train", "--config", "mine.py")
        interrupted = "KeyboardInterrupt" in source or "BrokenPipe" in source
        assert outcome.code == 2 or outcome.reached or interrupted, "nothing was trained, and nothing was said"


@cases(150)
@given(
    content=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")))
)
def test_a_config_file_of_any_bytes(doorway: Doorway, content: bytes) -> None:
    with doorway.room("config files", doorway.base / "cache") as room:
        (room / "mine.py").write_bytes(content)
        assert enter("train", "--config", "mine.py").code == 2


@cases(100)
@given(
    name=st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)).filter(lambda name: not name.startswith(("/", "-")))
)
def test_a_config_file_of_any_name(doorway: Doorway, name: str) -> None:
    with doorway.room("config files", doorway.base / "cache") as room:
        (room / "folder.py").mkdir()
        (Path("link.py")).symlink_to("link.py")
        assert enter("train", "--config", name).code == 2


@cases(250)
@given(
    text=st.one_of(
        st.recursive(
            st.sampled_from(["1", "null", '"x"', "NaN", "1e999", "true"]), lambda inner: inner.map("[{}]".format)
        ),
        st.sampled_from([DEEP, "{", "", "{}", "[]", "null", '{"model": {}}', '{"model": []}', "\ufeff{}", "\0"]),
        st.builds(
            '{{"model": {{"{}": {}}}}}'.format, st.sampled_from(FIELDS), st.sampled_from(["1", "null", '"x"', "[]"])
        ),
        st.builds(
            '{{"{}": {}}}'.format, st.sampled_from([*SECTIONS, *FIELDS]), st.sampled_from(["1", "{}", '"\\ud800"'])
        ),
    ),
    command=st.sampled_from(["translate", "evaluate"]),
)
def test_a_config_json_of_anything(doorway: Doorway, text: str, command: str) -> None:
    with doorway.room("config files", doorway.base / "cache") as room:
        (room / "run").mkdir()
        (room / "run" / "config.json").write_text(text.replace(DEEP, "[" * 100_000))
        assert enter(command, "--workdir", "run").code == 2  # there is no vocabulary and no checkpoint either
