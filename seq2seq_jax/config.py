"""Every setting of a run, in frozen dataclasses.

This is the only list of fields: files in `configs/` construct it, the command
line overrides it, `config.json` in a run directory is its image. A bad value is
refused here, before anything else happens, with `UserError`.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from seq2seq_jax.errors import UserError, did_you_mean

Attention = Literal["none", "dot", "general", "additive"]
Ties = Literal["none", "source_target", "target_output", "all"]
BleuTokenizer = Literal["13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. Sizes are features per position."""

    cell: Literal["lstm"] = "lstm"
    """Recurrent cell of encoder and decoder."""
    hidden_size: int = 512
    """Features of one encoder output and of the decoder's state. A bidirectional encoder gives half of them to each
    direction."""
    embed_size: int = 256
    """Features of a token's embedding, source and target."""
    num_layers: int = 1
    """Recurrent layers in the encoder, and as many in the decoder."""
    bidirectional: bool = True
    """Read the source in both directions in every encoder layer."""
    attention: Attention = "general"
    """Score of a source position: dot and general (Luong et al. 2015), additive (Bahdanau et al. 2015), or none for the
    last encoder state alone."""
    input_feeding: bool = True
    """Feed the attentional vector to the decoder's next step (Luong et al. 2015, section 3.3)."""
    bridge: Literal["copy", "dense", "zero"] = "copy"
    """Decoder's first state: the encoder's last one as it is, through a tanh layer, or zeros."""
    dropout_rate: float = 0.2
    """Share of features dropped at the embeddings, between layers and at the output, in training only."""
    tied_embeddings: Ties = "none"
    """Tables that are one and the same: source and target, target and output layer, or all three."""
    initializer: Literal["uniform", "orthogonal"] = "uniform"
    """uniform: every weight from ±init_scale. orthogonal: recurrent matrices orthogonal per gate, the others
    Glorot uniform, embeddings normal."""
    init_scale: float = 0.1
    """Bound of the uniform initialiser."""
    forget_bias: float = 0.0
    """First value of the forget gate's bias; 1 after Jozefowicz et al. 2015."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of products and activations. Parameters, cell state and losses stay float32."""

    def __post_init__(self) -> None:
        _check_types("model", self)
        _at_least("model", self, 1, "hidden_size", "embed_size", "num_layers")
        _in_range("model.dropout_rate", self.dropout_rate, 0.0, 1.0)
        _positive("model", self, "init_scale")
        if self.bidirectional and self.hidden_size % 2:
            raise UserError(
                f"model.hidden_size {self.hidden_size} is odd, and a bidirectional encoder gives half of it to each"
                f" direction; use {self.hidden_size + 1}, or model.bidirectional False."
            )
        if self.input_feeding and self.attention == "none":
            raise UserError(
                "model.input_feeding feeds the attentional vector back, and model.attention is none;"
                " set model.input_feeding False."
            )


