"""The command line around stubs of what it calls; the commands on real models are tests of their own."""

import contextlib
import errno
import io
import json
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import seq2seq_jax
from seq2seq_jax import cli
from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig, to_json
from seq2seq_jax.data.corpora import Corpus
from seq2seq_jax.errors import UserError
from seq2seq_jax.run_directory import write_fingerprint

REPOSITORY = Path(__file__).resolve().parents[1]

STUB_TRANSLATOR = """
import sys, types
from collections import namedtuple
Hypothesis = namedtuple("Hypothesis", "text score")
class Translator:
    def translate(self, lines, progress, **asked):
        return [Hypothesis(line.upper(), 0.0) for line in lines]
stub = types.ModuleType("seq2seq_jax.translator")
stub.load = lambda workdir, decode=None: Translator()
sys.modules["seq2seq_jax.translator"] = stub
from seq2seq_jax.__main__ import run
run()
"""


class Hypothesis(NamedTuple):
    text: str
    score: float


class Translator:
    """Upper case for a translation, of the last turn where there are several; remembers the batches it was given."""

    config = Config()

    def __init__(self, decode: DecodeConfig, workdirs: tuple[Path, ...]):
        self.decode, self.workdirs = decode, workdirs
        self.calls: list[list[str]] = []

    def translate(self, lines, *, num_best=None, progress, **asked):
        self.calls.append(list(lines))
        best = [Hypothesis(line.rpartition("\t")[2].upper(), 0.0) for line in lines]
        if num_best is None:
            return best
        return [[each._replace(score=-rank / 8) for rank in range(num_best if each.text else 1)] for each in best]

    def score(self, sources, targets):
        return [-float(len(source) + len(target)) for source, target in zip(sources, targets, strict=True)]


class Called(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(capfd):
    """Runs the command line in this process."""

    def call(*arguments: str, repository: Path | None = None) -> Called:
        code = cli.main([str(argument) for argument in arguments], repository=repository)
        return Called(code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(call):
    """Runs a command that must fail with one message of the user's mistake; returns the message."""

    def refused(*arguments: str) -> str:
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    return refused


@pytest.fixture
def stub(monkeypatch):
    """Puts a module with these names in the place of one of the package's."""

    def stub(name: str, **names: object) -> None:
        module = ModuleType(f"seq2seq_jax.{name}")
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, last = module.__name__.rpartition(".")
        if parent in sys.modules:
            monkeypatch.setattr(sys.modules[parent], last, module, raising=False)

    return stub


class TrainResult(NamedTuple):
    status: str = "done"


@pytest.fixture
def trained(stub, tmp_path, monkeypatch):
    """A stub of training; the list of (config, workdir) it was called with. Runs in an empty folder."""
    calls = []
    stub("training.loop", train=lambda config, workdir: calls.append((config, workdir)) or TrainResult())
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.fixture
def run_folder(tmp_path):
    """A run directory as far as the command line reads it."""
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(Config(decode=DecodeConfig(beam_size=3, length_penalty=0.5))))
    return folder


@pytest.fixture
def ensemble(run_folder):
    """That run directory and another one, whose search is set otherwise."""
    folder = run_folder.parent / "yours"
    folder.mkdir()
    (folder / "config.json").write_text(to_json(Config(decode=DecodeConfig(beam_size=7))))
    return run_folder, folder


@pytest.fixture
def translators(stub):
    """A stub of the translator; the list of those that were loaded."""
    loaded = []

    def load(workdirs, decode):
        loaded.append(Translator(decode, workdirs))
        return loaded[-1]

    stub("translator", load=load)
    return loaded


@pytest.fixture
def typed(monkeypatch):
    """Puts bytes on standard input."""

    def typed(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return typed


def write_config(path: Path, **sections: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = ", ".join(f"{name}={value}" for name, value in sections.items())
    path.write_text(f"from seq2seq_jax.config import *\n\n\ndef get_config():\n    return Config({arguments})\n")
    return path


# train


def test_train_reads_configs_default_and_names_the_run_after_it(call, trained, tmp_path):
    write_config(tmp_path / "configs" / "default.py", train="TrainConfig(seed=7)")
    assert call("train") == (0, "", "")
    assert trained == [(Config(train=TrainConfig(seed=7)), Path("runs/default"))]


def test_train_py_finds_the_default_config_of_its_own_folder(call, trained, tmp_path):
    write_config(tmp_path / "checkout" / "configs" / "default.py", train="TrainConfig(seed=8)")
    assert call("train", repository=tmp_path / "checkout").code == 0
    assert trained[0][0].train.seed == 8


def test_options_change_the_fields_of_the_config_file_and_no_others(call, trained, tmp_path):
    path = write_config(tmp_path / "small.py", model="ModelConfig(hidden_size=8)", train="TrainConfig(seed=7)")
    options = ["--model.embed-size", "16", "--model.bidirectional", "none", "--optimizer.learning_rate=0.5"]
    options += ["--data.batch_size", "None", "--data.batch-tokens", "512", "--data.columns", "de,en"]
    options += ["--data.train_files", "a b.de", "c.en", "--published", "99.8 %", "--workdir", "here"]
    assert call("train", "--config", path, *options).code == 0
    expected = Config(
        model=ModelConfig(hidden_size=8, embed_size=16, bidirectional="none"),
        data=DataConfig(batch_size=None, batch_tokens=512, columns=("de", "en"), train_files=("a b.de", "c.en")),
        optimizer=OptimizerConfig(learning_rate=0.5),
        train=TrainConfig(seed=7),
        published="99.8 %",
    )
    assert trained == [(expected, Path("here"))]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], True),
        (["--train.seed", "3"], True),
        (["--data.corpus", "scan/length"], False),
        (["--data.corpus", "files:mine", "--data.source", "a", "--data.target", "b"], False),
        (["--data.train-files", "a", "b"], False),
        (["--data.corpus", "scan/length", "--published", "20.8 %"], True),
    ],
)
def test_a_published_result_is_not_held_against_another_task(call, trained, tmp_path, options, kept):
    path = write_config(tmp_path / "scan_corpus.py", published="'99.8 %'")
    assert call("train", "--config", path, *options).code == 0
    assert bool(trained[0][0].published) == kept


