"""Several seeds in one program: each is what it is alone, and what they say together of a published score."""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax import cli
from seq2seq_jax.averaging import average
from seq2seq_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from seq2seq_jax.errors import UserError
from seq2seq_jax.sharding import grouped, one_device
from seq2seq_jax.training import loop, reproduction, seeds
from seq2seq_jax.training.loop import train
from seq2seq_jax.training.reproduction import reproduce
from seq2seq_jax.training.seeds import SeedsState, initial_seeds, jit_seeds_step
from seq2seq_jax.training.step import initial_state, jit_train_step
from seq2seq_jax.training.verdict import Summary, conclusion, judge, published_split, summarize
from seq2seq_jax.translator import load
from tests.tiny import rows, tiny_config
from tests.training.test_loop import fake_scores, same_params, steps_kept
from tests.training.test_step import DROPOUT, PLAIN, SIZES, pairs, same_bits, with_output

pytestmark = pytest.mark.usefixtures("compiled")

LENGTH = {"num_steps": 30, "evaluate_every": 10, "checkpoint_every": 5, "log_every": 2, "decode_sentences": 8}
N = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reproduction")


@pytest.fixture(scope="module")
def config(folder) -> Config:
    options = {"published": "all of them", "published_metric": "exact_match", "published_score": 100.0}
    return replace(tiny_config(folder / "corpus", data={"num_shapes": 2}, train=LENGTH | {"seed": 4}), **options)


@pytest.fixture(scope="module")
def unbroken(folder, config) -> Path:
    reproduce(config, N, folder / "unbroken")
    return folder / "unbroken"


def same_runs(one: Path, other: Path) -> bool:
    """Whether all seeds have the same rows and the same bits in their best parameters."""
    runs = [(one / "seeds" / str(index), other / "seeds" / str(index)) for index in range(N)]
    return all(rows(first) == rows(second) and same_params(first, second) for first, second in runs)


# the program


def stacked_pairs(start: int = 0):
    return jax.tree.map(lambda *each: np.stack(each), *(pairs(seed=start + index) for index in range(N)))


def of(state: SeedsState, index: int):
    return jax.device_get(jax.tree.map(lambda leaf: leaf[index], state.runs))


def at_once(function, stacked):
    return jax.vmap(function)(*stacked)


@pytest.fixture(params=["one after another", "at once"])
def way(request, monkeypatch):
    """Both ways in which devices take the seeds; the second is that of an accelerator."""
    if request.param == "at once":
        monkeypatch.setattr(seeds, "_over_seeds", lambda _: at_once)
    return request.param


