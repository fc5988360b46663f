import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from seq2seq_jax.training.writer import Writer


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


def test_tensorboard_gets_the_numbers_where_it_is_installed(tmp_path, monkeypatch):
    seen = []

    class SummaryWriter:
        def __init__(self, logdir, purge_step):
            seen.append((logdir, purge_step))

        def add_scalar(self, *scalar):
            seen.append(scalar)

        def close(self):
            seen.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=SummaryWriter, __spec__=object()))
    with Writer(tmp_path, num_steps=10) as writer:
        writer.keep_rows(0, 0)
        writer.row({"step": 7, "loss": 0.5, "sample": "text", "grad_norm": float("inf")})
    assert seen == [(str(tmp_path), 1), ("loss", 0.5, 7), "closed"]
    with Writer(tmp_path, num_steps=10) as writer:
        writer.keep_rows(7, 7)
        writer.row({"step": 8, "loss": 0.25})
    assert seen[3:] == [(str(tmp_path), 8), ("loss", 0.25, 8), "closed"]