def test_a_published_result_holds_wherever_the_folder_lies(call, trained, tmp_path):
    path = write_config(tmp_path / "de.py", published="'39.0'", data="DataConfig(corpus='files:data/multi30k')")
    assert call("train", "--config", path, "--data.corpus", "files:elsewhere").code == 0
    assert trained[0][0].published == "39.0"


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("stopped", 0), ("terminated", 143), ("interrupted", 130)])
def test_the_exit_code_tells_how_training_ended(call, stub, trained, tmp_path, status, code):
    stub("training.loop", train=lambda config, workdir: TrainResult(status))
    path = write_config(tmp_path / "small.py")
    assert call("train", "--config", path).code == code


def test_train_works_without_any_folder_of_configs(call, trained):
    assert call("train").code == 0
    assert call("train", "--config", "multi30k_de_en").code == 0
    assert [workdir for _, workdir in trained] == [Path("runs/default"), Path("runs/multi30k_de_en")]
    assert trained[1][0].data.target == "en"


def test_an_installed_package_offers_the_help_of_train_without_any_config(call, trained):
    code, out, err = call("train", "--help")
    assert (code, err) == (0, "")
    assert "--model.hidden-size" in out


def test_the_help_of_train_shows_the_defaults_of_the_config_file(call, trained, tmp_path):
    path = write_config(tmp_path / "small.py", model="ModelConfig(hidden_size=1234)")
    code, out, err = call("train", "--config", path, "--help")
    assert (code, err) == (0, "")
    assert "1234" in out


# reproduce


@pytest.fixture
def reproduced(stub, tmp_path, monkeypatch):
    """A stub of the training of several seeds; the list of what it was called with. Runs in an empty folder."""
    calls = []
    result = TrainResult("terminated")
    stub("training.reproduction", reproduce=lambda *arguments: calls.append(arguments) or result)
    monkeypatch.chdir(tmp_path)
    return calls


def test_reproduce_takes_the_options_of_train_and_a_number_of_seeds(call, reproduced, tmp_path):
    path = write_config(tmp_path / "small.py", train="TrainConfig(seed=7)")
    assert call("reproduce", "--config", path, "--num-seeds", "3", "--published-band", "0.5").code == 2
    options = ["--published-metric", "bleu", "--published-score", "39", "--published-band", "0.5"]
    assert call("reproduce", "--config", path, "--num-seeds", "3", "--workdir", "here", *options).code == 143
    assert call("reproduce", "--config", path).code == 143
    config = Config(train=TrainConfig(seed=7))
    published = {"published_metric": "bleu", "published_score": 39.0, "published_band": 0.5}
    assert reproduced == [(replace(config, **published), 3, Path("here")), (config, 5, Path("runs/small-seeds"))]


@pytest.mark.parametrize("number", ["1", "0", "-3"])
def test_one_seed_is_not_reproduced(refused, reproduced, tmp_path, number):
    write_config(tmp_path / "configs" / "default.py")
    message = refused("reproduce", "--num-seeds", number)
    assert message == f"--num-seeds must be 2 or more, got {number}: one has no standard deviation."
    assert not reproduced


@pytest.fixture
def swept(stub, tmp_path, monkeypatch):
    """A stub of a sweep; the list of what it was called with. Runs in an empty folder."""
    calls = []
    stub("training.sweep", sweep=lambda *arguments: calls.append(arguments) or "interrupted")
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_sweep_is_every_combination_as_options_make_it(call, swept, tmp_path):
    path = write_config(tmp_path / "small.py", train="TrainConfig(seed=7)")
    options = ["--sweep", "optimizer.halving-start=10,20", "--optimizer.schedule", "halving", "--num-seeds", "1"]
    options += ["--sweep=model.decoder_cell=None,gru", "--optimizer.halving-every=5", "--model.bridge", "zero"]
    assert call("reproduce", "--config", path, *options).code == 130
    assert call("reproduce", "--config", path, "--sweep", "model.hidden_size=8", "--workdir", "here").code == 130
    config = Config(model=ModelConfig(bridge="zero"), train=TrainConfig(seed=7))
    configs = [
        replace(
            config,
            model=replace(config.model, decoder_cell=cell),
            optimizer=OptimizerConfig(schedule="halving", halving_start=start, halving_every=5),
        )
        for start in (10, 20)
        for cell in (None, "gru")
    ]
    one = Config(model=ModelConfig(hidden_size=8), train=TrainConfig(seed=7))
    assert swept == [
        (["optimizer.halving_start", "model.decoder_cell"], configs, 1, Path("runs/small-sweep")),
        (["model.hidden_size"], [one], 5, Path("here")),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.hidden_size=8,many"], "model.hidden_size=many: --model.hidden-size takes a whole number, got many."),
        (["model.hidden_size=8,0"], "model.hidden_size=0: model.hidden_size must be from 1 to 65,536, got 0."),
        (["model.cell=gru,lsmt"], "layer_norm_gru, min_lstm, min_gru, slstm, got lsmt. Did you mean lstm?"),
        (
            ["model.num_layers=2,1", "model.residual_from=0,2"],
            "model.num_layers=1 model.residual_from=2: model.residual_from 2 is above the top one",
        ),
        (["model.cell=gru", "--num-seeds", "0"], "--num-seeds must be 1 or more, got 0."),
        (["model.cell=gru", "--model.cell", "gru"], "model.cell is given by --sweep and by --model.cell"),
        ([], "--sweep takes a field and its values"),
    ],
)
def test_a_bad_value_or_combination_is_refused_before_anything_is_trained(refused, swept, tmp_path, options, message):
    write_config(tmp_path / "configs" / "default.py")
    assert message in refused("reproduce", "--sweep", *options)
    assert swept == []


