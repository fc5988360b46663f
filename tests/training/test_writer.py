import io
import itertools
import json
import os
import re
import struct
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from seq2seq_jax.training.writer import Writer

Event: Any = vars(event_pb2)["Event"]  # whose name is made when it is imported


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with Writer(tmp_path, num_steps=10) as writer:
        for step in (1, 2):
            writer.row({"step": step, "loss": 0.5})
            assert rows(tmp_path)[-1] == {"step": step, "loss": 0.5}
    assert len(rows(tmp_path)) == 2


def test_numbers_of_numpy_and_numbers_that_are_not_finite_stay_json(tmp_path):
    with Writer(tmp_path, num_steps=10) as writer:
        writer.row({"step": np.int64(3), "loss": np.float32(0.5), "grad_norm": float("nan"), "sample": "Größe 日本"})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 3, "loss": 0.5, "grad_norm": null, "sample": "Größe 日本"}\n'


def test_a_resumed_run_drops_later_rows_and_keeps_the_others_byte_for_byte(tmp_path):
    with Writer(tmp_path, num_steps=10) as writer:
        for step in range(1, 6):
            writer.row({"step": step, "loss": 1 / step})
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with Writer(tmp_path, num_steps=10) as writer:
        assert writer.keep_rows(3, 3) == 3
        writer.row({"step": 4, "loss": 9.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:3]) + b'{"step": 4, "loss": 9.0}\n'
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b'{"step": 3, "sample": "\xe6\x97', b'{"step": 3}', b"\0\0\0"])
def test_a_line_that_a_killed_run_left_unfinished_is_dropped(tmp_path, tail):
    whole = b'{"step": 1}\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole + tail)
    with Writer(tmp_path, num_steps=10) as writer:
        writer.row({"step": 3, "loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole + b'{"step": 3, "loss": 1.0}\n'


def test_a_row_of_an_evaluation_that_will_be_done_again_is_dropped(tmp_path):
    """The run was asked to stop at step 2, evaluated there when it resumed, and was killed before a save."""
    with Writer(tmp_path, num_steps=10) as writer:
        writer.row({"step": 1, "validation_loss": 3.0})
        writer.row({"step": 2, "loss": 1.0})
        writer.row({"step": 2, "validation_loss": 2.0})
    with Writer(tmp_path, num_steps=10) as writer:
        assert writer.keep_rows(2, 1) == 2
    assert rows(tmp_path) == [{"step": 1, "validation_loss": 3.0}, {"step": 2, "loss": 1.0}]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"\xff",
        b'{"loss": 1}',
        b'{"step": "1"}',
        b'{"step": 1.5}',
        b'{"step": true}',
        b"[" * 100_000,
        b"null",
    ],
    ids=lambda line: line[:8].decode(errors="replace"),
)
def test_a_damaged_line_is_no_row_and_costs_no_other(tmp_path, damaged):
    lines = [b'{"step": 1}\n', damaged + b"\n", b'{"step": 2}\n', b'{"step": 3}\n']
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    with Writer(tmp_path, num_steps=10) as writer:
        assert writer.keep_rows(2, 2) == 2
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines[0] + lines[2]


def test_rows_are_dropped_in_one_replacement_of_the_file(tmp_path, monkeypatch):
    with Writer(tmp_path, num_steps=10) as writer:
        for step in range(1, 4):
            writer.row({"step": step})
        before = (tmp_path / "metrics.jsonl").read_bytes()

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.keep_rows(1, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_nothing_but_plain_lines_reaches_a_pipe(tmp_path, capsys):
    with Writer(tmp_path, num_steps=10) as writer:
        writer.progress(1, loss=2.5, target_tokens_per_second=1234.0)
        writer.line("step 1: validation loss 2.5 [not markup]")
    out, err = capsys.readouterr()
    assert (out, err) == ("step 1: validation loss 2.5 [not markup]\n", "")


def test_the_bar_on_a_terminal_shows_step_loss_and_rate(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Writer(tmp_path, num_steps=2000) as writer:
        writer.progress(1500, loss=2.5, target_tokens_per_second=12345.0)
    for part in ("1,500/2,000", "loss 2.500", "12,345 target tokens/s", "ETA"):
        assert part in screen.getvalue()


def test_the_time_that_is_left_is_by_a_clock_that_does_not_jump(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    jumps, clock, screen = itertools.cycle([0, 7200, -7200]), time.time, Terminal()
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    monkeypatch.setattr(sys, "stderr", screen)
    with Writer(tmp_path, num_steps=100) as writer:
        for step in range(40):
            writer.progress(step, loss=2.5, target_tokens_per_second=1.0)
            time.sleep(0.05)
    told = set(re.findall(r"ETA \x1b\[36m(\S+)\x1b", screen.getvalue()))
    assert told > {"-:--:--"} and told <= {"-:--:--", *(f"0:00:0{second}" for second in range(10))}


def test_lines_go_to_a_piped_standard_output_while_the_bar_has_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Writer(tmp_path, num_steps=10) as writer:
        writer.progress(1, loss=2.5, target_tokens_per_second=1.0)
        writer.line("a line")
        print("another")
    assert capsys.readouterr().out == "a line\nanother\n"
    assert "a line" not in screen.getvalue()


def events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps and numbers of TensorBoard's only file in `folder`; no numbers where it says that a run begins anew."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, found = path.read_bytes(), []
    while content:  # its length, a checksum of that, the event, a checksum of it
        (length,) = struct.unpack("Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
        content = content[16 + length :]
    return found[1:]  # the first has the version of the format


def test_tensorboard_gets_the_numbers_and_hides_those_of_steps_that_are_done_again(tmp_path):
    with Writer(tmp_path, num_steps=10) as writer:
        writer.keep_rows(7, 7)
        writer.row({"step": 8, "loss": 0.5, "sample": "text", "grad_norm": float("inf")})
        writer.row({"step": 8, "validation_loss": 0.25})
        seen = [(8, {}), (8, {"loss": 0.5}), (8, {"validation_loss": 0.25})]
        assert events(tmp_path) == seen  # while it is still open
        writer.row({"step": 9, "loss": 0.125})
    assert events(tmp_path) == [*seen, (9, {"loss": 0.125})]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.out.tfevents.*"])
def test_a_full_disk_is_an_error_that_names_the_file(disk, tmp_path, name):
    """Of TensorBoard's file, too, whose own writer would have the run wait for ever."""
    if name == "metrics.jsonl":
        (disk.path / name).touch()
        (tmp_path / name).symlink_to(disk.path / name)
    else:
        (disk.path / "metrics.jsonl").symlink_to(tmp_path / "metrics.jsonl")
    workdir = tmp_path if name == "metrics.jsonl" else disk.path
    with pytest.raises(OSError, match="No space left on device") as told, Writer(workdir, num_steps=10_000) as writer:
        writer.row({"step": 0, "validation_loss": 0.5})
        disk.fill()
        for step in range(1, 10_000):
            writer.row({"step": step, "validation_loss": 0.5})
    assert fnmatch(told.value.filename, str(workdir / name))
    assert step < 1_000
