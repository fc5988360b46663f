"""Several processes train as one: with the losses and sentences of one alone; and a signal to one stops all."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seq2seq_jax import cli, processes, translator
from seq2seq_jax.config import from_json, to_json
from seq2seq_jax.errors import UserError
from tests.tiny import rows, tiny_config

PROGRAM = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path

from seq2seq_jax import processes, watchdog
from seq2seq_jax.config import MeshConfig, from_json

watchdog.BEHIND_SECONDS = 2.0
config, workdir, address, number, fsdp, stop_after = sys.argv[1:]
if address:
    processes.start(address, 2, int(number))
from seq2seq_jax.training import loop

batches = loop.training_batches

def stopping(*arguments):
    for index, batch in enumerate(batches(*arguments), 1):
        if index == int(stop_after):
            os.kill(os.getpid(), signal.SIGTERM)
        if index == -int(stop_after):
            time.sleep(8)
        yield batch

loop.training_batches = stopping
config = from_json(Path(config).read_text())
result = loop.train(replace(config, mesh=MeshConfig(fsdp=int(fsdp))), Path(workdir))
print("ended", result.status, result.step)
"""


KILLED = """
import sys
import time
from dataclasses import replace
from pathlib import Path

from seq2seq_jax import processes
from seq2seq_jax.config import from_json

config, workdir, address, number = sys.argv[1:]
processes.start(address, 2, int(number))
from seq2seq_jax.training import loop

with processes.others_needed():
    loop.train(from_json(Path(config).read_text()), Path(workdir))
"""


ERRORS: list[str] = []
"""What the processes of the last training wrote on their standard error."""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def without_gloo(out):
    """The lines but those of XLA's Gloo about its peers, whose threads take each other's apart."""
    return [line for line in out.splitlines() if "[Gloo]" not in line and not line.isdigit()]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    config = tiny_config(
        folder / "corpus",
        model={"hidden_size": 64, "embed_size": 64},
        data={"group_references": True},
        train={"num_steps": 40, "evaluate_every": 20, "checkpoint_every": 20, "ema": 0.5},
    )
    (folder / "config.json").write_text(to_json(config))
    return folder / "config.json"


