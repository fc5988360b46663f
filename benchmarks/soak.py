"""Kills a training at random instants and lets the same command go on, until it is done: is anything lost?

    python -m benchmarks.soak --kills 100

A small run with checkpoints, validations and a test is trained once without a break. Then the same command is started
again and again in another run directory, and killed (SIGKILL) after a random time from its start: while it imports,
compiles, steps, saves, validates, tests. When it has come to its end, rows, parameters and outputs have to be those of
the unbroken run, bit for bit. Then another run directory begins, until there were as many kills as asked for.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from seq2seq_jax.translator import load

CLOCKS = ("seconds", "target_tokens_per_second")
FILES = ("evaluations/test.hypotheses.txt", "config.json")
WORDS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


def write_corpus(folder: Path) -> None:
    """Lines of one to five words, and the same in upper case."""
    draw = random.Random(0)
    folder.mkdir()
    for split, count in (("train", 400), ("validation", 40), ("test", 40)):
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(count)]
        for side, text in (("low", lines), ("up", [line.upper() for line in lines])):
            (folder / f"{split}.{side}").write_text("".join(f"{line}\n" for line in text))


def command(corpus: Path, workdir: Path) -> list[str]:
    """The training, which takes some seconds after its programs are compiled."""
    options = {
        "data.corpus": f"files:{corpus}",
        "data.source": "low",
        "data.target": "up",
        "data.vocabulary": "words",
        "data.joint-vocabulary": "False",
        "model.hidden-size": "64",
        "model.embed-size": "64",
        "model.dropout-rate": "0.2",
        "optimizer.warmup-steps": "20",
        "train.num-steps": "600",
        "train.evaluate-every": "60",
        "train.checkpoint-every": "20",
        "train.log-every": "10",
        "train.ema": "0.9",
        "workdir": str(workdir),
    }
    return [
        sys.executable,
        "-m",
        "seq2seq_jax",
        "train",
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]


def rows(workdir: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what a clock says."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in found]


def differences(workdir: Path, unbroken: Path) -> list[str]:
    """What of a run is not as in the unbroken one."""
    found = [name for name in FILES if (workdir / name).read_bytes() != (unbroken / name).read_bytes()]
    if rows(workdir) != rows(unbroken):
        found.append("metrics.jsonl")
    import jax

    one, other = (jax.tree.leaves(load(folder).params) for folder in (workdir, unbroken))
    if not all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True)):
        found.append("parameters")
    if left := [path.name for path in workdir.rglob("*") if "tmp" in path.name or path.name == "lock"]:
        found.append(f"left behind: {', '.join(left)}")
    return found


def stage(output: str) -> str:
    """How far a killed process had come, by what it had printed."""
    for words, name in (
        ("Split test", "after the test"),
        ("Trained ", "in the test"),
        ("Step ", "between validations"),
    ):
        if words in output:
            return name
    return "in the first steps" if "Compiled" in output or "Resuming" in output else "before the first step"


def main() -> None:
    """Kills until there are enough kills; ends with 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, stages, runs, failures = random.Random(given.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus")
        unbroken = folder / "unbroken"
        start = time.perf_counter()
        subprocess.run(command(folder / "corpus", unbroken), check=True, capture_output=True)
        start = time.perf_counter()
        subprocess.run(command(folder / "corpus", folder / "warm"), check=True, capture_output=True)
        length = time.perf_counter() - start
        print(f"An unbroken run takes {length:.1f} s.", flush=True)
        while stages.total() < given.kills:
            runs += 1
            workdir, kills = folder / f"run{runs}", 0
            while True:
                log = folder / "log"
                with log.open("w") as output:
                    process = subprocess.Popen(command(folder / "corpus", workdir), stdout=output, stderr=output)
                    try:
                        code = process.wait(draw.uniform(0, length))
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
                        kills += 1
                        stages[stage(log.read_text())] += 1
                        continue
                if code:
                    failures += 1
                    print(f"Run {runs}: exit code {code} after {kills} kills\n{log.read_text()}", flush=True)
                break
            if wrong := differences(workdir, unbroken) if not code else []:
                failures += 1
                print(f"Run {runs}: after {kills} kills not as unbroken: {', '.join(wrong)}", flush=True)
            print(f"Run {runs}: {kills} kills; {stages.total()} of {given.kills} so far", flush=True)
    print(f"{stages.total()} kills in {runs} runs, {failures} failures. {dict(stages.most_common())}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
