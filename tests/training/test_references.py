"""Several references of a source in whole runs: validation, tests, seeds, and evaluations of splits and files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seq2seq_jax.cli import main
from seq2seq_jax.config import Config
from seq2seq_jax.evaluation import evaluate_lines
from seq2seq_jax.sharding import one_device
from seq2seq_jax.training.loop import Validation
from seq2seq_jax.training.reproduction import reproduce
from seq2seq_jax.training.setup import prepare
from seq2seq_jax.translator import load
from tests.tiny import rows, sentences, tiny_config

pytestmark = pytest.mark.usefixtures("compiled")

SOURCES = [*dict.fromkeys(sentences(9, seed=6))]
PAIRS = [(line, line.upper()) for line in SOURCES] + [(line, "ANT BEE") for line in SOURCES[::2]]


def write_split(folder: Path, split: str) -> tuple[str, str]:
    """Writes the pairs to two files: all sources once, and every other one again with another target."""
    files = folder / f"{split}.low", folder / f"{split}.up"
    for file, lines in zip(files, zip(*PAIRS, strict=True), strict=True):
        file.write_text("".join(f"{line}\n" for line in lines))
    return str(files[0]), str(files[1])


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("references")
    train = {"num_steps": 40, "evaluate_every": 20, "best_metric": "exact_match"}
    config = tiny_config(folder / "corpus", data={"group_references": True}, train=train)
    files = {f"{split}_files": write_split(folder, split) for split in ("validation", "test")}
    return replace(
        config,
        data=replace(config.data, **files),
        metrics=("token_errors",),
        published_metric="sequence_error_rate",
        published_score=50.0,
        published_band=60.0,
    )


@pytest.fixture(scope="module")
def reproduced(config, tmp_path_factory, compiled) -> Path:
    workdir = tmp_path_factory.mktemp("reproduced")
    reproduce(config, 2, workdir)
    return workdir


def test_validation_decodes_each_source_once_and_scores_it_with_all_of_its_targets(config, reproduced):
    translator = load(reproduced / "seeds" / "0", replace(config.decode, beam_size=1))
    scores, hypotheses = evaluate_lines(translator, *zip(*PAIRS, strict=True))
    assert len(hypotheses) == len(SOURCES) and scores["pairs"] == len(PAIRS)
    found = [row for row in rows(reproduced / "seeds" / "0") if "validation_loss" in row]
    (row,) = [row for row in found if row["step"] == translator.step]
    assert {"validation_token_error_rate", "validation_sequence_error_rate"} <= row.keys()
    for name, value in row.items():
        if name.startswith("validation_"):
            assert scores[name.removeprefix("validation_")] == pytest.approx(value, rel=1e-5), name


def test_seeds_are_tested_and_judged_by_sources(config, reproduced):
    written = json.loads((reproduced / "reproduction.json").read_text())
    found = written["splits"]["test"]
    assert found["sequence_error_rate"]["mean"] == pytest.approx(100 - found["exact_match"]["mean"])
    assert found["token_error_rate"]["signature"] == "nrefs:var|case:mixed|tok:blanks"
    assert written["verdict"] == "REPRODUCED" and "sequence_error_rate on test" in written["conclusion"]
    for seed in ("0", "1"):
        evaluations = reproduced / "seeds" / seed / "evaluations"
        assert (evaluations / "test.sources.txt").read_text().splitlines() == SOURCES
        assert len((evaluations / "test.hypotheses.txt").read_text().splitlines()) == len(SOURCES)
        assert json.loads((evaluations / "test.json").read_text())["sentences"] == len(SOURCES)


def test_evaluate_goes_by_the_setting_of_the_run_for_splits_and_files(config, reproduced, tmp_path, capfd):
    run = reproduced / "seeds" / "1"
    before = json.loads((run / "evaluations" / "test.json").read_text())
    source, target = write_split(tmp_path, "mine")
    for options in (["--split", "test"], ["--source-file", source, "--target-file", target]):
        assert main(["evaluate", "--workdir", str(run), *options]) == 0
        written = Path(capfd.readouterr().out.splitlines()[-1].removeprefix("written to ").partition(",")[0])
        scores = json.loads(written.read_text())
        assert (scores["sentences"], scores["pairs"]) == (len(SOURCES), len(PAIRS))
        for name in ("loss", "bleu", "exact_match", "token_error_rate"):
            assert scores[name] == pytest.approx(before[name], rel=1e-5)
        assert written.with_suffix(".sources.txt").read_text().splitlines() == SOURCES


def test_a_run_says_how_many_sources_and_pairs_it_counts(config, reproduced, capfd):
    reproduce(config, 2, reproduced)  # it is done, and says all again
    told = capfd.readouterr().out
    assert f"validation: {len(SOURCES)} sources, each with all of its targets as references" in told
    assert f"Split test, {len(SOURCES)} sources of {len(PAIRS)} pairs, 2 seeds, " in told


def test_so_many_sources_are_decoded_at_a_validation_as_are_asked_for(config, reproduced):
    few = replace(config, train=replace(config.train, decode_sentences=3))
    validation = Validation(few, prepare(few, 1), one_device())
    _, samples = validation(load(reproduced / "seeds" / "0").params)
    assert [sample[:2] for sample in samples] == [
        (line, [target for source, target in PAIRS if source == line]) for line in SOURCES[:3]
    ]
