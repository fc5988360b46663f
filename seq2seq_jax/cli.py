"""The commands, from train to report. The only place that prints errors and chooses exit codes.

Exit codes: 0 done; 2 a mistake the user can mend, told in one message; 130
interrupted; 141 the reader of our output went away; 143 asked to stop by
SIGTERM (training saves first on either); 1 a bug, with its traceback.

JAX takes seconds to import, so every command imports what it needs when it runs.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import os
import shlex
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from seq2seq_jax import __version__, console, text_files
from seq2seq_jax.arguments import HELP, Given, combinations, options_of, parse, read, value_of, values_of
from seq2seq_jax.cache import naming
from seq2seq_jax.config import (
    PUBLISHED,
    BleuTokenizer,
    Config,
    DataConfig,
    DecodeConfig,
    FurtherMetric,
    Mixture,
    check_num_best,
)
from seq2seq_jax.config_file import find_config, load_config
from seq2seq_jax.errors import UserError, did_you_mean, shortened
from seq2seq_jax.run_directory import members, read_config, read_configs
from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.signals import EXIT_CODES
from seq2seq_jax.troubles import check_address_space, machine_trouble
from seq2seq_jax.wording import counted

if TYPE_CHECKING:
    from seq2seq_jax.translator import Translator

INTERRUPTED, TERMINATED = EXIT_CODES[signal.SIGINT], EXIT_CODES[signal.SIGTERM]
OUTPUT_CLOSED = 141  # 128 and SIGPIPE
TO_COMPILE, TO_TRANSLATE = 4_000_000_000, 2_000_000_000  # bytes of addresses; two cores began to fail at 3 and 1.5


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
    extra: pip install '.[tpu]' or '.[cuda]'), runs nothing, and estimates the time."""

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
    """A COMET model's file (Rei et al. 2020), model.ckpt, for its score too; an extra: pip install '.[comet]'."""
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


