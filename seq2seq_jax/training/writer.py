"""What a run says while it trains: a progress bar, `metrics.jsonl`, and TensorBoard events where it is installed."""

import importlib.util
import json
import math
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import rich.progress
from rich.console import Console

from seq2seq_jax.cache import naming, write_whole
from seq2seq_jax.config import Config
from seq2seq_jax.training.trackers import Trackers, numbers_of

_VALIDATION = "validation_loss"  # in the rows of evaluations


class Writer:
    """Writes one run's rows, lines and progress. A context manager; `close` ends the bar and the files.

    `metrics.jsonl` grows by whole lines and is flushed after each, so that a killed
    run loses at most the line it was writing. The bar appears only where standard
    error is a terminal: nothing but plain lines ever reaches a pipe or a file.
    """

    def __init__(self, workdir: Path, num_steps: int, config: Config | None = None) -> None:
        """Opens `workdir/metrics.jsonl` for appending, first cutting off a line that was never finished.

        Args:
          workdir: the run directory; it exists.
          num_steps: updates of the whole run, the end of the bar.
          config: of the run, whose trackers get the rows, too.
        """
        self._config = config
        self._workdir = workdir
        self._path = workdir / "metrics.jsonl"
        self._num_steps = num_steps
        self._bar: rich.progress.Progress | None = None
        self._events: _Events | None = None
        self._trackers: Trackers | None = None
        self._purge_step: int | None = None
        self._rewrite(whole_lines(self._path))
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def row(self, values: Mapping[str, Any]) -> None:
        """Appends one row to `metrics.jsonl`, and its numbers to TensorBoard under their names.

        Args:
          values: `step` and whatever belongs to it: numbers (also NumPy and JAX
            scalars) and text. Numbers that are not finite become null, which is
            the only way JSON has to say so.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        with naming(self._path):
            self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        self._write_events(plain)
        if self._trackers is None and self._config is not None and self._config.train.trackers:
            self._trackers = Trackers(self._config, self._workdir, self.line)
        if self._trackers is not None:
            self._trackers.row(plain)

    def keep_rows(self, step: int, evaluated_step: int) -> int:
        """Drops every row that a run resumed at `step` writes again, and what is no row; replaces the file as a whole.

        Rows keep their bytes. In TensorBoard the events of later steps are hidden.

        Args:
          step: updates done.
          evaluated_step: step of the last evaluation that the run knows of.

        Returns:
          How many rows are left.
        """
        kept = []
        for line in whole_lines(self._path):
            row = row_of(line)
            if row and row["step"] <= (evaluated_step if _VALIDATION in row else step):
                kept.append(line)
        self._file.close()
        self._rewrite(kept)
        self._file = self._path.open("a", encoding="utf-8")
        self._purge_step = step + 1
        return len(kept)

    def progress(self, step: int, *, loss: float, target_tokens_per_second: float) -> None:
        """Moves the bar, if there is one, to `step` updates done.

        Args:
          step: updates done since the run's very beginning.
          loss: nats per target token.
          target_tokens_per_second: real target tokens, all devices.
        """
        if self._bar is None:
            if not sys.stderr.isatty():
                return
            self._bar = self._start_bar(step)
        rate = f"{target_tokens_per_second:,.0f}"
        self._bar.update(self._bar.task_ids[0], completed=step, loss=f"{loss:.3f}", rate=rate)

    def line(self, text: str = "") -> None:
        """Prints `text` on standard output, above the bar where there is one."""
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def end_progress(self) -> None:
        """Leaves the bar as it stands: the terminal is free for another."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """Ends the bar and closes the files. Closing twice is harmless."""
        self.end_progress()
        events, self._events = self._events, None
        trackers, self._trackers, self._config = self._trackers, None, None
        if trackers is not None:
            trackers.close()
        with naming(self._path), closing(self._file):
            if events is not None:
                events.close()

    def _start_bar(self, step: int) -> rich.progress.Progress:
        bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed:,}/{task.total:,}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("loss {task.fields[loss]}  {task.fields[rate]} target tokens/s  ETA"),
            rich.progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            # Rich would send captured standard output to the bar's own stream: right only if both are the terminal.
            redirect_stdout=sys.stdout.isatty(),
            refresh_per_second=2,
        )
        bar.add_task("train", total=self._num_steps, completed=step, loss="-", rate="-")
        bar.start()
        return bar

    def _write_events(self, row: Mapping[str, Any]) -> None:
        if self._events is None:
            if importlib.util.find_spec("tensorboardX") is None:
                return
            self._events = _Events(self._workdir, self._purge_step)
        self._events.row(row)

    def _rewrite(self, lines: Iterable[bytes]) -> None:
        """Replaces `metrics.jsonl` by these of its lines, unless they are all there is."""
        kept = b"".join(lines)
        if self._path.exists() and self._path.read_bytes() != kept:
            write_whole(self._path, kept)


class _Events:
    """TensorBoard's file of a run.

    It is written in this thread. That of tensorboardX's own SummaryWriter ends
    where the disk is full, and whoever hands it more waits for ever.
    """

    def __init__(self, workdir: Path, purge_step: int | None) -> None:
        """Begins a file in `workdir`, which hides what those before it have of `purge_step` and later steps."""
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        events, summaries = cast(Any, event_pb2), cast(Any, summary_pb2)  # whose names are made when they are imported
        self._event, self._summary = events.Event, summaries.Summary
        self._path = workdir / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file = RecordWriter(str(self._path))
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=events.SessionLog(status=events.SessionLog.START))

    def row(self, row: Mapping[str, Any]) -> None:
        """Adds the numbers of a row; they can be seen from the next evaluation on."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers_of(row).items()]
        self._write(step=row["step"], summary=self._summary(value=values))
        if _VALIDATION in row:
            with naming(self._path):
                self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with naming(self._path):
            self._file.close()

    def _write(self, **content: Any) -> None:
        with naming(self._path):
            self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())


class SilentWriter(Writer):
    """Of a process that follows another, which writes and prints all there is to be."""

    def __init__(self) -> None:
        pass

    def row(self, values: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def keep_rows(self, step: int, evaluated_step: int) -> int:
        """Drops nothing."""
        return 0

    def progress(self, step: int, *, loss: float, target_tokens_per_second: float) -> None:
        """Shows nothing."""

    def line(self, text: str = "") -> None:
        """Prints nothing."""

    def end_progress(self) -> None:
        """There is no bar."""

    def close(self) -> None:
        """There are no files."""


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file with their ends; one that a killed run left unfinished is passed over."""
    content = path.read_bytes() if path.exists() else b""
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row that a line holds, or None where it is damaged."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _plain(value: Any) -> Any:
    """Returns what JSON can hold: NumPy and JAX scalars as Python's own, numbers that are not finite as None."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
