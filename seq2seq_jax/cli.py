"""The commands: train, plan, evaluate, translate, score. The only place that prints errors and chooses exit codes.

Exit codes: 0 done; 2 a mistake the user can mend, told in one message; 130
interrupted; 141 the reader of our output went away; 143 asked to stop by
SIGTERM (training saves first on either); 1 a bug, with its traceback.

JAX takes seconds to import, so every command imports what it needs when it runs.
"""

import contextlib
import errno
import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from seq2seq_jax import text_files
from seq2seq_jax.arguments import HELP, Given, parse, split, value_of
from seq2seq_jax.cache import cache_dir
from seq2seq_jax.config import Config, DataConfig, DecodeConfig
from seq2seq_jax.config_file import load_config
from seq2seq_jax.errors import UserError, did_you_mean
from seq2seq_jax.run_directory import check_text, read_config
from seq2seq_jax.signals import EXIT_CODES

if TYPE_CHECKING:
    from seq2seq_jax.data.corpora import Corpus
    from seq2seq_jax.translator import Translator

DEFAULT_CONFIG = Path("configs") / "default.py"
KEPT = "What was saved before is kept; mend this and give the same command again."
LESS_MEMORY = (
    "What was saved before is kept: stop what else uses the device and give the same command again. Or use less:"
    " train, in another --workdir, with a smaller data.batch_size (or data.batch_tokens) or a larger"
    " train.accumulate_steps; translate with a smaller decode.batch_size."
)
INTERRUPTED, TERMINATED = EXIT_CODES[signal.SIGINT], EXIT_CODES[signal.SIGTERM]
OUTPUT_CLOSED = 141  # 128 and SIGPIPE


@dataclass(frozen=True)
class TrainArguments:
    """Trains a model, evaluates it and reports. The same command again resumes a run that was broken off."""

    config: Path | None = None
    """File with get_config() -> Config; by default configs/default.py. The defaults below are those of this file."""
    workdir: Path | None = None
    """Run directory; by default runs/ and the config's name."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class PlanArguments(TrainArguments):
    """Says what training would cost: parameters, memory, operations, time. Takes train's options; trains nothing."""


@dataclass(frozen=True)
class EvaluateArguments:
    """Decodes a split or a pair of files with a trained model and scores the result."""

    workdir: Path
    """Run directory."""
    split: str | None = None
    """Split of the run's corpus; by default test."""
    source_file: Path | None = None
    """Text to translate instead of a split, a sentence a line."""
    target_file: Path | None = None
    """Its reference translation, line by line."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        if (self.source_file is None) != (self.target_file is None):
            raise UserError("--source-file and --target-file go together; give both, or --split.")
        if self.split is not None and self.source_file is not None:
            raise UserError(f"Give --split {self.split} or --source-file {self.source_file}, not both.")


@dataclass(frozen=True)
class TranslateArguments:
    """Translates lines, one output line for each input line; a prompt where standard input is a terminal."""

    workdir: Path
    """Run directory."""
    input: Path | None = None
    """File to translate; by default standard input."""
    output: Path | None = None
    """File to write; by default standard output."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)


@dataclass(frozen=True)
class ScoreArguments:
    """Prints, for each pair of lines, the log-probability in nats of the target, its end included, given the source."""

    workdir: Path
    """Run directory."""
    source_file: Path
    """Sources, a sentence a line."""
    target_file: Path
    """Targets, line by line."""