@dataclass(frozen=True)
class DataConfig:
    """Corpus, vocabulary and batches."""

    corpus: str = "scan/simple"
    """scan/simple, scan/length, scan/addprim_jump, scan/addprim_turn_left, files:DIR, or the name of a TFDS dataset."""
    source: str | None = None
    """Column (feature) that is read; by default the corpus's own first key."""
    target: str | None = None
    """Column (feature) that is written; by default the corpus's own second key."""
    train_split: str = "train"
    """Split that is trained on, where a corpus has several, such as train-low and train-high."""
    columns: tuple[str, ...] = ()
    """Names of the columns of SPLIT.tsv files, left to right."""
    train_files: tuple[str, str] | None = None
    """Source and target file of the training split, instead of a corpus."""
    validation_files: tuple[str, str] | None = None
    """Source and target file of the validation split; without it one is cut from train."""
    test_files: tuple[str, str] | None = None
    """Source and target file of the test split."""
    data_dir: str | None = None
    """Where prepared corpora are kept; by default the user's cache directory."""
    lowercase: bool = False
    """Lowercase both sides before anything else. BLEU, chrF and exact match then compare with lowercased references."""
    vocabulary: Literal["unigram", "bpe", "characters", "words"] = "unigram"
    """unigram and bpe are SentencePiece models; words splits at blanks."""
    vocab_size: int = 8000
    """Largest number of entries, special symbols included (of each side unless joint_vocabulary)."""
    joint_vocabulary: bool = True
    """One vocabulary for both sides."""
    min_frequency: int = 1
    """Words and characters seen less often in train become unknown."""
    max_length: int = 100
    """Longest training sequence in tokens, end mark included; longer pairs are left out and counted."""
    batch_size: int | None = 64
    """Sentences per step over all devices; None when batch_tokens is set."""
    batch_tokens: int | None = None
    """Target positions per step over all devices, padding included, instead of batch_size."""
    num_shapes: int = 8
    """Batch shapes compiled; more shapes pad less."""

    def __post_init__(self) -> None:
        _check_types("data", self)
        _at_least("data", self, 1, "min_frequency", "num_shapes")
        _at_least("data", self, 2, "max_length")
        _at_least("data", self, 5, "vocab_size")
        if (self.batch_size is None) == (self.batch_tokens is None):
            raise UserError(
                f"Set exactly one of data.batch_size ({self.batch_size}) and data.batch_tokens ({self.batch_tokens});"
                " give the other the value None."
            )
        for name in ("batch_size", "batch_tokens"):
            if getattr(self, name) is not None:
                _at_least("data", self, 1, name)
        if (self.validation_files or self.test_files) and not self.train_files:
            raise UserError("data.validation_files and data.test_files go with data.train_files, which is not set.")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning rate and clipping."""

    name: Literal["adam", "adamw", "sgd", "adafactor"] = "adam"
    """Update rule (Optax)."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "inverse_sqrt", "cosine", "plateau"] = "constant"
    """After warm-up: constant; falling with the inverse square root of the step; a
    half cosine to zero at train.num_steps; multiplied by plateau_factor when validation stops improving."""
    warmup_steps: int = 0
    """Steps of linear rise from zero to learning_rate."""
    plateau_factor: float = 0.5
    """What the plateau schedule multiplies the learning rate by."""
    plateau_patience: int = 1
    """Evaluations without improvement before the plateau schedule acts."""
    clip_norm: float = 5.0
    """Largest global gradient norm; 0 for no clipping."""
    momentum: float = 0.0
    """Momentum of sgd."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of adamw, for matrices only."""

    def __post_init__(self) -> None:
        _check_types("optimizer", self)
        _positive("optimizer", self, "learning_rate")
        _at_least("optimizer", self, 0, "warmup_steps", "clip_norm", "weight_decay")
        _at_least("optimizer", self, 1, "plateau_patience")
        _in_range("optimizer.plateau_factor", self.plateau_factor, 0.0, 1.0)
        for name in ("momentum", "beta1", "beta2"):
            _in_range(f"optimizer.{name}", getattr(self, name), 0.0, 1.0)
        if self.weight_decay and self.name != "adamw":
            raise UserError(
                f"optimizer.weight_decay {self.weight_decay} acts in adamw only, and optimizer.name is {self.name}."
            )


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run and what happens along it. Intervals are in steps."""

    num_steps: int = 10_000
    """Updates in all."""
    evaluate_every: int = 1_000
    """Steps between validations."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; the last state is always saved."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl."""
    seed: int = 0
    """Of initial values, data order and dropout."""
    label_smoothing: float = 0.0
    """Share of probability spread evenly over the vocabulary (Szegedy et al. 2016)."""
    accumulate_steps: int = 1
    """Parts a batch is cut into, one after another, to save memory."""
    rematerialize_every: int = 0
    """For long sequences: keep only the states at every so many positions and compute what lies between them again in
    the backward pass. A few hundred at most; 0 keeps everything."""
    best_metric: Literal["loss", "bleu", "chrf", "exact_match"] = "loss"
    """Validation metric by which the best checkpoint is kept, the plateau schedule acts and training stops early."""
    early_stopping: int = 0
    """Stop after so many evaluations without improvement; 0 for never."""
    decode_sentences: int = 1_000
    """Validation sentences decoded greedily at each evaluation; 0 for none."""
    num_samples: int = 3
    """Decoded sentences shown at each evaluation."""
    max_nonfinite_steps: int = 20
    """Stop after so many non-finite gradients in a row."""

    def __post_init__(self) -> None:
        _check_types("train", self)
        _at_least("train", self, 1, "num_steps", "evaluate_every", "checkpoint_every", "log_every")
        _at_least("train", self, 1, "accumulate_steps", "max_nonfinite_steps")
        _at_least("train", self, 0, "seed", "early_stopping", "decode_sentences", "num_samples", "rematerialize_every")
        _in_range("train.label_smoothing", self.label_smoothing, 0.0, 1.0)
        if self.best_metric != "loss" and not self.decode_sentences:
            raise UserError(
                f"train.best_metric {self.best_metric} needs decoded sentences, and train.decode_sentences is 0."
            )


@dataclass(frozen=True)
class DecodeConfig:
    """Search at test time."""

    beam_size: int = 5
    """Hypotheses kept per sentence; 1 is greedy search."""
    length_penalty: float = 1.0
    """Exponent alpha of Wu et al. 2016, section 7; 0 compares plain log-probabilities."""
    max_length_ratio: float = 2.0
    """Longest output: this many times the source's tokens, and ten more."""
    batch_size: int = 32
    """Sentences decoded at once."""

    def __post_init__(self) -> None:
        _check_types("decode", self)
        _at_least("decode", self, 1, "beam_size", "batch_size")
        _at_least("decode", self, 0, "length_penalty")
        _positive("decode", self, "max_length_ratio")


