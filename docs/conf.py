"""The documentation site: `sphinx-build -W docs site`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
# The notebooks run in processes of their own.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import reference  # noqa: E402 - beside this file

import seq2seq_jax  # noqa: E402 - of this checkout

project = "seq2seq_jax"
author = "The seq2seq_jax authors"
release = version = seq2seq_jax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["jupyter_execute"]
html_theme = "furo"
html_title = f"seq2seq_jax {release}"
default_role = "code"  # what stands in single backticks is code
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
suppress_warnings = ["myst.header"]


def _from_docs(text: str) -> str:
    """README's links, which start at the top of the repository, as links from docs/."""
    for folder in ("configs/", "seq2seq_jax/", "tests/", "benchmarks/"):
        text = text.replace(f"]({folder}", f"](../{folder}")
    return text.replace("](docs/", "](")


def setup(app):
    """Has the pages of settings, commands and names written, and README's links turned, before anything is read."""
    reference.write(HERE / "generated")

    def read(app, relative, parent, content):
        content[0] = _from_docs(content[0])

    def skip(app, what, name, value, skip, options):
        return skip or (getattr(value, "__doc__", None) or "").startswith("Alias for field number")

    app.connect("include-read", read)
    app.connect("autodoc-skip-member", skip)