def main(arguments: Sequence[str] | None = None, *, repository: Path | None = None) -> int:
    """Runs one command and returns the exit code; whatever the user can mend is one message on standard error.

    Args:
      arguments: the command and its options; by default the process's own.
      repository: where configs/default.py is looked for first; by default, and
        next, it is the current directory.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment] - any callable of these arguments will do
        return _guarded(list(sys.argv[1:] if arguments is None else arguments), repository)


def _guarded(arguments: list[str], repository: Path | None) -> int:
    """Runs one command; what is not a bug becomes a message and an exit code."""
    try:
        code = _dispatch(arguments, repository)
        sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        return code
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left for the exit to flush
        return OUTPUT_CLOSED
    except Exception as error:
        message = _machine_trouble(error)
        if message is None:
            raise
        return _complain(message)


def _dispatch(arguments: list[str], repository: Path | None) -> int:
    if not arguments or arguments[0] in HELP:
        print(_overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f" There are {', '.join(COMMANDS)}."
        raise UserError(f"Unknown command {name}.{hint}")
    try:
        return COMMANDS[name].run(split(rest), repository)
    except SystemExit as error:  # tyro's, after printing the help
        return int(error.code or 0)


def _overview() -> str:
    """Returns the help without a command."""
    program = _program()
    lines = [f"usage: {program} COMMAND [--help] [OPTIONS]", ""]
    lines += [f"  {name:<10} {_summary(command.arguments)}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", f"{program} COMMAND --help lists the options of a command."])


def _summary(cls: type) -> str:
    """Returns the first sentence of a docstring."""
    return f"{(cls.__doc__ or '').partition('.')[0]}."


def _program() -> str:
    return "python -m seq2seq_jax" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name


def _train(given: Sequence[Given], repository: Path | None) -> int:
    settings, workdir = _experiment("train", TrainArguments, given, repository)
    _configure_jax()
    from seq2seq_jax.training.loop import train

    status = train(settings, workdir).status
    return {"interrupted": INTERRUPTED, "terminated": TERMINATED}.get(status, 0)


def _plan(given: Sequence[Given], repository: Path | None) -> int:
    settings, _ = _experiment("plan", PlanArguments, given, repository)
    _configure_jax()
    from seq2seq_jax.training.planning import plan

    plan(settings, lambda line: print(line, flush=True))
    return 0


def _experiment(
    command: str, cls: type[TrainArguments], given: Sequence[Given], repository: Path | None
) -> tuple[Config, Path]:
    """The settings of the config file with the command line's in their place, and the run directory."""
    if value_of(given, "workdir") == "":  # a shell's unset variable, which Path would take for the current folder
        raise UserError("--workdir is empty; name a folder, or leave it out.")
    path = _config_path(value_of(given, "config"), repository)
    default = cls(path, settings=load_config(path) if path else Config())
    program = _program()
    program = f"python {program}" if program.endswith(".py") else f"{program} {command}"
    arguments = parse(cls, given, default=default, prog=program)
    if path is None:
        raise UserError(f"There is no {DEFAULT_CONFIG} here; name a file with --config FILE.")
    settings, workdir = arguments.settings, arguments.workdir or Path("runs") / path.stem
    if settings.published == default.settings.published and _is_another_task(settings.data, default.settings.data):
        settings = replace(settings, published=None)  # nobody published anything about it
    return settings, workdir


def _evaluate(given: Sequence[Given], repository: Path | None) -> int:
    arguments = _parse_for_run("evaluate", EvaluateArguments, given)
    model = _load(arguments.workdir, arguments.decode)
    from seq2seq_jax import evaluation

    if arguments.source_file and arguments.target_file:
        # The whole file name: test.de of today must not replace the evaluation of the split test.
        name = arguments.source_file.name
        sources, targets = _read_pairs(arguments.source_file, arguments.target_file)
    else:
        name = arguments.split or "test"
        pairs = _run_corpus(arguments.workdir, model.config).split(name)
        sources, targets = pairs.read(0, len(pairs))
    print(_table(evaluation.evaluate_split(model, arguments.workdir, name, sources, targets)))
    print(f"written to {arguments.workdir / 'evaluations' / name}.json, beam {arguments.decode.beam_size}")
    return 0


def _run_corpus(workdir: Path, config: Config) -> "Corpus":
    """The corpus of a run, as long as its text is the one that was trained on."""
    from seq2seq_jax.data.corpora import load_corpus

    way_out = "score other text with --source-file F --target-file F."
    try:
        corpus = load_corpus(config.data)
    except UserError as error:
        trouble = str(error).partition("\n")[0]  # what follows names options of train
        raise UserError(f"The text that {workdir} was trained on cannot be read; {way_out}\n{trouble}") from None
    check_text(workdir, config, corpus.name, corpus.fingerprint, way_out)
    return corpus


def _translate(given: Sequence[Given], repository: Path | None) -> int:
    arguments = _parse_for_run("translate", TranslateArguments, given)
    if arguments.input:
        text_files.check_exists(arguments.input)
    model = _load(arguments.workdir, arguments.decode)
    from seq2seq_jax.data.progress import progress_bar

    def translate(lines: Sequence[str]) -> list[str]:
        with progress_bar() as progress:
            return [hypothesis.text for hypothesis in model.translate(lines, progress=progress)]

    if arguments.input is None and arguments.output is None and sys.stdin.isatty():
        _prompt(translate)
    else:
        with text_files.open_input(arguments.input) as source, text_files.open_output(arguments.output) as target:
            for lines in text_files.chunks(source, str(arguments.input or "standard input")):
                target.write("".join(f"{text}\n" for text in translate(lines)).encode())
                target.flush()
    return 0


