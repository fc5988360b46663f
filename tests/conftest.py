"""What every test relies on: shapes and types checked, the CPU, a cache of its own, the corpora where they are."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags
from jaxtyping import install_import_hook

import seq2seq_jax.config  # noqa: F401 - checks its own values, in words for users, so the hook below comes after it
import tests.typechecker  # noqa: F401 - the hook below finds it by name
from tests.compiler import compile_quickly

# Tests run on the CPU wherever they are, unless asked otherwise: JAX_PLATFORMS=cuda pytest -m gpu.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

compile_quickly()

# From here on every annotation of the package is checked at every call.
install_import_hook("seq2seq_jax", "tests.typechecker.check")

# Ctrl-C acts as in any program; who runs tests in several processes has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Grain's workers read absl flags, which nobody parses under pytest.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the GPU tests where JAX is told to use the CPU."""
    if os.environ["JAX_PLATFORMS"] == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: JAX_PLATFORMS=cuda pytest -m gpu"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's cache directory during the tests (subprocesses included): empty at first, shared by all tests."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["SEQ2SEQ_JAX_CACHE"] = str(path)
    return path


@pytest.fixture(scope="session")
def compiled(cache: Path) -> None:
    """Programs that were compiled once are taken from the cache, as by the command line, whichever test asks again."""
    import jax

    from seq2seq_jax.cli import _configure_jax

    _configure_jax()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session")
def trained(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run on the tiny task of tests/tiny.py; tests read it and change nothing."""
    from seq2seq_jax.training.loop import train
    from tests.tiny import tiny_config

    folder = tmp_path_factory.mktemp("trained")
    length = {"num_steps": 300, "evaluate_every": 150, "checkpoint_every": 100, "log_every": 50}
    train(tiny_config(folder / "corpus", train=length), folder / "run")
    return folder / "run"


class Disk:
    """A disk of its own, of 2 MiB, at `path`."""

    def __init__(self, path: Path):
        self.path, self._filler = path, path / "filler"

    def fill(self) -> None:
        """Leaves no byte on it, but for the rest of the last page of each file."""
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            while filler.write(b"x" * 4096):
                pass

    def free(self) -> None:
        """Gives back what `fill` has taken."""
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk; skips where this process may not mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here; as root it can")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real corpora: SEQ2SEQ_JAX_CORPORA, or shared/corpora beside the checkout; skips without it."""
    named = os.environ.get("SEQ2SEQ_JAX_CORPORA")
    path = Path(named) if named else REPOSITORY.parent / "shared" / "corpora"
    if not path.is_dir():
        pytest.skip(f"no corpora at {path}; set SEQ2SEQ_JAX_CORPORA")
    return path