def test_every_seed_takes_the_steps_that_it_takes_alone(way):
    config, mesh = replace(DROPOUT, train=TrainConfig(ema=0.9, seed=7)), one_device()
    groups = grouped(mesh, N)
    together, update = initial_seeds(config, SIZES, groups, N), jit_seeds_step(config, SIZES, groups, N)
    for step in range(3):
        together = update(together, *stacked_pairs(10 * step))
    for index in range(N):
        own = replace(config, train=replace(config.train, seed=config.train.seed + index))
        alone, step_alone = initial_state(own, SIZES, mesh), jit_train_step(own, SIZES, mesh)
        for step in range(3):
            alone = step_alone(alone, *pairs(seed=10 * step + index))
        for one, other in zip(jax.tree.leaves(of(together, index)), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_first_states_have_the_bits_of_single_runs():
    mesh = one_device()
    config = replace(PLAIN, model=ModelConfig(hidden_size=8, embed_size=8), optimizer=OptimizerConfig())
    together = initial_seeds(config, SIZES, grouped(mesh, N), N)
    for index in range(N):
        alone = initial_state(replace(config, train=TrainConfig(seed=index)), SIZES, mesh)
        assert same_bits(of(together, index), jax.device_get(alone))


def test_a_gradient_that_is_not_finite_skips_that_seeds_update_only(way):
    groups = grouped(one_device(), N)
    update = jit_seeds_step(PLAIN, SIZES, groups, N)
    start = jax.device_get(initial_seeds(PLAIN, SIZES, groups, N))
    bias = start.runs.params["output"]["bias"].copy()
    bias[1] = np.nan
    start = start._replace(runs=with_output(start.runs, bias=bias))
    after = jax.device_get(update(start, *stacked_pairs()))
    assert after.runs.window.nonfinite.tolist() == after.runs.nonfinite_in_a_row.tolist() == [0, 1, 0]
    assert after.runs.step.tolist() == [1, 1, 1]
    for index, moved in enumerate([True, False, True]):
        before = jax.tree.map(lambda leaf, index=index: leaf[index], start.runs)
        assert same_bits(of(after, index).params, before.params) != moved
        assert same_bits(of(after, index).optimizer_state, before.optimizer_state) != moved


def test_a_seed_that_has_ended_does_not_move_while_others_go_on(way):
    groups = grouped(one_device(), N)
    update = jit_seeds_step(DROPOUT, SIZES, groups, N)
    start = jax.device_get(initial_seeds(DROPOUT, SIZES, groups, N))._replace(active=np.array([True, False, True]))
    after = jax.device_get(update(start, *stacked_pairs()))
    before = jax.tree.map(lambda leaf: leaf[1], start.runs)
    assert same_bits(of(after, 1), before)
    assert after.runs.step.tolist() == [1, 0, 1] and after.step == 1
    assert not same_bits(of(after, 2).params, jax.tree.map(lambda leaf: leaf[2], start.runs).params)


ON_SIX_DEVICES = """
import json, sys, jax, numpy as np
from seq2seq_jax.config import MeshConfig
from seq2seq_jax.sharding import grouped, make_mesh
from seq2seq_jax.training import seeds
from tests.hlo import collectives
from tests.training.test_reproduction import DROPOUT, N, SIZES, at_once, stacked_pairs
if sys.argv[1] == "at once":
    seeds._over_seeds = lambda _: at_once
found = {}
for devices in (1, 2, 4, 6):
    mesh = grouped(make_mesh(MeshConfig(data=devices)), N)
    state, update = seeds.initial_seeds(DROPOUT, SIZES, mesh, N), seeds.jit_seeds_step(DROPOUT, SIZES, mesh, N)
    places = seeds.seeds_of_places(DROPOUT, N, mesh)
    for step in range(2):
        fill = lambda rows: np.concatenate([rows, rows[: len(places) - N]])
        batch = jax.tree.map(fill, stacked_pairs(step))
        meetings = collectives(update.lower(state, *batch).compile().as_text())
        state = update(state, *batch)
    kept = seeds.saved(state, N)
    state = seeds.restored(kept, mesh)
    again = jax.tree.leaves(seeds.saved(state, N))
    leaves = [leaf.ravel().tolist() for leaf in jax.tree.leaves((kept["runs"]["params"], kept["runs"]["window"]))]
    found[devices] = {
        "shape": list(mesh.devices.shape[:2]),
        "places": places,
        "active": state.active.tolist(),
        "same": all((one == other).all() for one, other in zip(jax.tree.leaves(kept), again, strict=True)),
        "leaves": leaves,
        "meetings": sum(sum(kinds.values()) for kinds in meetings.values()),
    }
print(json.dumps(found))
"""


@pytest.mark.parametrize("way", ["one after another", "at once"])
def test_groups_of_devices_take_the_seeds_and_those_of_a_group_the_rows(repository, way):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=6"
    command = [sys.executable, "-c", ON_SIX_DEVICES, way]
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [each["shape"] for each in found.values()] == [[1, 1], [2, 1], [2, 2], [3, 2]]
    assert [bool(each["meetings"]) for each in found.values()] == [False, False, True, True]  # those of one group only
    assert [each["places"] for each in found.values()] == [[0, 1, 2], [0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 2]]
    for each in found.values():
        assert each["active"] == [index < N for index in range(len(each["places"]))] and each["same"]
        for one, other in zip(found["1"]["leaves"], each["leaves"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# whole runs


@pytest.mark.parametrize("index", range(N))
def test_a_seed_among_others_is_what_it_is_alone(folder, config, unbroken, index):
    alone = folder / f"alone {index}"
    run = replace(config, train=replace(config.train, seed=4 + index, shape_seed=4))
    scores = train(run, alone).scores["test"]
    together = unbroken / "seeds" / str(index)
    one, other = load(alone), load(together)
    assert one.step == other.step and other.config == run
    for first, second in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    found = json.loads((unbroken / "reproduction.json").read_text())["seeds"][index]
    assert found["seed"] == 4 + index and found["best_step"] == one.step
    for name, value in found["scores"]["test"].items():
        assert value == pytest.approx(scores[name], rel=1e-5)
    evaluations = Path("evaluations", "test.hypotheses.txt")
    assert (alone / evaluations).read_text() == (together / evaluations).read_text()
    for row, row_alone in zip(rows(together), rows(alone), strict=True):
        assert row == pytest.approx(row_alone, rel=1e-4)


def test_the_first_seed_is_train_as_it_stands(folder, config, unbroken):
    train(config, folder / "as it stands")
    first = jax.tree.leaves(load(folder / "as it stands").params)
    for one, other in zip(first, jax.tree.leaves(load(unbroken / "seeds" / "0").params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_results_are_means_and_standard_deviations_of_the_seeds(unbroken):
    found = json.loads((unbroken / "reproduction.json").read_text())
    tests = [
        json.loads((unbroken / seed["workdir"] / "evaluations" / "test.json").read_text()) for seed in found["seeds"]
    ]
    assert len(tests) == N
    for name, score in found["splits"]["test"].items():
        values = [test[name] for test in tests]
        assert score["mean"] == pytest.approx(np.mean(values)) and score["seeds"] == N
        assert score["standard_deviation"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert found["verdict"] == "BELOW" and found["conclusion"].startswith("BELOW: exact_match on test ")
    table = (unbroken / "reproduction.md").read_text()
    assert table.startswith("# scan/simple, 3 seeds\n\nseq2seq_jax ")
    assert "\n\n| split | metric | mean ± standard deviation | seed 4 | seed 5 | seed 6 |\n|---|---|" in table
    assert "\nPublished: all of them\n" in table and found["conclusion"] in table


def test_a_seeds_run_directory_is_read_and_not_trained(unbroken, config):
    run = unbroken / "seeds" / "1"
    assert load(run).translate(["ant bee"])[0].text
    with pytest.raises(UserError, match="a seed that was trained by reproduce: it is read by translate"):
        train(load(run).config, run)


def test_the_directory_of_all_seeds_is_no_run_of_one(unbroken, config, folder):
    for use in (lambda: train(config, unbroken), lambda: average(unbroken, 1, folder / "mean")):
        with pytest.raises(UserError, match=r"holds 3 seeds, which the command reproduce trains.*seeds/0"):
            use()
    with pytest.raises(UserError, match="holds 3 seeds, and --num-seeds is 4. Give --num-seeds 3"):
        reproduce(config, 4, unbroken)


def test_the_directory_of_all_seeds_is_their_ensemble(unbroken, folder, capfd):
    runs = [unbroken / "seeds" / str(index) for index in range(N)]
    lines = ["ant bee", "cat"]
    ensemble, expected = load(unbroken), load(runs)
    assert ensemble.num_models == N and ensemble.translate(lines) == expected.translate(lines)
    with pytest.raises(UserError, match="seeds/1 is given twice"):
        load([unbroken, runs[1]])
    before = {path: path.read_bytes() for path in (unbroken / "seeds").rglob("*") if path.is_file()}
    assert cli.main(["evaluate", "--workdir", str(unbroken)]) == 0
    assert f"written to {unbroken}/evaluations/test.json" in capfd.readouterr().out
    written = json.loads((unbroken / "evaluations" / "test.json").read_text())
    assert written["workdirs"] == [str(run) for run in runs] and written["step"] == list(expected.step)
    assert {path: path.read_bytes() for path in (unbroken / "seeds").rglob("*") if path.is_file()} == before


def test_the_directory_of_all_seeds_goes_with_other_runs(unbroken, folder, capfd):
    other = Path(shutil.copytree(unbroken / "seeds" / "0", folder / "other"))
    (folder / "in").write_text("ant bee\n")
    expected = load([other, unbroken])
    assert expected.num_models == N + 1
    code = cli.main(["translate", "--workdir", str(other), str(unbroken), "--input", str(folder / "in")])
    assert (code, capfd.readouterr().out) == (0, f"{expected.translate(['ant bee'])[0].text}\n")


def test_the_best_values_on_validation_are_told(unbroken):
    found = json.loads((unbroken / "reproduction.json").read_text())
    best = [
        min(row["validation_loss"] for row in rows(unbroken / seed["workdir"]) if "validation_loss" in row)
        for seed in found["seeds"]
    ]
    assert [seed["validation"] for seed in found["seeds"]] == best
    spread = pytest.approx(np.std(best, ddof=1))
    expected = {"metric": "loss", "mean": pytest.approx(np.mean(best)), "standard_deviation": spread, "seeds": N}
    assert found["validation"] == expected
    row = f"| validation, best | loss | {np.mean(best):.4f} ± {np.std(best, ddof=1):.4f} | {best[0]:.4f} |"
    assert row in (unbroken / "reproduction.md").read_text()


def test_a_run_of_one_is_not_that_of_several(folder, config):
    train(replace(config, train=replace(config.train, num_steps=2)), folder / "one")
    with pytest.raises(UserError, match="is of a run by itself, and not of 3 seeds. Choose another --workdir."):
        reproduce(replace(config, train=replace(config.train, num_steps=2)), N, folder / "one")


def test_a_finished_one_trains_nothing_and_says_the_same(unbroken, config, capfd):
    before = [(unbroken / name).read_text() for name in ("reproduction.json", "reproduction.md")]
    assert reproduce(config, N, unbroken).step == 30
    assert [(unbroken / name).read_text() for name in ("reproduction.json", "reproduction.md")] == before
    out = capfd.readouterr().out
    assert "Seeds       3, 4 to 6, trained in one program" in out and "Verdict     BELOW" in out


def test_another_band_is_another_verdict_on_the_same_runs(unbroken, config, tmp_path):
    workdir = Path(shutil.copytree(unbroken, tmp_path / "copied"))
    result = reproduce(replace(config, published_band=100.0), N, workdir)
    assert result.verdict == "REPRODUCED"
    assert "published_band is 100.0000" in (workdir / "reproduction.md").read_text()
    assert same_runs(workdir, unbroken)


def test_what_an_earlier_run_left_of_a_seed_is_replaced(unbroken, config, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(unbroken, tmp_path / "copied"))
    for name in ("checkpoints", "vocabulary"):
        shutil.rmtree(workdir / name)
    (workdir / "config.json").unlink()
    shorter = replace(config, train=replace(config.train, num_steps=4, seed=0, evaluate_every=4))
    with monkeypatch.context() as patch:
        interrupt_at(1, signal.SIGTERM, patch)
        reproduce(shorter, 2, workdir)
    assert not (workdir / "reproduction.json").exists()  # it would be taken for what came of this run
    reproduce(shorter, 2, workdir)
    left = load(workdir / "seeds" / "1")
    assert left.step == 4 and left.config.train.seed == 1
    assert [row["step"] for row in rows(workdir / "seeds" / "1")] == [2, 4, 4]


def interrupt_at(step: int, number: int, patch: pytest.MonkeyPatch) -> None:
    original = reproduction.stacked_batches

    def interrupting(*arguments):
        for count, batch in enumerate(original(*arguments)):
            if count == step:
                os.kill(os.getpid(), number)
            yield batch

    patch.setattr(reproduction, "stacked_batches", interrupting)


def test_sigterm_saves_and_the_same_command_resumes_to_the_same_bits(folder, config, unbroken, monkeypatch, capfd):
    workdir = folder / "terminated"
    with monkeypatch.context() as patch:
        interrupt_at(13, signal.SIGTERM, patch)
        assert reproduce(config, N, workdir).status == "terminated"
    assert "Asked to stop: saved at step 14. The same command resumes." in capfd.readouterr().out
    assert not (workdir / "reproduction.json").exists() and not (workdir / "seeds" / "0" / "config.json").exists()
    assert reproduce(config, N, workdir).status == "done"
    assert same_runs(workdir, unbroken)


class Killed(BaseException):
    """Ends a run where it stands, as a kill would."""


def test_what_is_killed_between_checkpoints_resumes_to_the_same_bits(folder, config, unbroken, monkeypatch):
    workdir, original = folder / "killed", reproduction.stacked_batches

    def killed(*arguments):
        for count, batch in enumerate(original(*arguments)):
            if count == 17:
                raise Killed
            yield batch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reproduction, "stacked_batches", killed)
        reproduce(config, N, workdir)
    assert steps_kept(workdir)[-1] in (10, 15)
    assert reproduce(config, N, workdir).status == "done"
    assert same_runs(workdir, unbroken)


def test_a_signal_between_the_validations_of_two_seeds_leaves_the_rest_for_later(folder, config, unbroken, monkeypatch):
    workdir, original, calls = folder / "validating", loop.Validation.__call__, []

    def interrupted(self, params):
        calls.append(1)
        if len(calls) == N + 2:  # the second seed's second
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, params)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Validation, "__call__", interrupted)
        assert reproduce(config, N, workdir).status == "interrupted"
    evaluated = [
        [row["step"] for row in rows(workdir / "seeds" / str(index)) if "validation_loss" in row] for index in range(N)
    ]
    assert evaluated == [[10, 20], [10], [10]]
    assert reproduce(config, N, workdir).status == "done"
    assert same_runs(workdir, unbroken)


def scripted(monkeypatch, *losses: list[float]) -> None:
    """Makes the validations of each seed give these losses, one after another; infinity once they are used up."""
    remaining = [iter(own) for own in losses]
    original = reproduction.Run.evaluate

    def evaluate(run, state, step):
        index = int(run._writer._index)
        run._validation = lambda _: (fake_scores(next(remaining[index])), [])
        return original(run, state, step)

    monkeypatch.setattr(reproduction.Run, "evaluate", evaluate)


def test_each_seed_stops_early_by_itself_and_keeps_its_own_best_and_rate(folder, monkeypatch, capfd):
    scripted(monkeypatch, [3, 2, 2.5, 2.6, 2.7], [3, 4, 5], [3, 2, 1, 0.5, 0.4, 0.3])
    options = {"num_steps": 12, "evaluate_every": 2, "early_stopping": 2, "decode_sentences": 0, "log_every": 1}
    schedule = {"schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.5}
    result = reproduce(tiny_config(folder / "corpus", optimizer=schedule, train=options), N, folder / "stopping")
    assert (result.status, result.step) == ("done", 12)
    assert [outcome.best_step for outcome in result.outcomes] == [4, 2, 12]
    runs = [folder / "stopping" / "seeds" / str(index) for index in range(N)]
    assert [max(row["step"] for row in rows(run)) for run in runs] == [8, 6, 12]
    factors = [[row["learning_rate"] / 0.02 for row in rows(run) if "loss" in row] for run in runs]
    np.testing.assert_allclose(factors[0], [1] * 6 + [0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(factors[1], [1] * 4 + [0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(factors[2], [1] * 12, rtol=1e-6)
    out = capfd.readouterr().out
    assert "Seed 1: Validation loss has not improved for 2 evaluations: stopping." in out
    for run, step in zip(runs, (4, 2, 12), strict=True):
        assert load(run).step == step


def test_when_all_seeds_have_stopped_training_ends(folder, monkeypatch):
    scripted(monkeypatch, [3, 4], [3, 2, 4])
    options = {"num_steps": 40, "evaluate_every": 2, "early_stopping": 1, "decode_sentences": 0}
    config = tiny_config(folder / "corpus", train=options)
    result = reproduce(config, 2, folder / "all stopped")
    assert (result.status, result.step) == ("stopped", 6)
    again = reproduce(config, 2, folder / "all stopped")
    assert (again.status, again.step) == ("stopped", 6) and again.verdict is None


def test_a_seed_that_diverges_is_told_and_the_others_go_on(folder, config, monkeypatch, capfd):
    scripted(monkeypatch, [3, 2, 1], [math.nan, 99, math.inf], [3, 2, 99])
    result = reproduce(config, N, folder / "diverged")
    first, second, third = result.outcomes
    assert first.scores and not first.trouble
    assert not second.scores and "Training has diverged: a validation loss of 99" in second.trouble
    assert third.scores and "diverged after step 20" in third.trouble
    found = json.loads((folder / "diverged" / "reproduction.json").read_text())
    assert found["splits"]["test"]["bleu"]["seeds"] == 2 and found["seeds"][1]["scores"] == {}
    assert "Split test, 12 sentences, 2 of 3 seeds, mean ± standard deviation:" in capfd.readouterr().out
    assert "| diverged |" in (folder / "diverged" / "reproduction.md").read_text()
    assert [seed["validation"] for seed in found["seeds"]] == [1, None, 2] and found["validation"]["seeds"] == 2
    with pytest.warns(UserWarning, match="Seed 5 of .* had diverged and is left out of the ensemble"):
        assert load(folder / "diverged").num_models == 2
    assert not (folder / "diverged" / "seeds" / "1" / "config.json").exists()


def test_a_seed_whose_parameters_are_not_finite_ends_and_a_resumed_one_remembers_why(
    folder, config, monkeypatch, capfd
):
    original = reproduction.initial_seeds

    def infinite(*arguments):
        state = original(*arguments)
        params = state.runs.params | {"source_table": state.runs.params["source_table"].at[1].set(np.inf)}
        return state._replace(runs=state.runs._replace(params=params))

    monkeypatch.setattr(reproduction, "initial_seeds", infinite)
    workdir = folder / "infinite"
    for _ in range(2):
        result = reproduce(config, N, workdir)
        assert [bool(outcome.scores) for outcome in result.outcomes] == [True, False, True]
        assert "at step 10 there are parameters that are not finite" in result.outcomes[1].trouble
    assert "Seed 5: Training has diverged: at step 10" in capfd.readouterr().out
    assert max(row["step"] for row in rows(workdir / "seeds" / "1")) == 10


def test_where_all_seeds_diverge_it_is_an_error_with_what_to_try(folder, config, monkeypatch):
    scripted(monkeypatch, *[[math.nan] * 3] * N)
    with pytest.raises(UserError, match="All 3 seeds have diverged. Training has diverged: .* Try, in another"):
        reproduce(config, N, folder / "hopeless")
    assert json.loads((folder / "hopeless" / "reproduction.json").read_text())["splits"] == {}


# what is refused


@pytest.mark.parametrize(
    ("num_seeds", "seed", "message"),
    [(0, 0, "--num-seeds must be 1 or more, got 0"), (3, 2**32 - 2, "the 2 seeds after it go beyond 4,294,967,295")],
)
def test_seeds_that_cannot_be_are_refused_and_nothing_is_written(folder, config, num_seeds, seed, message):
    with pytest.raises(UserError, match=message):
        reproduce(replace(config, train=replace(config.train, seed=seed)), num_seeds, folder / "refused")
    assert not (folder / "refused").exists()


def test_too_many_seeds_for_the_memory_are_refused(folder, config, monkeypatch):
    monkeypatch.setattr("seq2seq_jax.training.costs.fits.available_bytes", lambda _: 1_000_000)
    with pytest.raises(UserError, match=r"for 90 seeds, and 1.* MB are available.*or a smaller --num-seeds"):
        reproduce(config, 90, folder / "large")
    assert not (folder / "large").exists()


def test_the_split_of_the_published_score_is_the_only_one_or_named():
    config = Config(published_metric="bleu", published_score=39.0)
    named = replace(config, published_split="test_b")
    assert published_split(config, ["test"], "files:x") == "test"
    assert published_split(named, ["test_a", "test_b"], "files:x") == "test_b"
    assert published_split(Config(), ["test_a", "test_b"], "files:x") is None
    with pytest.raises(UserError, match="test splits test_a, test_b, .* --published-split test_a"):
        published_split(config, ["test_a", "test_b"], "files:x")
    with pytest.raises(UserError, match="published_split test_b is none of those .*: test"):
        published_split(named, ["test"], "files:x")


# verdicts


@pytest.mark.parametrize(
    ("mean", "deviation", "score", "band", "verdict"),
    [
        (39.4, 0.5, 39.0, None, "REPRODUCED"),
        (39.4, 0.3, 39.0, None, "ABOVE"),
        (38.6, 0.3, 39.0, None, "BELOW"),
        (39.4, 0.3, 39.0, 0.5, "REPRODUCED"),
        (39.4, 9.0, 39.0, 0.1, "ABOVE"),
        (38.4, 9.0, 39.0, 0.1, "BELOW"),
        (99.85, 0.01, 99.8, 0.05, "REPRODUCED"),  # at the very edge, in decimals
        (99.75, 0.01, 99.8, 0.05, "REPRODUCED"),
        (100.0, 0.0, 100.0, None, "REPRODUCED"),
        (100.0, 0.0, 99.9, None, "ABOVE"),
        (50.0, None, 50.0, None, None),
        (50.0, None, 50.0, 0.0, "REPRODUCED"),
        (math.inf, math.nan, 50.0, None, None),
        (math.inf, math.nan, 50.0, 1.0, None),
    ],
)
def test_verdicts(mean, deviation, score, band, verdict):
    assert judge(Summary(mean, deviation, 3), score, band) == verdict


def test_a_summary_is_the_mean_and_the_sample_standard_deviation():
    values = [1.0, 2.5, 7.0, 7.25]
    assert summarize(values)[:3] == (np.mean(values), pytest.approx(np.std(values, ddof=1)), 4)
    assert summarize([3.0])[:3] == (3.0, None, 1) and str(summarize([3.0])) == "3.0000"
    assert str(summarize([1.0, 2.0])) == f"1.5000 ± {statistics.stdev([1, 2]):.4f}"
    assert math.isnan(summarize([1.0, math.inf]).deviation)


def test_of_an_error_the_verdict_says_that_lower_is_better():
    def sentence(metric):
        config = Config(metrics=("token_errors",), published_metric=metric, published_score=7.5, published_band=0.1)
        return conclusion(config, "test", {"test": {metric: Summary(6.0, 0.5, 3)}})[1]

    assert "published 7.5 (lower is better); " in sentence("sequence_error_rate")
    assert "published 7.5; " in sentence("exact_match")
