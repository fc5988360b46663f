"""The few file functions that TFDS takes from TensorFlow, from the standard library.

TFDS reads and writes ArrayRecord without TensorFlow, but opens what it
downloads (archives above all) through `tf.io.gfile`, and so do many of its
text builders. All of them get TensorFlow from one lazily imported module
object, and that is what `file_functions` fills meanwhile.
"""

import contextlib
import functools
import glob
import importlib.util
import os
import shutil
from collections.abc import Generator
from types import SimpleNamespace
from typing import IO, Any

from tensorflow_datasets.core.utils import lazy_imports_utils


@contextlib.contextmanager
def file_functions() -> Generator[None]:
    """Lets TFDS download, extract and open files within the block where TensorFlow is not installed."""
    if importlib.util.find_spec("tensorflow"):
        yield
        return
    attributes = vars(lazy_imports_utils.tensorflow)  # its own setattr would import TensorFlow first
    attributes["_module"] = _STAND_IN
    try:
        yield
    finally:
        del attributes["_module"]


class _UnimplementedError(Exception):
    """What tf.io.gfile raises for the scheme of an address it does not know."""


def _open(name: str | os.PathLike[str], mode: str = "r") -> IO[Any]:
    return open(name, mode, encoding=None if "b" in mode else "utf-8")


def _copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    if "://" in os.fspath(source):  # TFDS then fetches it with urllib
        raise _UnimplementedError(os.fspath(source))
    shutil.copyfile(source, target)


def _as_text(text: str | bytes) -> str:
    return text.decode("utf-8") if isinstance(text, bytes) else text


_STAND_IN = SimpleNamespace(
    io=SimpleNamespace(
        gfile=SimpleNamespace(
            GFile=_open,
            copy=_copy,
            exists=os.path.exists,
            glob=glob.glob,
            isdir=os.path.isdir,
            listdir=os.listdir,
            makedirs=functools.partial(os.makedirs, exist_ok=True),
        )
    ),
    compat=SimpleNamespace(as_text=_as_text),
    errors=SimpleNamespace(UnimplementedError=_UnimplementedError),
)
