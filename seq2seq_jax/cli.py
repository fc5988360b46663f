"""The commands, from train to report. The only place that chooses exit codes.

Exit codes: 0 done; 2 a mistake the user can mend, told in one message; 130
interrupted; 141 the reader of our output went away; 143 asked to stop by
SIGTERM (training saves first on either); 1 a bug, with its traceback.

JAX takes seconds to import, so every command imports what it needs when it runs.
"""

import contextlib
import hashlib
import importlib.util
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seq2seq_jax import __version__, console, translating
from seq2seq_jax.arguments import HELP, Given, combinations, options_of, parse, read, value_of, values_of
from seq2seq_jax.cache import naming
from seq2seq_jax.config import PUBLISHED, Config, DataConfig, DecodeConfig
from seq2seq_jax.config_file import find_config, load_config
from seq2seq_jax.errors import UserError, did_you_mean, shortened
from seq2seq_jax.options import (
    AverageArguments,
    EvaluateArguments,
    Experiment,
    ExportArguments,
    PlanArguments,
    ProcessArguments,
    ReportArguments,
    ReproduceArguments,
    ScoreArguments,
    ServeArguments,
    TrainArguments,
    TranslateArguments,
)
from seq2seq_jax.run_directory import members, read_config, read_configs
from seq2seq_jax.signals import EXIT_CODES
from seq2seq_jax.translating import Answer, Question
from seq2seq_jax.troubles import check_address_space, machine_trouble
from seq2seq_jax.wording import counted

if TYPE_CHECKING:
    from seq2seq_jax.translator import Translator

INTERRUPTED, TERMINATED = EXIT_CODES[signal.SIGINT], EXIT_CODES[signal.SIGTERM]
OUTPUT_CLOSED = 141  # 128 and SIGPIPE
TO_COMPILE, TO_TRANSLATE = 4_000_000_000, 2_000_000_000  # bytes of addresses; two cores began to fail at 3 and 1.5


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
        return console.complain(str(error))
    except KeyboardInterrupt:
        console.tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left for the exit to flush
        return OUTPUT_CLOSED
    except Exception as error:
        message = machine_trouble(error)
        if message is None:
            raise
        return console.complain(message)


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
    turns = translating.context_turns(arguments, runs[0], at_prompt)
    if at_prompt and (arguments.side_files or arguments.alignments):
        raise UserError("--prefix-file, --required-file and --alignments go with --input, or text that is piped in.")
    if arguments.processes.several:
        with _together(arguments.processes):
            _translate_together(arguments, runs)
    elif at_prompt:
        translating.prompt(_answering(arguments, runs), turns)
    else:
        with translating.questions_and_output(arguments) as (questions, write):
            answer = _answering(arguments, runs)
            for question in questions:
                write(answer(question))
    return 0


def _translate_together(arguments: TranslateArguments, runs: Sequence[Path]) -> None:
    """Translates what the first process reads; it writes, too."""
    from seq2seq_jax import processes

    with contextlib.ExitStack() as stack:
        opened: list[tuple[Iterator[Question], Callable[[list[Answer]], None]]] = []
        processes.by_first(lambda: opened.append(stack.enter_context(translating.questions_and_output(arguments))))
        answer = _answering(arguments, runs)
        while (question := processes.by_first(lambda: next(opened[0][0], None))) is not None:
            answers = answer(Question(*question))
            if opened:
                opened[0][1](answers)


def _answering(arguments: TranslateArguments, runs: Sequence[Path]) -> Callable[[Question], list[Answer]]:
    """What the models of runs make of lines."""
    scorers = members(arguments.rerank) if arguments.rerank else ()
    if scorers:
        read_configs(scorers)  # a wrong directory is told before the model is loaded
    model = _load(runs, arguments.decode)
    scorer = _load(scorers, DecodeConfig(ensemble=arguments.decode.ensemble)) if scorers else None
    return translating.answering(arguments, model, scorer)


def _serve(given: Sequence[Given], repository: Path | None) -> int:
    arguments, runs = _parse_for_run("serve", ServeArguments, given)
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        packages = " and ".join(missing).replace("_", "-")
        raise UserError(f"serve needs {packages}: pip install 'seq2seq-jax[serve]'.")
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
    console.tell(f"warning: {message}")
