"""Recurrent sequence-to-sequence models: training, search and evaluation in JAX.

    config = seq2seq_jax.Config(...)
    seq2seq_jax.train(config, "runs/mine")
    seq2seq_jax.load("runs/mine").translate(["a line"])

Shape letters, used in every signature and comment of the package:

    B batch, S source positions, T target positions, D embedding, H hidden,
    E encoder features, A attention, K beams, V vocabulary, G gates (4 H),
    Z directions, L layers, N any leading axes
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seq2seq_jax.config import (
        Config,
        DataConfig,
        DecodeConfig,
        MeshConfig,
        ModelConfig,
        OptimizerConfig,
        TrainConfig,
    )
    from seq2seq_jax.errors import UserError
    from seq2seq_jax.recurrence import scan
    from seq2seq_jax.reporting.page import report
    from seq2seq_jax.seq2seq import Seq2Seq
    from seq2seq_jax.training.loop import train
    from seq2seq_jax.training.reproduction import reproduce
    from seq2seq_jax.translator import Hypothesis, Translator, load

__version__ = "0.3.0"

__all__ = [
    "Config",
    "DataConfig",
    "DecodeConfig",
    "Hypothesis",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Seq2Seq",
    "TrainConfig",
    "Translator",
    "UserError",
    "load",
    "report",
    "reproduce",
    "scan",
    "train",
]

# All is imported when it is first asked for: JAX takes seconds, which `--help` should not, and before the programs obey
# signals there should be nothing to interrupt.
_LAZY = dict.fromkeys(
    ("Config", "DataConfig", "DecodeConfig", "MeshConfig", "ModelConfig", "OptimizerConfig", "TrainConfig"),
    "seq2seq_jax.config",
) | {
    "Hypothesis": "seq2seq_jax.translator",
    "Seq2Seq": "seq2seq_jax.seq2seq",
    "Translator": "seq2seq_jax.translator",
    "UserError": "seq2seq_jax.errors",
    "load": "seq2seq_jax.translator",
    "report": "seq2seq_jax.reporting.page",
    "reproduce": "seq2seq_jax.training.reproduction",
    "scan": "seq2seq_jax.recurrence",
    "train": "seq2seq_jax.training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
