"""A run directory or a cache with one file damaged: the same results, or a word about it; never others in silence."""

import contextlib
import gc
import io
import json
import pickle
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.checksums import CHECKSUMS, write_checksums
from tests.doors.doorway import Doorway, Outcome, Reached, cases, enter

# Orbax leaves coroutines behind where a file is damaged; their end, in `no_coroutines`, is no business of ours.
pytestmark = [
    pytest.mark.usefixtures("no_coroutines"),
    pytest.mark.usefixtures("paths_only"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CONFIG = """
from dataclasses import replace

from seq2seq_jax.config import from_json


def get_config():
    config = from_json(open("../run/config.json").read())
    return replace(config, optimizer=replace(config.optimizer, learning_rate={rate}))
"""
COMMANDS = {
    "translate": ["translate", "--workdir", "run", "--input", "lines"],
    "evaluate": ["evaluate", "--workdir", "run"],
    "score": ["score", "--workdir", "run", "--source-file", "lines", "--target-file", "lines"],
    "train": ["train", "--workdir", "run", "--config", "same.py"],
    "train with other settings": ["train", "--workdir", "run", "--config", "other.py"],
}
TOLD = re.compile(r"warning:|damaged|missing|rebuil|again|anew|takes its place|no longer|is gone", re.IGNORECASE)


def _crc(tree: Any) -> int:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return zlib.crc32(
        repr([(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]).encode()
    )


@pytest.fixture(scope="module")
def digests(compiled: None) -> Iterator[None]:
    """Searches and losses become hashes of all that they depend on; training ends before its first step, by one too."""
    from seq2seq_jax import cli, translator
    from seq2seq_jax.training import loop

    def mark(model: Any, *rows: np.ndarray) -> int:
        head = asdict(model.config), asdict(model.decode), model.vocabularies.target.fingerprint
        meaning = model.vocabularies.target.decode([[4, 5]])
        return zlib.crc32(repr((_crc(model.params), head, [row.tolist() for row in rows], meaning)).encode())

    def translate_ids(model: Any, sources: Any, *_: Any, **__: Any) -> list[Any]:
        rows = [sources[index] for index in range(len(sources))]
        return [translator.Hypothesis(f"{mark(model, row)}" if len(row) > 1 else "", 0.0) for row in rows]

    def token_scores(model: Any, encoded: Any) -> Any:
        losses = [mark(model, encoded.source(row), encoded.target(row)) for row in range(len(encoded))]
        return translator.TokenScores(
            np.array(losses, np.float64), encoded.target_lengths * 1, encoded.target_lengths * 0
        )

    def take_steps(run: Any, state: Any, batches: Any, compiled: Any, checkpoints: Any, notes: Any) -> None:
        checkpoints.close()
        material, writer = run._validation._material, run._writer
        texts = {name: split.read(0, len(split)) for name, split in material.corpus.splits.items()}
        encoded = [
            [(split.source(row).tolist(), split.target(row).tolist()) for row in range(len(split))]
            for split in (material.train, material.validation)
        ]
        writer.row({"step": 0})  # so that what is still to be written is on disk
        rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        raise Reached((_crc(state), asdict(run.loop_state), texts, encoded, rows))

    with (
        mock.patch.object(cli, "_configure_jax"),
        mock.patch.object(translator.Translator, "translate_ids", translate_ids),
        mock.patch.object(translator.Translator, "token_scores", token_scores),
        mock.patch.object(loop, "compile_steps", lambda *_, **__: []),
        mock.patch.object(loop, "check_fits", lambda *_, **__: None),
        mock.patch.object(loop, "take_steps", take_steps),
    ):
        yield


@pytest.fixture
def no_coroutines() -> Iterator[None]:
    """No other test finds them."""
    yield
    gc.collect()


@dataclass(frozen=True)
class Whole:
    """The undamaged run: what each command comes to, and its files, those of its cache included."""

    furnish: Callable[[Path], None]
    results: dict[str, Any]
    files: list[str]


@pytest.fixture(scope="module")
def whole(doorway: Doorway, digests: None, paths_only: None) -> Whole:
    cache = doorway.base / "whole cache"

    def furnish(room: Path) -> None:
        shutil.copytree(doorway.base / "run", room / "run")
        if cache.exists():
            shutil.copytree(cache, room / "cache")
        (room / "lines").write_text("ant bee\n\ncat gnu\n")
        (room / "same.py").write_text(CONFIG.format(rate="config.optimizer.learning_rate"))
        (room / "other.py").write_text(CONFIG.format(rate="config.optimizer.learning_rate / 2"))

    with doorway.room("damage") as room:  # the first one makes the cache
        furnish(room)
        enter(*COMMANDS["train"])
        shutil.copytree(room / "cache", cache)
    results = {}
    for name, words in COMMANDS.items():
        with doorway.room("damage") as room:
            furnish(room)
            results[name] = result_of(name, enter(*words), room)
    assert results["train with other settings"] == 2 and all(results.values())
    files = [path.relative_to(room) for folder in ("run", "cache") for path in (room / folder).rglob("*")]
    with doorway.room("damage") as room:
        furnish(room)
        files = [str(path.relative_to(room)) for name in ("run", "cache") for path in (room / name).rglob("*")]
    return Whole(furnish, results, sorted(files))


def result_of(command: str, outcome: Outcome, room: Path) -> Any:
    """What a command came to: lines, scores, or all that training would have gone on from; 2 for a refusal."""
    if outcome.code == 2:
        return 2
    if command == "evaluate":
        scores = json.loads((room / "run" / "evaluations" / "test.json").read_text())
        hypotheses = (room / "run" / "evaluations" / "test.hypotheses.txt").read_text()
        return {name: value for name, value in scores.items() if "second" not in name}, hypotheses
    return outcome.reached or outcome.out


DAMAGES = ("flip", "cut", "empty", "delete", "folder", "file", "swap", "junk", "append")


def damage(path: Path, kind: str, at: float, others: list[Path]) -> None:
    """Damages a file or a folder in one way; `at` says where, from 0 to 1."""
    content = path.read_bytes() if path.is_file() else b""
    place = min(int(at * len(content)), len(content) - 1)
    if path.is_dir() and kind in ("flip", "cut", "swap", "junk", "append"):
        kind = "delete"
    if kind == "swap":  # with another file of its kind
        alike = [other for other in others if other != path and other.is_file() and _kind(other) == _kind(path)]
        other = alike[int(at * len(alike)) % len(alike)] if alike else path
        path.write_bytes(other.read_bytes())
    elif kind == "flip" and content:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << int(at * 8) % 8]) + content[place + 1 :])
    elif kind in ("flip", "cut"):
        path.write_bytes(content[: max(place, 0)])
    elif kind == "junk":
        path.write_bytes(content[: max(place, 0)] + b"\0\xff junk" + content[place + 7 :])
    elif kind == "append":
        path.write_bytes(content + content[-40:])
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind in ("empty", "file"):
            path.write_bytes(b"" if kind == "empty" else b"no such thing\n")


