"""What an exported file translates, by its runner, is what `translate` does."""

import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jaxtyping
import pytest
from flax import nnx

from seq2seq_jax import exporting, runner
from seq2seq_jax.build import build_model
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.translator import EXTRA_LENGTH, Translator, load, vocab_sizes
from tests.tiny import sentences, tiny_config

pytestmark = [
    pytest.mark.usefixtures("compiled"),
    pytest.mark.filterwarnings("ignore:.*(unknown symbols|reached the limit|seen in training)"),
]

LINES = [*sentences(20, seed=4), "", "ant", "ant zebra  bee", " \t ", "gnu hen gnu hen gnu hen gnu hen gnu hen gnu"]


@pytest.fixture(scope="module")
def translator(trained):
    return load(trained)


def variant(translator: Translator, **fields) -> Translator:
    decode = replace(translator.decode, **fields)
    return Translator(translator.config, translator.vocabularies, translator.params, decode)


def untrained(folder: Path, *, model: dict, data: dict | None = None) -> Translator:
    """A model of random values on the tiny text."""
    config = tiny_config(folder, data=data or {})
    config = replace(config, model=replace(config.model, init_scale=1.0, **model))
    vocabularies = replace(
        build_vocabularies(config.data, load_corpus(config.data).split("train")), copy=config.model.copy
    )
    built = build_model(config.model, vocab_sizes(vocabularies), jax.random.key(3))
    return Translator(config, vocabularies, nnx.to_pure_dict(nnx.state(built, nnx.Param)))