def test_a_published_score_is_not_held_against_another_task(call, trained, tmp_path):
    published = {"published": "'99.8 %'", "published_metric": "'exact_match'", "published_score": "99.8"}
    path = write_config(tmp_path / "scan_corpus.py", **published, published_band="0.1")
    call("train", "--config", path, "--data.corpus", "scan/length")
    assert trained[0][0] == Config(data=DataConfig(corpus="scan/length"))
    call("train", "--config", path, "--data.corpus", "scan/length", "--published-score", "20.8")
    assert trained[1][0].published_score == 20.8


# plan


def test_plan_takes_the_options_of_train_and_prints_what_it_is_told(call, stub, trained, tmp_path, monkeypatch):
    planned, seeds, shared = [], [], []

    def plan(config, say, num_seeds, target):
        assert target is None
        planned.append(config)
        seeds.append(num_seeds)
        say("Speed  fast")

    stub("training.costs.planning", plan=plan)
    monkeypatch.setattr("seq2seq_jax.cpu.share_cores", shared.append)
    path = write_config(tmp_path / "small.py", train="TrainConfig(seed=7)")
    options = ["--config", path, "--model.hidden-size", "8", "--workdir", "here"]
    assert call("plan", *options) == (0, "Speed  fast\n", "")
    assert planned == [Config(model=ModelConfig(hidden_size=8), train=TrainConfig(seed=7))]
    assert call("train", *options).code == 0
    assert planned == [config for config, _ in trained]
    assert call("plan", *options, "--num-seeds", "4").code == 0
    assert seeds == [None, 4] and shared == [4]
    assert "--num-seeds must be 2 or more, got 1" in call("plan", *options, "--num-seeds", "1").err


# mistakes

MINE = ["--workdir", "runs/mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Unknown command trian. Did you mean train?"),
        (["qqq"], "Unknown command qqq. There are train, reproduce, plan, evaluate, translate, serve, score, average"),
        (["train", "--model.hiden-size", "5"], "Unknown option --model.hiden-size. Did you mean --model.hidden-size?"),
        (["train", "--model.hiden_size=5"], "Unknown option --model.hiden_size. Did you mean --model.hidden_size?"),
        (["train", "--modle.cell", "lstm"], "Unknown option --modle.cell. Did you mean --model.cell?"),
        (["train", "--learning-rate", "1"], "--learning-rate. Did you mean --optimizer.learning-rate?"),
        (["train", "--wrokdir", "x"], "Unknown option --wrokdir. Did you mean --workdir?"),
        (["train", "--zzzz", "x"], "Unknown option --zzzz. See --help."),
        (["train", "--model.hidden-size", "many"], "--model.hidden-size takes a whole number, got many."),
        (["train", "--model.hidden-size", "4", "5"], "--model.hidden-size takes a whole number, got 4 5."),
        (["train", "--model.hidden-size"], "--model.hidden-size takes a whole number, and none was given."),
        (["train", "--model.hidden-size", "0"], "model.hidden_size must be from 1 to 65,536, got 0."),
        (["train", "--model.attention", "generl"], "got generl. Did you mean general?"),
        (["train", "--model.input-feeding", "maybe"], "--model.input-feeding takes True or False, got maybe."),
        (["train", "--data.batch-size", "x"], "--data.batch-size takes a whole number or None, got x."),
        (["train", "--data.train-files", "a"], "--data.train-files takes 2 values or None, got a."),
        (["plan", "--model.hiden-size", "5"], "Unknown option --model.hiden-size. Did you mean --model.hidden-size?"),
        (["train", "--train.seed", "-1"], "train.seed must be from 0 to 4,294,967,295, got -1."),
        (["train", "configs/mine.py"], "Unexpected argument configs/mine.py; options are given as --name value. Did"),
        (["train", "--config", "configs/defualt.py"], "no config file configs/defualt.py. Did you mean configs/d"),
        (["train", "--config", "configs"], "configs is a folder; --config names one file in it."),
        (["train", "--config"], "--config takes a value or None, and none was given."),
        (["train", "--config", ""], "--config is empty; name a file or folder, or leave it out."),
        (["train", "-workdir", "x"], "Unknown option -workdir. Did you mean --workdir?"),
        (["helo"], "Unknown command helo. Did you mean help?"),
        (["x" * 10_000], f"Unknown command {'x' * 200}.... There are train, "),
        (["translate", "--workdir", ""], "--workdir is empty; name a file or folder, or leave it out."),
        (["translate", "--workdir", "x" * 256], "--workdir holds a name of more than 255 bytes"),
        (["translate", *MINE, "--input", "a\0"], "--input holds a NUL character"),
        (["translate", *MINE, "--input", "not.txt", "--output", "not.txt"], "not.txt is what is read; write to an"),
        (["translate", *MINE, "--input", "not.txt", "--output", "\ud800"], "--output is not UTF-8 text"),
        (["translate"], "needs --workdir."),
        (["translate", "--wrokdir", "x"], "Unknown option --wrokdir. Did you mean --workdir?"),
        (["translate", "--workdir", "runs/mien"], "not a run directory: there is no runs/mien/config.json."),
        (["translate", "--workdir", "runs/mien"], "Did you mean runs/mine?"),
        (["translate", *MINE, "--decode.beam-size", "0"], "decode.beam_size must be from 1 to 1,000, got 0"),
        (["translate", *MINE, "--model.cell", "lstm"], "Unknown option --model.cell."),
        (["translate", *MINE, "--num-best", "0"], "--num-best must be 1 or more, got 0."),
        (["translate", *MINE, "--num-best", "4"], "decode.beam_size 3; set --decode.beam-size 4 or more."),
        (["translate", *MINE, "--num-best", "2", "--decode.beam-size", "1"], "greedy search; set --decode.beam-size 2"),
        (["translate", "--workdir"], "--workdir names no run directory; give one, or several for an ensemble."),
        (["translate", *MINE, "runs/mien"], "not a run directory: there is no runs/mien/config.json. Did you mean"),
        (["translate", *MINE, "runs/../runs/mine"], "mine is given twice; an ensemble is of different runs."),
        (["translate", *MINE, "--decode.ensemble", "mean"], "--decode.ensemble takes one of linear, log_linear, got"),
        (["average", *MINE, "runs/mine/.", "--last", "2"], "is given twice"),
        (["translate", *MINE, "--input", "no.txt"], "There is no file no.txt. Did you mean not.txt?"),
        (["translate", *MINE, "--input", "runs"], "runs is a folder; name a file of text."),
        (["translate", *MINE, "--input", "not.txt", "--output", "x/y"], "there is no folder"),
        (["evaluate", *MINE, "--source-file", "not.txt"], "--source-file and --target-file go together"),
        (
            ["evaluate", *MINE, "--split=a", "--source-file=not.txt", "--target-file=not.txt"],
            "Give --split a or --source-file not.txt, not both.",
        ),
        (["score", *MINE], "needs --source-file and --target-file."),
    ],
)
def test_a_mistake_is_answered_with_one_message_and_the_way_out(
    refused, trained, translators, run_folder, tmp_path, arguments, message
):
    write_config(tmp_path / "configs" / "default.py")
    (tmp_path / "not.txt").write_text("x\n")
    assert message in refused(*arguments)
    assert trained == []