@pytest.fixture(scope="module")
def run(config_file, repository):
    """Trains with 1 process or 2, of so many devices each; gives what each prints."""

    def run(workdir, *, together, devices, fsdp=1, stop_second_after=0):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        address = f"127.0.0.1:{free_port()}" if together else ""
        started = []
        for number in range(2 if together else 1):
            stop = stop_second_after if number == 1 else 0
            command = [sys.executable, "-c", PROGRAM, config_file, workdir, address, str(number), str(fsdp), str(stop)]
            pipe = subprocess.PIPE
            started.append(
                subprocess.Popen(
                    list(map(str, command)), cwd=repository, env=environment, stdout=pipe, stderr=pipe, text=True
                )
            )
        try:
            said = [process.communicate(timeout=400) for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * len(started), [err for _, err in said]
        ERRORS[:] = [err for _, err in said]
        return ["\n".join(without_gloo(out)) for out, _ in said]

    return run


@pytest.fixture(scope="module")
def alone(config_file, run):
    run(config_file.parent / "alone", together=False, devices=1)
    return config_file.parent / "alone"


@pytest.fixture(scope="module")
def two(config_file, run):
    workdir = config_file.parent / "two"
    return workdir, run(workdir, together=True, devices=2)


def same_run(workdir: Path, other: Path) -> None:
    """Rows alike to rounding, and the same sentences in the same order."""
    found, expected = rows(workdir), rows(other)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for here, there in zip(found, expected, strict=True):
        for name in ("loss", "grad_norm", "validation_loss", "validation_token_accuracy"):
            if name in there:
                assert here[name] == pytest.approx(there[name], rel=3e-5)
    for name in ("test.hypotheses.txt", "test.sources.txt"):
        assert (workdir / "evaluations" / name).read_text() == (other / "evaluations" / name).read_text()


def test_two_processes_give_what_one_gives(two, alone):
    same_run(two[0], alone)


def test_the_first_prints_and_the_second_is_silent(two):
    first, second = two[1]
    assert "Devices     4 cpu (cpu) of 2 processes, float32" in first and "Split test, " in first
    assert second == "ended done 40"


def test_a_signal_to_one_stops_both_at_one_step_and_one_process_goes_on(config_file, run, alone):
    """The second holds half of the state's parts, which the first one's checkpoint has too."""
    workdir = config_file.parent / "stopped"
    first, second = run(workdir, together=True, devices=2, fsdp=4, stop_second_after=5)
    assert second == "ended terminated 10" and first.endswith(second)
    assert "saved at step 10" in first
    (out,) = run(workdir, together=False, devices=4, fsdp=2)
    assert "Resuming at step 10." in out
    same_run(workdir, alone)


def test_a_process_that_no_step_comes_from_is_named(config_file, run):
    first, _ = run(config_file.parent / "behind", together=True, devices=1, stop_second_after=-7)
    assert "ended done 40" in first  # it was slow, and not dead
    told = [line for line in ERRORS[0].splitlines() if line.startswith("warning: no new step for ")]
    assert any("s: process 1 at step 6 (pid " in line and "; process 0 at step " in line for line in told), ERRORS


def test_two_go_on_with_what_one_began(config_file, run, alone):
    workdir = config_file.parent / "begun"
    (out,) = run(workdir, together=False, devices=1, stop_second_after=0)
    assert "ended done 40" in out
    first, _ = run(workdir, together=True, devices=1)  # nothing is left but the test
    assert "Resuming at step 40." in first
    same_run(workdir, alone)


def of_both(repository, *command, stdin=""):
    """What each of two processes says, and their exit codes; the first one has the standard input."""
    address, started = f"127.0.0.1:{free_port()}", []
    for number in range(2):
        options = ["--coordinator", address, "--num-processes", "2", "--process-id", str(number)]
        words = [sys.executable, "-m", "seq2seq_jax", *map(str, command), *options]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, cwd=repository, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
    try:
        given = [stdin, ""]
        said = [process.communicate(text, timeout=300) for process, text in zip(started, given, strict=True)]
    finally:
        for process in started:
            process.kill()
    return [without_gloo(out) for out, _ in said], [err for _, err in said], [process.returncode for process in started]


def test_two_processes_translate_what_the_first_one_reads(config_file, repository, alone):
    lines = (alone / "evaluations" / "test.sources.txt").read_text().splitlines()
    expected = [hypothesis.text for hypothesis in translator.load(alone).translate(lines)]
    text = "".join(f"{line}\n" for line in lines)
    (first, second), errors, codes = of_both(repository, "translate", "--workdir", alone, stdin=text)
    assert codes == [0, 0] and first == expected and second == [], errors
    assert errors[1] == ""


def test_a_file_that_the_first_lacks_is_told_by_both_at_once(repository, alone, tmp_path):
    _, errors, codes = of_both(repository, "translate", "--workdir", alone, "--input", tmp_path / "none")
    assert codes == [2, 2] and all(f"no file {tmp_path}/none" in error for error in errors), errors


def test_two_processes_evaluate_as_one_does(repository, alone):
    file = alone / "evaluations" / "test.json"
    before = json.loads(file.read_text())
    file.unlink()
    (first, second), errors, codes = of_both(repository, "evaluate", "--workdir", alone)
    assert codes == [0, 0] and second == [] and any(line.startswith("bleu ") for line in first), errors
    after = json.loads(file.read_text())
    speed = "sentences_per_second"
    assert after.pop(speed) > 0 and before.pop(speed) > 0
    assert after.pop("loss") == pytest.approx(before.pop("loss"), rel=1e-5)
    assert after.pop("perplexity") == pytest.approx(before.pop("perplexity"), rel=1e-5)
    assert after == before


@contextlib.contextmanager
def long_training(config_file, repository, name, around=()):
    """Two processes in the middle of a training without an end; `around` is a command that starts them."""
    folder, address = config_file.parent, f"127.0.0.1:{free_port()}"
    config = from_json(config_file.read_text())
    many = replace(config.train, num_steps=1_000_000, evaluate_every=1_000_000, checkpoint_every=1_000_000)
    (folder / "long.json").write_text(to_json(replace(config, train=many)))
    workdir, environment = folder / name, os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [*around, sys.executable, "-c", KILLED, folder / "long.json", workdir, address, str(number)],
            cwd=repository,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        while not rows_so_far(workdir):
            assert all(process.poll() is None for process in started)
            time.sleep(0.2)
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_where_one_is_killed_the_other_ends_within_a_minute(config_file, repository, dead):
    """With a code of its own: 75, or 134 where JAX aborts it because the first one is gone."""
    with long_training(config_file, repository, f"dead {dead}") as started:
        started[dead].kill()
        _, err = started[1 - dead].communicate(timeout=60)
    if dead:
        assert started[0].returncode == 75 and "process 0 of 2 cannot go on without another one" in err
    else:
        assert started[1].returncode in (75, -signal.SIGABRT)


@pytest.mark.slow
def test_where_the_network_between_them_is_cut_both_end_within_two_minutes(config_file, repository):
    """In a network of their own, of a loopback that is taken down."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    inside = ["nsenter", "-t", str(holder.pid), "-n"]
    try:
        time.sleep(1)
        if holder.poll() is not None or subprocess.run([*inside, "ip", "link", "set", "lo", "up"]).returncode:
            pytest.skip("no network namespace can be made here: that takes root, unshare, nsenter and ip")
        with long_training(config_file, repository, "cut", inside) as started:
            subprocess.run([*inside, "ip", "link", "set", "lo", "down"], check=True)
            for process in started:
                process.communicate(timeout=120)
            assert all(process.returncode in (75, -signal.SIGABRT) for process in started)
    finally:
        holder.kill()
        holder.wait()


def rows_so_far(workdir):
    path = workdir / "metrics.jsonl"
    return path.exists() and path.read_text()


def test_a_process_by_itself_is_the_first_and_has_all():
    assert processes.is_first() and processes.count() == 1
    assert processes.gathered({"a": [1]}) == [{"a": [1]}]
    assert processes.by_first(lambda: 3) == processes.first_before_others(lambda: 3) == 3
    assert np.array_equal(processes.added_up([np.arange(3)])[0], np.arange(3))
    with pytest.raises(UserError, match="no"), processes.in_first(_Refusing()):
        raise AssertionError


class _Refusing:
    def __enter__(self):
        raise UserError("no")

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--coordinator", "here:1"], "need --num-processes and --process-id too"),
        (["--num-processes", "2", "--process-id", "0"], "need --coordinator too"),
        (["--coordinator", "here:1", "--num-processes", "2", "--process-id", "2"], "--process-id 2 must be from 0 to"),
    ],
)
def test_half_of_an_address_is_refused(capsys, options, told):
    assert cli.main(["train", *options]) == 2
    assert told in capsys.readouterr().err
