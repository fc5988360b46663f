"""Text to train on: files and folders of any bytes, under every kind of vocabulary."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doors.doorway import Doorway, Outcome, cases, enter
from tests.doors.strategies import ODD, File, filled_line, lines, text_file

pytestmark = pytest.mark.usefixtures("paths_only")

CONFIG = """
from seq2seq_jax.config import *


def get_config():
    return Config(model=ModelConfig(hidden_size=8, embed_size=8, num_layers=1), data=DataConfig(**{data!r}))
"""
LEAST = 4  # filled pairs that are always enough to train on, words and characters


@pytest.fixture(scope="module", autouse=True)
def no_training_nor_model(no_training: None) -> Any:
    """Beside what `no_training` stops: the shapes of the model's weights, one for all, for they know no text."""
    from seq2seq_jax.config import Config
    from seq2seq_jax.sharding import make_mesh
    from seq2seq_jax.training import loop
    from seq2seq_jax.training.step import abstract_state

    config = Config()
    state = abstract_state(config, (10, 10), make_mesh(config.mesh))
    with mock.patch.object(loop, "abstract_state", lambda *_: state):
        yield


@dataclass(frozen=True)
class Text:
    """What is trained on: the two files of every split, and the settings of the vocabulary."""

    splits: dict[str, tuple[File, File]]
    layout: str
    data: dict[str, Any]

    @property
    def sound(self) -> bool:
        """Whether it has to be taken: clean files of equal length with text enough, not all one pair if it is cut."""
        files = [file for pair in self.splits.values() for file in pair]
        if not all(file.sound for file in files):
            return False
        train = filled(self.splits["train"])
        return (
            all(len(a.lines or ()) == len(b.lines or ()) and filled((a, b)) for a, b in self.splits.values())
            and len(train) >= LEAST
            and ("validation" in self.splits or len(set(train)) > 1)
        )


def filled(pair: tuple[File, File]) -> list[tuple[str, str]]:
    """The pairs that have text on both sides."""
    both = zip(pair[0].lines or (), pair[1].lines or (), strict=False)
    return [(source, target) for source, target in both if source.strip() and target.strip()]


vocabularies = st.fixed_dictionaries(
    {
        "vocabulary": st.sampled_from(["words", "words", "characters", "bpe", "unigram"]),
        "joint_vocabulary": st.booleans(),
        "lowercase": st.booleans(),
        "vocab_size": st.sampled_from([12, 40, 200]),
        "max_length": st.sampled_from([100, 8]),
        "batch_size": st.sampled_from([1, 4, 64]),
    }
)


@st.composite
def texts(draw: st.DrawFn, odd: bool, layouts: tuple[str, ...] = ("files", "files", "folder")) -> Text:
    """Files for the splits; where `odd`, one of them is no clean text, or not as long as its partner."""
    layout = draw(st.sampled_from(layouts))
    names = ["train", *draw(st.lists(st.sampled_from(["validation", "test"]), unique=True))]
    where = (draw(st.sampled_from(names)), draw(st.integers(0, 1))) if odd else (None, 0)
    splits = {}
    for name in names:
        sources = draw(lines(1 if name != "train" else LEAST, 10))
        targets = [line.upper() if draw(st.booleans()) else draw(filled_line) for line in sources]
        if layout == "tables":
            sources, targets = ([line.replace("\t", " ") for line in side] for side in (sources, targets))
        splits[name] = tuple(
            draw(text_file(side, odd=(name, index) == where)) for index, side in enumerate((sources, targets))
        )
    return Text(splits, layout, draw(vocabularies))


def put(text: Text, room: Path) -> dict[str, Any]:
    """Writes the files, and returns the settings that name them."""
    if text.layout == "files":
        return {
            f"{name}_files": tuple(
                file.put(room / f"{name}.{side}").name for file, side in zip(pair, ("a", "b"), strict=True)
            )
            for name, pair in text.splits.items()
        }
    (room / "text").mkdir()
    for name, (source, target) in text.splits.items():
        if text.layout == "folder":
            source.put(room / "text" / f"{name}.a")
            target.put(room / "text" / f"{name}.b")
        else:
            both = zip(source.lines or (), target.lines or (), strict=False)
            (room / "text" / f"{name}.tsv").write_bytes(b"".join(f"{a}\t{b}\n".encode() for a, b in both))
    columns = {"columns": ("a", "b")} if text.layout == "tables" else {}
    return {"corpus": "files:text", "source": "a", "target": "b"} | columns