def test_a_mistake_in_a_config_file_is_told_with_its_line(refused, trained, tmp_path):
    path = write_config(tmp_path / "mine.py", model="ModelConfig(hiden_size=5)")
    assert refused("train", "--config", path) == (
        f"{path}, line 5: Unknown config field model.hiden_size. Did you mean model.hidden_size?"
    )


def test_a_user_error_from_below_is_one_message_without_traceback(refused, stub, trained, tmp_path):
    def train(config, workdir):
        raise UserError("data.batch_size 60 is not divisible by 8 devices; use 56 or 64.")

    stub("training.loop", train=train)
    path = write_config(tmp_path / "mine.py")
    assert refused("train", "--config", path) == "data.batch_size 60 is not divisible by 8 devices; use 56 or 64."


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/runs/x"),
        PermissionError(errno.EACCES, "Permission denied", "/data/runs/x"),
        ValueError("RESOURCE_EXHAUSTED: writing chunk: [OS error 28: No space left on device]"),
    ],
)
def test_a_full_or_forbidden_disk_is_a_message_also_when_a_library_wrapped_it(
    refused, stub, trained, tmp_path, trouble
):
    def train(config, workdir):
        try:
            raise trouble
        except Exception as error:
            raise RuntimeError("could not save") from error

    stub("training.loop", train=train)
    message = refused("train", "--config", write_config(tmp_path / "mine.py"))
    assert ("Permission denied: /data" if isinstance(trouble, PermissionError) else "No space left") in message


@pytest.mark.parametrize(
    "trouble, words",
    [
        (
            RuntimeError("INTERNAL: Out of memory allocating 64 bytes."),
            "(INTERNAL: Out of memory allocating 64 bytes). ",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64 bytes.\nBuffer 1: 64"),
            "(RESOURCE_EXHAUSTED: Out of memory while trying to allocate 64 bytes). ",
        ),
        (MemoryError("Unable to allocate 8 GiB"), "(Unable to allocate 8 GiB). "),
    ],
)
def test_too_little_memory_is_a_message_with_what_would_use_less(refused, stub, trained, tmp_path, trouble, words):
    def train(config, workdir):
        raise trouble

    stub("training.loop", train=train)
    message = refused("train", "--config", write_config(tmp_path / "mine.py"))
    assert message.startswith(f"Out of memory {words}")
    assert "data.batch_size" in message and "Buffer" not in message


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            OSError(errno.EMFILE, "Too many open files", "/x"),
            "Too many open files: /x. Allow more (ulimit -n).",
        ),
        (
            ValueError("RESOURCE_EXHAUSTED: reading: [OS error 24: Too many open files]"),
            "Too many open files: RESOURCE_EXHAUSTED: reading: [OS error 24: Too many open files]. Allow more",
        ),
        (OSError(errno.EIO, "Input/output error", "/x"), "Input/output error: /x. The disk or its connection failed."),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file system: /x. What was saved"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), f"File name too long: {'x' * 200}.... What was"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "Is a directory: /x. What was saved before"),
    ],
)
def test_what_the_system_says_is_told_as_what_it_is(refused, stub, trained, tmp_path, trouble, message):
    def train(config, workdir):
        raise trouble

    stub("training.loop", train=train)
    assert refused("train", "--config", write_config(tmp_path / "mine.py")).startswith(message)