@dataclass(frozen=True)
class MeshConfig:
    """Devices."""

    data: int | None = None
    """Devices that share each batch; by default all local ones."""

    def __post_init__(self) -> None:
        _check_types("mesh", self)
        if self.data is not None:
            _at_least("mesh", self, 1, "data")


@dataclass(frozen=True)
class Config:
    """One experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    bleu_tokenizer: BleuTokenizer = "13a"
    """What cuts text into the tokens that BLEU counts, of sacreBLEU's: 13a for scripts with blanks between words; zh,
    char, ja-mecab or ko-mecab for others. The last two are extras: pip install 'sacrebleu[ja]' or 'sacrebleu[ko]'."""
    moses_language: str | None = None
    """Language of the target (en, de, ...), to report BLEU by the protocol of the WMT multimodal task too."""
    published: str = ""
    """Published result of the same experiment, printed beside the final score."""

    def __post_init__(self) -> None:
        if self.model.tied_embeddings in ("source_target", "all") and not self.data.joint_vocabulary:
            raise UserError(
                f"model.tied_embeddings {self.model.tied_embeddings} shares the source table with the target,"
                " which needs data.joint_vocabulary True."
            )
        if self.optimizer.schedule == "cosine" and self.optimizer.warmup_steps >= self.train.num_steps:
            raise UserError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} leaves nothing of"
                f" train.num_steps {self.train.num_steps} for the cosine; use fewer, say"
                f" {self.train.num_steps // 20}, or more steps."
            )


def to_json(config: Config) -> str:
    """Returns `config` as indented JSON text, ending in a newline."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Returns the `Config` that `to_json` wrote.

    Raises:
      UserError: the text is not JSON or has an unknown field.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not a configuration: {error}") from error
    return _build(Config, values, "")


def differences(old: Config, new: Config) -> list[str]:
    """Returns a line `section.field: old -> new` for each field that differs."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    changed = [name for name in flat_old if flat_old[name] != flat_new[name]]
    return [f"{name}: {flat_old[name]!r} -> {flat_new[name]!r}" for name in changed]


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= _flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"not a configuration: {prefix.rstrip('.') or 'it'} must be a group of fields, got {values!r}")
    hints = get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(
                f"Unknown config field {prefix}{name}.{did_you_mean(prefix + name, [prefix + hint for hint in hints])}"
            )
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return cls(**arguments)


def _check_types(section: str, config: Any) -> None:
    """Refuses a value of the wrong type: a config file is Python, so nothing else does."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            choices = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
            expected = f"one of {', '.join(choices)}" if choices else str(getattr(hint, "__name__", hint))
            hint_text = did_you_mean(str(value), choices) if choices else ""
            raise UserError(f"{section}.{name} must be {expected}, got {value!r}.{hint_text}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if arguments:  # a union
        return any(_fits(value, argument) for argument in arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _at_least(section: str, config: Any, bound: int, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= bound:
            raise UserError(f"{section}.{name} must be at least {bound}, got {getattr(config, name)}.")


def _positive(section: str, config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise UserError(f"{section}.{name} must be positive, got {getattr(config, name)}.")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise UserError(f"{name} must be in [{low:g}, {high:g}), got {value}.")