@console.ready_streams()
def main(arguments: Sequence[str] | None = None, *, repository: Path | None = None) -> int:
    """Runs one command and returns the exit code; whatever the user can mend is one message on standard error.

    Args:
      arguments: the command and its options; by default the process's own.
      repository: the folder whose configs/ are looked through first.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment] - any callable of these arguments will do
        return _guarded(list(sys.argv[1:] if arguments is None else arguments), repository)


def _guarded(arguments: list[str], repository: Path | None) -> int:
    """Runs one command; what is not a bug becomes a message and an exit code."""
    try:
        with naming("standard output"):  # for files are named where they are written
            code = _dispatch(arguments, repository)
            sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        return code
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left for the exit to flush
        return OUTPUT_CLOSED
    except Exception as error:
        message = machine_trouble(error)
        if message is None:
            raise
        return _complain(message)


def _dispatch(arguments: list[str], repository: Path | None) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in HELP:
        return _show(_overview(), 0 if arguments else 2)
    if "--version" in arguments:
        return _show(f"seq2seq-jax {__version__}")
    name, *rest = arguments
    if name not in COMMANDS:
        hint = did_you_mean(name, [*COMMANDS, "help"]) or f" There are {', '.join(COMMANDS)}."
        raise UserError(f"Unknown command {shortened(name)}.{hint}")
    asks_help = not HELP.isdisjoint(rest)
    if asks_help:
        console.check_output()
    try:
        return _obey(COMMANDS[name], rest, repository)
    except UserError:
        if not asks_help:
            raise
        return _obey(COMMANDS[name], ["--help"], repository)  # whatever is wrong beside it


def _obey(command: "Command", arguments: list[str], repository: Path | None) -> int:
    try:
        return command.run(read(command.arguments, arguments), repository)
    except SystemExit as error:
        if error.code:
            raise
        return 0  # tyro's, after printing the help


def _show(text: str, code: int = 0) -> int:
    """Prints what was asked for, and returns the exit code."""
    console.check_output()
    print(text)
    return code


def _overview() -> str:
    """Returns the help without a command."""
    program = _program()
    lines = [f"usage: {program} COMMAND [--help] [OPTIONS]", f"       {program} --version", ""]
    lines += [f"  {name:<10} {_summary(command.arguments)}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", f"{program} COMMAND --help lists the options of a command."])


def _summary(cls: type) -> str:
    """Returns the first sentence of a docstring."""
    return f"{(cls.__doc__ or '').partition('.')[0]}."


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "python -m seq2seq_jax" if name == "__main__.py" else shlex.quote(name)


def _train(given: Sequence[Given], repository: Path | None) -> int:
    settings, workdir, arguments = _experiment("train", TrainArguments, given, repository)
    _configure_jax()
    with _together(arguments.processes):
        from seq2seq_jax.training.loop import train

        return _code_of(train(settings, workdir).status)


@contextlib.contextmanager
def _together(arguments: ProcessArguments) -> Generator[None]:
    """A block that several processes go through together, where there are some; the first one alone prints."""
    if not arguments.several:
        yield
        return
    from seq2seq_jax import processes

    processes.start(arguments.coordinator, arguments.num_processes, arguments.process_id)
    with processes.others_needed(), contextlib.ExitStack() as stack:
        if not processes.is_first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            stack.enter_context(warnings.catch_warnings())
            warnings.showwarning = lambda *_, **__: None  # ty: ignore[invalid-assignment] - no filter: others hide it
        yield


def _reproduce(given: Sequence[Given], repository: Path | None) -> int:
    if any(option.name == "sweep" for option in given):
        return _sweep(given, repository)
    settings, workdir, arguments = _experiment("reproduce", ReproduceArguments, given, repository, "-seeds")
    _configure_jax()
    from seq2seq_jax.cpu import share_cores

    share_cores(arguments.num_seeds)
    from seq2seq_jax.training.reproduction import reproduce

    return _code_of(reproduce(settings, arguments.num_seeds, workdir).status)


def _sweep(given: Sequence[Given], repository: Path | None) -> int:
    sweeps = [value for option in given if option.name == "sweep" for value in option.values]
    others = [option for option in given if option.name != "sweep"]
    points = combinations(Config, sweeps, others)
    others.append(Given("sweep", sweeps))
    found = _experiments("reproduce", ReproduceArguments, others, repository, "-sweep", points)
    _, workdir, arguments = found[0]
    _configure_jax()
    from seq2seq_jax.cpu import share_cores

    share_cores(arguments.num_seeds)
    from seq2seq_jax.training.sweep import sweep

    fields, configs = [option.name for option in points[0]], [settings for settings, _, _ in found]
    return _code_of(sweep(fields, configs, arguments.num_seeds, workdir))


def _code_of(status: str) -> int:
    """The exit code of a training."""
    return {"interrupted": INTERRUPTED, "terminated": TERMINATED}.get(status, 0)


def _plan(given: Sequence[Given], repository: Path | None) -> int:
    console.check_output()
    settings, _, arguments = _experiment("plan", PlanArguments, given, repository)
    _configure_jax()
    target = None
    if arguments.target is not None:
        from seq2seq_jax.training.costs.targets import find_target

        target = find_target(arguments.target)
    if arguments.num_seeds is not None:
        from seq2seq_jax.cpu import share_cores

        share_cores(arguments.num_seeds)
    from seq2seq_jax.training.costs.planning import plan

    plan(settings, lambda line: print(line, flush=True), arguments.num_seeds, target)
    return 0


def _experiment(
    command: str, cls: type[Experiment], given: Sequence[Given], repository: Path | None, suffix: str = ""
) -> tuple[Config, Path, Experiment]:
    """The settings of the config file with the command line's in their place, the run directory, and all options."""
    return _experiments(command, cls, given, repository, suffix, [()])[0]


def _experiments(
    command: str,
    cls: type[Experiment],
    given: Sequence[Given],
    repository: Path | None,
    suffix: str,
    variants: Sequence[Sequence[Given]],
) -> list[tuple[Config, Path, Experiment]]:
    """`_experiment` with each of some further groups of options."""
    path = find_config(value_of(given, "config"), repository)
    default = cls(path, settings=load_config(path))
    program = _program()
    program = f"python {program}" if program.endswith(".py") else f"{program} {command}"
    experiments = []
    for variant in variants:
        try:
            arguments = parse(cls, [*given, *variant], default=default, prog=program)
        except UserError as error:
            words = " ".join(f"{option.name}={shortened(option.values[0])}" for option in variant)
            raise UserError(f"{words}: {error}" if words else str(error)) from None
        settings, workdir = arguments.settings, arguments.workdir or Path("runs") / f"{path.stem}{suffix}"
        unchanged = _published(settings) == _published(default.settings)
        if unchanged and _is_another_task(settings.data, default.settings.data):
            nothing = {name: getattr(Config, name) for name in PUBLISHED}
            settings = replace(settings, **nothing)  # nobody published anything about it
        experiments.append((settings, workdir, arguments))
    return experiments