def test_an_error_that_is_its_own_cause_is_looked_at_once(stub, trained, tmp_path):
    def train(config, workdir):
        error = KeyError("x")
        raise error from error

    stub("training.loop", train=train)
    with pytest.raises(KeyError):
        cli.main(["train", "--config", str(write_config(tmp_path / "mine.py"))])


def test_a_bug_keeps_its_traceback(stub, trained, tmp_path):
    def train(config, workdir):
        raise ZeroDivisionError

    stub("training.loop", train=train)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--config", str(write_config(tmp_path / "mine.py"))])


def test_an_interrupt_is_quiet_and_exits_130(call, stub, trained, tmp_path):
    def train(config, workdir):
        raise KeyboardInterrupt

    stub("training.loop", train=train)
    assert call("train", "--config", write_config(tmp_path / "mine.py")) == (130, "", "interrupted\n")


def test_a_warning_is_one_line_on_standard_error(call, stub, trained, tmp_path):
    def train(config, workdir):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("3 lines are too long.", stacklevel=1)
        return TrainResult()

    stub("training.loop", train=train)
    assert call("train", "--config", write_config(tmp_path / "mine.py")) == (0, "", "warning: 3 lines are too long.\n")


# translate


def test_translate_gives_one_line_for_each_line_in_order(call, translators, run_folder, typed):
    typed("a b\n\nc\u2028d\x0ce\r\n  \nß".encode())
    code, out, err = call("translate", "--workdir", run_folder)
    assert (code, err) == (0, "")
    assert out == "A B\n\nC\u2028D\x0cE\n  \nSS\n"  # a line ends at a newline and nowhere else


def test_translate_searches_as_the_run_was_configured_unless_told_otherwise(call, translators, run_folder, typed):
    for options, decode in (
        ([], DecodeConfig(beam_size=3, length_penalty=0.5)),
        (["--decode.beam_size", "1"], DecodeConfig(beam_size=1, length_penalty=0.5)),
    ):
        typed(b"a\n")
        assert call("translate", "--workdir", run_folder, *options).code == 0
        assert translators[-1].decode == decode


def test_several_runs_are_loaded_as_one_with_the_settings_of_the_first(call, translators, ensemble, typed):
    typed(b"a\n")
    assert call("translate", "--workdir", *ensemble, "--decode.ensemble", "log_linear") == (0, "A\n", "")
    assert translators[-1].workdirs == ensemble
    assert translators[-1].decode == DecodeConfig(beam_size=3, length_penalty=0.5, ensemble="log_linear")


def test_the_best_hypotheses_are_listed_with_their_line_and_score(call, translators, run_folder, tmp_path, monkeypatch):
    """The lines are numbered as in the file, however many are translated at a time; an empty one has one."""
    monkeypatch.setattr("seq2seq_jax.text_files.CHUNK", 2)
    (tmp_path / "in").write_text("a\n\nb\n")
    options = ["--workdir", run_folder, "--num-best", "2", "--input", tmp_path / "in"]
    expected = "1\t0.0000\tA\n1\t-0.1250\tA\n2\t0.0000\t\n3\t0.0000\tB\n3\t-0.1250\tB\n"
    assert call("translate", *options) == (0, expected, "")
    assert len(translators[0].calls) > 1


def test_the_best_hypotheses_are_listed_at_the_prompt(call, translators, run_folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("a\nb\n"))
    code, out, _ = call("translate", "--workdir", run_folder, "--num-best", "2")
    assert (code, out) == (0, "1\t0.0000\tA\n1\t-0.1250\tA\n2\t0.0000\tB\n2\t-0.1250\tB\n")


def test_translate_takes_many_lines_at_a_time(call, translators, run_folder, tmp_path):
    lines = [f"line {number}" for number in range(1000)]
    (tmp_path / "in").write_text("\n".join(lines) + "\n")
    code, out, _ = call("translate", "--workdir", run_folder, "--input", tmp_path / "in")
    assert out.splitlines() == [line.upper() for line in lines]
    assert len(translators[0].calls) == 1


def test_translate_writes_a_file_that_appears_whole(call, translators, run_folder, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    target.write_text("what was there\n")
    source.write_bytes(b"a\nb\n\xff\xfe\n")
    code, out, err = call("translate", "--workdir", run_folder, "--input", source, "--output", target)
    assert (code, out) == (2, "")
    assert f"{source}, line 3: not UTF-8 (byte 0xff at column 1)" in err
    assert target.read_text() == "what was there\n"
    source.write_text("a\nb\n")
    assert call("translate", "--workdir", run_folder, "--input", source, "--output", target) == (0, "", "")
    assert target.read_text() == "A\nB\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "runs"}


def test_translate_gives_the_lines_before_one_that_is_not_text(call, translators, run_folder, typed):
    typed(b"a\nb\n\xe4\nc\n")
    code, out, err = call("translate", "--workdir", run_folder)
    assert (code, out) == (2, "A\nB\n")
    assert err.startswith("error: standard input, line 3: not UTF-8")


def test_translate_is_a_prompt_on_a_terminal(call, translators, run_folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("hello\n\nyou\n"))
    code, out, err = call("translate", "--workdir", run_folder)
    assert (code, out) == (0, "HELLO\n\nYOU\n")
    assert "Ctrl-D ends" in err
    assert translators[0].calls == [["hello"], [""], ["you"]]


@pytest.fixture
def dialogue_run(run_folder):
    """A run directory whose model was trained with two turns before the source."""
    config = Config(data=DataConfig(turns="turn", context_turns=2), decode=DecodeConfig(beam_size=3))
    (run_folder / "config.json").write_text(to_json(config))
    return run_folder


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ([], ["a", "a\tA\tb", "b\tB\tc c", "", "d", "d\tD\te"]),
        (["--context-turns", "1"], ["a", "A\tb", "B\tc c", "", "d", "D\te"]),
        (["--context-turns", "0"], ["a", "b", "c\tc", "", "d", "e"]),
        (["--num-best", "2"], ["a", "a\tA\tb", "b\tB\tc c", "", "d", "d\tD\te"]),
    ],
)
def test_the_prompt_reads_the_last_turns_until_an_empty_line(
    call, translators, dialogue_run, monkeypatch, options, read
):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("a\nb\nc\tc\n\nd\ne\n"))
    code, out, err = call("translate", "--workdir", dialogue_run, *options)
    assert code == 0
    assert [line for (line,) in translators[0].calls] == read
    if "--num-best" in options:
        assert out.startswith("1\t0.0000\tA\n1\t-0.1250\tA\n2\t0.0000\tB\n")
    elif options != ["--context-turns", "0"]:
        assert out == "A\nB\nC C\n\nD\nE\n"
    turns = {"1": "the last 1 turn; an empty one", "0": "A sentence a line"}.get(options[-1] if options else "", "")
    assert (turns or "the last 2 turns; an empty one begins a new dialogue") in err


