"""A training that meets a fault at random instants, and comes to the same bits.

    python -m benchmarks.soak --fault kill --times 100

The same command is given again and again, and meets a fault after a random time from its start: while it imports,
compiles, steps, saves, validates, tests.

* kill: SIGKILL.
* signals: SIGTERM or SIGINT, and another of them soon after; the command ends by itself, and leaves no process.
* full: the disk of its run directory is full from then on, and has room again before the next command. Mounts a small
  disk of its own, for which it has to be root.

When it has come to its end, rows, parameters and outputs have to be those of the unbroken run, bit for bit. Then
another run directory begins, until there were as many faults as asked for.
"""

import argparse
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
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


def kill(process: subprocess.Popen[bytes], draw: random.Random, workdir: Path) -> None:
    """Ends the process at once."""
    process.kill()
    process.wait()


def send_two_signals(process: subprocess.Popen[bytes], draw: random.Random, workdir: Path) -> None:
    """Has the process end itself, and looks at how it does."""
    for _ in range(2):
        process.send_signal(draw.choice([signal.SIGTERM, signal.SIGINT]))
        time.sleep(draw.uniform(0, 0.3))
    code = process.wait(60)
    # The negative ones before signals are obeyed, within the first tenths of a second.
    assert code in (0, 130, 143, -signal.SIGTERM, -signal.SIGINT), f"exit code {code}"
    left = subprocess.run(["pgrep", "--session", str(process.pid)], capture_output=True, text=True).stdout
    assert not left, f"processes left: {left}"


def fill_disk(process: subprocess.Popen[bytes], draw: random.Random, workdir: Path) -> None:
    """Fills the disk, but for a little, and waits for what becomes of the process."""
    filler, spare = workdir / "filler", draw.choice([0, 0, 10_000, 300_000, 1_500_000])
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with filler.open("r+b") as file:
        file.truncate(max(filler.stat().st_size - spare, 0))
    code = process.wait(120)
    filler.unlink()
    assert code in (0, 2), f"exit code {code}"


FAULTS = {"kill": kill, "signals": send_two_signals, "full": fill_disk}


def check_words(fault: str, output: str) -> None:
    """What a command says that met a fault: never a traceback, and of a full disk one message that names a place."""
    assert fault != "full" or output.count("error: ") <= 1, "more than one message"
    told = [line for line in output.splitlines() if line.startswith("error: ")]
    full = (
        r"error: (No space left on (device: |the disk of )|The checkpoints of this run need .* MB, and the disk of )/"
    )
    assert not told or re.match(full, told[0]), told[0]
    assert "Traceback" not in output or "KeyboardInterrupt" in output, "a traceback"


@contextlib.contextmanager
def disk(folder: Path) -> Generator[Path]:
    """A disk of 12 MB at a new folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main() -> None:
    """Makes faults until there are enough of them; ends with 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=FAULTS, default="kill")
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, stages, runs, failures = random.Random(given.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus")
        unbroken = folder / "unbroken"
        subprocess.run(command(folder / "corpus", unbroken), check=True, capture_output=True)
        start = time.perf_counter()
        subprocess.run(command(folder / "corpus", folder / "warm"), check=True, capture_output=True)
        length = time.perf_counter() - start
        print(f"An unbroken run takes {length:.1f} s.", flush=True)
        while stages.total() < given.times:
            runs += 1
            with contextlib.ExitStack() as stack:
                workdir, faults = folder / f"run{runs}", 0
                if given.fault == "full":
                    workdir = stack.enter_context(disk(folder / f"disk{runs}"))
                while (code := attempt(given.fault, folder, workdir, length, draw, stages)) is None:
                    faults += 1
                wrong = (
                    [f"exit code {code}, {(folder / 'log').read_text()}"] if code else differences(workdir, unbroken)
                )
            failures += bool(wrong)
            state = f"not as unbroken: {', '.join(wrong)}" if wrong else "as unbroken"
            print(f"Run {runs}: after {faults} {state}; {stages.total()} of {given.times} so far", flush=True)
    print(f"{given.fault}: {stages.total()} in {runs} runs, {failures} failures. {dict(stages.most_common())}")
    sys.exit(1 if failures else 0)


def attempt(
    fault: str, folder: Path, workdir: Path, length: float, draw: random.Random, stages: Counter[str]
) -> int | None:
    """The exit code of the command, given once; None where it met the fault before its end."""
    log = folder / "log"
    with log.open("w") as output:
        words = command(folder / "corpus", workdir)
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
        try:
            return process.wait(draw.uniform(0, length))
        except subprocess.TimeoutExpired:
            FAULTS[fault](process, draw, workdir)
    stages[stage(log.read_text())] += 1
    check_words(fault, log.read_text())
    return None


if __name__ == "__main__":
    main()
