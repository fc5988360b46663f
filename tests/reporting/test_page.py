"""The page of a real run, and of runs in every state."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sacrebleu

from seq2seq_jax import cli, report
from seq2seq_jax.config import Config, flat
from seq2seq_jax.errors import UserError
from seq2seq_jax.metrics import score_hypotheses
from seq2seq_jax.run_directory import claim, read_config
from tests.tiny import tiny_config

HOSTILE = "<script>document.title='owned'</script> \u202e</style><img src=x onerror=alert(1)> \x07&amp;"


class Page(HTMLParser):
    """Text and tags of a page by section."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: set[str] = set()
        self.sections: dict[str, str] = {"": ""}
        self._section = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sections[self._section] += " " if tag == "div" else ""
        if tag == "section":
            self._section = dict(attrs)["id"]
            self.sections[self._section] = ""

    def handle_endtag(self, tag):
        if tag in ("td", "dd", "dt", "p", "div", "title"):
            self.sections[self._section] += " "

    def handle_data(self, data):
        self.sections[self._section] += data


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory) -> Page:
    """The page of the tiny run."""
    return Page(report(trained, tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A run directory that a test may spoil."""
    return shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("events.*"))


@pytest.fixture
def write(tmp_path) -> Callable[..., Page]:
    """Writes a page and reads it."""

    def write(*workdirs: Path, split: str | None = None) -> Page:
        return Page(report(workdirs, tmp_path / "page.html", split))

    return write


def lines_of_test(workdir: Path) -> tuple[list[str], list[str]]:
    files = read_config(workdir).data.test_files
    assert files is not None
    sources, references = (Path(file).read_text().splitlines() for file in files)
    return sources, references


def rewrite(workdir: Path, hypotheses: Sequence[str]) -> None:
    """Makes `hypotheses` the outputs of the run, with the scores that they have."""
    path = workdir / "evaluations" / "test.json"
    scores = score_hypotheses(hypotheses, [[text] for text in lines_of_test(workdir)[1]])
    found = json.loads(path.read_text())
    for name, score in scores.items():
        found |= {name: score.value} | ({f"{name}_signature": score.signature} if score.signature else {})
    path.write_text(json.dumps(found))
    (workdir / "evaluations" / "test.hypotheses.txt").write_text("".join(f"{line}\n" for line in hypotheses))


def test_a_page_has_all_sections_and_nothing_from_elsewhere(page):
    assert list(page.sections)[1:] == [
        "scores",
        "curves",
        "samples",
        "errors-by-length",
        "errors-by-word-frequency",
        "best-and-worst-sentences",
        "settings",
        "environment",
    ]
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form"}
    assert not re.search(r"https?:|//\w|\sstyle=|\son\w+=|url\(", page.source)
    assert all(figure.count("aria-label=") for figure in page.source.split("<figure")[1:])


def test_scores_are_those_of_the_evaluation_with_sacrebleus_interval(page, trained):
    scores = json.loads((trained / "evaluations" / "test.json").read_text())
    hypotheses = (trained / "evaluations" / "test.hypotheses.txt").read_text().splitlines()
    said = " ".join(page.sections["scores"].split())
    for name in ("bleu", "chrf", "exact_match", "token_accuracy", "loss"):
        assert f"{name.replace('_', ' ')} {scores[name]:.4f}" in said
    found = sacrebleu.CHRF().corpus_score(hypotheses, [lines_of_test(trained)[1]], n_bootstrap=1000)
    assert f"chrf {found.score:.4f} [{found._mean - found._ci:.2f}, {found._mean + found._ci:.2f}]" in said
    assert f"{scores['chrf_signature']}|bs:1000|seed:12345" in said


def test_curves_say_the_first_and_the_last_row(page, trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (label,) = re.findall('aria-label="(Loss, nats per target token .thin: training. over step[^"]*)"', page.source)
    for name, key in (("training", "loss"), ("validation", "validation_loss")):
        there = [row for row in rows if key in row]
        first, last = there[0], there[-1]
        assert f"{name}: {first[key]:.4g} at {first['step']}, {last[key]:.4g} at {last['step']}," in label
    assert 'aria-label="bleu, validation over step' in page.source
    assert 'aria-label="Target tokens per second over step' in page.source


def test_samples_show_what_the_model_writes_and_where_it_looks(page, trained):
    from seq2seq_jax.translator import load

    sources, references = lines_of_test(trained)
    (hypothesis,) = load(trained).translate([sources[-1]], details=True)
    said = page.sections["samples"]
    assert all(text in said for text in (sources[0], references[0], sources[-1], references[-1], hypothesis.text))
    assert hypothesis.details and hypothesis.details.weights and hypothesis.alignment
    row, column = hypothesis.details.tokens[0], hypothesis.details.source_tokens[hypothesis.alignment[0]]
    weight = max(hypothesis.details.weights[0])
    assert f"attends to most, and the weight: {row} ← {column} {weight:.2f}" in page.source
    assert page.source.count('<figure class="map">') == 5


def test_the_settings_are_those_that_differ_and_all_of_them(page, trained):
    config = read_config(trained)
    (table,) = re.findall("<table.*?</table>", page.source[page.source.index('id="settings"') :], re.S)[:1]
    listed = re.findall("<td><code>([^<]*)</code></td>", table)
    default, here = flat(Config()), flat(config)
    assert listed == [name for name in default if here[name] != default[name]] and "model.hidden_size" in listed
    assert all(f'"{name.rpartition(".")[2]}": ' in page.sections["settings"] for name in default)


def test_the_default_file_is_in_the_run_directory_and_the_command_says_so(copy, capfd):
    assert cli.main(["report", "--workdir", str(copy)]) == 0
    assert capfd.readouterr().out == f"written to {copy / 'report.html'}\n"
    assert (copy / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_the_same_run_gives_the_same_bytes(page, trained, write):
    assert write(trained).source == page.source


def test_hostile_text_stays_text(copy, write):
    _, references = lines_of_test(copy)
    rewrite(copy, [HOSTILE, *references[1:]])
    found = write(copy)
    assert not found.tags & {"script", "img"} and found.source.count("</style>") == 1
    assert "\\u202e</style><img src=x onerror=alert(1)> \\u0007&amp;" in found.sections["best-and-worst-sentences"]


def test_best_and_worst_are_by_sentence_chrf(copy, write):
    sources, references = lines_of_test(copy)
    longest = max(range(len(references)), key=lambda place: len(references[place].split()))
    outputs = [text.replace("ANT", "ANTS") for text in references]
    outputs[4] = ""
    rewrite(copy, outputs)
    said = write(copy).sections["best-and-worst-sentences"]
    worst, best = said.split("Best 8")
    assert worst.index(f"Item 5 source {sources[4]} reference {references[4]} output chrF 0.0 empty") < 200
    exact = [place for place, text in enumerate(outputs) if text == references[place]]
    first = max(exact, key=lambda place: (len(references[place].split()), -place))
    assert best.strip().startswith(f"Item {first + 1} source {sources[first]}")
    assert longest in exact or first != longest


@pytest.fixture
def better(copy) -> Path:
    """The run with outputs that are all right."""
    rewrite(copy, lines_of_test(copy)[1])
    return copy


@pytest.fixture
def worse(trained, tmp_path) -> Path:
    """The run with outputs of which the last words are lost, but for the first one."""
    folder = shutil.copytree(trained, tmp_path / "worse")
    references = lines_of_test(folder)[1]
    rewrite(folder, [references[0], *(text.rpartition(" ")[0] for text in references[1:])])
    return folder


def test_several_runs_are_side_by_side(better, worse, write):
    found = write(worse, better)
    scores = " ".join(found.sections["scores"].split())
    right = sum(text == "" for text in lines_of_test(better)[1]) + 1
    assert f"exact match {100 * right / 12:.4f}" in scores and "100.0000" in scores
    assert "p < 0.001" in scores.partition("exact match")[2].partition("token")[0]  # 2/2048, by eleven sentences
    assert "chrF is higher in 11 sentences, lower in 0, equal in 1." in found.sections["where-the-runs-differ"]
    assert "Most lost" not in found.sections["where-the-runs-differ"]
    for name in ("worse", "copy"):
        assert f"{name}, training: " in found.source and f"{name}, validation" in found.sections["curves"]
        assert f"{name}: attention in item 1" in found.sections["samples"]
        assert f"All settings of {name}" in found.sections["settings"]


def test_runs_of_different_test_text_are_refused(copy, trained, write):
    sources, references = lines_of_test(copy)
    (copy.parent / "a").write_text("".join(f"{line}\n" for line in sources))
    (copy.parent / "b").write_text("".join(f"{line}\n" for line in [*references[:3], "OTHER", *references[4:]]))
    path = copy / "evaluations" / "test.json"
    files = {"source_file": str(copy.parent / "a"), "target_file": str(copy.parent / "b")}
    path.write_text(json.dumps(json.loads(path.read_text()) | files))
    with pytest.raises(UserError, match="different text.*: of test item 4 is the first that differs"):
        write(trained, copy)
    (copy.parent / "a").write_text("".join(f"{line}\n" for line in sources[1:]))
    (copy.parent / "b").write_text("".join(f"{line}\n" for line in references[1:]))
    with pytest.raises(UserError, match="of test 11 items there and 12"):
        write(trained, copy)


def test_outputs_that_are_not_of_their_scores_are_refused(copy, write):
    path = copy / "evaluations" / "test.hypotheses.txt"
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in lines[1:]))
    with pytest.raises(UserError, match="test.hypotheses.txt has 11 lines, and test 12 items. Evaluate the run again"):
        write(copy)
    path.write_text("".join(f"{line}\n" for line in ["NONE OF IT", *lines[1:]]))
    with pytest.raises(UserError, match="hypotheses.txt has .*, and .*test.json says"):
        write(copy)
    path.unlink()
    with pytest.raises(UserError, match="There is no .*hypotheses.txt"):
        write(copy)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"sentences": 12, "bleu": "high"}', '{"sentences": 12, "decode": 3}']
)
def test_damaged_scores_are_refused_by_name(copy, write, content):
    (copy / "evaluations" / "test.json").write_text(content)
    with pytest.raises(UserError, match="test.json is damaged .*Remove it, or evaluate the run again"):
        write(copy)


def test_a_run_that_is_not_done_has_a_page_of_its_curves(copy, write):
    shutil.rmtree(copy / "evaluations")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 350, "loss": 0.')  # a kill came in between
    found = write(copy)
    assert list(found.sections)[1:] == ["curves", "settings", "environment"]
    assert (
        "copy has no evaluation: its sentences are not shown. To make one: python -m seq2seq_jax evaluate"
        in (found.sections[""])
    )
    assert "damaged" not in found.sections[""]
    with pytest.raises(UserError, match="No evaluation of test in .*copy; there is none yet.*evaluate --workdir"):
        write(copy, split="test")


def test_damaged_rows_are_counted_and_numbers_that_are_none_are_gaps(copy, write):
    rows = (copy / "metrics.jsonl").read_text().splitlines()
    rows[1] = rows[1][:20]
    rows[2] = json.dumps(json.loads(rows[2]) | {"grad_norm": None})
    (copy / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))
    found = write(copy)
    assert "metrics.jsonl of copy has 1 damaged line, left out here." in found.sections[""]


def test_a_run_with_nothing_in_it_is_refused(copy, write, capfd):
    shutil.rmtree(copy / "evaluations")
    (copy / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing to report of .*copy: metrics.jsonl has no row"):
        write(copy)
    assert cli.main(["report", "--workdir", str(copy.parent / "cop")]) == 2
    told = capfd.readouterr().err
    assert "is not a run directory" in told and "Did you mean" in told and told.count("\n") == 1


def test_a_run_given_twice_is_refused(trained, write):
    with pytest.raises(UserError, match="is given twice. Give it once."):
        write(trained, trained / ".." / trained.name)


def test_a_split_misspelled_is_told_the_nearest(trained, write):
    with pytest.raises(UserError, match=r"No evaluation of tset in .*there are test\. Did you mean test\?"):
        write(trained, split="tset")


def test_a_run_without_checkpoints_has_all_but_the_samples(copy, write):
    shutil.rmtree(copy / "checkpoints")
    found = write(copy)
    assert "copy cannot be decoded with:" in found.sections["samples"] and "no checkpoint" in found.sections["samples"]
    assert "map" not in re.findall('<figure class="([^"]*)"', found.source)
    assert "F1" in found.sections["errors-by-word-frequency"]


def test_a_run_whose_text_has_gone_has_its_scores_without_intervals(copy, write, tmp_path):
    config = read_config(copy)
    gone = str(tmp_path / "gone.low"), str(tmp_path / "gone.up")
    claim(copy, replace(config, data=replace(config.data, test_files=gone)))
    found = write(copy)
    assert "The sentences of test are not shown, and its scores have no intervals" in found.sections[""]
    assert "bleu" in found.sections["scores"] and "[" not in found.sections["scores"].partition("In brackets")[0]
    assert "samples" not in found.sections


def test_the_output_that_cannot_be_written_is_told_at_once(trained, tmp_path, disk, capfd, monkeypatch):
    with pytest.raises(UserError, match="Cannot write .*page.html: there is no folder"):
        report(trained, tmp_path / "none" / "page.html")
    disk.fill()
    assert cli.main(["report", "--workdir", str(trained), "--output", str(disk.path / "page.html")]) == 2
    told = capfd.readouterr().err
    assert "No space left on device" in told and "page.html" in told and told.count("\n") == 1
    assert [path.name for path in disk.path.iterdir()] == ["filler"]


def test_the_directory_of_several_seeds_is_its_seeds_and_their_ensemble(trained, tmp_path, write, capfd):
    for seed in (0, 1):
        shutil.copytree(trained, tmp_path / "seeds-run" / "seeds" / str(seed))
    rewrite(tmp_path / "seeds-run" / "seeds" / "1", [f"{text} X" for text in lines_of_test(trained)[1]])
    seeds = [{"seed": seed, "scores": {"test": {}}} for seed in (0, 1)]
    diverged = {"seed": 2, "scores": {}, "trouble": "Training diverged at step 7."}
    told = {"seeds": [*seeds, diverged], "conclusion": "REPRODUCED: bleu"}
    (tmp_path / "seeds-run" / "reproduction.json").write_text(json.dumps(told))
    with pytest.warns(UserWarning, match="Seed 2 of .* had diverged and is left out"):
        found = write(tmp_path / "seeds-run")
    assert "REPRODUCED: bleu" in found.sections["scores"]
    assert "Seed 2 is left out: Training diverged at step 7." in found.sections["scores"]
    (tmp_path / "seeds-run" / "reproduction.json").write_text(json.dumps(told | {"seeds": seeds}))
    first, second = (
        json.loads((tmp_path / "seeds-run" / "seeds" / str(seed) / "evaluations" / "test.json").read_text())["chrf"]
        for seed in (0, 1)
    )
    middle, spread = (first + second) / 2, abs(first - second) / 2**0.5
    assert f"chrf {middle:.4f} ± {spread:.4f}" in found.sections["scores"]
    assert "ensemble" not in found.sections[""]
    assert cli.main(["evaluate", "--workdir", str(tmp_path / "seeds-run")]) == 0
    capfd.readouterr()
    found = write(tmp_path / "seeds-run")
    assert "ensemble of 2: attention in item 1" in found.sections["samples"]
    assert "<h1>seeds-run</h1>" in found.source
    assert "<h1>seeds-run, seed 0</h1>" in write(tmp_path / "seeds-run" / "seeds" / "0").source
    assert "seeds-run, ensemble of 2: attention in item 1" in write(tmp_path / "seeds-run", trained).sections["samples"]


def test_items_of_several_references_and_a_model_without_attention(compiled, tmp_path, write):
    from seq2seq_jax import train

    plain = {"attention": "none", "decoder": "plain", "input_feeding": False, "output": "linear"}
    config = tiny_config(tmp_path, data={"group_references": True}, model=plain)
    sources, targets = (tmp_path / "test.low"), (tmp_path / "test.up")
    sources.write_text("ant bee\ncat\nant bee\n")
    targets.write_text("ANT BEE\nCAT\nBEE ANT\n")
    train(config, tmp_path / "run")
    found = write(tmp_path / "run")
    samples = " ".join(found.sections["samples"].split())
    assert "Item 1 source ant bee reference ANT BEE reference BEE ANT output" in samples and "Item 3" not in samples
    assert samples.count("No map: the model has no attention. Tokens with their probabilities:") == 2
    assert "test, 2 sentences" in found.sections["scores"] and "nrefs:var" in found.sections["scores"]


def test_seeds_that_are_still_trained_have_their_curves(trained, tmp_path, write):
    run = tmp_path / "seeds-run"
    for seed in (0, 1):
        (run / "seeds" / str(seed)).mkdir(parents=True)
        shutil.copy(trained / "metrics.jsonl", run / "seeds" / str(seed))
    shutil.copy(trained / "config.json", run)
    found = write(run)
    assert "seed 0, validation" in found.sections["curves"] and "seed 1, validation" in found.sections["curves"]
    assert "seed 1 is still trained, and has no evaluation yet." in found.sections[""]
