"""The parameters of version 0.1 under the names and in the shapes of today."""

from typing import Any

import numpy as np

Tree = dict[Any, Any]
"""Arrays by name; a list is a dict with keys 0, 1, ..."""


def from_version_0_1(old: Tree) -> Tree:
    """Returns NumPy arrays as `build.abstract_params` has them, with the numbers of `old`.

    Version 0.1 knew LSTMs alone. A layer was one set of arrays with an axis for
    its directions, of which decoders have one; its kernels were `input_kernel`,
    [Z, I, 4H], for inputs that are known before the loop over time, and
    `recurrent_kernel`, [Z, F + H, 4H], for F others and then the layer's state.
    With input feeding the others were the attentional vector for the lowest
    layer of the decoder, and the layer below for the rest, which had no
    `input_kernel`.

    Raises:
      KeyError: it is not such a tree.
    """
    encoder, decoder = _ordered(old["encoder"]["layers"]), _ordered(old["decoder"]["layers"])
    size = decoder[0]["bias"].shape[1] // 4
    # [context; h], or without attention h alone
    combine = np.split(old["decoder"]["combine_kernel"], len(old["decoder"]["combine_kernel"]) // size)
    new = {
        "encoder": {"layers": [[_cell(layer, z) for z in range(len(layer["bias"]))] for layer in encoder]},
        "decoder": {"stack": {"cells": [_cell(layer, 0) for layer in decoder]}, "combine": {"kernels": combine}},
        "output": {"bias": old["output_bias"]},
    }
    if "key_kernel" in old["decoder"]:
        new["decoder"]["attention"] = _attention(old["decoder"])
    if "bridge_kernel" in old:
        new["bridge"] = {"layers": [[{"kernels": [part]} for part in layer] for layer in old["bridge_kernel"]]}
    _add_tables(new, old)
    return _without_lists(new)


def _ordered(layers: Tree) -> list[Tree]:
    return [layers[depth] for depth in range(len(layers))]


def _cell(layer: Tree, direction: int) -> Tree:
    bias, recurrent = layer["bias"][direction], layer["recurrent_kernel"][direction]
    others, own = np.split(recurrent, [len(recurrent) - len(bias) // 4])
    inputs = [layer["input_kernel"][direction]] if "input_kernel" in layer else []
    inputs += [others] if len(others) else []
    return {"input": {"kernels": inputs, "bias": bias}, "recurrent": {"kernels": [own]}}


def _attention(decoder: Tree) -> Tree:
    """Of a general score, or of an additive one."""
    new: Tree = {"key_kernel": decoder["key_kernel"]}
    if "query_kernel" in decoder:
        new |= {"query": {"kernels": [decoder["query_kernel"]]}, "score": decoder["score_kernel"][:, 0]}
    return new


def _add_tables(new: Tree, old: Tree) -> None:
    """Adds embeddings and output layer. Where two are one table, it has the first of their names in the alphabet."""
    target = old["target_embedding"]
    source, output = old.get("source_embedding", target), old.get("output_kernel", target)
    new["output"]["table"] = output
    if source is not output:
        new["source_table"] = source
    if target is not output and target is not source:
        new["target_table"] = target


def _without_lists(tree: Any) -> Any:
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    return {name: _without_lists(inner) for name, inner in tree.items()} if isinstance(tree, dict) else tree
