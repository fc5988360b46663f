"""Runs whose targets have words that no vocabulary can have, and runs whose sources have tags."""

from dataclasses import replace

import numpy as np
import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.training.loop import train
from seq2seq_jax.translator import load
from tests.tiny import WORDS, tiny_config

VERBS = ("meet", "call", "see")


def names(count, seed):
    """Made-up words, hardly one of them twice."""
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("abcdefghij"), 6)) for _ in range(count)]


def write(folder, **splits):
    """Writes `SPLIT.in` and `SPLIT.out` and returns the fields that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {}
    for split, pairs in splits.items():
        files = folder / f"{split}.in", folder / f"{split}.out"
        for file, lines in zip(files, zip(*pairs, strict=True), strict=True):
            file.write_text("".join(f"{line}\n" for line in lines))
        fields[f"{split}_files"] = tuple(map(str, files))
    return fields


def calls(count, seed):
    """`meet NAME` and `NAME then NAME` to what is copied of them."""
    draw, found = np.random.default_rng(seed), names(2 * count, seed)
    pairs = []
    for index in range(count):
        one, other = found[2 * index : 2 * index + 2]
        pairs.append((f"{draw.choice(VERBS)} {one}", one) if index % 2 else (f"{one} then {other}", f"{other} {one}"))
    return pairs


def test_a_model_learns_to_copy_words_that_it_has_never_seen(tmp_path):
    """Every test name is new: without copies not one output could be right."""
    files = write(tmp_path, train=calls(400, 0), validation=calls(20, 1), test=calls(40, 2))
    config = tiny_config(
        tmp_path / "corpus",
        model={"copy": True, "hidden_size": 32, "dropout_rate": 0.0},
        data=files | {"joint_vocabulary": True, "vocab_size": 8, "batch_size": 20},
        train={"num_steps": 300, "evaluate_every": 300, "checkpoint_every": 300, "log_every": 100},
        optimizer={"learning_rate": 0.02, "schedule": "cosine"},
    )
    result = train(config, tmp_path / "run")
    assert result.scores["test"]["exact_match"] > 90
    assert not any("unknown" in remark or "impossible" in remark for remark in result.scores["test"]["remarks"])
    translator = load(tmp_path / "run")
    assert [found.text for found in translator.translate(["call zzz", ""])] == ["zzz", ""]
    right, wrong = translator.score(["call zzz"] * 2, ["zzz", "call"])
    assert right > np.log(0.5) > wrong
    with pytest.warns(UserWarning, match="1 of 2 target lines is read with unknown symbols.*'yyy'"):
        translator.score(["call zzz"] * 2, ["zzz", "yyy"])


def test_a_model_that_has_nothing_to_copy_is_refused(tmp_path):
    """The words of the tiny task are in capitals on one side."""
    config = tiny_config(tmp_path / "corpus", model={"copy": True}, data={"joint_vocabulary": True})
    with pytest.raises(UserError, match=r"model\.copy True: no target of the training split has a token of its source"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("features", ["prepend", "linear"])
def test_tags_say_what_to_do(features, tmp_path):
    """Only the tags tell a word from the same word in capitals."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 300), ("validation", 20), ("test", 40)):
        lines = []
        for _ in range(count):
            word, tag = draw.choice(WORDS), draw.choice(["low", "up"])
            lines.append(f"{word}\t{word.upper() if tag == 'up' else word}\tW;{tag}\n")
        (tmp_path / f"{split}.tsv").write_text("".join(lines))
    config = tiny_config(
        tmp_path / "corpus",
        train={"num_steps": 200, "evaluate_every": 100, "checkpoint_every": 100, "log_every": 100},
        optimizer={"learning_rate": 0.02},
    )
    columns = {"columns": ("word", "form", "tags"), "source": "word", "target": "form", "features": "tags"}
    files = {"train_files": None, "validation_files": None, "test_files": None, "corpus": f"files:{tmp_path}"}
    model = replace(config.model, features=features, hidden_size=24, dropout_rate=0.0)
    config = replace(config, model=model, data=replace(config.data, vocabulary="characters", **columns, **files))
    assert train(config, tmp_path / "run").scores["test"]["exact_match"] == 100
    translator = load(tmp_path / "run")
    assert [found.text for found in translator.translate(["bee\tW;up", "bee\tW;low"])] == ["BEE", "bee"]
    with pytest.raises(UserError, match="The source 'bee' has no tab and tags behind it"):
        translator.translate(["bee"])
    with pytest.warns(UserWarning, match="unknown symbols"):
        translator.translate(["bee\tW;new"])
