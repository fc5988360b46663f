"""What the peers are given: sizes, weights, a batch; and what a step costs."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import tyro

from benchmarks.measure import refuse
from seq2seq_jax.arguments import parse, read, value_of
from seq2seq_jax.config import Cell, Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from seq2seq_jax.config_file import find_config, load_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded

DROPOUT = 0.2
LEARNING_RATE = 1e-3
CLIP_NORM = 5.0
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Task:
    """A model and the shape of its batches."""

    model: "Model"
    batch_size: int
    length: int
    dtype: str = "float32"  # of the products in training
    device: str = "cpu"  # as JAX calls its platforms

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        return self.model.vocab_size, self.model.vocab_size

    def train_config(self) -> Config:
        """Everything the package needs for a training step."""
        return Config(
            model=replace(self.config, compute_dtype=self.dtype),
            data=DataConfig(batch_size=self.batch_size),
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE, clip_norm=CLIP_NORM),
            train=TrainConfig(label_smoothing=LABEL_SMOOTHING),
        )

    def batch(self) -> tuple[Padded, Padded]:
        """Source and target ids, [B, length] both; no padding."""
        draw = np.random.default_rng(0)
        shape = self.batch_size, self.length
        source, target = (draw.integers(4, self.model.vocab_size, shape).astype(np.int32) for _ in range(2))
        lengths = np.full(self.batch_size, self.length, np.int32)
        return Padded(source, lengths), Padded(target, lengths)

    def params(self) -> dict[str, Any]:
        """The same first weights for every peer, as the package names them; NumPy arrays."""
        import jax
        from flax import nnx

        from seq2seq_jax.build import build_model

        with jax.default_device(jax.local_devices(backend="cpu")[0]):  # the accelerator is the peer's
            model = build_model(self.config, self.vocab_sizes, jax.random.key(0))
        return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


@dataclass(frozen=True)
class Model:
    """A configuration and its vocabulary, as large on either side."""

    config: ModelConfig
    vocab_size: int


def _model(size: int, layers: int, vocab_size: int, input_feeding: bool, cell: Cell = "lstm") -> Model:
    config = ModelConfig(
        cell=cell,
        hidden_size=size,
        embed_size=size,
        num_layers=layers,
        bidirectional="none",
        input_feeding=input_feeding,
        dropout_rate=DROPOUT,
    )
    return Model(config, vocab_size)


MODELS = {
    "L256": _model(256, 1, 8_000, False),
    "L512": _model(512, 2, 8_000, False),
    "L512-IF": _model(512, 2, 8_000, True),
    "G": _model(1024, 4, 32_000, False),
    "GRU512": _model(512, 2, 8_000, False, "gru_v2"),  # the function of nn.GRU
    "RNN512": _model(512, 2, 8_000, False, "rnn"),
    "MIN512": _model(512, 2, 8_000, False, "min_lstm"),
}


def joined(linear: dict[str, Any]) -> np.ndarray:
    """The kernel of a `Linear` for all of its inputs side by side."""
    return np.concatenate([linear["kernels"][part] for part in range(len(linear["kernels"]))])


def train_flops(task: Task) -> float:
    """Floating point operations of the products of one step: three times those of the forward pass."""
    config, length = task.config, task.length
    hidden, embed = config.hidden_size, config.embed_size
    fed = hidden if config.input_feeding else 0
    gates = {"lstm": 4, "gru_v2": 3, "rnn": 1, "min_lstm": 3}[config.cell]
    past = 0 if config.cell == "min_lstm" else hidden
    layers = gates * hidden * (2 * (embed + past) + fed + 2 * (config.num_layers - 1) * (hidden + past))
    attention = hidden * hidden + 2 * length * hidden  # keys once a source position; scores and context
    rest = 2 * hidden * hidden + hidden * task.model.vocab_size
    return 3 * 2 * task.batch_size * length * (layers + attention + rest)


@dataclass(frozen=True)
class Experiment:
    """Options of a benchmark that takes those of training."""

    config: Path = Path("configs/default.py")
    """File with get_config() -> Config."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


Arguments = TypeVar("Arguments", bound=Experiment)


def parse_experiment(cls: type[Arguments], prog: str) -> Arguments:
    """Returns the command line as `cls`; `settings` are those of the file `config`, overridden."""
    try:
        given, default = read(cls, sys.argv[1:]), cls()
        path = find_config(value_of(given, "config") or str(default.config))
        return parse(cls, given, default=replace(default, config=path, settings=load_config(path)), prog=prog)
    except UserError as error:
        refuse(str(error))
