from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from seq2seq_jax.arguments import Given, combinations, describe, options_of, parse, read, value_of
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


@pytest.mark.parametrize("tokens", [("--help",), ("--h",), ("-h",), ("-help",), ("--num-lines", "3", "-h", "4")])
def test_the_help_is_asked_for_anywhere(capsys, tokens):
    with pytest.raises(SystemExit) as ended:
        parsed(*tokens)
    assert ended.value.code == 0
    assert "--model.hidden-size" in capsys.readouterr().out


def test_what_begins_with_a_dash_is_a_value_where_it_is_a_number_or_joined_to_its_option():
    settings = parsed("--num-lines", "-1", "--model.forget-bias", "-1.5e-3", "--published=--x").settings
    assert (settings.model.forget_bias, settings.published) == (-1.5e-3, "--x")
    assert parsed("--num-lines=1", "--published", "-5 %").settings.published == "-5 %"
    with pytest.raises(UserError, match="must be from -100 to 100, got -inf"):
        parsed("--num-lines=1", "--model.forget-bias", "-inf")


def test_true_false_and_none_are_understood_in_any_case():
    options = ["--model.coverage", "false", "--data.joint-vocabulary=TRUE", "--data.batch-size", "none"]
    settings = parsed("--num-lines=1", *options, "--data.batch-tokens", "9", "--model.input-feeding", "False").settings
    assert settings == Config(
        model=ModelConfig(coverage=False, input_feeding=False), data=DataConfig(batch_size=None, batch_tokens=9)
    )


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--beam", "Unknown option --beam. Did you mean --decode.beam-size?"),
        ("--batch", "Unknown option --batch. Did you mean --data.batch-size?"),
        ("--num_step", "Unknown option --num_step. Did you mean --train.num_steps?"),
        ("--hel", "Unknown option --hel. Did you mean --help?"),
        ("-kind", "Unknown option -kind. Did you mean --kind?"),
        ("-k", "Unknown option -k. See --help."),
        ("--", "Unknown option --. See --help."),
        ("--=", "Unknown option --. See --help."),
        ("--" + "x" * 10_000, f"Unknown option --{'x' * 198}.... See --help."),
        ("help", "Unexpected argument help; options are given as --name value. Did you mean --help?"),
        ("", "Unexpected argument ; options are given as --name value."),
    ],
)
def test_no_option_is_answered_with_the_nearest_one(typed, message):
    with pytest.raises(UserError) as refused:
        parsed(typed)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("--place", ""), "--place is empty; name a file or folder, or leave it out."),
        (("--place", "a\0b"), r"--place holds a NUL character, got 'a\x00b'."),
        (("--place", "\ud800"), r"--place is not UTF-8 text, got '\ud800'."),
        (("--place", "a/" + "ß" * 128), "--place holds a name of more than 255 bytes, got 'a/ßß"),
        (("--place", "a/" * 2048), "--place is longer than 4,095 bytes, got 'a/a/"),
        (("--name", "a\0b"), r"--name holds a NUL character, got 'a\x00b'."),
        (("--name", "\udce9"), r"--name is not UTF-8 text, got '\udce9'."),
        (("--count", "1e3"), "--count takes a whole number, got 1e3. Did you mean 1000?"),
        (("--count", "1.5"), "--count takes a whole number, got 1.5."),
        (("--count", "1e400"), "--count takes a whole number, got 1e400."),
        (("--count", ""), "--count takes a whole number, got ''."),
        (("--count", "9" * 5000), f"--count takes a whole number, got {'9' * 200}...."),
    ],
)
def test_values_that_name_nothing_are_refused(tokens, message):
    @dataclass(frozen=True)
    class Places:
        place: Path | None = None
        name: str = ""
        count: int = 1

    with pytest.raises(UserError) as refused:
        parse(Places, read(Places, tokens), default=None, prog="it")
    assert str(refused.value).startswith(message) and len(str(refused.value)) < 400


def test_names_as_long_as_the_system_takes_are_taken():
    @dataclass(frozen=True)
    class Places:
        place: Path = Path()

    for name in ("x" * 255, "/".join(["x" * 200] * 20)):
        assert parse(Places, read(Places, ["--place", name]), default=None, prog="it").place == Path(name)


def test_combinations_are_all_of_them_in_order_as_options_are_read():
    sweeps = ["model.cell=lstm,gru", "model.coverage=TRUE,false", "data.batch-size=none"]
    found = combinations(Config, sweeps, [Given("workdir", ["here"])])
    assert found == [
        (Given("model.cell", [cell]), Given("model.coverage", [coverage]), Given("data.batch_size", ["None"]))
        for cell in ("lstm", "gru")
        for coverage in ("True", "False")
    ]


def test_a_value_with_a_comma_stands_in_quotes():
    (first,), (second,) = combinations(Config, ['model.source_vectors="a,b.vec",c=d.vec'], [])
    assert (first.values, second.values) == (["a,b.vec"], ["c=d.vec"])


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        ([], "--sweep takes a field and its values, as in model.cell=lstm,gru, and none was given."),
        (["modle.cell=a"], "--sweep modle.cell=a: there is no field 'modle.cell'. Did you mean model.cell?"),
        (["cell=a"], "--sweep cell=a: there is no field 'cell'. Did you mean model.cell?"),
        (["=a"], "--sweep =a: there is no field ''."),
        (["model.cell=lstm", "model.cell=gru"], "--sweep names model.cell twice; give all its values at once."),
        (["train.seed=1"], "train.seed is given by --sweep and by --train.seed; give it once."),
        (["model.cell"], "--sweep model.cell: a value is empty; it takes FIELD=VALUE,VALUE."),
        (["model.cell="], "--sweep model.cell=: a value is empty; it takes FIELD=VALUE,VALUE."),
        (["model.cell=lstm,,gru"], "--sweep model.cell=lstm,,gru: a value is empty; it takes FIELD=VALUE,VALUE."),
        (
            ['model.cell="lstm'],
            '--sweep model.cell="lstm: unexpected end of data; a value that holds a comma or quotes',
        ),
        (["model.cell=a\nb"], "--sweep model.cell=a\nb: "),
        (["model.cell=" + "a," * 1000 + "a"], "--sweep makes 1,001 combinations, and 1,000 at most are tried."),
        (["published=a\0b"], r"--published holds a NUL character, got 'a\x00b'."),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(sweeps, message):
    with pytest.raises(UserError) as refused:
        combinations(Config, sweeps, [Given("train.seed", ["3"])])
    assert str(refused.value).startswith(message)