def train(text: Text, room: Path) -> Outcome:
    """The outcome of training; with the size of the vocabulary that the message names, where it names one."""
    data = put(text, room) | text.data
    (room / "mine.py").write_text(CONFIG.format(data=data))
    outcome = enter("train", "--config", "mine.py")
    if named := re.search(r"data\.vocab_size .*use (\d+) or (less|more)", outcome.message):
        (room / "mine.py").write_text(CONFIG.format(data=data | {"vocab_size": int(named[1])}))
        outcome = enter("train", "--config", "mine.py")
    return outcome


def check_lines(text: Text, outcome: Outcome) -> None:
    """The corpus has the lines of the files, the same text in the same order; their ids mean that text."""
    _, material = outcome.reached
    corpus = material.corpus
    read = {name: list(zip(*split.read(0, len(split)), strict=True)) for name, split in corpus.splits.items()}
    if all(file.lines is not None for pair in text.splits.values() for file in pair):
        pairs = {name: list(zip(a.lines, b.lines, strict=True)) for name, (a, b) in text.splits.items()}
        for name in pairs.keys() - {"train"}:
            assert read[name] == pairs[name], f"the split {name} is not the file, line by line"
        if "validation" in pairs:
            assert read["train"] == filled(text.splits["train"])
        else:
            assert sorted(read["train"] + read["validation"]) == sorted(filled(text.splits["train"]))
            assert not set(read["train"]) & set(read["validation"]), "a pair is validated that was trained on"
    for name in ("train", "validation"):
        encoded = getattr(material, name)
        assert len(encoded) == len(encoded.sources) == len(encoded.targets) == len(read[name]) > 0
    for side, vocabulary in enumerate((material.vocabularies.source, material.vocabularies.target)):
        texts = [pair[side] for pair in read["train"]]
        assert len(vocabulary.decode(vocabulary.encode(texts))) == len(texts)
        unknown = [line for line, row in zip(texts, vocabulary.encode(texts), strict=True) if line.strip() and 3 in row]
        enough = text.data["vocab_size"] == 200 or text.data["vocabulary"] in ("bpe", "unigram")
        assert not unknown or not enough, f"unknown, though there is room for all: {unknown[0]!r}"


def check(text: Text, outcome: Outcome) -> None:
    if outcome.reached:
        check_lines(text, outcome)
    elif text.sound:
        assert any(f"data.{name}" in outcome.message for name in ("vocab_size", "max_length")), outcome.message
    if not outcome.reached:
        assert not list(Path().glob("runs/*/config.json"))


@cases(60)
@given(text=texts(odd=False, layouts=("files", "folder", "tables")))
def test_any_text_that_is_text_is_trained_on(doorway: Doorway, text: Text) -> None:
    with doorway.room("text") as room:
        check(text, train(text, room))


@cases(50)
@given(text=texts(odd=True))
def test_a_file_that_is_not_text_is_told(doorway: Doorway, text: Text) -> None:
    with doorway.room("text") as room:
        check(text, train(text, room))


@cases(30)
@given(
    rows=st.lists(st.one_of(filled_line, st.just("a\tb"), st.just("a\tb\tc"), st.sampled_from(ODD)), max_size=6),
    columns=st.sampled_from([("a", "b"), ("a",), (), ("a", "b", "c"), ("a", "a"), ("", ""), ("b", "a")]),
)
def test_a_table_of_any_columns(doorway: Doorway, rows: list[str], columns: tuple[str, ...]) -> None:
    with doorway.room("text") as room:
        (room / "text").mkdir()
        (room / "text" / "train.tsv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        data = {"corpus": "files:text", "source": "a", "target": "b", "columns": columns, "vocabulary": "words"}
        (room / "mine.py").write_text(CONFIG.format(data=data))
        outcome = enter("train", "--config", "mine.py")
        if outcome.reached:
            splits = outcome.reached[1].corpus.splits
            assert sum(map(len, splits.values())) == sum(bool(row.strip()) for row in rows)


@cases(30)
@given(
    names=st.lists(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=12), max_size=4)
)
def test_a_folder_of_any_files(doorway: Doorway, names: list[str]) -> None:
    with doorway.room("text") as room:
        (room / "text").mkdir()
        for name in {*names, "train.a", "train.b"} - {".", ".."}:
            (room / "text" / name).write_text("ant bee\ncat\ndog\neel fox\n")
        (room / "mine.py").write_text(
            CONFIG.format(data={"corpus": "files:text", "source": "a", "target": "b", "vocabulary": "words"})
        )
        outcome = enter("train", "--config", "mine.py")
        assert outcome.reached or set(names) - {"train.a", "train.b"}
