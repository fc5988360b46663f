"""Translates lines with an exported model: `python MODEL.pyz < in.txt > out.txt`.

This file is the `__main__.py` of what `seq2seq-jax export` writes. It needs numpy,
jax and flatbuffers or, of an export as ONNX, onnxruntime, and sentencepiece where the
vocabulary consists of pieces of words, but not the package seq2seq_jax. From Python,
with this file at hand:
`Model("MODEL.pyz").translate(["a line"])`.
"""

import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

PAD, BOS, EOS, UNK = range(4)
UNKNOWN_TEXT = "\u2047"
FORMAT = 1
NARROWEST = 8  # positions of a source, as a search is written for
# Characters that SentencePiece takes for its own marks, and what stands for them.
STAND_INS = dict(zip("\0\x1f\u2581\u2585", "\ufdd0\ufdd1\ufdd2\ufdd3", strict=True))
ESCAPE = "\ufdd4"


class Model:
    """An exported model.

    Args:
      path: of the file.
    """

    def __init__(self, path: str) -> None:
        with zipfile.ZipFile(path) as files:
            about = json.loads(files.read("about.json"))
            if about["format"] != FORMAT:
                raise ValueError(f"{path} has format {about['format']}, and this runner reads {FORMAT}")
            self.source, self.target = (Vocabulary(about[side], files) for side in ("source", "target"))
            self._search = Graphs(files) if "step.onnx" in files.namelist() else Program(files)
        self._about = about

    def translate(self, lines: Sequence[str]) -> list[str]:
        """Returns the best output for each line; an empty one for an empty line."""
        sources = [self.source.encode_source(line) for line in lines]
        outputs = [""] * len(lines)
        filled = sorted((index for index, ids in enumerate(sources) if ids), key=lambda index: len(sources[index]))
        rows = self._about["batch_size"]
        groups = [filled[start : start + rows] for start in range(0, len(filled), rows)]

        def translate(group: list[int]) -> list[str]:
            return self._translate([sources[index] for index in group], [lines[index] for index in group])

        with ThreadPoolExecutor(self._search.num_threads) as threads:
            for group, texts in zip(groups, threads.map(translate, groups), strict=True):
                for index, text in zip(group, texts, strict=True):
                    outputs[index] = text
        return outputs

    def _translate(self, sources: list[list[int]], lines: list[str]) -> list[str]:
        copies: list[dict[int, str]] = [{}] * len(sources)
        if self._about["copy"]:
            copies = [self._mark_copies(line, source) for line, source in zip(lines, sources, strict=True)]
        lengths = np.array([len(ids) + 1 for ids in sources], np.int32)
        ids = np.full((len(lengths), max(int(lengths.max()), NARROWEST)), PAD, np.int32)
        for row, source in enumerate(sources):
            ids[row, : len(source) + 1] = [*source, EOS]
        limits = np.ceil(lengths * self._about["max_length_ratio"]).astype(np.int32) + self._about["extra_length"]
        found = self._search(ids, lengths, np.maximum(limits, self._about["least_limit"])).tolist()
        return [self.target.decode(row, copied) for row, copied in zip(found, copies, strict=True)]

    def _mark_copies(self, line: str, ids: list[int]) -> dict[int, str]:
        """Gives unknown tokens ids beyond the vocabulary; returns the token that each such id stands for."""
        tokens, first, copies = self.source.source_tokens(line), dict[str, int](), dict[int, str]()
        for place, token in enumerate(tokens, len(ids) - len(tokens)):
            copies[self.source.size + place] = token
            if ids[place] == UNK:
                ids[place] = self.source.size + first.setdefault(token, place)
        return copies


