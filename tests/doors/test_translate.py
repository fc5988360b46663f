"""Lines in, lines out: as many, in their order, whatever they hold and wherever they come from."""

import gzip
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seq2seq_jax.translator import LONGEST_SOURCE
from tests.doors.doorway import Doorway, Outcome, cases, counts, enter
from tests.doors.strategies import File, lines, text_file
from tests.tiny import WORDS

pytestmark = pytest.mark.usefixtures("echo", "paths_only")

RUN = ["--workdir", "../run"]


def echoed(line: str) -> str:
    """What the echo says to a line: its words in upper case, a sign for those that the vocabulary has not.

    A line far longer than models read gets an empty one.
    """
    for blank in "\t\x0b\x0c\r\n":
        line = line.replace(blank, " ")
    words = [word for word in line.split(" ") if word]
    if len(words) + 1 > LONGEST_SOURCE:  # with the end mark
        return ""
    return " ".join(word.upper() if word in WORDS else "\u2047" for word in words)


def answers(lines: Sequence[str]) -> str:
    return "".join(f"{echoed(line)}\n" for line in lines)


@st.composite
def given_file(draw: st.DrawFn) -> File:
    return draw(text_file(draw(lines(most=20)), odd=draw(st.booleans())))


@cases(200)
@given(file=given_file(), to_file=st.booleans())
def test_a_file_gives_a_line_for_each_of_its_lines(doorway: Doorway, file: File, to_file: bool) -> None:
    with doorway.room("translate") as room, file.flowing(room / "new.low") as path:
        outcome = enter("translate", *RUN, "--input", path.name, *(["--output", "new.up"] if to_file else []))
        written = room / "new.up"
        if outcome.code == 0:
            output = written.read_text(encoding="utf-8") if to_file else outcome.out
            assert file.place in ("file", "link", "pipe")
            assert output == answers(file.lines) if file.lines is not None else True
        else:
            assert not file.flows, f"refused: {outcome.message}"
            assert not written.exists()
        assert {entry.name for entry in room.iterdir()} <= {path.name, f"real-{path.name}", "new.up", "cache"}


@cases(150)
@given(file=given_file())
@example(file=File(b"ant " * LONGEST_SOURCE + b"\nbee\n", ("ant " * LONGEST_SOURCE, "bee")))
@example(file=File(b"bee\n" + b"ant " * (10 << 18) + b"\nbee\n", None))  # a line of 10 MiB
@example(file=File(b"a" * (10 << 20), None))
def test_standard_input_gives_a_line_for_each_of_its_lines(doorway: Doorway, file: File) -> None:
    content = file.content
    if file.gz and file.lines is not None:
        content = gzip.decompress(content)
    with doorway.room("translate"):
        outcome = enter("translate", *RUN, stdin=content)
        if file.lines is not None:
            assert outcome.code == 0 and outcome.out == answers(file.lines)
        elif outcome.code == 0:
            assert outcome.out.count("\n") == content.count(b"\n") + (content[-1:] not in (b"\n", b""))


@cases(500)
@given(lines=lines(most=20), batch_size=st.integers(1, 20), kind=st.sampled_from([list, tuple, iter]))
def test_a_list_gives_a_hypothesis_for_each_of_its_lines(
    echo: Callable[..., Any], lines: list[str], batch_size: int, kind: Any
) -> None:
    from seq2seq_jax.config import DecodeConfig

    counts["translate"] += 1
    translator = echo("run", DecodeConfig(beam_size=1, batch_size=batch_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lines are long
        hypotheses = translator.translate(kind(lines))
    assert [hypothesis.text for hypothesis in hypotheses] == list(map(echoed, lines))


@st.composite
def parallel(draw: st.DrawFn) -> tuple[File, File]:
    sources = draw(lines(most=12))
    odd = draw(st.sampled_from([(False, False), (False, False), (True, False), (False, True)]))
    targets = [draw(st.sampled_from([line, line.upper(), echoed(line), "x", ""])) for line in sources]
    return draw(text_file(sources, odd[0])), draw(text_file(targets, odd[1]))


def check_pairs(outcome: Outcome, files: tuple[File, File]) -> int | None:
    """Returns the number of pairs; None where they were refused, and rightly."""
    source, target = files
    matching = source.lines is not None and target.lines is not None and len(source.lines) == len(target.lines)
    sound = source.sound and target.sound and matching and source.lines
    if outcome.code == 2:
        assert not sound, f"refused: {outcome.message}"
        return None
    assert source.lines is None or target.lines is None or matching
    return len(source.lines or target.lines or ()) or None


@cases(120)
@given(files=parallel())
def test_score_prints_a_number_for_each_pair(doorway: Doorway, files: tuple[File, File]) -> None:
    with doorway.room("score and evaluate") as room:
        names = [file.put(room / name).name for file, name in zip(files, ("a.low", "a.up"), strict=True)]
        outcome = enter("score", *RUN, "--source-file", names[0], "--target-file", names[1])
        number = check_pairs(outcome, files)
        if number is not None:
            assert [str(float(line)) for line in outcome.out.splitlines()] and outcome.out.count("\n") == number


@cases(80)
@given(files=parallel())
def test_evaluate_writes_a_hypothesis_for_each_source_line(doorway: Doorway, files: tuple[File, File]) -> None:
    with doorway.room("score and evaluate") as room:
        names = [file.put(room / name).name for file, name in zip(files, ("a.low", "a.up"), strict=True)]
        outcome = enter("evaluate", *RUN, "--source-file", names[0], "--target-file", names[1])
        number = check_pairs(outcome, files)
        evaluations = Path("../run/evaluations/files")
        written = list(evaluations.glob(f"{names[0]}-*.hypotheses.txt"))
        assert len(written) == (outcome.code == 0)
        if number is not None:
            assert written[0].read_bytes().count(b"\n") == number
            if files[0].lines is not None:
                assert written[0].read_text(encoding="utf-8") == answers(files[0].lines)
        shutil.rmtree(evaluations, ignore_errors=True)
