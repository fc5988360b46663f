"""The house's rule: an import only points to a lower floor, or to a neighbour in the same folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# From the ground up. A folder's floor holds for all of its files. A new file without a floor fails the test: give it
# one here.
FLOORS = (
    (
        "errors",
        "symbols",
        "runner",
        "cpu",
        "checksums",
        "signals",
        "wording",
        "padded",
        "products",
        "equations",
        "dropout",
    ),
    ("config", "cache", "console", "troubles", "linear", "distribution", "old_parameters", "processes"),
    (
        "arguments",
        "config_file",
        "run_directory",
        "text_files",
        "compiled",
        "sharding",
        "watchdog",
        "loops",
        "cells",
        "attention",
    ),
    ("affine", "vocabulary_parts"),
    ("outputs",),
    ("recurrence",),
    ("encoders",),
    ("bridges", "decoders"),
    ("seq2seq",),
    ("ensemble",),
    ("build", "losses", "metrics", "checkpoint", "decoding", "data"),
    ("constraints", "programs"),
    ("onnx_export",),
    ("translator",),
    ("evaluation", "averaging", "answers", "reranking", "exporting", "serving"),
    ("training",),
    ("reporting", "options"),
    ("translating",),
    ("cli",),
    ("__main__", ""),  # the two doors
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# These answer before JAX could be imported, or do without it altogether.
WITHOUT_JAX = (
    "cli",
    "options",
    "translating",
    "config",
    "config_file",
    "arguments",
    "run_directory",
    "text_files",
    "console",
    "compiled",
    "troubles",
    "metrics",
    "cache",
    "checksums",
    "signals",
    "data",
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name within it ("" is the package itself)."""
    root = REPOSITORY / "seq2seq_jax"
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
        for path in sorted(root.rglob("*.py"))
    }


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, anywhere in it, except what only a type checker reads."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: imports name the package, not a number of dots"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    inner = {name.removeprefix("seq2seq_jax").removeprefix(".") for name in names if name.startswith("seq2seq_jax")}
    return inner & set(known)


def floor(module: str) -> int:
    return FLOOR_OF[module.partition(".")[0]]


def test_every_module_has_a_floor():
    assert {name.partition(".")[0] for name in modules()} <= set(FLOOR_OF)


@pytest.mark.parametrize("module", list(modules()))
def test_imports_point_to_a_lower_floor(module):
    for other in imported(modules()[module], modules()) - {"", module}:  # "" is imported with any of its modules
        neighbours = "." in module and module.partition(".")[0] == other.partition(".")[0]
        assert neighbours or floor(other) < floor(module), f"{module} must not import {other}"


def test_nothing_imports_tensorflow():
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "tensorflow" for name in names), path


def test_commands_and_data_are_imported_without_jax():
    # data.pipeline is what Grain is for, and Grain imports JAX.
    quick = [name for name in modules() if name.partition(".")[0] in WITHOUT_JAX and name != "data.pipeline"]
    names = [f"seq2seq_jax.{name}" for name in quick]
    program = f"import sys, {', '.join(names)}; print(*sorted({{'jax', 'grain', 'tensorflow'}} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=300
    )
    assert result.stdout.strip() == ""
