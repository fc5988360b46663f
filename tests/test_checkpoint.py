import errno
import gc
import json
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax import checkpoint
from seq2seq_jax.checkpoint import Checkpoints, check_belongs, check_disk_space, restore_params
from seq2seq_jax.config import Config, DataConfig, TrainConfig
from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import Origin

# Where one array cannot be read, Orbax leaves the coroutines that read the others to the garbage collector, unfinished.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ORIGIN = Origin(Config(), "source", "target", "text")


@pytest.fixture(autouse=True)
def collected():
    """Has it find them here, not in another test."""
    yield
    gc.collect()


def state_at(step: int) -> dict:
    """Arrays of the kinds that a training state has, all different at each step."""
    draw = np.random.default_rng(step).standard_normal
    params = {
        "embedding": jnp.asarray(draw((40, 30)), jnp.float32),
        "layers": {0: {"kernel": jnp.asarray(draw((8, 8)), jnp.bfloat16)}},
    }
    return {"step": jnp.int32(step), "params": params, "moments": (jnp.asarray(draw(5), jnp.float32), ())}


def abstract() -> dict:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state_at(0))


def same(one, other) -> bool:
    """Whether all leaves have the same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return all(
        first.dtype == second.dtype and np.asarray(first).tobytes() == np.asarray(second).tobytes()
        for first, second in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def save(workdir: Path, *steps: int, best_step: int | None = None) -> None:
    checkpoints = Checkpoints(workdir, ORIGIN)
    for step in steps:
        checkpoints.save(step, state_at(step), {"rows": 10 * step, "best_step": best_step})
    checkpoints.close()


def restore(workdir: Path):
    checkpoints = Checkpoints(workdir, ORIGIN)
    try:
        return checkpoints.restore(abstract())
    finally:
        checkpoints.close()


def steps_kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name != "newest")


def array_files(workdir: Path, step: int) -> list[Path]:
    """The files with the arrays' bytes, the largest first."""
    files = [path for path in (workdir / "checkpoints" / str(step) / "state").rglob("*") if path.is_file()]
    data = [path for path in files if "/d/" in path.as_posix()]
    assert data
    return sorted(data, key=lambda path: -path.stat().st_size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints of steps 1 and 2; tests damage copies of it."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_what_was_saved_comes_back_bit_for_bit(workdir):
    state, loop_state, complaints = restore(workdir)
    assert same(state, state_at(2))
    assert (loop_state, complaints) == ({"rows": 20, "best_step": None}, [])


def test_an_empty_run_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None


def test_two_latest_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, best_step=2)
    assert steps_kept(tmp_path) == [2, 4, 5]


def test_as_many_of_the_latest_are_kept_as_the_configuration_says(tmp_path):
    origin = ORIGIN._replace(config=Config(train=TrainConfig(keep_checkpoints=4)))
    with Checkpoints(tmp_path, origin) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, state_at(step), {"best_step": 2})
    assert steps_kept(tmp_path) == [2, 4, 5, 6, 7]


def test_a_checkpoint_of_the_same_step_is_replaced(workdir):
    checkpoints = Checkpoints(workdir, ORIGIN)
    checkpoints.save(2, state_at(7), {"rows": 7})
    checkpoints.close()
    state, loop_state, _ = restore(workdir)
    assert same(state, state_at(7)) and loop_state == {"rows": 7}


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    checkpoints, state = Checkpoints(tmp_path, ORIGIN), state_at(3)
    checkpoints.save(3, state, {})
    jax.tree.map(lambda leaf: leaf.delete(), state)
    checkpoints.close()
    found = restore(tmp_path)
    assert found and same(found[0], state_at(3))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_told_and_passed_over_for_an_older_one(workdir, damage):
    damage(array_files(workdir, 2)[0])
    state, loop_state, complaints = restore(workdir)
    assert same(state, state_at(1)) and loop_state["rows"] == 10
    assert len(complaints) == 1 and f"{workdir / 'checkpoints' / '2'} is damaged (" in complaints[0]
    assert steps_kept(workdir) == [1]


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_progress_file_is_a_damaged_checkpoint(workdir, damage):
    path = workdir / "checkpoints" / "2" / "progress" / "metadata"
    damage(path)
    state, _, complaints = restore(workdir)
    assert same(state, state_at(1)) and len(complaints) == 1