def _kind(path: Path) -> tuple[str, str]:
    """Two files of one kind may stand in each other's place: checkpoints' and splits', source's and target's."""
    return path.suffix, re.sub(r"source|target|train|validation|test|\d+|[0-9a-f]{16,}", "", path.name)


@cases(40)
@given(
    command=st.sampled_from(
        ["translate", "evaluate", "evaluate", "score", "train", "train", "train with other settings"]
    ),
    file=st.floats(0, 1, exclude_max=True),
    kind=st.sampled_from(DAMAGES),
    at=st.floats(0, 1, exclude_max=True),
)
def test_damage_is_told_or_changes_nothing(
    doorway: Doorway, whole: Whole, command: str, file: float, kind: str, at: float
) -> None:
    name = whole.files[int(file * len(whole.files))]
    with doorway.room("damage") as room:
        whole.furnish(room)
        others = [room / other for other in whole.files]
        damage(room / name, kind, at, others)
        outcome = enter(*COMMANDS[command])
        result = result_of(command, outcome, room)
        if name == "run/metrics.jsonl" and outcome.reached:
            check_rows(outcome, whole.results["train"])
        elif result not in (2, whole.results[command]):
            assert TOLD.search(outcome.out + outcome.err), f"{command}: {kind} of {_neutral(name)} changed the result"