def _score(given: Sequence[Given], repository: Path | None) -> int:
    arguments = _parse_for_run("score", ScoreArguments, given)
    sources, targets = _read_pairs(arguments.source_file, arguments.target_file)
    for log_prob in _load(arguments.workdir).score(sources, targets):
        print(f"{log_prob:.4f}")
    return 0


def _load(workdir: Path, decode: DecodeConfig | None = None) -> "Translator":
    """The trained model of a run."""
    _configure_jax()
    from seq2seq_jax import translator
    from seq2seq_jax.cpu import keep_freed_memory

    keep_freed_memory()
    return translator.load(workdir, decode)


class Command(NamedTuple):
    """A command: the options it takes, and what it does with them."""

    arguments: type
    run: Callable[[Sequence[Given], Path | None], int]


COMMANDS = {
    "train": Command(TrainArguments, _train),
    "plan": Command(PlanArguments, _plan),
    "evaluate": Command(EvaluateArguments, _evaluate),
    "translate": Command(TranslateArguments, _translate),
    "score": Command(ScoreArguments, _score),
}


def _configure_jax() -> None:
    """Lets programs run in this thread, and JAX keep them in the cache folder for a quicker start the next time.

    Programs for a CPU use whatever instructions it has: each kind of CPU that
    shares the folder has its own.
    """
    import jax

    from seq2seq_jax.cpu import run_in_calling_thread

    run_in_calling_thread()
    with contextlib.suppress(OSError):
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line), "")
        folder = cache_dir() / "compiled" / hashlib.sha256(flags.encode()).hexdigest()[:16]
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many trifles add up


def _is_another_task(data: DataConfig, configured: DataConfig) -> bool:
    """Whether the command line trains on other text than the config file; where a folder lies is everyone's own."""
    fields = ("source", "target", "train_split", "train_files")
    folders = data.corpus.startswith("files:") and configured.corpus.startswith("files:")
    return any(getattr(data, name) != getattr(configured, name) for name in fields) or not (
        folders or data.corpus == configured.corpus
    )


def _config_path(named: str | None, repository: Path | None) -> Path | None:
    """Returns the config file: the one named, or the default one where it is, or None."""
    if named is not None:
        return Path(named)
    folders = [repository] if repository else []
    return next((path for folder in [*folders, Path()] if (path := folder / DEFAULT_CONFIG).exists()), None)


def _parse_for_run(command: str, cls: type, given: Sequence[Given]) -> Any:
    """Parses the options of a command on a run directory; its `decode` options default to the run's own."""
    workdir = value_of(given, "workdir")
    default = None
    if workdir is not None:
        config = read_config(Path(workdir))  # a wrong directory is told at once, before JAX is imported
        default = None if cls is ScoreArguments else cls(Path(workdir), decode=config.decode)
    return parse(cls, given, default=default, prog=f"{_program()} {command}")


def _read_pairs(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """Returns the lines of two parallel files; UserError where they are not."""
    from seq2seq_jax.data.corpora.files import parallel_pairs

    for path in (source, target):
        text_files.check_exists(path)
    pairs = list(parallel_pairs(source, target))
    if not pairs:
        raise UserError(f"{source} and {target} are empty.")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _prompt(translate: Callable[[Sequence[str]], list[str]]) -> None:
    """Translates what is typed, line by line, until the end of input."""
    print("A sentence a line; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return
        print(*translate([line]), flush=True)


def _table(scores: Mapping[str, Any]) -> str:
    """Returns the numbers among `scores`, one a line under its name."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    width = max(map(len, numbers), default=0)
    return "\n".join(f"{name:<{width}}  {value:>10,.4g}" for name, value in numbers.items())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Tells a warning without the line of code that Python would add."""
    print(f"warning: {message}", file=sys.stderr)


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _machine_trouble(error: BaseException | None) -> str | None:
    """Returns a message where the machine is at fault (full disk, permissions, memory), or None: then it is a bug.

    Libraries wrap what the system said in errors of their own, so the causes are
    searched too; TensorStore and XLA keep nothing of it but the words.
    """
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
    while error is not None:
        if isinstance(error, OSError) and error.errno in codes:
            return f"{error.strerror}: {error.filename or 'while writing'}. {KEPT}"
        if "No space left on device" in str(error):
            return f"No space left on device: {error}. {KEPT}"
        if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
            words = str(error).partition("\n")[0].rstrip(".")  # XLA goes on to list every array that it holds
            return f"Out of memory{words and f' ({words})'}. {LESS_MEMORY}"
        error = error.__cause__ or error.__context__
    return None
