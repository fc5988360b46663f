"""The options of every command, one dataclass each; their docstrings are the help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from seq2seq_jax.config import BleuTokenizer, Config, DecodeConfig, FurtherMetric, Mixture, check_num_best
from seq2seq_jax.errors import UserError
from seq2seq_jax.serving.limits import Limits


@dataclass(frozen=True)
class ExperimentArguments:
    """What names an experiment."""

    config: Path | None = None
    """File with get_config() -> Config, or its name in configs/; by default configs/default.py. The defaults below are
    those of this file."""
    workdir: Path | None = None
    """Run directory; by default runs/ and the config's name."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


Experiment = TypeVar("Experiment", bound=ExperimentArguments)


@dataclass(frozen=True)
class ProcessArguments:
    """Who works together."""

    distributed: bool = False
    """This is one of several processes that do it together, all started with the same command. Who they are is asked
    of SLURM, Cloud TPU, Kubernetes or Open MPI; without these give the next three."""
    coordinator: str | None = None
    """HOST:PORT at which the first process is met by the others."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which of them this is, from 0. The first one reads what is translated, writes and prints."""

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.distributed or self.coordinator is not None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}
        missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]
        if 0 < len(missing) < len(given):
            raise UserError(f"Processes that no cluster knows need {' and '.join(missing)} too.")
        if self.process_id is not None and self.num_processes is not None:
            if not 0 <= self.process_id < self.num_processes:
                raise UserError(f"--process-id {self.process_id} must be from 0 to --num-processes less one.")