def test_a_checksum_finds_what_the_files_themselves_do_not_show(workdir):
    """The arrays of another checkpoint, whole and readable, under the loop state of this one."""
    inside = workdir / "checkpoints"
    shutil.rmtree(inside / "2" / "state")
    shutil.copytree(inside / "1" / "state", inside / "2" / "state")
    state, _, complaints = restore(workdir)
    assert same(state, state_at(1))
    assert len(complaints) == 1 and "checksums differ" in complaints[0]


def test_a_save_that_was_cut_short_leaves_the_older_checkpoint(workdir):
    """What a killed process leaves: a folder under the temporary name that becomes the step's by renaming."""
    inside = workdir / "checkpoints"
    shutil.copytree(inside / "2", inside / "3.orbax-checkpoint-tmp")
    array_file = next(path for path in (inside / "3.orbax-checkpoint-tmp").rglob("*") if "/d/" in path.as_posix())
    array_file.unlink()
    state, _, complaints = restore(workdir)
    assert same(state, state_at(2)) and complaints == []


def test_when_all_are_damaged_the_message_names_each_and_the_way_out(workdir):
    for step in (1, 2):
        truncate(array_files(workdir, step)[0])
    with pytest.raises(UserError) as refused:
        restore(workdir)
    told = str(refused.value).splitlines()
    assert len(told) == 3 and "checkpoints/2 is damaged" in told[0] and "checkpoints/1 is damaged" in told[1]
    assert "remove the run directory" in told[2]
    assert steps_kept(workdir) == [1, 2]  # nothing is lost that somebody might still mend


def test_the_parameters_of_a_run_are_those_of_its_best_step(tmp_path):
    save(tmp_path, 1, 2, 3, best_step=1)
    params, step = restore_params(tmp_path, abstract()["params"], ORIGIN)
    assert step == 1 and same(params, state_at(1)["params"])


def test_the_parameters_of_a_run_with_a_moving_average_are_that_average(tmp_path):
    average = state_at(7)["params"]
    with Checkpoints(tmp_path, ORIGIN) as checkpoints:
        checkpoints.save(1, state_at(1) | {"average": average}, {"best_step": 1})
    params, step = restore_params(tmp_path, abstract()["params"], ORIGIN)
    assert step == 1 and same(params, average)


def test_without_an_evaluation_the_newest_parameters_count(workdir):
    params, step = restore_params(workdir, abstract()["params"], ORIGIN)
    assert step == 2 and same(params, state_at(2)["params"])


def test_where_the_best_checkpoint_is_damaged_the_newest_whole_one_takes_its_place_with_a_warning(tmp_path):
    save(tmp_path, 1, 2, 3, best_step=1)
    truncate(array_files(tmp_path, 1)[0])
    with pytest.warns(UserWarning, match=r"(?s)checkpoints/1 is damaged .* step 3 takes its place"):
        params, step = restore_params(tmp_path, abstract()["params"], ORIGIN)
    assert step == 3 and same(params, state_at(3)["params"])


def test_a_best_step_is_known_from_an_older_checkpoint_where_the_newest_is_damaged(tmp_path):
    save(tmp_path, 1, 2, 3, best_step=1)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "progress")
    params, step = restore_params(tmp_path, abstract()["params"], ORIGIN)
    assert step == 1 and same(params, state_at(1)["params"])


def test_parameters_with_a_wrong_checksum_are_damaged(tmp_path):
    save(tmp_path, 1)
    path = next((tmp_path / "checkpoints" / "1" / "progress").rglob("*.json"), None)
    path = path or next(p for p in (tmp_path / "checkpoints" / "1" / "progress").iterdir() if p.is_file())
    content = json.loads(path.read_text())
    content["checksums"] = {name: value ^ 1 for name, value in content["checksums"].items()}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="checksums differ"):
        restore_params(tmp_path, abstract()["params"], ORIGIN)


def test_where_all_parameters_are_damaged_the_message_names_each_and_the_way_out(workdir):
    for step in (1, 2):
        truncate(array_files(workdir, step)[0])
    with pytest.raises(UserError) as refused:
        restore_params(workdir, abstract()["params"], ORIGIN)
    told = str(refused.value)
    assert "checkpoints/1 is damaged" in told and "checkpoints/2 is damaged" in told
    assert "remove the run directory" in told