def test_a_line_of_a_file_holds_its_turns_itself(call, translators, dialogue_run, typed):
    typed(b"a\tb\nc\n")
    assert call("translate", "--workdir", dialogue_run) == (0, "B\nC\n", "")
    assert translators[0].calls == [["a\tb", "c"]]
    typed(b"a\n")
    code, _, err = call("translate", "--workdir", dialogue_run, "--context-turns", "1")
    assert code == 2
    assert "--context-turns 1 is of the prompt at a terminal; a line of a file holds its turns itself" in err


@pytest.mark.parametrize("wanted", ["3", "-1"])
def test_turns_that_a_model_does_not_read_are_refused(call, translators, dialogue_run, run_folder, monkeypatch, wanted):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("a\n"))
    code, _, err = call("translate", "--workdir", dialogue_run, "--context-turns", wanted)
    assert (code, translators) == (2, [])
    assert f"--context-turns {wanted}: {dialogue_run} was trained with data.context_turns 2; use 0 to 2." in err
    (run_folder / "config.json").write_text(to_json(Config()))
    code, _, err = call("translate", "--workdir", run_folder, "--context-turns", wanted)
    assert (code, translators) == (2, [])
    assert "was trained with data.context_turns 0; leave it out." in err


def test_what_is_typed_in_another_encoding_is_told_and_the_prompt_goes_on(call, translators, run_folder, monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    content = "ä 本\n".encode() + b"\xe4\n" + b"you\n"
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(content), encoding="ascii"))
    code, out, err = call("translate", "--workdir", run_folder)
    assert (code, out) == (0, "Ä 本\nYOU\n")
    assert "error: standard input, line 2: not UTF-8 (byte 0xe4 at column 1)" in err


def test_translations_are_utf8_whatever_the_console_is(call, translators, run_folder, typed, monkeypatch):
    typed("ä 本\n".encode())
    narrow = io.TextIOWrapper(sys.stdout.buffer, encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", narrow)
    assert call("translate", "--workdir", run_folder) == (0, "Ä 本\n", "")
    narrow.detach()


@pytest.mark.parametrize(
    ("options", "streams", "message"),
    [
        ([], ["stdin"], "Standard input is closed; name a file with --input FILE."),
        (["--input", "in"], ["stdout"], "Standard output is closed; send it to a file, as in > FILE."),
        (["--input", "in", "--output", "out"], ["stdin", "stdout"], None),
        (["--help"], ["stdout"], "Standard output is closed; send it to a file, as in > FILE."),
    ],
)
def test_a_closed_stream_is_done_without_or_told(
    call, translators, run_folder, tmp_path, monkeypatch, options, streams, message
):
    monkeypatch.chdir(tmp_path)
    Path("in").write_text("a\n")
    for stream in streams:
        monkeypatch.setattr(sys, stream, None)
    code, _, err = call("translate", "--workdir", run_folder, *options)
    assert (code, err) == ((2, f"error: {message}\n") if message else (0, ""))
    assert message or Path("out").read_text() == "A\n"


def test_with_all_streams_closed_training_goes_on_and_a_mistake_has_its_exit_code(call, trained, monkeypatch):
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)
    assert call("train") == (0, "", "")
    assert call("train", "--zzz") == (2, "", "")
    assert call("score", "--zzz") == (2, "", "")
    assert len(trained) == 1


def test_where_a_message_cannot_be_written_the_exit_code_tells(call, trained):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    with contextlib.redirect_stderr(Full()):
        assert cli.main(["train", "--zzz"]) == 2


def start_translate(run_folder: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", STUB_TRANSLATOR, "translate", "--workdir", str(run_folder), *options],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_translate_answers_each_line_before_the_next_one_arrives(run_folder):
    with start_translate(run_folder) as process:
        assert process.stdin and process.stdout
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == word.upper() + b"\n"
        process.stdin.close()
        assert process.wait(timeout=300) == 0


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_goes_away_ends_translate_quietly(run_folder, tmp_path, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    (tmp_path / "in").write_text("one\n" * 100_000)  # more than a pipe holds: it breaks in the middle of a write
    with start_translate(run_folder, "--input", str(tmp_path / "in")) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"ONE\n"
        process.stdout.close()
        assert process.wait(timeout=300) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b"terminated\n")]
)
def test_a_signal_ends_translate_quietly(run_folder, number, code, word):
    with start_translate(run_folder) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"one\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=300) == code
        assert process.stderr.read() == word


# evaluate and score


