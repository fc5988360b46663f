"""A run that stops on some devices goes on on others: the same batches, and the same losses to rounding."""

import json
import os
import subprocess
import sys

import pytest

from seq2seq_jax.config import to_json
from tests.tiny import rows, tiny_config

PROGRAM = """
import json, os, signal, sys
from pathlib import Path

from seq2seq_jax.config import MeshConfig, from_json
from seq2seq_jax.training import loop
from dataclasses import replace

config, workdir, batches = from_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), loop.training_batches

def stopping(after):
    def stream(*arguments):
        for number, batch in enumerate(batches(*arguments), 1):
            if number == after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
    return stream

for data, fsdp, model, after in json.loads(sys.argv[3]):
    loop.training_batches = stopping(after)
    mesh = MeshConfig(data=data, fsdp=fsdp, model=model)
    print(loop.train(replace(config, mesh=mesh), workdir).status, file=sys.stderr)
"""
WAYS = {  # devices of each part of the run: data, fsdp, model, and the step that it stops at
    "on one": [(1, 1, 1, 0)],
    "from eight to one": [(8, 1, 1, 5), (1, 1, 1, 0)],
    "in parts, then in others, then on one": [(2, 4, 1, 3), (2, 2, 2, 8), (1, 1, 1, 0)],
    "from one to parts": [(1, 1, 1, 7), (1, 8, 1, 0)],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory, repository):
    """The rows of metrics.jsonl of every way."""
    folder = tmp_path_factory.mktemp("elastic")
    # Large enough for arrays in parts; and rows by tokens, which might depend on the devices.
    config = tiny_config(
        folder / "corpus",
        model={"hidden_size": 64, "embed_size": 64},
        data={"batch_size": None, "batch_tokens": 120},
        train={"ema": 0.5},
    )
    (folder / "config.json").write_text(to_json(config))
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    results = {}
    for name, way in WAYS.items():
        workdir = folder / name
        command = [sys.executable, "-c", PROGRAM, folder / "config.json", workdir, json.dumps(way)]
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stderr.split() == ["terminated"] * (len(way) - 1) + ["done"]
        results[name] = rows(workdir)
    return results


@pytest.mark.parametrize("name", [name for name in WAYS if name != "on one"])
def test_losses_are_those_of_the_unbroken_run(found, name):
    alone, other = found["on one"], found[name]
    assert [row["step"] for row in other] == [row["step"] for row in alone]
    for here, there in zip(other, alone, strict=True):
        assert here.keys() == there.keys()
        for score in ("loss", "grad_norm", "validation_loss"):
            if score in here:
                assert here[score] == pytest.approx(there[score], rel=2e-5)
