"""The documentation site, and that nothing public goes without a word."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import seq2seq_jax

MODULES = sorted(module.name for module in pkgutil.walk_packages(seq2seq_jax.__path__, "seq2seq_jax."))


def test_the_site_is_built_without_a_warning(repository, tmp_path):
    """Its notebooks are run on the way, and a failing cell fails this."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        repository / "docs",
        tmp_path / "site",
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert built.returncode == 0, built.stderr[-5000:]
    site = tmp_path / "site"
    settings, commands, names = (
        (site / "generated" / f"{page}.html").read_text() for page in ("settings", "commands", "names")
    )
    assert "model.hidden_size" in settings and "decode.no_repeat_ngram" in settings
    assert "--num-best" in commands and "--distributed" in commands
    assert all(f">{name}<" in names for name in seq2seq_jax.__all__ if not name.endswith("Config"))
    assert "(5, 4, 3, 2, 1, 0" in (site / "notebooks" / "attention.html").read_text()


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_everything_public_says_what_it_is(name):
    module = importlib.import_module(name)
    silent = []
    for public, value in vars(module).items():
        if public.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            silent += [] if inspect.getdoc(value) else [public]
        if inspect.isclass(value):
            for part, member in vars(value).items():
                own = inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
                if own and not part.startswith("_") and not inspect.getdoc(getattr(value, part)):
                    silent.append(f"{public}.{part}")
    assert silent == []