Processes = Annotated[ProcessArguments, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class TrainArguments(ExperimentArguments):
    """Trains a model, evaluates it and reports. The same command again resumes a run that was broken off."""

    processes: Processes = field(default_factory=ProcessArguments)


@dataclass(frozen=True)
class PlanArguments(ExperimentArguments):
    """Says what training would cost: parameters, memory, operations, time. Takes train's options; trains nothing."""

    num_seeds: int | None = None
    """Seeds trained in one program, for the cost of reproduce; by default that of train."""
    target: str | None = None
    """Devices to plan for that need not be here: v5e:4x4 are 16 TPU chips, h100x8 eight GPUs. Compiles for them (an
    extra: pip install 'seq2seq-jax[tpu]' or 'seq2seq-jax[cuda]'), runs nothing, and estimates the time."""

    def __post_init__(self) -> None:
        if self.num_seeds is not None and self.num_seeds < 2:
            raise UserError(f"--num-seeds must be 2 or more, got {self.num_seeds}; leave it out for one.")


@dataclass(frozen=True)
class ReproduceArguments(ExperimentArguments):
    """Trains several seeds in one program, tests each and compares with the published score. Resumes as train does."""

    workdir: Path | None = None
    """Directory of the seeds' runs; by default runs/, the config's name and -seeds."""
    num_seeds: int = 5
    """How many: train.seed and those after it."""
    sweep: tuple[str, ...] = ()
    """A field and values of it, as in model.cell=lstm,gru; can be given for several fields. Every combination is
    trained with its seeds, in a folder of its own in workdir (by default runs/, the config's name and -sweep), and
    they are compared by what they reach on the validation split."""

    def __post_init__(self) -> None:
        if self.num_seeds < 2 and not self.sweep:
            raise UserError(f"--num-seeds must be 2 or more, got {self.num_seeds}: one has no standard deviation.")
        if self.num_seeds < 1:
            raise UserError(f"--num-seeds must be 1 or more, got {self.num_seeds}.")


@dataclass(frozen=True)
class EvaluateArguments:
    """Decodes a split or a pair of files with a trained model and scores the result."""

    workdir: tuple[Path, ...]
    """Run directory, or that of the seeds of reproduce; several runs make an ensemble."""
    split: str | None = None
    """Split of the run's corpus; by default test."""
    source_file: Path | None = None
    """Text to translate instead of a split, a sentence a line."""
    target_file: Path | None = None
    """Its reference translation, line by line."""
    bleu_tokenizer: BleuTokenizer | None = None
    """What cuts text into the tokens that BLEU counts; by default as the run was configured."""
    metrics: tuple[FurtherMetric, ...] | None = None
    """Scores reported beside BLEU, chrF and exact match; by default as the run was configured."""
    comet_model: Path | None = None
    """A COMET model's file (Rei et al. 2020), model.ckpt, for its score too; an extra: pip install
    'seq2seq-jax[comet]'."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    processes: Processes = field(default_factory=ProcessArguments)

    def __post_init__(self) -> None:
        if (self.source_file is None) != (self.target_file is None):
            raise UserError("--source-file and --target-file go together; give both, or --split.")
        if self.split is not None and self.source_file is not None:
            raise UserError(f"Give --split {self.split} or --source-file {self.source_file}, not both.")


@dataclass(frozen=True)
class TranslateArguments:
    """Translates lines, one output line for each input line; a prompt where standard input is a terminal."""

    workdir: tuple[Path, ...]
    """Run directory, or that of the seeds of reproduce; several runs make an ensemble."""
    input: Path | None = None
    """File to translate; by default standard input."""
    output: Path | None = None
    """File to write; by default standard output."""
    num_best: int | None = None
    """Hypotheses to write for each line, best first, up to decode.beam_size; by default the best alone. With
    decode.sample so many are drawn, and written in that order."""
    format: Literal["text", "tsv", "json"] | None = None
    """text: the text alone, or with --num-best NUMBER ||| TEXT ||| SCORE, as Moses writes it; tsv: the input line's
    number, score and text, tabs between; json: an object a line, with tokens, their log-probabilities and the
    alignment. By default text, with --num-best tsv."""
    alignments: Path | None = None
    """File for word alignments of the best output, i-j for source word i and output word j, from 0: a line each."""
    prefix_file: Path | None = None
    """How the output of each input line begins, a line each; an empty one for anyhow."""
    required_file: Path | None = None
    """Words or phrases that the output of each input line must have, tabs between (dynamic beam allocation, Post and
    Vilar 2018); a line each, an empty one for none. What no output may have is decode.avoid."""
    rerank: tuple[Path, ...] = ()
    """Run directory (or several) whose model puts what the beam found into another order."""
    rerank_weight: float = 0.5
    """Its part of the new scores, from 0 to 1."""
    context_turns: int | None = None
    """Of the prompt: turns, what was typed and the answers, that are read before a line; by default data.context_turns
    of the run. A line of a file holds its turns itself, the oldest first and tabs between."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    processes: Processes = field(default_factory=ProcessArguments)

    def __post_init__(self) -> None:
        if self.num_best is not None:
            check_num_best(self.num_best, self.decode)
        if self.alignments is not None and self.num_best is not None:
            raise UserError("--alignments are of the best output; leave --num-best out, or use --format json.")
        if not 0 <= self.rerank_weight <= 1:
            raise UserError(f"--rerank-weight must be from 0 to 1, got {self.rerank_weight}.")
        if self.rerank and (self.decode.sample or self.decode.beam_size == 1):
            raise UserError(
                "--rerank orders what a beam finds; set --decode.beam-size 2 or more, without decode.sample."
            )

    @property
    def side_files(self) -> dict[str, Path]:
        """Files with a line for each input line."""
        given = {"prefixes": self.prefix_file, "required": self.required_file}
        return {name: path for name, path in given.items() if path is not None}


@dataclass(frozen=True)
class ServeArguments:
    """Answers requests over HTTP: translations in JSON, a page to type at, metrics. Ends on SIGTERM and on Ctrl-C."""

    workdir: tuple[Path, ...]
    """Run directory, or that of the seeds of reproduce; several runs make an ensemble."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but a loopback address wants a token."""
    port: int = 8000
    """Port to listen at; 0 for any that is free."""
    token_file: Path | None = None
    """File with the token that requests must show; by default what SEQ2SEQ_JAX_TOKEN holds, if anything."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


@dataclass(frozen=True)
class ScoreArguments:
    """Prints, for each pair of lines, the log-probability in nats of the target, its end included, given the source."""

    workdir: tuple[Path, ...]
    """Run directory, or that of the seeds of reproduce; several runs make an ensemble."""
    source_file: Path
    """Sources, a sentence a line."""
    target_file: Path
    """Targets, line by line."""
    ensemble: Mixture | None = None
    """How the probabilities of an ensemble are averaged; by default as decode.ensemble of the first run."""
    processes: Processes = field(default_factory=ProcessArguments)


@dataclass(frozen=True)
class AverageArguments:
    """Averages the parameters of a run's last checkpoints into a run directory that is read like any other."""

    workdir: Path
    """Run directory."""
    last: int
    """Checkpoints to average, up to train.keep_checkpoints of the run."""
    output: Path | None = None
    """Run directory to make; by default average-LAST in the other."""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise UserError(f"--last must be 1 or more, got {self.last}.")


@dataclass(frozen=True)
class ReportArguments:
    """Writes a page of HTML about a run, or several side by side: curves, scores, errors, samples with attention."""

    workdir: tuple[Path, ...]
    """Run directory, or several; that of the seeds of reproduce stands for all of them that were tested."""
    output: Path | None = None
    """File to write; by default report.html in the first run directory."""
    split: str | None = None
    """Evaluation whose sentences are looked at, by its name in evaluations/; by default test, or the first there is."""


@dataclass(frozen=True)
class ExportArguments:
    """Writes a trained model into one file, which translates without this package: python FILE < in.txt > out.txt."""

    workdir: tuple[Path, ...]
    """Run directory, or that of the seeds of reproduce; several runs make an ensemble."""
    output: Path = Path("model.pyz")
    """File to write."""
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    """What runs the search: jax, on any device, or onnxruntime, on a CPU."""
    quantize: Literal["int8"] | None = None
    """Weights and products in 8 bits, of an export as onnx; by default float32."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
