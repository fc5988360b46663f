"""An export as ONNX: its graphs compute what JAX does, and it translates as the model does."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest

from seq2seq_jax import runner
from seq2seq_jax.cli import main
from seq2seq_jax.errors import UserError
from seq2seq_jax.onnx_export.conversion import convert
from seq2seq_jax.onnx_export.graph import Graph, known
from seq2seq_jax.translator import load
from tests.test_exporting import LINES, MODELS, check, export, untrained, variant

pytestmark = [
    pytest.mark.usefixtures("compiled"),
    pytest.mark.filterwarnings("ignore:.*(unknown symbols|reached the limit|seen in training)"),
]


@pytest.fixture(scope="module")
def translator(trained):
    return load(trained)


def run(function: Callable, shapes: list, arrays: list) -> list:
    """What onnxruntime makes of a function that is traced for shapes with symbols."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        traced = jax.make_jaxpr(function)(*shapes)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    inputs = {f"in{number}": shape for number, shape in enumerate(shapes)}
    graph = Graph(inputs)
    results = convert(graph, traced.jaxpr, list(map(known, traced.consts)), graph.inputs())
    for number, (result, var) in enumerate(zip(results, traced.jaxpr.outvars, strict=True)):
        graph.output(f"out{number}", result, var.aval)
    model = graph.model("test")
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return list(session.run(None, dict(zip(inputs, arrays, strict=True))))


ROWS, WIDTH = jax.export.symbolic_shape("rows, width", constraints=["rows >= 1", "width >= 4"])
KERNEL = np.random.default_rng(1).normal(size=(2, 4, 3)).astype(np.float32)
FUNCTIONS = {
    "elements": lambda x, n: (jnp.where(x > 0, jnp.log1p(jnp.abs(x)), jnp.exp(x)), jax.nn.softplus(x), x**3, x % 2),
    "whole numbers": lambda x, n: (n // 3, n % 3, -n // 4, jax.lax.rem(-n, 4), jnp.sign(n), n.astype(bool) & (n > 2)),
    "sums": lambda x, n: (x.sum(1), x.max((0, 2)), (x > 0).any(-1), (x > 0).all(0), jnp.cumsum(n, 1), n.argmax(1)),
    "shapes": lambda x, n: (
        jnp.flip(x, 1),
        x.reshape(-1, 4).T,
        jnp.stack([x, 2 * x], 2)[:, 1:, 1],
        jnp.pad(n, ((0, 0), (2, 1)), constant_values=7),
        jnp.broadcast_to(n[:, None], (n.shape[0], 3, n.shape[1])),
        jnp.concatenate([n, n[:, :2]], 1),
        jnp.arange(n.shape[1] * 2 - 3) + n.shape[0],
    ),
    "products": lambda x, n: (
        x @ KERNEL[0],
        jnp.einsum("bwi,bvi->bwv", x, x),
        jnp.einsum("io,bwi->obw", KERNEL[1], x),
        jnp.einsum("zbi,zio->zbo", x[:, :2].swapaxes(0, 1), KERNEL),
        jnp.tensordot(x, x, ((1, 2), (1, 2))),
    ),
    "parts": lambda x, n: (
        x[..., 1],
        jnp.take(x, n[0] % 4, axis=2),
        jnp.take_along_axis(n, n % 4, axis=1),
        jnp.asarray(KERNEL)[0].at[n].get(mode="fill", fill_value=-1),
        x.at[..., 2].set(n.astype(jnp.float32)),
        x.at[..., 2].add(1),
        x.at[:, :, ::2].set(5),
        jax.lax.dynamic_update_index_in_dim(n, n[:, 0], n[0, 0], 1),
        jax.vmap(lambda row, at: row.at[at].set(-1))(n, n - 1),
        jax.vmap(lambda row, at: row.at[at].add(at))(n, n),
    ),
    "best": lambda x, n: (*jax.lax.top_k(x, 2), *jax.lax.top_k(n, 3)),
    "loops": lambda x, n: (
        jax.lax.scan(lambda total, now: (total + now, total * 2), n[:, 0], n.T),
        jax.lax.scan(lambda total, now: (now @ KERNEL[0] @ KERNEL[1].T + total, None), x[0], x, reverse=True)[0],
        jax.lax.cumlogsumexp(x - 1e3 * n[..., None], 1),
        jax.lax.cumlogsumexp(x, 1, reverse=True),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_graphs_compute_what_jax_does(name):
    """For sizes not known when they were made."""
    function = FUNCTIONS[name]
    flat = lambda x, n: jax.tree.leaves(function(x, n))  # noqa: E731
    shapes = [jax.ShapeDtypeStruct((ROWS, WIDTH, 4), jnp.float32), jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.int32)]
    random = np.random.default_rng(2)
    for rows, width in ((3, 5), (1, 4)):
        arrays = [
            random.normal(size=(rows, width, 4)).astype(np.float32),
            random.integers(0, 7, (rows, width)).astype(np.int32),
        ]
        for found, expected in zip(run(flat, shapes, arrays), flat(*map(jnp.asarray, arrays)), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"beam_size": 3},
        {"beam_size": 1},
        {"beam_size": 2, "no_repeat_ngram": 2, "min_length": 3, "avoid": ("BEE",), "max_length_ratio": 0.7},
        {"beam_size": 4, "groups": 2, "coverage_penalty": 0.2, "batch_size": 5},
    ],
    ids=["beam", "greedy", "rules", "groups"],
)
def test_the_file_translates_as_the_model_does(translator, tmp_path, fields):
    check(variant(translator, **fields), tmp_path / "model.pyz", options=["onnx"])


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind_can_be_exported(tmp_path, name):
    feeding = "decoder" not in MODELS[name] and MODELS[name].get("attention") != "hard_monotonic"
    check(
        untrained(tmp_path, model={"input_feeding": feeding} | MODELS[name]), tmp_path / "model.pyz", options=["onnx"]
    )


