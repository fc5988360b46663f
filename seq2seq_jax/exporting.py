"""A trained model as one file that runs without this package: search as StableHLO, parameters, vocabularies."""

import importlib.util
import io
import json
import math
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from seq2seq_jax import __version__, programs, runner
from seq2seq_jax.cache import whole_file
from seq2seq_jax.decoding.rules import Asked
from seq2seq_jax.errors import UserError
from seq2seq_jax.padded import Padded
from seq2seq_jax.translator import EXTRA_LENGTH, Translator

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where an exported search runs."""
_DATE = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes


def export(translator: Translator, path: Path) -> int:
    """Writes a file for `python FILE < lines`, see `runner`; returns its size in bytes.

    The search is that of `translator.decode`. It is compiled where it runs, for any
    number and length of sentences. It is kept as StableHLO by `jax.export`, which
    later versions of JAX read for at least half a year.

    Raises:
      UserError: flatbuffers is not installed, the search needs what a file cannot have, or the file cannot be written.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("An export needs flatbuffers: pip install 'seq2seq-jax[export]'.")
    decode = translator.decode
    if decode.replace_unknown:
        raise UserError(
            "decode.replace_unknown looks at attention again, which an exported search does not; leave it out."
        )
    if decode.sample:
        raise UserError("decode.sample draws by the number of a line, which an exported search lacks; leave it out.")
    leaves, structure = jax.tree.flatten(translator.params)
    content = {
        "__main__.py": Path(runner.__file__).read_bytes(),
        "about.json": json.dumps(_about(translator), ensure_ascii=False, indent=1).encode(),
        "search.bin": _search(translator, structure, leaves),
        "params.npz": _arrays(leaves),
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
        "extra_length": EXTRA_LENGTH + decode.min_length,
        "copy": translator.vocabularies.copy,
        **sides,
    }


def _search(translator: Translator, structure: Any, leaves: Sequence[Array]) -> bytes:
    """The search of `(parameters, sources, their lengths, most tokens of outputs)`, for any numbers, serialised."""
    ratio, extra = translator.decode.max_length_ratio, EXTRA_LENGTH + translator.decode.min_length
    search = partial(programs.search_of, translator.graph, translator.decode, translator.avoided)

    def run(leaves: list[Array], ids: Array, lengths: Array, limits: Array) -> Int[Array, "B T"]:
        params = jax.tree.unflatten(structure, leaves)
        tables = programs.search_tables(translator.graph, params)
        longest = math.ceil(ratio) * ids.shape[1] + extra  # no less than any of `limits`
        numbers = jnp.arange(1, lengths.shape[0] + 1, dtype=jnp.int32)
        source, asked = Padded(ids, lengths), Asked()
        return search(params, tables, source, programs.Limits(limits, numbers), asked, longest, 1).tokens[:, 0]

    rows, width = jax.export.symbolic_shape("rows, width", constraints=["rows >= 1", "width >= 8"])
    number = jax.ShapeDtypeStruct((rows,), jnp.int32)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    ids = jax.ShapeDtypeStruct((rows, width), jnp.int32)
    return bytes(jax.export.export(jax.jit(run), platforms=PLATFORMS)(shapes, ids, number, number).serialize())


def _arrays(leaves: Sequence[Array]) -> bytes:
    file = io.BytesIO()
    np.savez(file, *map(np.asarray, leaves))
    return file.getvalue()