@pytest.fixture
def evaluated(stub, translators, monkeypatch):
    """Stubs of evaluation and corpus; the list of what was evaluated."""
    calls = []
    scores = {"bleu": 41.26, "bleu_signature": "nrefs:1|case:mixed", "sentences": 1000, "cut_outputs": 0}

    class Split:
        def __len__(self):
            return 2

        def read(self, start, stop):
            return ["a", "b"][start:stop], ["x", "y"][start:stop]

    class OfTwoPairs(Corpus):
        name, fingerprint = "scan/simple", "the text"

        def __init__(self):
            pass

        def split(self, name):
            if name != "test":
                raise UserError(f"No split {name}.")
            return Split()

    stub("evaluation", evaluate_split=lambda _, *arguments, comet: calls.append(arguments) or scores, scores=scores)
    monkeypatch.setattr("seq2seq_jax.data.corpora.load_corpus", lambda config: OfTwoPairs())
    return calls


def test_evaluate_decodes_the_test_split_and_prints_the_numbers(call, evaluated, run_folder):
    code, out, err = call("evaluate", "--workdir", run_folder)
    assert (code, err) == (0, "")
    *table, written = out.splitlines()
    assert [line.split() for line in table] == [["bleu", "41.26"], ["sentences", "1,000"]]
    assert written == f"written to {run_folder}/evaluations/test.json, beam 3"
    assert evaluated == [(run_folder, "test", ["a", "b"], ["x", "y"], {})]


