"""The lines that a run prints, given what they tell of."""

import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax.config import Config, DecodeConfig, MeshConfig
from seq2seq_jax.sharding import make_mesh
from seq2seq_jax.training import report
from seq2seq_jax.training.setup import prepare
from tests.tiny import tiny_config, write_pairs

SCORES = {"loss": 0.5, "perplexity": math.exp(0.5), "bleu": 40.0, "exact_match": 25.0, "cut_outputs": 0}
TEST = SCORES | {"sentences": 1, "sentences_per_second": 2.0}


def test_cut_outputs_are_printed_where_there_are_some():
    assert "cut_outputs" not in next(report.validation(10, SCORES, [], 1.0))
    assert "cut_outputs 1234" in next(report.validation(10, SCORES | {"cut_outputs": 1234}, [], 1.0))
    assert not any("cut_outputs" in line for line in report.test("test", TEST, DecodeConfig()))
    lines = [line.split() for line in report.test("test", TEST | {"cut_outputs": 1234}, DecodeConfig())]
    assert ["cut_outputs", "1,234"] in lines


@pytest.mark.parametrize(("loss", "words"), [(0.5, "1.6487"), (20.0, "4.852e+08"), (700.0, "1.014e+304")])
def test_a_perplexity_of_any_size_can_be_read(loss, words):
    lines = [line.split() for line in report.test("test", TEST | {"perplexity": math.exp(loss)}, DecodeConfig())]
    assert ["perplexity", words] in lines


def test_remarks_follow_the_scores():
    *_, last = report.test("test", TEST | {"remarks": ["a strange split"]}, DecodeConfig())
    assert last == "    a strange split"


def test_one_of_anything_is_singular():
    assert next(report.test("test", TEST, DecodeConfig())).startswith("Split test, 1 sentence, ")
    assert report.ending("done", 1, 2.0) == "Trained 1 step in 2 s."


def test_the_command_to_go_on_with_can_be_pasted_into_a_shell():
    workdir = Path("runs/it's & more")
    *_, line = report.farewell(Config(), workdir)
    assert shlex.split(line.removeprefix("Use it")) == [
        *("python", "-m", "seq2seq_jax", "translate", "--workdir"),
        str(workdir),
    ]


def test_the_farewell_of_seeds_names_one_that_was_tested_and_all_where_there_are_several():
    workdir = Path("runs/it's & more")
    *_, one, everything = report.farewell_of_seeds(Config(), "", workdir, [1, 2])
    assert shlex.split(one)[-3:] == ["translate", "--workdir", str(workdir / "seeds" / "1")]
    assert shlex.split(everything)[-3:] == ["evaluate", "--workdir", str(workdir)]
    assert not any("evaluate" in line for line in report.farewell_of_seeds(Config(), "", workdir, [1]))


def test_a_description_says_what_the_decoder_cannot_write(tmp_path):
    """Eight tokens of source are 26 of output at most; a line of 30 needs 21 after the ten more, so a ratio of 2.6."""
    config = tiny_config(tmp_path)
    source, target = write_pairs(tmp_path, "validation", ["ant bee cat dog eel fox gnu", "ant"])
    Path(target).write_text("ANT " * 30 + "\nANT\n")
    source, target = write_pairs(tmp_path, "test", ["ant"])
    mesh = make_mesh(MeshConfig(data=1))
    material = prepare(config, mesh.size)
    lines = list(report.describe(config, material, {"weights": np.zeros(3)}, mesh))
    assert lines[-1] == (
        "Scores      1 of 2 validation targets is longer than the decoder may write (decode.max_length_ratio 2);"
        " --decode.max-length-ratio 2.6 would do"
    )
    assert lines[0].endswith("train 200, validation 2, test 1 pair")