def _published(settings: Config) -> list[Any]:
    return [getattr(settings, name) for name in PUBLISHED]


def _evaluate(given: Sequence[Given], repository: Path | None) -> int:
    arguments, runs = _parse_for_run("evaluate", EvaluateArguments, given)
    config = read_config(runs[0])
    given_here = {name: getattr(arguments, name) for name in ("bleu_tokenizer", "metrics")}
    config = replace(config, **{name: value for name, value in given_here.items() if value is not None})
    from seq2seq_jax.metrics import check_comet, check_packages

    check_packages(config)
    if arguments.comet_model is not None:
        check_comet(arguments.comet_model)
    with _together(arguments.processes):
        return _evaluated(arguments, runs, config)


def _evaluated(arguments: EvaluateArguments, runs: Sequence[Path], config: Config) -> int:
    """Evaluates, with the models of runs and what `config` says of text and scores."""
    workdir, model = arguments.workdir[0], _load(runs, arguments.decode)
    model.config = config
    from seq2seq_jax import evaluation

    about: dict[str, Any] = {}
    if arguments.source_file and arguments.target_file:
        name = _name_of_files(arguments.source_file, arguments.target_file)
        about = {
            "source_file": str(arguments.source_file.absolute()),
            "target_file": str(arguments.target_file.absolute()),
        }
        from seq2seq_jax.data.corpora.files import read_pairs

        sources, targets = read_pairs(arguments.source_file, arguments.target_file)
    else:
        name = arguments.split or "test"
        from seq2seq_jax.data.corpora import load_corpus_of

        pairs = load_corpus_of(runs, model.config).split(name)
        sources, targets = pairs.read(0, len(pairs))
    if len(arguments.workdir) > 1:
        name = f"{_name_of_ensemble(arguments.workdir)}/{name}"
    if runs != (workdir,):
        about["workdirs"] = [str(path.absolute()) for path in runs]
    scores = evaluation.evaluate_split(model, workdir, name, sources, targets, about, comet=arguments.comet_model)
    print("\n".join([_table(scores), *scores.get("remarks", ())]))
    print(f"written to {workdir / 'evaluations' / name}.json, beam {arguments.decode.beam_size}")
    return 0


def _translate(given: Sequence[Given], repository: Path | None) -> int:
    arguments, runs = _parse_for_run("translate", TranslateArguments, given)
    at_prompt = arguments.input is None and arguments.output is None and console.is_terminal(sys.stdin)
    turns = _context_turns(arguments, runs[0], at_prompt)
    if at_prompt and (arguments.side_files or arguments.alignments):
        raise UserError("--prefix-file, --required-file and --alignments go with --input, or text that is piped in.")
    if arguments.processes.several:
        with _together(arguments.processes):
            _translate_together(arguments, runs)
    elif at_prompt:
        _prompt(_translation(arguments, runs), turns)
    else:
        with _questions_and_output(arguments) as (questions, write):
            translate = _translation(arguments, runs)
            for question in questions:
                write(translate(question))
    return 0


def _translate_together(arguments: TranslateArguments, runs: Sequence[Path]) -> None:
    """Translates what the first process reads; it writes, too."""
    from seq2seq_jax import processes

    with contextlib.ExitStack() as stack:
        opened: list[tuple[Iterator[_Question], Callable[[list[_Answer]], None]]] = []
        processes.by_first(lambda: opened.append(stack.enter_context(_questions_and_output(arguments))))
        translate = _translation(arguments, runs)
        while (question := processes.by_first(lambda: next(opened[0][0], None))) is not None:
            answers = translate(_Question(*question))
            if opened:
                opened[0][1](answers)


class _Question(NamedTuple):
    """Some lines to translate, and what is asked of their outputs."""

    lines: list[str]
    first_line: int
    prefixes: list[str] | None = None
    required: list[list[str]] | None = None


class _Answer(NamedTuple):
    """What becomes of a line: the text of the best hypothesis, the lines to write, and its word alignment."""

    best: str
    lines: list[str]
    alignment: str = ""


