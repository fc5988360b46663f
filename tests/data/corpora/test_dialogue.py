import gzip
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora import load_corpus
from seq2seq_jax.data.corpora.dialogue import with_turns_before
from seq2seq_jax.errors import UserError

ROWS = [("a", "b", "7\t0"), ("b", "c", "7\t1"), ("c", "d", "7\t2"), ("x", "y", "8\t0")]


def place(number: int) -> str:
    return f"line {number}"


def found(rows: Any, most: int) -> list[tuple[str, str]]:
    return list(with_turns_before(iter(rows), most, place))


@pytest.mark.parametrize("most", [1, 2, 3, 9])
@pytest.mark.parametrize("step", [1, 2])
def test_a_source_has_the_turns_before_it_in_its_dialogue(most, step):
    """Pairs of random dialogues: all of them, or those of one side alone; against slices of the dialogues."""
    random = np.random.default_rng(most)
    dialogues = [[f"{name} {place}" for place in range(random.integers(2, 12))] for name in range(40)]
    rows, expected = [], []
    for name, turns in enumerate(dialogues):
        for position in range(0, len(turns) - 1, step):
            rows.append((turns[position], turns[position + 1], f"dialogue {name} {position}"))
            expected.append(("\t".join(turns[max(0, position - most) : position + 1]), turns[position + 1]))
    assert found(rows, most) == expected
    assert max(source.count("\t") for source, _ in expected) == min(most, 9 if step == 1 else 8)


def test_what_is_empty_stays_a_pair_without_text():
    rows = [("a", "b", "7 0"), ("", "", ""), ("b", "", "7 1"), ("", "c", "7 2"), ("c", "d", "7 3")]
    assert found(rows, 2) == [("a", "b"), ("", ""), ("a\tb", ""), ("", "c"), ("b\t\tc", "d")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[1:], "line 1 is turn 1 of dialogue '7', and what comes before it is nothing"),
        ([ROWS[0], ROWS[2]], None),  # the reply to a reply alone
        ([ROWS[0], ("d", "e", "7 3")], "line 2 is turn 3 of dialogue '7', .* is turn 0 of dialogue '7'"),
        ([ROWS[0], ROWS[0], ROWS[1]], None),  # another dialogue of the same name
        ([*ROWS[:3], ROWS[1]], "line 4 is turn 1 of dialogue '7', .* is turn 2 of dialogue '7'"),
        ([*ROWS, ("y", "z", "7 1")], "line 5 is turn 1 of dialogue '7', .* is turn 0 of dialogue '8'"),
        ([("a", "b", "1")], "line 1: data.turns has '1', which should be a dialogue and the position"),
        ([("a", "b", "")], "line 1: data.turns has ''"),
        ([("a", "b", "7\t-1")], "line 1: data.turns has '7"),
        ([("a", "b", "7\t²")], "line 1: data.turns has '7"),
        ([ROWS[0], ("B", "c", "7 1")], "line 2: turn 1 of dialogue '7' is 'B', and as the target before it is 'b'"),
        ([("a\tb", "c", "7 0")], "line 1: an utterance has a tab, which stands between turns"),
        ([("a", "b\tc", "7 0")], "line 1: an utterance has a tab, which stands between turns"),
    ],
)
def test_positions_that_make_no_dialogue_are_refused(rows, message):
    if message is None:
        assert len(found(rows, 2)) == len(rows)
        return
    with pytest.raises(UserError, match=message):
        found(rows, 2)


def load(folder: Path, **settings: Any):
    settings = {"turns": "turn", "context_turns": 2} | settings
    return load_corpus(DataConfig(corpus=f"files:{folder}", data_dir=str(folder.parent / "prepared"), **settings))


def put(folder: Path, rows: Any, split: str = "train") -> None:
    folder.mkdir(exist_ok=True)
    for column, lines in zip(("source", "target", "turn"), zip(*rows, strict=True), strict=True):
        (folder / f"{split}.{column}").write_text("".join(f"{line}\n" for line in lines))


def test_columns_of_a_folder_and_of_a_table(tmp_path):
    put(tmp_path / "text", ROWS)
    put(tmp_path / "text", ROWS[:1], "validation")
    (tmp_path / "table").mkdir()
    for split, rows in (("train", ROWS), ("validation", ROWS[:1])):
        lines = ["\t".join([source, target, turn.replace("\t", " ")]) for source, target, turn in rows]
        (tmp_path / "table" / f"{split}.tsv").write_text("\n".join(lines) + "\n\n")
    corpora = [load(tmp_path / "text"), load(tmp_path / "table", columns=("source", "target", "turn"))]
    for corpus in corpora:
        assert corpus.split("train").read(0, 9) == (["a", "a\tb", "a\tb\tc", "x"], ["b", "c", "d", "y"])
        assert "source: with up to 2 turns before it, by the column turn" in corpus.notes
    one, none = (load(tmp_path / "text", context_turns=number) for number in (1, 0))
    assert one.split("train").read(0, 9)[0] == ["a", "a\tb", "b\tc", "x"]
    assert none.split("train").read(0, 9)[0] == ["a", "b", "c", "x"]
    assert none.fingerprint == load(tmp_path / "text", context_turns=0, turns=None).fingerprint
    assert len({corpora[0].fingerprint, one.fingerprint, none.fingerprint}) == 3
    assert load(tmp_path / "text").fingerprint == corpora[0].fingerprint  # by the index, which tells them apart


def test_a_line_that_is_wrong_is_told_by_its_file(tmp_path):
    put(tmp_path / "text", [*ROWS, ("y", "z", "9\t4")])
    with pytest.raises(UserError, match=r"train\.turn, line 5 is turn 4 of dialogue '9'"):
        load(tmp_path / "text")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turns": "turns"}, r"data\.turns turns: there is no such column; .* Did you mean turn\?"),
        ({"turns": "source"}, "data.turns and data.source are both source"),
    ],
)
def test_a_column_of_turns_that_cannot_be_is_refused(settings, message, tmp_path):
    put(tmp_path / "text", ROWS)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "text", **settings)


@pytest.mark.parametrize("most", [2, 50])
def test_the_dialogues_of_dailydialog_come_together_again(corpora, most):
    columns = []
    for column in ("source", "target", "turn"):
        with gzip.open(corpora / "dailydialog" / f"validation.{column}.gz", "rt", newline="\n") as file:
            columns.append(file.read().split("\n")[:-1])
    dialogues: dict[str, dict[int, str]] = defaultdict(dict)
    for source, target, turn in zip(*columns, strict=True):
        name, position = turn.split("\t")
        dialogues[name] |= {int(position): source, int(position) + 1: target}
    expected = []
    for turn in columns[2]:
        name, position = turn.split("\t")
        kept = range(max(0, int(position) - most), int(position) + 1)
        expected.append("\t".join(dialogues[name][each] for each in kept))
    assert found(zip(*columns, strict=True), most) == list(zip(expected, columns[1], strict=True))