def test_evaluations_of_an_ensemble_lie_under_its_first_run_by_a_name_of_their_own(call, evaluated, ensemble, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text("eins\n")
    for workdirs, beam_size in ((ensemble, 3), (ensemble[::-1], 7)):
        assert call("evaluate", "--workdir", *workdirs).out.endswith(f"{evaluated[-1][1]}.json, beam {beam_size}\n")
        assert call("evaluate", "--workdir", *workdirs, "--source-file", lines, "--target-file", lines).code == 0
    assert [arguments[0] for arguments in evaluated] == [ensemble[0], ensemble[0], ensemble[1], ensemble[1]]
    assert [arguments[4]["workdirs"] for arguments in evaluated[::2]] == [
        [str(path) for path in ensemble],
        [str(path) for path in ensemble[::-1]],
    ]
    split, files, reverse, _ = [arguments[1] for arguments in evaluated]
    assert split.startswith("ensembles/mine+yours-") and split.endswith("/test")
    assert files.startswith(f"{Path(split).parent}/files/lines-")
    assert reverse.startswith("ensembles/yours+mine-")


def test_evaluate_wants_the_text_of_every_run_of_an_ensemble(refused, evaluated, ensemble):
    write_fingerprint(ensemble[0], "the text")
    write_fingerprint(ensemble[1], "another text")
    told = refused("evaluate", "--workdir", *ensemble)
    assert f"no longer the one that {ensemble[1]} was trained on" in told and evaluated == []


def test_evaluate_tells_cut_outputs_and_remarks(call, evaluated, run_folder):
    sys.modules["seq2seq_jax.evaluation"].scores.update(cut_outputs=12_345, remarks=["references are strange"])
    *table, remark, _ = call("evaluate", "--workdir", run_folder).out.splitlines()
    assert [line.split() for line in table][-1] == ["cut_outputs", "12,345"] and remark == "references are strange"


def test_evaluations_of_files_go_by_no_splits_name_and_not_by_that_of_other_files(
    call, evaluated, run_folder, tmp_path, monkeypatch
):
    """Also where a file is called as a split is, or as another file elsewhere; the same file keeps its name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test").write_text("eins\n")
        (tmp_path / folder / "reference").write_text("one\n")
    pairs = [("one/test", "one/reference"), ("other/test", "one/reference"), ("one/test", "other/reference")]
    for source, target in [*pairs, (tmp_path / "one" / "test", tmp_path / "one" / "reference")]:
        called = call("evaluate", "--workdir", run_folder, "--source-file", source, "--target-file", target)
        assert called.code == 0 and f"{run_folder}/evaluations/{evaluated[-1][1]}.json" in called.out
    names = [arguments[1] for arguments in evaluated]
    assert len(set(names)) == 3 and names[3] == names[0]
    assert all(name.startswith("files/test-") for name in names)
    assert evaluated[0][2:4] == (["eins"], ["one"])
    assert evaluated[1][4] == {
        "source_file": str(tmp_path / "other" / "test"),
        "target_file": str(tmp_path / "one" / "reference"),
    }


def test_evaluate_counts_bleu_in_the_tokens_it_is_told_or_as_the_run_was_configured(
    call, refused, evaluated, translators, run_folder, monkeypatch
):
    assert call("evaluate", "--workdir", run_folder).code == 0
    assert call("evaluate", "--workdir", run_folder, "--bleu-tokenizer", "char").code == 0
    assert [translator.config.tokenizer for translator in translators] == ["13a", "char"]
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    assert "pip install 'sacrebleu[ja]'" in refused("evaluate", "--workdir", run_folder, "--bleu-tokenizer", "ja-mecab")
    assert len(translators) == 2  # told before anything is loaded


def test_evaluate_reports_the_metrics_that_it_is_told_or_those_of_the_run(
    call, refused, evaluated, translators, run_folder, monkeypatch
):
    (run_folder / "config.json").write_text(to_json(Config(metrics=("distinct",), bleu_tokenizer="zh")))
    for options in ([], ["--metrics", "token_errors,edit_distance"], ["--metrics"], ["--bleu-tokenizer", "none"]):
        assert call("evaluate", "--workdir", run_folder, *options).code == 0
    found = [(translator.config.metrics, translator.config.bleu_tokenizer) for translator in translators]
    both = ("token_errors", "edit_distance")
    assert found == [(("distinct",), "zh"), (both, "zh"), ((), "zh"), (("distinct",), "none")]
    told = refused("evaluate", "--workdir", run_folder, "--metrics", "rogue")
    assert "--metrics takes any of rouge, token_errors" in told and "Did you mean rouge?" in told
    monkeypatch.setattr("seq2seq_jax.metrics.importlib.util.find_spec", lambda name: None)
    assert "pip install 'seq2seq-jax[rouge]'" in refused("evaluate", "--workdir", run_folder, "--metrics", "rouge")
    assert len(translators) == 4  # told before anything is loaded


def test_evaluate_of_a_split_that_is_not_there_is_refused(refused, evaluated, run_folder):
    assert refused("evaluate", "--workdir", run_folder, "--split", "tset") == "No split tset."


def test_evaluate_of_other_text_than_was_trained_on_is_refused_with_options_that_it_has(
    refused, evaluated, run_folder, monkeypatch
):
    write_fingerprint(run_folder, "another text")
    told = refused("evaluate", "--workdir", run_folder)
    assert f"The text of scan/simple is no longer the one that {run_folder} was trained on" in told
    assert "--source-file F --target-file F" in told and evaluated == []


def test_evaluate_without_the_text_says_so_with_options_that_it_has(call, evaluated, run_folder, monkeypatch):
    def load_corpus(config):
        raise UserError("data.corpus: there is no folder data.")

    monkeypatch.setattr("seq2seq_jax.data.corpora.load_corpus", load_corpus)
    code, out, err = call("evaluate", "--workdir", run_folder)
    assert (code, out) == (2, "")
    assert "cannot be read; score other text with --source-file F --target-file F.\ndata.corpus: there is no" in err


def test_score_prints_a_log_probability_for_each_pair(call, translators, run_folder, tmp_path):
    (tmp_path / "a").write_text("xx\ny\n")
    (tmp_path / "b").write_text("z\nzzz\n")
    code, out, err = call(
        "score", "--workdir", run_folder, "--source-file", tmp_path / "a", "--target-file", tmp_path / "b"
    )
    assert (code, out, err) == (0, "-3.0000\n-4.0000\n", "")


def test_score_averages_as_it_is_told_or_as_the_first_run_was_configured(call, translators, ensemble, tmp_path):
    (tmp_path / "a").write_text("xx\n")
    options = ["--workdir", *ensemble, "--source-file", tmp_path / "a", "--target-file", tmp_path / "a"]
    assert call("score", *options).out == call("score", *options, "--ensemble", "log_linear").out == "-4.0000\n"
    assert [translator.decode.ensemble for translator in translators] == ["linear", "log_linear"]
    assert translators[0].workdirs == ensemble


def test_score_refuses_empty_files(refused, translators, run_folder, tmp_path):
    (tmp_path / "a").touch()
    message = refused(
        "score", "--workdir", run_folder, "--source-file", tmp_path / "a", "--target-file", tmp_path / "a"
    )
    assert message == f"{tmp_path / 'a'} and {tmp_path / 'a'} are empty."


def test_score_refuses_files_of_different_lengths(refused, translators, run_folder, tmp_path):
    (tmp_path / "a").write_text("x\n" * 3)
    (tmp_path / "b").write_text("one\n" * 3 + "too many\n")
    message = refused(
        "score", "--workdir", run_folder, "--source-file", tmp_path / "a", "--target-file", tmp_path / "b"
    )
    assert f"{tmp_path / 'b'} has 4 lines and {tmp_path / 'a'} has 3: line 4 of b" in message


# the program as a whole


def test_help_lists_the_commands(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("words", [["help"], ["-h"], ["--h"], ["help", "--help"]])
def test_the_help_has_many_names(call, words):
    assert call(*words) == call("--help")


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_whatever_stands_beside_it(call, command):
    code, out, err = call(command, "stray", "--zzz", "-1", "-h")
    assert (code, err) == (0, "")
    assert out == call("help", command).out and "--workdir" in out


def test_the_help_is_there_where_the_run_or_the_config_is_not(call, trained):
    for words in (["translate", "--workdir", "nowhere"], ["train", "--config", "nowhere"]):
        assert call(*words, "--help") == call(words[0], "--help")


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"], ["translate", "--workdir", "x", "--version"]])
def test_the_version_is_that_of_the_package(call, words):
    assert call(*words) == (0, f"seq2seq-jax {seq2seq_jax.__version__}\n", "")


def test_no_command_at_all_is_answered_with_the_help(call):
    code, out, _ = call()
    assert code == 2 and "usage:" in out


@pytest.mark.parametrize("command", ["evaluate", "translate", "score"])
def test_every_command_has_help_without_a_run(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert "--workdir" in out


def test_help_imports_nothing_slow():
    """What makes `--help` answer in a third of a second; a clock would depend on the machine."""
    program = (
        "import json, sys; from seq2seq_jax.cli import main; code = main(['train', '--help']);"
        "slow = {'jax', 'numpy', 'tensorflow_datasets', 'grain', 'sentencepiece', 'sacrebleu'};"
        "print(json.dumps(sorted(slow & set(sys.modules)))); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=300
    )
    assert "--optimizer.learning-rate" in result.stdout
    assert json.loads(result.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("program", [["-m", "seq2seq_jax", "train"], ["train.py"]], ids=["module", "train.py"])
def test_the_programs_are_the_same(program):
    result = subprocess.run(
        [sys.executable, *program, "--trian.seed", "1"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: Unknown option --trian.seed. Did you mean --train.seed?\n"