@contextlib.contextmanager
def _questions_and_output(
    arguments: TranslateArguments,
) -> Generator[tuple[Iterator[_Question], Callable[[list[_Answer]], None]]]:
    """The lines to translate, as they arrive, and what writes the answers."""
    beside = {name: (path, list(text_files.read_lines(path))) for name, path in arguments.side_files.items()}
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(text_files.open_input(arguments.input))
        target = stack.enter_context(text_files.open_output(arguments.output))
        text_files.check_apart(source, target, arguments.output)
        links = None
        if arguments.alignments is not None:
            links = stack.enter_context(text_files.open_output(arguments.alignments))
            text_files.check_apart(source, links, arguments.alignments)

        def write(answers: list[_Answer]) -> None:
            target.write("".join(f"{text}\n" for answer in answers for text in answer.lines).encode())
            target.flush()
            if links is not None:
                links.write("".join(f"{answer.alignment}\n" for answer in answers).encode())

        name = str(arguments.input or "standard input")
        yield _questions(text_files.chunks(source, name), name, beside), write


def _questions(
    chunks: Iterator[list[str]], name: str, beside: Mapping[str, tuple[Path, list[str]]]
) -> Iterator[_Question]:
    """Lines with those that stand beside them in other files; UserError where there are fewer or more of these."""
    number = 0
    for lines in chunks:
        given = {}
        for option, (path, texts) in beside.items():
            given[option] = texts[number : number + len(lines)]
            if len(given[option]) < len(lines):
                raise UserError(f"{path} has {counted(len(texts), 'line')}, and {name} more; it needs a line for each.")
        if "required" in given:
            given["required"] = [[each for each in line.split("\t") if each] for line in given["required"]]
        yield _Question(lines, number + 1, **given)
        number += len(lines)
    for path, texts in beside.values():
        if len(texts) > number:
            raise UserError(
                f"{path} has {counted(len(texts), 'line')}, and {name} {number:,}; it needs a line for each."
            )


def _context_turns(arguments: TranslateArguments, run: Path, at_prompt: bool) -> int:
    """Turns that the prompt reads before a line; UserError where it cannot be as many."""
    wanted, trained = arguments.context_turns, read_config(run).data.context_turns
    if wanted is None:
        return trained
    if not at_prompt:
        raise UserError(
            f"--context-turns {wanted} is of the prompt at a terminal; a line of a file holds its turns itself, the"
            " oldest first and tabs between. Leave it out."
        )
    if not 0 <= wanted <= trained:
        choice = f"use 0 to {trained}" if trained else "leave it out"
        raise UserError(f"--context-turns {wanted}: {run} was trained with data.context_turns {trained}; {choice}.")
    return wanted


def _translation(arguments: TranslateArguments, runs: Sequence[Path]) -> Callable[[_Question], list[_Answer]]:
    """What the models of runs make of lines."""
    scorers = members(arguments.rerank) if arguments.rerank else ()
    if scorers:
        read_configs(scorers)  # a wrong directory is told before the model is loaded
    model = _load(runs, arguments.decode)
    scorer = _load(scorers, DecodeConfig(ensemble=arguments.decode.ensemble)) if scorers else None
    from seq2seq_jax.answers import answer_lines, pharaoh
    from seq2seq_jax.data.progress import progress_bar

    ranked = arguments.num_best is not None
    form = arguments.format or ("tsv" if ranked else "text")
    if arguments.alignments is not None:
        model.check_attention("--alignments")
    details = form == "json" or arguments.alignments is not None
    num_best = arguments.decode.beam_size if scorer else arguments.num_best

    def translate(question: _Question) -> list[_Answer]:
        lines, first, prefixes, required = question
        asked: dict[str, Any] = dict(details=details, prefixes=prefixes, required=required, first_line=first)
        with progress_bar() as progress:
            if num_best is None:
                found = [[best] for best in model.translate(lines, progress=progress, **asked)]
            else:
                found = model.translate(lines, num_best=num_best, progress=progress, **asked)
        if scorer:
            from seq2seq_jax.reranking import rerank

            found = rerank(scorer, lines, found, arguments.rerank_weight, arguments.decode.length_penalty)
        answers = []
        for number, all_of_line in enumerate(found, first):
            of_line = all_of_line[: arguments.num_best or 1]
            alignment = pharaoh(model.vocabularies, of_line[0]) if arguments.alignments else ""
            answers.append(_Answer(of_line[0].text, answer_lines(form, number, of_line, ranked=ranked), alignment))
        return answers

    return translate


