"""Any model of the family as a whole run: it trains, is resumed to the same bits, and decodes."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from seq2seq_jax.training.loop import train
from seq2seq_jax.translator import load
from tests.combinations import SIZES, drawn
from tests.models import everything
from tests.tiny import rows, tiny_config

FEW, MANY = 2, 40
CHANGES = {
    "train": {"num_steps": 20, "evaluate_every": 10, "checkpoint_every": 5, "log_every": 2},
    "data": {"joint_vocabulary": True, "num_shapes": 1},  # some models tie their tables
}


def assert_trains(settings: dict, folder: Path, **more: dict) -> None:
    """Trained twenty steps, it is trained again from step 15: the bits are the same, and the search's outputs too."""
    here = {"features": "prepend", "copy": False}  # tests/training/test_copying.py has data for these
    config = tiny_config(folder / "corpus", model=SIZES | settings | here, **CHANGES, **more)
    unbroken, resumed = folder / "unbroken", folder / "resumed"
    assert train(config, unbroken).status == "done"
    shutil.copytree(unbroken, resumed)
    shutil.rmtree(resumed / "checkpoints" / "20")
    shutil.rmtree(resumed / "evaluations")
    assert train(config, resumed).status == "done"
    assert rows(resumed) == rows(unbroken)
    outputs = [(run / "evaluations" / "test.hypotheses.txt").read_text() for run in (unbroken, resumed)]
    assert outputs[0] == outputs[1]
    params = zip(*(jax.tree.leaves(load(run).params) for run in (unbroken, resumed)), strict=True)
    assert all(np.asarray(one).tobytes() == np.asarray(other).tobytes() for one, other in params)


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "scheduled_sampling", "half_right_step": 10},
        {"name": "minimum_risk", "num_candidates": 4, "sharpness": 0.5},
        {"name": "self_critical", "num_candidates": 1},
    ],
    ids=lambda fields: fields["name"],
)
def test_every_objective_trains_and_is_resumed(objective, tmp_path):
    assert_trains({}, tmp_path, objective=objective)


@pytest.mark.parametrize("number", range(FEW))
def test_a_model_trains_and_is_resumed_and_decodes(number, tmp_path):
    assert_trains(drawn(FEW)[number], tmp_path)


def test_a_model_with_every_regularizer_trains_and_is_resumed_and_decodes(tmp_path):
    assert_trains(everything("lstm", num_layers=1), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FEW, MANY))
def test_any_model_trains_and_is_resumed_and_decodes(number, tmp_path):
    assert_trains(drawn(MANY)[number], tmp_path)