@cases(40)
@given(file=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(DAMAGES), at=st.floats(0, 1, exclude_max=True))
def test_the_report_of_a_damaged_run_is_a_whole_page_or_none(
    doorway: Doorway, whole: Whole, file: float, kind: str, at: float
) -> None:
    logs = [name for name in whole.files if re.match(r"run/(evaluations|metrics|config|vocabulary|\w+$)", name)]
    with doorway.room("damage") as room:
        whole.furnish(room)
        damage(room / logs[int(file * len(logs))], kind, at, [room / other for other in whole.files])
        outcome = enter("report", "--workdir", "run", "--output", "page.html")
        page = room / "page.html"
        assert page.exists() == (outcome.code == 0)
        assert outcome.code == 2 or page.read_text().endswith("</main></body></html>\n")


def check_rows(outcome: Outcome, sound: tuple[Any, ...]) -> None:
    """Of a damaged metrics.jsonl no row is there twice, and what is lost is told; nothing else has changed.

    A row whose number is another one but still a number cannot be known: it is kept as it is.
    """
    *found, rows = outcome.reached
    *expected, all_rows = sound
    assert found == expected or TOLD.search(outcome.out + outcome.err)
    assert len(rows) <= len(all_rows), "rows are there twice"
    lost = len(all_rows) - len(rows)
    assert not lost or f"metrics.jsonl: {lost} of the " in outcome.out, "rows are lost, and nothing is said"
    changed = [row for row in rows if row not in all_rows]
    assert len(changed) <= 1 and [row for row in rows if row in all_rows] == [row for row in all_rows if row in rows]


def _neutral(name: str) -> str:
    """A file's name without hashes and numbers."""
    return re.sub(r"[0-9a-f]{16,}", "HASH", name)


class Planted:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def planted(kind: str, mark: Path) -> bytes:
    """A file of a kind that holds pickled objects."""
    objects, stream = np.array([Planted(mark)], object), io.BytesIO()
    if kind == "pickle":
        return pickle.dumps(Planted(mark))
    np.save(stream, objects) if kind == "npy" else np.savez(stream, objects=objects)
    return stream.getvalue()


def plant(doorway: Doorway, whole: Whole, name: str, kind: str, commands: Sequence[str], mark: Path) -> None:
    """Gives commands where the file `name` holds pickled objects; checks that none was unpickled.

    Checksums beside it are forged. That may end in a traceback, but not in code
    of the forger's.
    """
    with doorway.room("damage") as room:
        whole.furnish(room)
        path = room / name
        path.write_bytes(planted(kind, mark))
        for folder in (folder for folder in path.parents if (folder / CHECKSUMS).exists() and path.name != CHECKSUMS):
            (folder / CHECKSUMS).unlink()
            write_checksums(folder, folder.name)
        for command in commands:
            with contextlib.suppress(Exception):
                enter(*COMMANDS[command])
    assert not mark.exists(), f"{_neutral(name)} was unpickled"


def readable(whole: Whole, doorway: Doorway) -> list[str]:
    """The files of a run and its cache, one of each kind."""
    with doorway.room("damage") as room:
        whole.furnish(room)
        return list({_kind(Path(name)): name for name in whole.files if (room / name).is_file()}.values())


def test_no_file_that_is_read_runs_code(doorway: Doorway, whole: Whole, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in readable(whole, doorway):
        kind, command = "npy" if name.endswith(".npy") else "pickle", "translate" if name.startswith("run") else "train"
        plant(doorway, whole, name, kind, [command], mark)
    for kind in ("pickle", "npy"):
        loaded = pickle.loads if kind == "pickle" else partial(np.load, allow_pickle=True)
        content = planted(kind, mark)
        loaded(content if kind == "pickle" else io.BytesIO(content))
        assert mark.exists(), "what is planted is no code"
        mark.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pickle", "npy", "npz"])
def test_no_kind_of_file_runs_code_by_any_command(doorway: Doorway, whole: Whole, kind: str, tmp_path: Path) -> None:
    for name in readable(whole, doorway):
        plant(doorway, whole, name, kind, [*COMMANDS], tmp_path / "mark")