def export(translator: Translator, path: Path, *options: str) -> int:
    """As `exporting.export`; jaxtyping, which checks shapes in tests, does not know symbols for sizes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return exporting.export(translator, path, *options)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def check(translator: Translator, path: Path, lines=LINES, options=()) -> list[str]:
    export(translator, path, *options)
    expected = [hypothesis.text for hypothesis in translator.translate(lines)]
    assert runner.Model(str(path)).translate(lines) == expected
    assert len(set(expected)) > 2
    return expected


@pytest.mark.parametrize(
    "fields",
    [
        {"beam_size": 3},
        {"beam_size": 1},
        {"beam_size": 2, "no_repeat_ngram": 2, "min_length": 3, "avoid": ("BEE",), "max_length_ratio": 0.7},
        {"beam_size": 4, "groups": 2, "coverage_penalty": 0.2, "batch_size": 5},
    ],
    ids=["beam", "greedy", "rules", "groups"],
)
def test_the_file_translates_as_the_model_does(translator, tmp_path, fields):
    check(variant(translator, **fields), tmp_path / "model.pyz")


MODELS = {
    "bahdanau": {"decoder": "bahdanau", "attention": "additive", "output": "deep", "cell": "gru"},
    "gnmt": {"decoder": "gnmt", "attention": "normed_additive", "num_layers": 2, "bridge": "zero", "output": "linear"},
    "plain": {
        "decoder": "plain",
        "attention": "none",
        "reverse_source": True,
        "bidirectional": "none",
        "output": "linear",
    },
    "monotonic": {"attention": "hard_monotonic", "alignment_order": 1},
    "local": {"attention_window": "local_p", "window_size": 2, "cell": "layer_norm_lstm"},
    "heads": {"attention": "scaled_dot", "attention_heads": 2, "num_layers": 2, "tied_embeddings": "target_output"},
    "min_gru": {
        "cell": "min_gru",
        "decoder_cell": "slstm",
        "bridge": "zero",
        "attention": "scaled_dot",
        "attention_heads": 2,
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind_can_be_exported(tmp_path, name):
    feeding = "decoder" not in MODELS[name] and MODELS[name].get("attention") != "hard_monotonic"
    check(untrained(tmp_path, model={"input_feeding": feeding} | MODELS[name]), tmp_path / "model.pyz")


def test_the_longest_output_is_as_long_as_the_models(tmp_path):
    """A model of random values goes on to the limit; with a least length that is not the sum of both."""
    translator = variant(untrained(tmp_path, model={}), min_length=4, max_length_ratio=2.0)
    texts = check(translator, tmp_path / "model.pyz")
    limits = [2 * (len(line.split()) + 1) + EXTRA_LENGTH for line in LINES if line.strip()]
    lengths = [len(text.split()) + 1 for text, line in zip(texts, LINES, strict=True) if line.strip()]
    assert any(length == limit for length, limit in zip(lengths, limits, strict=True))


def test_pieces_of_words_and_reserved_characters(tmp_path):
    data = {"vocabulary": "bpe", "vocab_size": 40, "joint_vocabulary": True}
    lines = [*LINES, "a\u2581b \ufdd0\ufdd4 ant\x1f", "ANT \u00a0 bee\u2028cat"]
    check(untrained(tmp_path, model={}, data=data), tmp_path / "model.pyz", lines)


def test_characters_and_lowercase(tmp_path):
    data = {"vocabulary": "characters", "joint_vocabulary": True, "lowercase": True}
    check(untrained(tmp_path, model={}, data=data), tmp_path / "model.pyz", [*LINES, "ANT Bee"])


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_words_that_are_copied(tmp_path, kind):
    data = {"vocabulary": kind, "joint_vocabulary": True} | ({"vocab_size": 40} if kind == "bpe" else {})
    model = {"copy": True, "attention": "additive", "decoder": "bahdanau", "input_feeding": False, "output": "linear"}
    translator = untrained(tmp_path, model=model, data=data)
    lines = [*LINES, "zebra yak zebra ant", "\U0001f642 ant \U0001f643"]
    texts = check(translator, tmp_path / "model.pyz", lines)
    assert kind == "bpe" or "zebra" in " ".join(texts)


def test_the_file_runs_by_itself(translator, tmp_path):
    path = tmp_path / "my model.pyz"
    check(translator, path)
    lines = "".join(f"{line}\n" for line in LINES[:5]).encode()
    command = [sys.executable, "-W", "error", "-P", str(path)]
    marked = b"\xef\xbb\xbf" + lines  # as some editors begin a file
    found = subprocess.run(command, input=marked, capture_output=True, cwd=tmp_path, timeout=300, check=True)
    assert found.stdout.decode().splitlines() == [hypothesis.text for hypothesis in translator.translate(LINES[:5])]
    wrong = subprocess.run(command, input=b"\xff\xfe\n", capture_output=True, cwd=tmp_path, timeout=300)
    assert wrong.returncode == 2
    assert wrong.stderr == b"error: standard input, line 1: not UTF-8 (byte 0xff at column 1)\n"
    for option, code in (("--help", 0), ("--num-best", 2)):
        told = subprocess.run([*command, option], input=b"", capture_output=True, cwd=tmp_path, timeout=300)
        assert told.returncode == code and b"usage: python " in told.stdout + told.stderr


def test_the_runner_is_alone(repository):
    """It imports nothing of the package, which is not there where it runs."""
    text = (repository / "seq2seq_jax" / "runner.py").read_text()
    assert "import seq2seq_jax" not in text and "from seq2seq_jax" not in text


def test_the_same_model_gives_the_same_bytes(translator, tmp_path):
    for name in ("one", "two"):
        export(translator, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_a_file_cannot_have_is_refused(translator, tmp_path, monkeypatch):
    for fields, told in (({"replace_unknown": True}, "replace_unknown"), ({"sample": True}, "decode.sample")):
        with pytest.raises(UserError, match=told):
            export(variant(translator, **fields), tmp_path / "model.pyz")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs flatbuffers: pip install 'seq2seq-jax\[export\]'"):
        export(translator, tmp_path / "model.pyz")
    assert not (tmp_path / "model.pyz").exists()


def test_nothing_but_an_exported_model_is_replaced(translator, tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file, such as "):
        export(translator, tmp_path)
    other = tmp_path / "config.json"
    other.write_text("{}")
    with pytest.raises(UserError, match="is there already, and no exported model; name another file"):
        export(translator, other)
    assert other.read_text() == "{}"


def test_a_damaged_file_is_told(translator, tmp_path):
    whole = tmp_path / "whole.pyz"
    export(translator, whole)
    cut = tmp_path / "cut.pyz"
    cut.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(zipfile.BadZipFile):
        runner.Model(str(cut))
    flipped = tmp_path / "flipped.pyz"
    shutil.copy(whole, flipped)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        runner.Model(str(flipped))
    other = tmp_path / "other.pyz"
    with zipfile.ZipFile(whole) as files, zipfile.ZipFile(other, "w") as copy:
        for name in files.namelist():
            data = files.read(name)
            copy.writestr(name, data.replace(b'"format": 1', b'"format": 9') if name == "about.json" else data)
    with pytest.raises(ValueError, match="has format 9, and this runner reads 1"):
        runner.Model(str(other))
