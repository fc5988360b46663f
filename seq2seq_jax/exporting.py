"""A trained model as one file that runs without this package: search, parameters and vocabularies."""

import importlib.util
import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from seq2seq_jax import __version__, programs, runner
from seq2seq_jax.cache import whole_file
from seq2seq_jax.decoding.rules import Asked
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.translator import EXTRA_LENGTH, Params, Translator

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where a search that is exported as StableHLO runs."""
Form = Literal["stablehlo", "onnx"]
Quantized = Literal["int8"]
_DATE = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes


def export(translator: Translator, path: Path, form: Form = "stablehlo", quantize: Quantized | None = None) -> int:
    """Writes a file for `python FILE < lines`, see `runner`; returns its size in bytes.

    The search is that of `translator.decode`, for any number and length of sentences.
    As StableHLO it is kept by `jax.export`, which later versions of JAX read for at
    least half a year, and compiled where it runs. As ONNX it is run by onnxruntime on a CPU.

    Args:
      translator: the model.
      path: of the file.
      form: of the search.
      quantize: what weights and products become, as ONNX.

    Raises:
      UserError: a library is not installed, the search needs what a file cannot have, or the file cannot be written.
    """
    _check_place(path)
    _check_installed(form)
    if quantize and form != "onnx":
        raise UserError(f"quantize {quantize} is for an export as onnx; add --format onnx, or leave it out.")
    decode = translator.decode
    if decode.replace_unknown:
        raise UserError(
            "decode.replace_unknown looks at attention again, which an exported search does not; leave it out."
        )
    if decode.sample:
        raise UserError("decode.sample draws by the number of a line, which an exported search lacks; leave it out.")
    content = {
        "__main__.py": Path(runner.__file__).read_bytes(),
        "about.json": json.dumps(_about(translator), ensure_ascii=False, indent=1).encode(),
        **(_stablehlo(translator) if form == "stablehlo" else _onnx(translator, quantize)),
    }
    for side in ("source", "target"):
        if model := getattr(translator.vocabularies, side).plain().get("model"):
            content[f"{side}.model"] = model
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as files:
        for name, data in content.items():
            files.writestr(zipfile.ZipInfo(name, _DATE), data)
    return path.stat().st_size


def _about(translator: Translator) -> dict[str, Any]:
    sides = {}
    for side in ("source", "target"):
        plain = getattr(translator.vocabularies, side).plain()
        sides[side] = plain | ({"model": f"{side}.model"} if "model" in plain else {})
    decode = translator.decode
    return {
        "format": runner.FORMAT,
        "version": __version__,
        "step": translator.step,
        "batch_size": decode.batch_size,
        "max_length_ratio": decode.max_length_ratio,
        "extra_length": EXTRA_LENGTH,
        "least_limit": decode.min_length and decode.min_length + EXTRA_LENGTH,
        "copy": translator.vocabularies.copy,
        **sides,
    }


def _search(translator: Translator) -> tuple[Callable[..., Array], dict[str, jax.ShapeDtypeStruct]]:
    """The search of parameters, tables and sources, their lengths and most tokens of outputs; and shapes of these."""
    ratio, extra = translator.decode.max_length_ratio, EXTRA_LENGTH + translator.decode.min_length
    search = partial(programs.search_of, translator.graph, translator.decode, translator.avoided)

    def run(params: Params, tables: Any, ids: Array, lengths: Array, limits: Array) -> Int[Array, "B T"]:
        longest = math.ceil(ratio) * ids.shape[1] + extra  # no less than any of `limits`
        numbers = jnp.arange(1, lengths.shape[0] + 1, dtype=jnp.int32)
        source, asked = Padded(ids, lengths), Asked()
        return search(params, tables, source, programs.Limits(limits, numbers), asked, longest, 1).tokens[:, 0]

    constraints = ["rows >= 1", f"width >= {runner.NARROWEST}"]
    rows, width = jax.export.symbolic_shape("rows, width", constraints=constraints)
    number = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return run, {"ids": jax.ShapeDtypeStruct((rows, width), jnp.int32), "lengths": number, "limits": number}


def _stablehlo(translator: Translator) -> dict[str, bytes]:
    leaves, structure = jax.tree.flatten(translator.params)
    search, given = _search(translator)

    def run(leaves: list[Array], *given: Array) -> Int[Array, "B T"]:
        params = jax.tree.unflatten(structure, leaves)
        return search(params, programs.search_tables(translator.graph, params), *given)

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(shapes, *given.values())
    return {"search.bin": bytes(exported.serialize()), "params.npz": _arrays(leaves)}


def _onnx(translator: Translator, quantize: Quantized | None) -> dict[str, bytes]:
    from seq2seq_jax.onnx_export.search import quantized, search_graphs

    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), translator.params)  # on no mesh
    graphs = search_graphs(translator.graph, params, *_search(translator))
    if quantize:
        graphs = {name: quantized(graph) for name, graph in graphs.items()}
    return {f"{name}.onnx": graph.SerializeToString(deterministic=True) for name, graph in graphs.items()}


def _check_place(path: Path) -> None:
    """Raises UserError where something else than an exported model would be replaced."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, such as {path / 'model.pyz'}.")
    if path.exists() and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is there already, and no exported model; name another file, or remove it.")


def _check_installed(form: Form) -> None:
    extra, libraries = ("onnx", ("onnx", "onnxruntime")) if form == "onnx" else ("export", ("flatbuffers",))
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise UserError(f"An export needs {library}: pip install 'seq2seq-jax[{extra}]'.")


def _arrays(leaves: Sequence[Array]) -> bytes:
    file = io.BytesIO()
    np.savez(file, *map(np.asarray, leaves))
    return file.getvalue()