def test_where_the_best_checkpoint_is_gone_the_newest_takes_its_place_with_a_warning(tmp_path):
    save(tmp_path, 1, 2, 3, best_step=1)
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with pytest.warns(UserWarning, match=r"(?s)checkpoints/1, the best, is gone.*step 3 takes its place"):
        params, step = restore_params(tmp_path, abstract()["params"], ORIGIN)
    assert step == 3 and same(params, state_at(3)["params"])


def test_where_the_newest_checkpoint_is_gone_and_with_it_what_it_knew_of_the_best_a_warning_says_so(workdir):
    shutil.rmtree(workdir / "checkpoints" / "2")
    with pytest.warns(UserWarning, match=r"(?s)checkpoints/2, the newest, is gone.*step 1 takes its place"):
        _, step = restore_params(workdir, abstract()["params"], ORIGIN)
    assert step == 1
    state, _, complaints = restore(workdir)  # training goes on from there, and knows no other from then on
    assert state["step"] == 1 and "checkpoints/2, the newest, is gone" in complaints[0]
    restore_params(workdir, abstract()["params"], ORIGIN)


# reading beside training


def test_who_reads_changes_nothing_also_while_a_save_is_under_way(workdir):
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "3.orbax-checkpoint-tmp")
    shutil.copytree(workdir / "checkpoints" / "2", workdir / "checkpoints" / "0.deleted")
    before = {path: path.stat().st_mtime_ns for path in (workdir, *workdir.rglob("*"))}
    _, step = restore_params(workdir, abstract()["params"], ORIGIN)
    check_belongs(workdir, ORIGIN)
    assert step == 2
    assert {path: path.stat().st_mtime_ns for path in (workdir, *workdir.rglob("*"))} == before


def test_who_reads_a_run_without_checkpoints_makes_none(tmp_path):
    with pytest.raises(UserError, match="no checkpoint yet"):
        restore_params(tmp_path, abstract()["params"], ORIGIN)
    check_belongs(tmp_path, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_training_removes_what_a_killed_one_left(workdir):
    for name in ("3.orbax-checkpoint-tmp", "0.deleted"):
        (workdir / "checkpoints" / name).mkdir()
    (workdir / "checkpoints" / "notes").mkdir()
    Checkpoints(workdir, ORIGIN).close()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "newest", "notes"]


@pytest.mark.parametrize("newer", [False, True], ids=["gone", "another is best"])
def test_a_checkpoint_that_training_deletes_while_it_is_read_is_passed_over_without_a_word(workdir, monkeypatch, newer):
    original = checkpoint._read_params

    def read(path, *arguments):
        if path.name == "2":
            (workdir / "checkpoints" / "newest").unlink()
            if newer:
                shutil.copytree(workdir / "checkpoints" / "1", workdir / "checkpoints" / "5")
            shutil.rmtree(path)
        return original(path, *arguments)

    monkeypatch.setattr(checkpoint, "_read_params", read)
    params, step = restore_params(workdir, abstract()["params"], ORIGIN)
    assert step == (5 if newer else 1) and same(params, state_at(1)["params"])


def test_the_best_checkpoint_is_there_as_long_as_the_newest_one_names_it(tmp_path, monkeypatch):
    """A reader, and a run that is killed, find what they look for at any time."""
    checkpoints = Checkpoints(tmp_path, ORIGIN)
    deleted, original = [], checkpoints._delete
    monkeypatch.setattr(
        checkpoints, "_delete", lambda step: deleted.append((step, steps_kept(tmp_path))) or original(step)
    )
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        checkpoints.save(step, state_at(step), {"best_step": best})
    checkpoints.close()
    assert deleted == [(2, [1, 2, 3, 4]), (1, [1, 3, 4]), (3, [3, 4, 5])]


# what belongs together