def _serve(given: Sequence[Given], repository: Path | None) -> int:
    arguments, runs = _parse_for_run("serve", ServeArguments, given)
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        packages = " and ".join(missing).replace("_", "-")
        raise UserError(f"serve needs {packages}: pip install '.[serve]'")
    from seq2seq_jax.serving.door import open_door, read_token

    door, place = open_door(arguments.host, arguments.port, read_token(arguments.token_file))
    with place:
        model = _load(runs, arguments.decode)
        from seq2seq_jax.serving.server import serve

        serve(model, door, place, arguments.limits)


def _score(given: Sequence[Given], repository: Path | None) -> int:
    console.check_output()
    arguments, runs = _parse_for_run("score", ScoreArguments, given)
    from seq2seq_jax.data.corpora.files import read_pairs

    sources, targets = read_pairs(arguments.source_file, arguments.target_file)
    decode = read_config(runs[0]).decode
    decode = replace(decode, ensemble=arguments.ensemble or decode.ensemble)
    with _together(arguments.processes):
        for log_prob in _load(runs, decode).score(sources, targets):
            print(f"{log_prob:.4f}")
    return 0


def _average(given: Sequence[Given], repository: Path | None) -> int:
    console.check_output()
    arguments, _ = _parse_for_run("average", AverageArguments, given)
    output = arguments.output or arguments.workdir / f"average-{arguments.last}"
    _configure_jax(TO_TRANSLATE)
    from seq2seq_jax.averaging import average

    steps = average(arguments.workdir, arguments.last, output)
    print(f"Averaged    {counted(len(steps), 'checkpoint')}, of steps {', '.join(f'{step:,}' for step in steps)}")
    print(f"Use it      python -m seq2seq_jax translate --workdir {shlex.quote(str(output))}")
    return 0


def _export(given: Sequence[Given], repository: Path | None) -> int:
    console.check_output()
    arguments, runs = _parse_for_run("export", ExportArguments, given)
    model = _load(runs, arguments.decode)
    from seq2seq_jax.exporting import PLATFORMS, export

    with naming(arguments.output):
        size = export(model, arguments.output, arguments.format, arguments.quantize)
    runs_on = f"onnxruntime, {arguments.quantize or 'float32'}" if arguments.format == "onnx" else ", ".join(PLATFORMS)
    print(f"Exported    {arguments.output}, {size / 1e6:,.1f} MB, {arguments.decode.search}, for {runs_on}")
    print(f"Use it      python {shlex.quote(str(arguments.output))} < lines > translations")
    return 0


def _load(workdirs: Sequence[Path], decode: DecodeConfig) -> "Translator":
    """The trained model of a run, or those of several as one."""
    _configure_jax(TO_TRANSLATE)
    from seq2seq_jax import translator
    from seq2seq_jax.cpu import keep_freed_memory

    keep_freed_memory()
    return translator.load(workdirs, decode)


def _report(given: Sequence[Given], repository: Path | None) -> int:
    console.check_output()
    arguments = parse(ReportArguments, given, default=None, prog=f"{_program()} report")
    for workdir in arguments.workdir:
        read_config(workdir)  # a wrong directory is told at once, before JAX is imported
    _configure_jax(TO_TRANSLATE)
    from seq2seq_jax.reporting.page import report

    path = report(arguments.workdir, arguments.output, arguments.split)
    print(f"written to {path}")
    return 0


class Command(NamedTuple):
    """A command: the options it takes, and what it does with them."""

    arguments: type
    run: Callable[[Sequence[Given], Path | None], int]


COMMANDS = {
    "train": Command(TrainArguments, _train),
    "reproduce": Command(ReproduceArguments, _reproduce),
    "plan": Command(PlanArguments, _plan),
    "evaluate": Command(EvaluateArguments, _evaluate),
    "translate": Command(TranslateArguments, _translate),
    "serve": Command(ServeArguments, _serve),
    "score": Command(ScoreArguments, _score),
    "average": Command(AverageArguments, _average),
    "report": Command(ReportArguments, _report),
    "export": Command(ExportArguments, _export),
}


