from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro

from seq2seq_jax.arguments import Given, describe, options_of, parse, read, value_of
from seq2seq_jax.config import Config, DataConfig, ModelConfig
from seq2seq_jax.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """A command."""

    num_lines: int
    """Lines."""
    kind: Literal["long", "short"] = "long"
    """Kind."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def parsed(*tokens: str, default: Arguments | None = None) -> Arguments:
    return parse(Arguments, read(Arguments, tokens), default=default, prog="it")


def test_both_spellings_and_both_forms_mean_the_same():
    expected = Arguments(3, settings=Config(model=ModelConfig(hidden_size=8)))
    for name in ("--model.hidden-size", "--model.hidden_size"):
        for lines in ("--num-lines", "--num_lines"):
            assert parsed(lines, "3", name, "8") == parsed(f"{lines}=3", f"{name}=8") == expected


def test_what_is_not_given_stays_as_the_default_has_it():
    default = Arguments(3, "short", Config(model=ModelConfig(hidden_size=8)))
    assert parsed(default=default) == default
    assert parsed("--num-lines", "4", default=default) == Arguments(4, "short", default.settings)


def test_options_are_the_fields_of_the_dataclass():
    options = options_of(Arguments)
    assert options["num_lines"] is int
    assert options["model.hidden_size"] is int
    assert options["data.columns"] == tuple[str, ...]
    assert "settings" not in options and "model" not in options


def test_commas_separate_columns_and_nothing_else():
    assert parsed("--num-lines=1", "--data.columns=a,b,c", "--data.corpus", "files:a,b").settings.data == DataConfig(
        columns=("a", "b", "c"), corpus="files:a,b"
    )


def test_values_may_be_negative_and_hold_blanks_and_equal_signs():
    arguments = parsed("--num-lines", "-1", "--published=a = b")
    assert (arguments.num_lines, arguments.settings.published) == (-1, "a = b")


def test_the_last_value_counts():
    given = read(Arguments, ["--kind", "long", "--kind", "short"])
    assert given == [Given("kind", ["long"]), Given("kind", ["short"])]
    assert value_of(given, "kind") == "short"
    assert value_of(given, "num_lines") is None


def test_a_missing_option_is_named():
    with pytest.raises(UserError, match=r"^it needs --num-lines. See it --help.$"):
        parsed()


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "a whole number or None"),
        (float, "a number"),
        (bool, "True or False"),
        (tuple[str, str], "2 values"),
        (tuple[str, ...], "any number of values"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a"], "only a"),
    ],
)
def test_types_are_told_in_words(hint, words):
    assert describe(hint) == words