OTHERS = {
    r"(?s)config.json or the command is not what .*checkpoints/2 was trained with.*train.seed: 0 -> 1": {
        "config": Config(train=TrainConfig(seed=1))
    },
    r"vocabulary/source.\* is not the vocabulary that .*checkpoints/2 was": {"source": "other"},
    r"vocabulary/target.\* is not the vocabulary that .*checkpoints/2 was": {"target": "other"},
    r"The text, or the note of it in .*corpus.txt, is not what .*checkpoints/2 was trained on": {"corpus": "other"},
    r"corpus.txt, is not what": {"corpus": None},
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_checkpoint_is_not_read_with_files_of_another_run(workdir, message):
    other = ORIGIN._replace(**OTHERS[message])
    checkpoints = Checkpoints(workdir, other)
    for read in (
        lambda: checkpoints.restore(abstract()),
        lambda: restore_params(workdir, abstract()["params"], other),
        lambda: check_belongs(workdir, other),
    ):
        with pytest.raises(UserError, match=message):
            read()
    checkpoints.close()
    assert steps_kept(workdir) == [1, 2]


def test_a_checkpoint_from_before_a_field_was_there_belongs_to_a_run_with_its_default(workdir):
    path = workdir / "checkpoints" / "2" / "progress" / "metadata"
    content = json.loads(path.read_text())
    for section, field in (("train", "ema"), ("optimizer", "halving_start"), ("model", "source_vectors")):
        del content["origin"]["config"][section][field]
    content["digest"] = checkpoint._digest({name: value for name, value in content.items() if name != "digest"})
    path.write_text(json.dumps(content))
    check_belongs(workdir, ORIGIN)
    state, _, complaints = restore(workdir)
    assert same(state, state_at(2)) and not complaints
    with pytest.raises(UserError, match="train.ema: 0.0 -> 0.9"):
        check_belongs(workdir, ORIGIN._replace(config=Config(train=TrainConfig(ema=0.9))))


def test_where_the_text_of_a_run_lies_is_not_what_it_belongs_to(tmp_path):
    here, there = (ORIGIN._replace(config=Config(data=DataConfig(f"files:/{name}"))) for name in ("a", "b"))
    checkpoints = Checkpoints(tmp_path, here)
    checkpoints.save(1, state_at(1), {})
    checkpoints.close()
    check_belongs(tmp_path, there)


def test_a_letter_changed_in_the_progress_is_damage(workdir):
    path = workdir / "checkpoints" / "2" / "progress" / "metadata"
    path.write_text(path.read_text().replace('"rows": 20', '"rows": 30'))
    state, _, complaints = restore(workdir)
    assert same(state, state_at(1)) and "checksums differ" in complaints[0]


def test_a_run_without_checkpoints_has_no_parameters(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint yet; train it first"):
        restore_params(tmp_path, abstract()["params"], ORIGIN)


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_training(monkeypatch, tmp_path):
    Usage = namedtuple("Usage", "total used free")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state_at(0)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 4 * size))
    check_disk_space(tmp_path, abstract(), keep=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 4 * size - 1))
    with pytest.raises(UserError, match=f"the disk of {tmp_path} has 0 MB left; free some, or choose another"):
        check_disk_space(tmp_path, abstract(), keep=2)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write 108 bytes: No space left on device [os_error_code='28']"),
    ],
)
def test_a_disk_that_fills_during_a_save_is_told_and_costs_no_older_checkpoint(workdir, monkeypatch, error):
    def fail(*_, **__):
        raise error

    checkpoints = Checkpoints(workdir, ORIGIN)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._saver, "save", fail)
        with pytest.raises(UserError, match="No space left on the disk of .*checkpoints: .* the same command resumes"):
            checkpoints.save(3, state_at(3), {"best_step": 1})
    checkpoints.close()
    assert steps_kept(workdir) == [1, 2]


def test_a_save_that_takes_too_long_by_the_clock_is_told(workdir, monkeypatch):
    def late():
        raise TimeoutError("Timed out after 90000 seconds.")

    checkpoints = Checkpoints(workdir, ORIGIN)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="took too long, by a clock .* command resumes"):
        patch.setattr(checkpoints._saver, "wait_until_finished", late)
        checkpoints.save(3, state_at(3), {"best_step": 1})
    checkpoints.close()
    assert steps_kept(workdir) == [1, 2]


def test_a_save_that_fails_otherwise_is_a_bug(workdir, monkeypatch):
    def fail(*_, **__):
        raise ValueError("unknown dtype")

    checkpoints = Checkpoints(workdir, ORIGIN)
    monkeypatch.setattr(checkpoints._saver, "save", fail)
    with pytest.raises(ValueError, match="unknown dtype"):
        checkpoints.save(3, state_at(3), {"best_step": 1})