def _configure_jax(address_space: int = TO_COMPILE) -> None:
    """Makes sure of room for JAX; lets programs run in this thread, and be kept for a quicker start the next time."""
    check_address_space(address_space)
    from seq2seq_jax.compiled import keep_compiled_programs
    from seq2seq_jax.cpu import run_in_calling_thread

    run_in_calling_thread()
    keep_compiled_programs()


def _is_another_task(data: DataConfig, configured: DataConfig) -> bool:
    """Whether the command line trains on other text than the config file; where a folder lies is everyone's own."""
    fields = ("source", "target", "train_split", "train_files")
    folders = data.corpus.startswith("files:") and configured.corpus.startswith("files:")
    return any(getattr(data, name) != getattr(configured, name) for name in fields) or not (
        folders or data.corpus == configured.corpus
    )


def _parse_for_run(command: str, cls: type, given: Sequence[Given]) -> tuple[Any, tuple[Path, ...]]:
    """The options of a command, and the runs that its run directories stand for, see `members`.

    Its `decode` options default to those of the first run.
    """
    workdirs = values_of(given, "workdir")
    default, runs = None, ()
    if workdirs is not None:
        paths = tuple(map(Path, workdirs))
        runs = members(paths)
        configs = read_configs(runs)  # a wrong directory is told at once, before JAX is imported
        default = cls(paths, decode=configs[0].decode) if "decode.beam_size" in options_of(cls) else None
    return parse(cls, given, default=default, prog=f"{_program()} {command}"), runs


def _name_of_files(source: Path, target: Path) -> str:
    """Returns what the evaluation of two files is called: by no split's name, and by no other files'."""
    return f"files/{source.name[:40]}-{_digest(source, target)}"


def _name_of_ensemble(workdirs: Sequence[Path]) -> str:
    """Returns the folder of an ensemble's evaluations among those of its first run: no other ensemble's are there."""
    return f"ensembles/{'+'.join(path.resolve().name for path in workdirs)[:40]}-{_digest(*workdirs)}"


def _digest(*paths: Path) -> str:
    """Returns a few letters that tell files or folders, wherever they lie, from others of the same names."""
    places = "\0".join(str(path.resolve()) for path in paths)
    return hashlib.sha256(os.fsencode(places)).hexdigest()[:8]


def _prompt(translate: Callable[[_Question], list[_Answer]], context_turns: int) -> None:
    """Translates what is typed, line by line, until the end of input. The answers are UTF-8 if they go to a file.

    Before a line are read the last `context_turns` of what was typed and answered
    since the beginning or an empty line.
    """
    if context_turns:
        turns = counted(context_turns, "turn")
        print(
            f"A line is read after the last {turns}; an empty one begins a new dialogue. Ctrl-D ends.", file=sys.stderr
        )
    else:
        print("A sentence a line; Ctrl-D ends.", file=sys.stderr)
    watched, before = console.is_terminal(sys.stdout), deque[str](maxlen=context_turns)
    with text_files.open_output(None) as file:
        for number in itertools.count(1):
            try:
                line = console.typed(input("> " if watched else ""))
            except EOFError:
                print(file=sys.stderr)
                return
            except UnicodeDecodeError as error:
                _complain(str(text_files.refusal(error.object, "standard input", number)))
                continue
            said = line.replace("\t", " ") if context_turns else line
            if not said.strip():
                before.clear()
            (answer,) = translate(_Question(["\t".join([*before, said])], number))
            if said.strip():
                before += [said, answer.best]
            for text in answer.lines:
                if watched:
                    print(console.harmless(text), flush=True)
                else:
                    file.write(f"{text}\n".encode())
                    file.flush()


def _table(scores: Mapping[str, Any]) -> str:
    """Returns the numbers among `scores`, one a line under its name; a count of nothing is left out."""
    numbers = {
        name: f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
        for name, value in scores.items()
        if isinstance(value, float) or (isinstance(value, int) and value)
    }
    width = max(map(len, numbers), default=0)
    return "\n".join(f"{name:<{width}}  {value:>10}" for name, value in numbers.items())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Tells a warning without the line of code that Python would add."""
    _tell(f"warning: {message}")


def _complain(message: str) -> int:
    _tell(f"error: {message}")
    return 2


def _tell(line: str) -> None:
    """Prints a line on standard error; where nobody can read it, the exit code still tells."""
    with contextlib.suppress(OSError):
        print(console.harmless(line), file=sys.stderr)