def test_words_that_are_copied(tmp_path):
    model = {"copy": True, "attention": "additive", "decoder": "bahdanau", "input_feeding": False, "output": "linear"}
    translator = untrained(tmp_path, model=model, data={"vocabulary": "words", "joint_vocabulary": True})
    texts = check(translator, tmp_path / "model.pyz", [*LINES, "zebra yak zebra ant"], ["onnx"])
    assert "zebra" in " ".join(texts)


def test_of_8_bits_it_says_nearly_the_same(translator, tmp_path):
    for option in (None, "int8"):
        export(translator, tmp_path / str(option), "onnx", option)
    whole, small = (runner.Model(str(tmp_path / name)).translate(LINES) for name in ("None", "int8"))
    assert sum(map(str.__eq__, whole, small)) >= 0.9 * len(LINES)
    with zipfile.ZipFile(tmp_path / "int8") as files:
        for name in ("tables", "begin", "step"):
            kinds = {node.op_type for node in _nodes(onnx.load_from_string(files.read(f"{name}.onnx")).graph)}
            assert "MatMulInteger" in kinds


def test_of_8_bits_a_file_is_less_than_a_third(tmp_path):
    translator = untrained(tmp_path, model={"hidden_size": 256, "embed_size": 128})
    sizes = [export(translator, tmp_path / "model.pyz", "onnx", option) for option in (None, "int8")]
    assert 3 * sizes[1] < sizes[0]


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [_nodes(attribute.g) for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for nodes in inner for node in nodes)]


def test_an_ensemble_is_exported(translator, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "other")
    check(load([trained, tmp_path / "other"]), tmp_path / "model.pyz", options=["onnx"])


def test_the_file_runs_without_jax(translator, tmp_path):
    path = tmp_path / "model.pyz"
    expected = check(translator, path, options=["onnx"])
    code = (
        "import runpy, sys; sys.modules['jax'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], None, '__main__')"
    )
    lines = "".join(f"{line}\n" for line in LINES).encode()
    found = subprocess.run(
        [sys.executable, "-P", "-c", code, str(path)], input=lines, capture_output=True, cwd=tmp_path, timeout=300
    )
    assert found.stdout.decode().splitlines() == expected and found.returncode == 0


def test_the_same_model_gives_the_same_bytes(translator, tmp_path):
    for name in ("one", "two"):
        export(translator, tmp_path / name, "onnx", "int8")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_onnx_cannot_have_is_refused(translator, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="decode.sample"):
        export(variant(translator, sample=True), tmp_path / "model.pyz", "onnx")
    with pytest.raises(UserError, match="computes in bfloat16; export it with --format stablehlo"):
        export(untrained(tmp_path, model={"compute_dtype": "bfloat16"}), tmp_path / "model.pyz", "onnx")
    with pytest.raises(UserError, match="computes 'erf_inv', which has no ONNX node"):
        run(jax.lax.erf_inv, [jax.ShapeDtypeStruct((ROWS,), jnp.float32)], [])
    with pytest.raises(UserError, match="quantize int8 is for an export as onnx; add --format onnx"):
        export(translator, tmp_path / "model.pyz", "stablehlo", "int8")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx: pip install 'seq2seq-jax\[onnx\]'"):
        export(translator, tmp_path / "model.pyz", "onnx")
    assert not (tmp_path / "model.pyz").exists()


def test_the_command_says_what_it_wrote(trained, tmp_path, capsys):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        path = tmp_path / "model.pyz"
        options = ["--workdir", str(trained), "--output", str(path), "--format", "onnx", "--quantize", "int8"]
        assert main(["export", *options]) == 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert "for onnxruntime, int8" in capsys.readouterr().out
