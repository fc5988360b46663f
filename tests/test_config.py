import ast
import dataclasses
import inspect
import math
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from seq2seq_jax import config as config_module
from seq2seq_jax.config import (
    Bounds,
    Config,
    DataConfig,
    DecodeConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    differences,
    from_json,
    to_json,
)
from seq2seq_jax.errors import UserError

SECTIONS = [ModelConfig, DataConfig, OptimizerConfig, TrainConfig, DecodeConfig, MeshConfig]
PREFIXES = {Config: ""} | {
    hint: f"{name}." for name, hint in get_type_hints(Config).items() if dataclasses.is_dataclass(hint)
}
FIELDS = [
    pytest.param(section, item.name, id=f"{prefix}{item.name}")
    for section, prefix in PREFIXES.items()
    for item in dataclasses.fields(section)
]

ODD = Config(
    model=ModelConfig(hidden_size=6, dropout_rate=0, attention="none", input_feeding=False),
    data=DataConfig(columns=("a", "b"), train_files=("x.de", "x.en"), batch_size=None, batch_tokens=512),
    optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=5),
    published="99.8 % (Lake and Baroni 2018)",
)


@pytest.mark.parametrize("config", [Config(), ODD], ids=["default", "odd"])
def test_json_gives_back_the_same_configuration(config):
    assert from_json(to_json(config)) == config


def test_json_of_a_configuration_is_stable():
    assert to_json(from_json(to_json(ODD))) == to_json(ODD)


def test_differences_name_each_field_and_both_values():
    other = dataclasses.replace(ODD, train=TrainConfig(seed=3), data=DataConfig(corpus="files:x"))
    told = differences(ODD, other)
    assert "train.seed: 0 -> 3" in told
    assert "data.corpus: 'scan/simple' -> 'files:x'" in told
    assert "data.columns: ('a', 'b') -> ()" in told
    assert not any(line.startswith(("model.", "optimizer.", "decode.")) for line in told)
    assert differences(ODD, ODD) == []


@pytest.mark.parametrize("section", [*SECTIONS, Config])
def test_nothing_can_be_changed_after_the_checks(section):
    name = dataclasses.fields(section)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section(), name, None)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_says_what_it_is(section):
    """The strings below the fields are the help of the command line."""
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{section.__name__}: {ast.unparse(statement)}"


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_refuses_a_value_of_another_type(section, name):
    with pytest.raises(UserError, match=rf"^{PREFIXES[section]}{name} must be .* got \{{'a': 1\}}"):
        section(**{name: {"a": 1}})


def kinds(hint: object) -> set[object]:
    """The types that a hint is made of."""
    inner = [part for argument in get_args(hint) for part in kinds(argument)] if get_origin(hint) is not Literal else []
    return {hint, *inner}


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_number_states_its_bounds_and_refuses_what_lies_beyond(section, name):
    hint = get_type_hints(section, include_extras=True)[name]
    bounds = next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Bounds)), None)
    assert (bounds is not None) == bool(kinds(hint) & {int, float})
    if bounds is None:
        return
    assert all(map(math.isfinite, bounds)) and bounds.least < bounds.largest
    whole = int in kinds(hint)
    beyond = [bounds.least - 1, bounds.largest + 1, 10**400] if whole else [math.inf, -math.inf, math.nan, 1e23]
    beyond += [] if whole else [math.nextafter(bounds.least, -math.inf), math.nextafter(bounds.largest, math.inf)]
    for value in beyond:
        with pytest.raises(UserError, match=rf"^{PREFIXES[section]}{name} must be from .* to .*, got "):
            section(**{name: value})
    for value in bounds:
        try:
            section(**{name: value})
        except UserError as error:  # what else the field has to agree with
            assert "must be from" not in str(error)


def test_beams_and_vocabularies_at_their_largest_count_within_int32():
    """The search keeps a token and its place in the beam as one number."""
    hints = get_type_hints(DecodeConfig, include_extras=True) | get_type_hints(DataConfig, include_extras=True)
    largest = {name: hints[name].__metadata__[0].largest for name in ("beam_size", "vocab_size")}
    assert largest["beam_size"] * largest["vocab_size"] < 2**31


