"""A run directory whose parameters are the mean of the last checkpoints of another one."""

import os
import shutil
from pathlib import Path

from seq2seq_jax import run_directory
from seq2seq_jax.cache import existing_folder, new_directory, writing_to
from seq2seq_jax.checkpoint import Checkpoints, average_params
from seq2seq_jax.data.vocabulary import load_vocabularies
from seq2seq_jax.errors import UserError
from seq2seq_jax.sharding import one_device
from seq2seq_jax.translator import origin, params_on


def average(workdir: Path, last: int, output: Path) -> list[int]:
    """Averages the parameters of the `last` newest checkpoints of `workdir` into the new run directory `output`.

    Checkpoint averaging, Vaswani et al. 2017, section 6.1. Where the run keeps a
    moving average, it is that average which is averaged. The directory can be read
    like any other, and not be trained.

    Returns:
      The steps of the checkpoints, the newest first.

    Raises:
      UserError: as `checkpoint.average_params`; `output` is there already, or cannot be written.
    """
    if os.path.lexists(output):
        raise UserError(f"{output} is there already; remove it, or choose another --output.")
    existing_folder(output, "--output")
    config = run_directory.read_config(workdir)
    vocabulary = workdir / run_directory.VOCABULARY
    vocabularies = load_vocabularies(vocabulary)
    belongs = origin(config, vocabularies, run_directory.read_fingerprint(workdir))
    params, steps = average_params(workdir, params_on(one_device(), config, vocabularies), belongs, last)
    with writing_to(output, "--output"), new_directory(output) as folder:
        shutil.copytree(vocabulary, folder / run_directory.VOCABULARY)
        with Checkpoints(folder, belongs) as checkpoints:
            checkpoints.save(steps[0], {"params": params}, {"best_step": steps[0], "averaged": steps})
        run_directory.claim(folder, config)
    return steps
