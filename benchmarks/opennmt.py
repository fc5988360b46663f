"""Multi30k with OpenNMT-py 3.5.1 and with this package: the same text, pieces, model, optimiser and batches of 64.

    python -m benchmarks.opennmt --corpus DIR --opennmt ENVIRONMENT --workdir WORKDIR

Each is taken as its users have it, and by its own report. Training, real target tokens a second: short runs in turns,
the median of their reports but each run's first. Translating, sentences a second without start-up: a model of each,
trained once and kept in WORKDIR for the next time; medians of turns.

OpenNMT-py wants an environment of its own, for the versions it asks for no longer go with a recent PyTorch:

    python3 -m venv ENVIRONMENT
    ENVIRONMENT/bin/pip install torch==2.13.0 configargparse 'ctranslate2<5' 'pyonmttok<2' sacrebleu rapidfuzz \\
        pyahocorasick fasttext-wheel spacy tensorboard flask waitress pyyaml six
    ENVIRONMENT/bin/pip install --no-deps OpenNMT-py==3.5.1
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from seq2seq_jax.config import DecodeConfig
from seq2seq_jax.cpu import keep_freed_memory, run_in_calling_thread
from seq2seq_jax.data.vocabulary import Vocabularies, load_vocabularies
from seq2seq_jax.metrics import score_hypotheses
from seq2seq_jax.symbols import NUM_SPECIAL
from seq2seq_jax.text_files import chunks, open_input

OURS, PEER = "seq2seq_jax", "OpenNMT-py"
TEST = "test_2016_flickr"
BATCH_SIZE, REPORT_EVERY, LENGTH_PENALTY = 64, 50, 1.0
LATENCY_LINES = 100  # first sentences, translated one by one

OUR_OPTIONS = {
    "config": "configs/multi30k_de_en.py",
    "data.vocab-size": 8_000,
    "data.joint-vocabulary": True,
    "data.batch-size": BATCH_SIZE,
    "model.embed-size": 256,
    "model.hidden-size": 512,
    "model.dropout-rate": 0.3,
    "model.tied-embeddings": "none",
    "optimizer.learning-rate": 1e-3,
    "optimizer.schedule": "constant",
    "optimizer.warmup-steps": 0,
    "optimizer.clip-norm": 5.0,
    "train.label-smoothing": 0.0,
    "train.log-every": REPORT_EVERY,
    "decode.beam-size": 1,  # at the end of training
}
PEER_OPTIONS = {
    "batch_type": "sents",
    "batch_size": BATCH_SIZE,
    "encoder_type": "brnn",
    "rnn_type": "LSTM",
    "layers": 1,
    "word_vec_size": 256,
    "hidden_size": 512,
    "global_attention": "general",
    "input_feed": 1,
    "dropout": 0.3,
    "optim": "adam",
    "learning_rate": 1e-3,
    "learning_rate_decay": 1.0,
    "max_grad_norm": 5.0,
    "label_smoothing": 0.0,
    "normalization": "tokens",
    "report_every": REPORT_EVERY,
}

Rates = dict[str, list[float]]  # by tool


def main() -> None:
    arguments = _parse()
    run_in_calling_thread()  # as the command line does
    about: dict[str, Any] = measure.print_machine()
    sources, targets = (_read(arguments.corpus, TEST, language) for language in ("de", "en"))
    ours, peer = _Ours(arguments), _OpenNMT(arguments)
    rates: Rates = {OURS: [], PEER: []}
    for turn in range(arguments.rounds):
        rates[OURS] += ours.train(f"turn{turn}", arguments.steps)
        if turn == 0:
            peer.write_text(ours.vocabularies("turn0"))
        rates[PEER] += peer.train(f"turn{turn}", arguments.steps)
    rows = _rows("training, target tokens/s", BATCH_SIZE, rates)
    for tool in (ours, peer):
        if not tool.is_trained("model"):
            tool.train("model", arguments.train_steps)
    for beam_size in arguments.beam_sizes:
        search = "greedy" if beam_size == 1 else f"beam {beam_size}"
        for batch_size in (1, *arguments.batch_sizes):
            lines = sources[:LATENCY_LINES] if batch_size == 1 else sources
            rates, texts = {OURS: [], PEER: []}, {}
            for _ in range(arguments.rounds):
                for name, tool in ((OURS, ours), (PEER, peer)):
                    texts[name], seconds = tool.translate("model", lines, beam_size, batch_size)
                    rates[name].append(len(lines) / seconds)
            rows += _rows(f"{search}, sentences/s", batch_size, rates)
            references = [[text] for text in targets[: len(lines)]]
            bleu = {name: score_hypotheses(found, references)["bleu"].value for name, found in texts.items()}
            print(f"{search}, batch {batch_size}, BLEU of {len(lines):,} sentences: {bleu}", flush=True)
            about[f"BLEU, {search}, batch {batch_size}"] = bleu
    measure.print_table(rows)
    measure.write_json(arguments.output, rows, about)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train, validation and test_2016_flickr")
    parser.add_argument("--opennmt", type=Path, required=True, help="virtual environment with OpenNMT-py")
    parser.add_argument("--workdir", type=Path, required=True, help="for everything the two write")
    parser.add_argument("--steps", type=int, default=300, help="of a run that is timed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--train-steps", type=int, default=2_600, help="of the models that translate")
    parser.add_argument("--beam-sizes", nargs="+", type=int, default=[1, 5], help="1 is greedy search")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 128], help="of translating, besides 1")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/opennmt.json"), help="JSON")
    return parser.parse_args()


class _Ours:
    """This package: training by its command line, translating from Python, once warm."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._corpus, self._folder = arguments.corpus, arguments.workdir / "ours"

    def train(self, name: str, steps: int) -> list[float]:
        """Trains a model anew and returns the rates it reported, without the first."""
        workdir = self._folder / name
        shutil.rmtree(workdir, ignore_errors=True)
        options = OUR_OPTIONS | {"data.corpus": f"files:{self._corpus}", "workdir": workdir}
        options |= {f"train.{option}": steps for option in ("num-steps", "evaluate-every", "checkpoint-every")}
        _run([sys.executable, "train.py", *_flags(options)], self._folder / f"{name}.log")
        reports = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [report["target_tokens_per_second"] for report in reports if "target_tokens_per_second" in report][1:]

    def is_trained(self, name: str) -> bool:
        return (self._folder / name / "evaluations" / f"{TEST}.json").exists()  # the last thing a run writes

    def vocabularies(self, name: str) -> Vocabularies:
        return load_vocabularies(self._folder / name / "vocabulary")

    def translate(self, name: str, lines: Sequence[str], beam_size: int, batch_size: int) -> tuple[list[str], float]:
        """Returns hypotheses and seconds of a second pass; the first compiles."""
        keep_freed_memory()  # as the command line does
        from seq2seq_jax import translator

        decode = DecodeConfig(beam_size=beam_size, length_penalty=LENGTH_PENALTY, batch_size=batch_size)
        translate = translator.load(self._folder / name, decode).translate
        calls = [[line] for line in lines] if batch_size == 1 else [lines]
        for call in calls:
            translate(call)
        start = time.perf_counter()
        texts = [hypothesis.text for call in calls for hypothesis in translate(call)]
        return texts, time.perf_counter() - start