def test_a_value_that_cannot_be_shown_is_refused_all_the_same():
    class Odd:
        def __repr__(self):
            raise ValueError

    with pytest.raises(UserError, match="train.seed must be int, got a value of type Odd that cannot be shown"):
        TrainConfig(seed=Odd())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ModelConfig(attention="generl"),
            "model.attention .* got 'generl'. Did you mean general?",
        ),
        (lambda: ModelConfig(hidden_size=0), "model.hidden_size must be from 1 to 65,536, got 0."),
        (lambda: ModelConfig(hidden_size=True), "model.hidden_size must be int, got True"),
        (lambda: ModelConfig(hidden_size=5), "model.hidden_size 5 is odd.* use 6, or model.bidirectional none"),
        (lambda: ModelConfig(dropout_rate=1.5), "model.dropout_rate must be from 0 to 0.999999, got 1.5"),
        (lambda: ModelConfig(dropout_rate=float("nan")), "model.dropout_rate must be from 0 to 0.999999, got nan"),
        (lambda: ModelConfig(init_scale=0.0), "model.init_scale must be from 1e-06 to 100, got 0.0"),
        (lambda: ModelConfig(attention="none"), "set model.input_feeding False"),
        (lambda: ModelConfig(bidirectional=True), "model.bidirectional must be one of none, first, all, got True"),
        (lambda: ModelConfig(cell="lstmm"), "got 'lstmm'. Did you mean lstm?"),
        (lambda: ModelConfig(cell="LSTM"), "got 'LSTM'. Did you mean lstm?"),
        (
            lambda: ModelConfig(decoder_cell="grru"),
            "model.decoder_cell must .* None, got 'grru'. Did you mean gru",
        ),
        (
            lambda: ModelConfig(cell="min_gru", state_dropout_rate=0.1),
            "model.state_dropout_rate 0.1 acts on .* model.cell min_gru does not have, .* set model.state_dropout",
        ),
        (
            lambda: ModelConfig(decoder_cell="min_lstm", bridge="zero", weight_dropout_rate=0.1),
            "model.weight_dropout_rate 0.1 acts on what model.decoder_cell min_lstm does not have",
        ),
        (
            lambda: ModelConfig(cell="rnn", recurrent_dropout_rate=0.1),
            "model.recurrent_dropout_rate 0.1 acts on what model.cell rnn does not have, a memory that a step adds to",
        ),
        (
            lambda: ModelConfig(cell="gru", zoneout_cell_rate=0.1),
            "model.zoneout_cell_rate 0.1 .* model.cell gru does not have, a memory .* use model.zoneout_hidden_rate",
        ),
        (
            lambda: ModelConfig(layer_dropout_rate=0.1),
            "model.layer_dropout_rate 0.1 .* model.num_layers is 1; set model.layer_dropout_rate None",
        ),
        (
            lambda: ModelConfig(dropout_rate=0.0, variational_dropout=True, zoneout_hidden_rate=0.1),
            "model.variational_dropout .* all of them are 0; set one, or model.variational_dropout False",
        ),
        (
            lambda: ModelConfig(reverse_source=True),
            "model.reverse_source changes nothing where .* is all",
        ),
        (
            lambda: ModelConfig(reverse_source=True, bidirectional="none", features="separate"),
            "model.reverse_source turns round .* model.features is separate; set model.features prepend",
        ),
        (lambda: Config(model=ModelConfig(features="linear")), "model.features linear reads the tags of data.features"),
        (
            lambda: DataConfig(features="tags", train_files=("a", "b")),
            "data.features tags is a column .* put train.tags beside them into a folder",
        ),
        (
            lambda: DataConfig(context_turns=2, turns="place", train_files=("a", "b")),
            "data.context_turns 2 .* put train.place beside them .* and data.turns place",
        ),
        (lambda: DataConfig(context_turns=2), "by the column data.turns, which is not set; name it, or set"),
        (
            lambda: DataConfig(context_turns=2, turns="turn", features="tags"),
            "data.features tags puts tags behind it; set one of them",
        ),
        (
            lambda: DataConfig(context_turns=2, turns="turn", joint_vocabulary=False),
            "it needs one vocabulary for both. Set data.joint_vocabulary True",
        ),
        (lambda: DataConfig(features="tags", features_separator="\t"), "data.features_separator has a tab"),
        (
            lambda: ModelConfig(copy=True, attention="none", input_feeding=False),
            "model.copy True copies by attention, and model.attention is none; set model.copy False",
        ),
        (lambda: ModelConfig(copy=True, attention_window="local_p"), "model.copy True .* do not sum to 1"),
        (
            lambda: Config(model=ModelConfig(copy=True), data=DataConfig(joint_vocabulary=False)),
            "model.copy True .* data.joint_vocabulary True, or model.copy False",
        ),
        (
            lambda: Config(train=TrainConfig(coverage_loss=1.0)),
            "train.coverage_loss 1.0 weighs what model.coverage adds up, and that is False",
        ),
        (
            lambda: ModelConfig(attention="hard_monotonic"),
            "model.attention hard_monotonic .* it goes with model.input_feeding False, not True",
        ),
        (
            lambda: ModelConfig(attention="hard_monotonic", input_feeding=False, output="linear"),
            "it goes with model.output luong or deep, not linear",
        ),
        (
            lambda: ModelConfig(alignment_order=1),
            "model.alignment_order 1 is of hard_monotonic, and model.attention is",
        ),
        (lambda: ModelConfig(residual_from=3, num_layers=2), "model.residual_from 3 is above .* model.num_layers 2"),
        (
            lambda: ModelConfig(residual_from=1),
            "model.embed_size 256 must be model.hidden_size 512",
        ),
        (lambda: ModelConfig(window_size=0), "model.window_size must be from 1 to 10,000, got 0"),
        (lambda: ModelConfig(attention_heads=2), "model.attention_heads 2 go with .*, and model.attention is general"),
        (
            lambda: ModelConfig(attention="dot", attention_heads=3),
            "model.attention_heads 3 do not divide model.hidden_size 512",
        ),
        (lambda: ModelConfig(coverage=True), "model.coverage is a term of additive .* model.attention is general"),
        (
            lambda: ModelConfig(attention="none", input_feeding=False, attention_window="local_p"),
            "model.attention_window local_p acts on attention, .* set model.attention_window all",
        ),
        (
            lambda: ModelConfig(attention="none", input_feeding=False, attention_heads=2),
            "model.attention_heads 2 acts on attention, .* set model.attention_heads 1",
        ),
        (
            lambda: ModelConfig(attention="none", input_feeding=False, decoder="bahdanau"),
            "model.decoder is bahdanau, which attends, and model.attention is none",
        ),
        (
            lambda: ModelConfig(decoder="plain"),
            "is plain, which has no attention; set model.attention none",
        ),
        (lambda: ModelConfig(decoder="gnmt", input_feeding=False), "set model.num_layers 2 or more"),
        (lambda: ModelConfig(decoder="cho"), "and model.decoder is cho; set model.input_feeding False"),
        (lambda: ModelConfig(context_feedback=True), "model.context_feedback is of the gnmt decoder"),
        (
            lambda: ModelConfig(decoder_cell="gru"),
            "model.bridge copy hands a state of lstm on to gru",
        ),
        (
            lambda: ModelConfig(decoder_layers=3),
            "model.bridge copy gives every layer .* there are 1 and model.decoder_layers 3; set model.bridge mean",
        ),
        (
            lambda: ModelConfig(direction_size=512),
            "model.bridge copy hands states of twice model.direction_size 512 on to .* model.hidden_size 512",
        ),
        (lambda: ModelConfig(direction_size=5, bidirectional="none"), "model.bidirectional is none; set .* None"),
        (
            lambda: ModelConfig(direction_size=512, bridge="zero", attention="dot"),
            "of a state of model.hidden_size 512 and encoder outputs of 1024, twice model.direction_size",
        ),
        (
            lambda: ModelConfig(
                direction_size=512, bridge="zero", bidirectional="first", num_layers=2, residual_from=2
            ),
            "adds the 1024 inputs of encoder layer 2 to its 512 outputs",
        ),
        (lambda: ModelConfig(cell="slstm", bridge="dense"), "model.bridge dense makes states that slstm cannot have"),
        (
            lambda: ModelConfig(output="linear", tied_embeddings="target_output"),
            "model.output linear reads vectors of 1024 features by embeddings of model.embed_size 256",
        ),
        (lambda: ModelConfig(freeze_vectors=True), "and neither is set; set one, or model.freeze_vectors False"),
        (
            lambda: ModelConfig(source_vectors="a", target_vectors="b", tied_embeddings="source_target"),
            "cannot start from both model.source_vectors a and model.target_vectors b; give one",
        ),
        (
            lambda: ModelConfig(source_vectors="a", freeze_vectors=True, tied_embeddings="all"),
            "model.tied_embeddings all shares with the output layer, which has to learn",
        ),
        (
            lambda: ModelConfig(target_vectors="a", freeze_vectors=True, tied_embeddings="target_output"),
            "model.tied_embeddings target_output shares with the output layer",
        ),
        (lambda: DataConfig(batch_size=None), "exactly one of data.batch_size .* and data.batch_tokens"),
        (lambda: DataConfig(batch_tokens=9), "exactly one of data.batch_size .* and data.batch_tokens"),
        (lambda: DataConfig(vocab_size=4), "data.vocab_size must be from 5 to 1,000,000, got 4"),
        (lambda: DataConfig(max_length=1), "data.max_length must be from 2 to 1,000,000, got 1"),
        (
            lambda: DataConfig(train_files=("a",)),
            "data.train_files must be",
        ),
        (lambda: DataConfig(test_files=("a", "b")), "go with data.train_files, which is not set"),
        (lambda: OptimizerConfig(learning_rate=0.0), "optimizer.learning_rate must be from 1e-12 to 1,000, got 0.0"),
        (
            lambda: OptimizerConfig(learning_rate=float("nan")),
            "learning_rate must be from .* got nan",
        ),
        (lambda: OptimizerConfig(weight_decay=0.1), "acts in adamw only, and optimizer.name is adam"),
        (
            lambda: OptimizerConfig(schedule="halving", halving_start=5),
            "optimizer.schedule halving needs optimizer.halving_every",
        ),
        (
            lambda: OptimizerConfig(schedule="plateau", halving_start=5),
            "optimizer.halving_start 5 acts in the halving schedule only, .* is plateau; set .* None",
        ),
        (
            lambda: OptimizerConfig(schedule="halving", halving_start=5, halving_every=2, warmup_steps=6),
            "halving_start 5 lies within the warm-up of optimizer.warmup_steps 6; use 6 or more",
        ),
        (
            lambda: DataConfig(vocabulary_sample=9, vocabulary="words"),
            "data.vocabulary_sample 9 acts in unigram and bpe only, and data.vocabulary is words",
        ),
        (lambda: DataConfig(min_frequency=2), "acts in words and characters only, and data.vocabulary is unigram"),
        (
            lambda: DataConfig(min_frequency=2, target_vocabulary="bpe", joint_vocabulary=False),
            "acts in words and characters only, and data.vocabulary is unigram and bpe",
        ),
        (
            lambda: DataConfig(vocabulary="characters", target_vocabulary="words"),
            "target_vocabulary words is not data.vocabulary characters, .* set data.joint_vocabulary False, or",
        ),
        (
            lambda: DataConfig(target_vocabulary="word"),
            "one of .*, words, None, got 'word'. Did you mean words?",
        ),
        (
            lambda: Config(metrics=("rouge", "token_error")),
            r"metrics must be a tuple of any of rouge, .*, got \('rouge', 'token_error'\). Did you mean token_errors\?",
        ),
        (lambda: Config(metrics="rouge"), "metrics must be a tuple of any of rouge, .*, got 'rouge'"),
        (
            lambda: Config(published_metric="rougeL", published_score=23.4, metrics=("distinct",)),
            "rougeL is reported with rouge among metrics, which are distinct; set metrics distinct rouge",
        ),
        (
            lambda: Config(published_metric="rouge1", published_score=23.4),
            "rouge1 is reported with rouge among metrics, which are none; set metrics rouge",
        ),
        (
            lambda: Config(published_metric="distinct_1", published_score=101.0, metrics=("distinct",)),
            "101 is more than 100, and distinct_1 is in percent",
        ),
        (lambda: OptimizerConfig(beta1=1.0), "optimizer.beta1 must be from 0 to 0.999999, got 1.0"),
        (lambda: TrainConfig(num_steps=0), "train.num_steps must be from 1 to 1,000,000,000, got 0"),
        (lambda: TrainConfig(best_metric="bleu", decode_sentences=0), "train.decode_sentences is 0"),
        (lambda: DecodeConfig(beam_size=0), "decode.beam_size must be from 1 to 1,000, got 0"),
        (lambda: DecodeConfig(max_length_ratio=0.0), "decode.max_length_ratio must be from 0.01 to 1,000, got 0.0"),
        (
            lambda: DecodeConfig(beam_size=1_000, batch_size=1_001),
            "more than 1,000,000 hypotheses at once; use decode.batch_size 1000",
        ),
        (lambda: MeshConfig(data=0), "mesh.data must be from 1 to 65,536, got 0"),
        (lambda: DataConfig(corpus=""), "data.corpus holds an empty name, got ''; give one, or leave it out"),
        (lambda: DataConfig(columns=("a", "")), "data.columns holds an empty name"),
        (lambda: DataConfig(source="a\0"), r"data.source holds a NUL character, got 'a\\x00'"),
        (lambda: DataConfig(train_files=("\udce9", "b")), r"data.train_files is not UTF-8 text, got '\\udce9'"),
        (lambda: Config(published="\ud800"), "published is not UTF-8 text"),
        (
            lambda: Config(published_score=39.0),
            "published_score 39.0 needs published_metric: .* Give both, or neither.",
        ),
        (lambda: Config(published_metric="bleu"), "published_metric bleu needs published_score: .* both, or neither."),
        (lambda: Config(published_metric="rouge", published_score=1.0), "published_metric must be one of bleu, "),
        (
            lambda: Config(published_band=0.5),
            "published_band 0.5 belongs to a published_score, and there is none; give",
        ),
        (lambda: Config(published_split="test"), "published_split 'test' belongs to a published_score"),
        (
            lambda: Config(published_metric="bleu", published_score=390.0),
            "390 is more than 100, and bleu is in percent",
        ),
        (lambda: Config(published_metric="bleu", published_score=-1.0), "published_score must be from 0 to 1,000,000"),
        (
            lambda: Config(published_metric="loss", published_score=1.0, published_band=-1.0),
            "published_band must be from",
        ),
        (
            lambda: Config(published_metric="bleu_moses_lowercase", published_score=39.0),
            "bleu_moses_lowercase is reported with moses_language, which is not set",
        ),
        (
            lambda: Config(model=ModelConfig(tied_embeddings="all"), data=DataConfig(joint_vocabulary=False)),
            "needs data.joint_vocabulary True",
        ),
        (
            lambda: Config(
                optimizer=OptimizerConfig(schedule="cosine", warmup_steps=10), train=TrainConfig(num_steps=10)
            ),
            "optimizer.warmup_steps 10 leaves nothing of train.num_steps 10",
        ),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_way_out(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_sides_may_have_vocabularies_of_their_own():
    apart = {"vocabulary": "characters", "joint_vocabulary": False}
    DataConfig(target_vocabulary="words", min_frequency=2, **apart)
    DataConfig(target_vocabulary="bpe", min_frequency=2, **apart)  # which acts on the characters
    DataConfig(vocabulary="bpe", target_vocabulary="bpe")


def test_scores_that_are_no_shares_may_be_more_than_one_hundred():
    for metric, name in (("token_errors", "token_error_rate"), ("edit_distance", "edit_distance")):
        Config(metrics=(metric,), published_metric=name, published_score=120.0)


def test_vectors_go_with_the_ties_that_they_leave_possible():
    same = {"source_vectors": "a", "target_vectors": "a"}
    for ties in ("source_target", "all", "target_output"):
        ModelConfig(tied_embeddings=ties, **same)
    ModelConfig(tied_embeddings="source_target", freeze_vectors=True, **same)
    ModelConfig(tied_embeddings="target_output", freeze_vectors=True, source_vectors="a")


def test_a_whole_number_serves_where_a_number_is_asked_for():
    assert OptimizerConfig(learning_rate=1).learning_rate == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"hiden_size": 4}}', "Unknown config field model.hiden_size. Did you mean model.hidden_size?"),
        ('{"modle": {}}', "Unknown config field modle. Did you mean model?"),
        ('{"model": {"cell": "lstm"', "not a configuration"),
        ('{"model": {"hidden_size": "4"}}', "model.hidden_size must be int, got '4'"),
        ('{"model": 5}', "model must be a group of fields, got 5"),
        ("[]", "not a configuration"),
        ("[" * 100_000, "not a configuration"),
        ('{"train": {"seed": ' + "9" * 5000 + "}}", "not a configuration"),
        ('{"optimizer": {"learning_rate": Infinity}}', "optimizer.learning_rate must be from .* got inf"),
        ('{"model": null}', "model must be a group of fields, got None"),
        ('{"moses_language": 3}', r"moses_language must be str \\| None, got 3"),
    ],
)
def test_a_damaged_image_of_a_configuration_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        from_json(text)


def test_older_images_have_null_where_nothing_was_published():
    assert from_json('{"published": null}') == Config(published="")


def test_older_images_without_a_newer_field_get_its_default():
    assert from_json('{"train": {"seed": 7}}') == Config(train=TrainConfig(seed=7))


def test_the_module_imports_only_the_standard_library_and_errors():
    tree = ast.parse(inspect.getsource(config_module))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported == {"dataclasses", "typing", "seq2seq_jax.errors"}


@pytest.mark.parametrize(
    ("target", "given", "expected"),
    [
        ("de", None, "13a"),
        (None, None, "13a"),
        ("zh", None, "zh"),
        ("zh-CN", None, "zh"),
        ("JA_jp", None, "ja-mecab"),
        ("ko", None, "ko-mecab"),
        ("ja", "char", "char"),
        ("java", None, "13a"),
    ],
)
def test_the_tokenizer_of_bleu_is_that_of_the_target_unless_it_is_given(target, given, expected):
    assert Config(data=DataConfig(target=target), bleu_tokenizer=given).tokenizer == expected