class Program:
    """A search as StableHLO. It uses all cores by itself, so that batches are searched one after another.

    Args:
      files: where it is, and the parameters.
    """

    num_threads = 1

    def __init__(self, files: zipfile.ZipFile) -> None:
        from jax import export, jit

        with np.load(io.BytesIO(files.read("params.npz"))) as arrays:
            self._params = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
        self._search = jit(export.deserialize(bytearray(files.read("search.bin"))).call)

    def __call__(self, ids: np.ndarray, lengths: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """The tokens found for each row.

        Widths are made multiples of 8 and rows powers of two, so that few programs are compiled.
        """
        num_rows, width = ids.shape
        more = (1 << (num_rows - 1).bit_length()) - num_rows
        ids = np.pad(ids, ((0, more), (0, -width % 8)), constant_values=PAD)
        ids[num_rows:, 0] = EOS
        lengths, limits = (np.pad(each, (0, more), constant_values=1) for each in (lengths, limits))
        return np.asarray(self._search(self._params, ids, lengths, limits))[:num_rows]


class Graphs:
    """A search as graphs of ONNX: before its loop, a step of the loop, and after it.

    A graph takes values by name, and what it calls `next.NAME` is NAME from then on.
    A batch is searched in one thread, and as many batches at a time as there are CPUs
    for this process: a step is many small operations, each too short for two threads.

    Args:
      files: where the graphs are.
    """

    def __init__(self, files: zipfile.ZipFile) -> None:
        import onnxruntime

        of_process = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
        self.num_threads = len(os.sched_getaffinity(0)) if of_process else os.cpu_count() or 1
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._graphs = {
            name: onnxruntime.InferenceSession(files.read(f"{name}.onnx"), options, ["CPUExecutionProvider"])
            for name in ("begin", "step", "end")
        }
        inputs = self._graphs["step"].get_inputs()
        self._of_rows = {x.name for x in inputs if x.shape[:1] == ["rows"]}
        tables = onnxruntime.InferenceSession(files.read("tables.onnx"), options, ["CPUExecutionProvider"])
        self._tables = self._run(tables, {})

    def __call__(self, ids: np.ndarray, lengths: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """The tokens found for each row. Whenever half of the rows have ended, the others go on among themselves."""
        values = self._tables | {"ids": ids, "lengths": lengths, "limits": limits}
        values |= self._run(self._graphs["begin"], values)
        here, now, is_open = np.arange(len(ids)), values, np.ones(len(ids), bool)
        while is_open.any():
            if 2 * is_open.sum() <= len(is_open):
                here = here[is_open]
                now = {name: x[is_open] if name in self._of_rows else x for name, x in now.items()}
            found = self._run(self._graphs["step"], now)
            is_open = found.pop("open")
            now = now | found
            if 2 * is_open.sum() <= len(is_open):
                for name in found.keys() & self._of_rows:
                    values[name][here] = now[name]
        return self._run(self._graphs["end"], values)["tokens"]

    def _run(self, graph: Any, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [x.name for x in graph.get_outputs()]
        results = graph.run(names, {x.name: values[x.name] for x in graph.get_inputs()})
        return {name.removeprefix("next."): result for name, result in zip(names, results, strict=True)}


class Vocabulary:
    """Text to ids and back, from what the file says of it.

    Args:
      about: kind, size and, unless it consists of pieces of words, the tokens.
      files: where a SentencePiece model is.
    """

    def __init__(self, about: dict[str, Any], files: zipfile.ZipFile) -> None:
        self._about, self.size = about, about["size"]
        self._ids = {token: index for index, token in enumerate(about["tokens"], 4)}
        self._texts = ["", "", "", UNKNOWN_TEXT, *about["tokens"]]
        self._pieces: Any = None
        if "model" in about:
            import sentencepiece

            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=files.read(about["model"]))

    def tokens(self, text: str) -> list[str]:
        """The text of each token."""
        if self._about["kind"] == "characters":
            return list(text.lower() if self._about["lowercase"] else text)
        squeezed = self._squeezed(text)
        if self._pieces is None:
            return squeezed.split(" ") if squeezed else []
        return self._pieces.encode(_to_stand_ins(squeezed), out_type=str)

    def _squeezed(self, text: str) -> str:
        text = text.lower() if self._about["lowercase"] else text
        return re.sub(r"\s+", " ", text, flags=re.ASCII).strip(" ")

    def _encode(self, text: str) -> list[int]:
        if self._pieces is None:
            return [self._ids.get(token, UNK) for token in self.tokens(text)]
        return self._pieces.encode(_to_stand_ins(self._squeezed(text)))

    def encode_source(self, line: str) -> list[int]:
        """The ids of a source, its tags or turns included; none of an empty line."""
        if not line.strip():
            return []
        if tags := self._about.get("tags"):
            text, tab, behind = line.rpartition("\t")
            if not tab:
                raise ValueError(f"the source {line[:60]!r} has no tab and tags behind it")
            parts = [tag.strip() for tag in behind.split(self._about["separator"]) if tag.strip()]
            return [tags.get(tag, self._about["unknown_tag"]) for tag in parts] + self._encode(text)
        if "between" in self._about:
            between, left_out = self._about["between"], self._about["left_out"]
            return self._joined([self._encode(turn) for turn in line.split("\t")], between, left_out)
        return self._encode(line)

    def source_tokens(self, line: str) -> list[str]:
        """The text of each token of a source, without its tags."""
        if self._about.get("tags"):
            return self.tokens(line.rpartition("\t")[0])
        if "between" in self._about:
            return self._joined([self.tokens(turn) for turn in line.split("\t")], "\t", "\t")
        return self.tokens(line)

    def _joined(self, turns: list[list[Any]], between: Any, left_out: Any) -> list[Any]:
        """The turns of a dialogue; as few of the oldest as need be are left out."""
        joined: list[Any] = []
        for number in range(len(turns)):
            joined = [left_out] if number else []
            for turn in turns[number:-1]:
                joined += [*turn, between]
            joined += turns[-1]
            if len(joined) < self._about["max_length"]:
                break
        return joined

    def decode(self, ids: Sequence[int], copies: dict[int, str]) -> str:
        """The text of ids up to their end."""
        row = [int(index) for index in ids]
        row = [index for index in row[: row.index(EOS) if EOS in row else None] if index not in (PAD, BOS)]
        num_text = len(self._texts) if self._pieces is None else self._pieces.vocab_size()
        row = [UNK if num_text <= index < self.size else index for index in row]  # a tag is no text
        if self._pieces is None:
            texts = [copies.get(index) or self._texts[index] for index in row]
            return (" " if self._about["kind"] == "words" else "").join(texts)
        if not any(index in copies for index in row):
            return _from_stand_ins(self._pieces.decode(row))
        pieces = [copies.get(index) or self._pieces.id_to_piece(index) for index in row]
        return _from_stand_ins(self._pieces.decode_pieces(pieces))


def _to_stand_ins(text: str) -> str:
    return "".join(STAND_INS.get(c) or (ESCAPE + c if "\ufdd0" <= c <= ESCAPE else c) for c in text)


def _from_stand_ins(text: str) -> str:
    back = {stand_in: character for character, stand_in in STAND_INS.items()}
    return re.sub(
        f"{ESCAPE}(.?)|[\ufdd0-\ufdd3]", lambda m: m[1] if m[0][0] == ESCAPE else back[m[0]], text, flags=re.S
    )


def texts(lines: Sequence[bytes], first: int) -> list[str]:
    """Lines of standard input as text; the first one is number `first`.

    Raises:
      ValueError: one is not UTF-8.
    """
    found = []
    for number, line in enumerate(lines, first):
        try:
            found.append(line.decode().rstrip("\n").removesuffix("\r"))
        except UnicodeDecodeError as error:
            where = f"standard input, line {number:,}"
            raise ValueError(
                f"{where}: not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1})"
            ) from None
    if first == 1 and found:
        found[0] = found[0].removeprefix("\ufeff")  # a byte order mark
    return found


def main() -> int:
    """Translates standard input, some thousand lines at a time."""
    path, *options = sys.argv
    if options:
        is_asked = not {"-h", "--help"}.isdisjoint(options)
        print(
            f"usage: python {path} < lines > translations\nThere are no options: the search is as it was exported.",
            file=sys.stdout if is_asked else sys.stderr,
        )
        return 0 if is_asked else 2
    try:
        model = Model(path)
    except ImportError as error:
        return _complain(f"{path} needs {error.name}: pip install {error.name}")
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        return _complain(f"{path}: {error}")
    first = 1
    try:
        while lines := sys.stdin.buffer.readlines(1 << 17):
            translations = model.translate(texts(lines, first))
            sys.stdout.buffer.write("".join(f"{text}\n" for text in translations).encode())
            sys.stdout.buffer.flush()
            first += len(lines)
    except (ValueError, OSError) as error:
        return _complain(str(error))
    return 0


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