class _OpenNMT:
    """OpenNMT-py by its command line; its words are the numbers of our vocabulary's entries."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._corpus, self._folder = arguments.corpus, arguments.workdir.absolute() / "opennmt"
        self._programs = arguments.opennmt / "bin"

    def write_text(self, vocabularies: Vocabularies) -> None:
        """Writes what training reads."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._vocabularies = vocabularies
        for split in ("train", "validation"):
            for language, vocabulary in (("de", vocabularies.source), ("en", vocabularies.target)):
                rows = vocabulary.encode(_read(self._corpus, split, language))
                _write(self._folder / f"{split}.{language}", (" ".join(map(str, row)) for row in rows))
        _write(self._folder / "vocabulary", map(str, range(NUM_SPECIAL, vocabularies.source.size)))

    def train(self, name: str, steps: int) -> list[float]:
        """Trains a model anew and returns the rates it reported, without the first."""
        path, log = self._folder / f"{name}.yaml", self._folder / f"{name}.log"
        data = {
            split: {"path_src": str(self._folder / f"{file}.de"), "path_tgt": str(self._folder / f"{file}.en")}
            for split, file in (("corpus", "train"), ("valid", "validation"))
        }
        config = {
            "data": data,
            "src_vocab": str(self._folder / "vocabulary"),
            "share_vocab": True,
            "bucket_size": 10**6,  # sentences sorted by length: all of them
            "seed": 1,
            "save_model": str(self._folder / name),
            "train_steps": steps,
            "save_checkpoint_steps": steps,
            "valid_steps": steps,
        }
        path.write_text(json.dumps(PEER_OPTIONS | config, indent=2))  # JSON is YAML
        _run([str(self._programs / "onmt_train"), "-config", str(path)], log)
        self._folder.joinpath(f"{name}_step_{steps}.pt").rename(self._model(name))
        return [float(rate) for rate in re.findall(r"/\s*(\d+) tok/s", log.read_text())][1:]

    def is_trained(self, name: str) -> bool:
        return self._model(name).exists()

    def translate(self, name: str, lines: Sequence[str], beam_size: int, batch_size: int) -> tuple[list[str], float]:
        """Returns hypotheses and the seconds that the program says the translating took."""
        source, output, log = (self._folder / f"translate.{suffix}" for suffix in ("source", "output", "log"))
        _write(source, (" ".join(map(str, row)) for row in self._vocabularies.source.encode(lines)))
        options: dict[str, Any] = {"model": self._model(name), "src": source, "output": output, "gpu": -1}
        options |= {"beam_size": beam_size, "batch_size": batch_size, "length_penalty": "wu", "alpha": LENGTH_PENALTY}
        _run([str(self._programs / "onmt_translate"), "-report_time", *_flags(options)], log)
        rows = [[int(word) for word in line.split() if word.isdigit()] for line in output.read_text().splitlines()]
        seconds = re.search(r"Total translation time \(s\): ([\d.]+)", log.read_text())
        if seconds is None:
            raise SystemExit(f"error: {log} does not say how long translating took")
        return self._vocabularies.target.decode(rows), float(seconds[1])

    def _model(self, name: str) -> Path:
        return self._folder / f"{name}.pt"


def _flags(options: dict[str, Any]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def _run(command: Sequence[str], log: Path) -> None:
    """Runs a program with its output in a file; SystemExit names the file if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{' '.join(command[:2])} ... > {log}", flush=True)
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # OpenNMT-py's models hold its options
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise SystemExit(f"error: {command[0]} ended with {code}; see {log}")


def _read(corpus: Path, split: str, language: str) -> list[str]:
    path = next((path for suffix in ("", ".gz") if (path := corpus / f"{split}.{language}{suffix}").exists()), None)
    if path is None:
        measure.refuse(f"{corpus} has no {split}.{language}[.gz]")
    with open_input(path) as file:
        return [line for lines in chunks(file, str(path)) for line in lines]


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _rows(what: str, batch_size: int, rates: Rates) -> list[dict[str, Any]]:
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return [
        {
            "what": what,
            "batch": batch_size,
            "tool": name,
            "median": median,
            "least": min(rates[name]),
            "most": max(rates[name]),
            "ours is faster": medians[OURS] / median,
        }
        for name, median in medians.items()
    ]


if __name__ == "__main__":
    main()
