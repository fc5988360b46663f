import os
import shutil
import tomllib
from pathlib import Path

import pytest

from seq2seq_jax import config_file
from seq2seq_jax.config import Config
from seq2seq_jax.config_file import find_config, load_config
from seq2seq_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
IMPORTS = "from seq2seq_jax.config import Config, DataConfig, ModelConfig, TrainConfig\n\n"
ODD = """class Odd(Exception):
    def __repr__(self): 1 / 0
    __str__ = __eq__ = __bool__ = __repr__
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads_and_has_its_lab_note(path):
    assert isinstance(load_config(path), Config)
    assert path.read_text().startswith('"""')


def test_a_file_gives_its_configuration_with_its_helpers(tmp_path):
    text = "def steps():\n    return 7\n\ndef get_config():\n    return Config(train=TrainConfig(num_steps=steps()))\n"
    assert load_config(write(tmp_path, IMPORTS + text)).train.num_steps == 7


def test_an_edited_file_is_read_anew(tmp_path):
    for seed in (1, 2):
        path = write(tmp_path, f"{IMPORTS}def get_config():\n    return Config(train=TrainConfig(seed={seed}))\n")
        assert load_config(path).train.seed == seed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def get_config():\n    return Config(\n        model=ModelConfig(hiden_size=4),\n    )\n",
            "line 5: Unknown config field model.hiden_size. Did you mean model.hidden_size?",
        ),
        (
            "def get_config():\n    return Config(train=TrainConfig(dropout_rate=0.1))\n",
            "line 4: Unknown config field train.dropout_rate. Did you mean model.dropout_rate?",
        ),
        (
            "def get_config():\n    return Config(modle=ModelConfig())\n",
            "line 4: Unknown config field modle. Did you mean model?",
        ),
        (
            "def get_config():\n    return Config(train=TrainConfig(qqqq=1))\n",
            "line 4: Unknown config field train.qqqq. TrainConfig has num_steps, evaluate_every, ",
        ),
        (
            "def get_config():\n    return Config(model=ModelConfig(hidden_size=0))\n",
            "line 4: model.hidden_size must be from 1 to 65,536, got 0.",
        ),
        ("def get_config():\n    return 1 / 0\n", "line 4: ZeroDivisionError: division by zero"),
        ("import nonesuch\n", "line 3: ModuleNotFoundError: No module named 'nonesuch'"),
        ("def get_config(:\n", "line 3: "),
        (
            "def getconfig():\n    return Config()\n",
            "there is no function get_config() -> Config in it. Did you mean getconfig?",
        ),
        ("config = 1\n", "there is no function get_config() -> Config in it."),
        ("def get_config():\n    return None\n", "get_config() must return a seq2seq_jax.config.Config, got None."),
        ("def get_config(seed):\n    return Config()\n", "missing 1 required positional argument: 'seed'"),
        (
            "import sys\nsys.exit('data is missing')\n",
            "line 4: it ends the program instead of returning a Config: data is missing",
        ),
        ("def get_config():\n    raise SystemExit\n", "line 4: it ends the program instead of returning a Config"),
        ("exit(3)\n", "line 3: it ends the program instead of returning a Config: 3"),
        (
            f"{ODD}raise SystemExit(Odd())\n",
            "line 6: it ends the program instead of returning a Config: a value of type Odd that cannot be shown",
        ),
        ("class End(BaseException): ...\nraise End('here')\n", "line 4: End: here"),
        ("def get_config():\n    return get_config()\n", "line 4: RecursionError"),
        ("raise SyntaxError('mine')\n", "mine.py: mine."),
        (f"{ODD}raise Odd\n", "line 6: Odd: "),
        (f"{ODD}def get_config():\n    return Odd()\n", "Config, got a value of type Odd that cannot be shown."),
        (
            f"{ODD}def get_config():\n    return Config(train=TrainConfig(seed=Odd()))\n",
            "line 7: train.seed must be int, got a value of type Odd that cannot be shown.",
        ),
        (
            "class Text(str):\n    def __eq__(self, other): 1 / 0\n    __hash__ = str.__hash__\n"
            "def get_config():\n    return Config(published=Text('x'))\n",
            "line 7: published must be str, got 'x'.",
        ),
        (
            "def get_config():\n    return Config(train=TrainConfig(num_steps=10**5000))\n",
            "line 4: train.num_steps must be from 1 to 1,000,000,000, got a value of type int",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line_and_the_way_out(tmp_path, body, message):
    path = write(tmp_path, IMPORTS + body)
    with pytest.raises(UserError) as refused:
        load_config(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_a_file_that_is_not_there_is_answered_with_the_nearest_one(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name in ("default.py", "multi30k_de_en.py"):
        (tmp_path / "configs" / name).write_text("def get_config(): ...\n")
    (tmp_path / "configs" / "helpers.py").touch()
    monkeypatch.chdir(tmp_path)
    for asked in ("configs/multi30k_deen.py", "multi30k_de_en.py", "multi30k_de_en", "nowhere/multi30k_de_en.py"):
        with pytest.raises(UserError, match=f"no config file {asked}. Did you mean configs/multi30k_de_en.py?"):
            load_config(Path(asked))
    with pytest.raises(UserError, match="There are .*default, .*multi30k_de_en, "):
        load_config(Path("configs/zzz.py"))


def test_a_folder_and_a_file_that_is_not_text_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder; --config names one file in it"):
        load_config(tmp_path)
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary.py is not UTF-8 text"):
        load_config(tmp_path / "binary.py")


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    for path in (tmp_path / "pipe.py", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"{path} is not a file; a config file is Python."):
            load_config(path)


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes(b"\xef\xbb\xbf" + f"{IMPORTS}def get_config():\n    return Config()\n".encode())
    assert load_config(path) == Config()


def test_ctrl_c_in_a_config_file_is_ctrl_c(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        load_config(write(tmp_path, "raise KeyboardInterrupt\n"))


def test_a_config_is_found_by_its_path_or_its_name_in_a_folder_of_configs(tmp_path, monkeypatch):
    here, repository = tmp_path / "here", tmp_path / "repository"
    for path in ("here/configs/mine.py", "here/configs/default.py", "repository/configs/mine.py", "here/lone.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.chdir(here)
    for name in ("mine", "mine.py", "configs/mine.py"):
        assert find_config(name) == Path("configs/mine.py")
    for name in ("mine", "mine.py"):
        assert find_config(name, repository) == repository / "configs" / "mine.py"
    assert find_config("lone.py") == Path("lone.py")
    assert find_config(None) == Path("configs/default.py")
    assert find_config("elsewhere/mine.py") == Path("elsewhere/mine.py")
    assert find_config(str(repository / "configs" / "mine.py")) == repository / "configs" / "mine.py"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_projects_own_configs_are_found_from_anywhere(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for name in (path.stem, path.name, f"configs/{path.name}"):
        assert find_config(name).resolve() == path


def test_an_installed_package_has_the_configs(tmp_path, monkeypatch):
    build = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    [(source, inside)] = build["force-include"].items()
    shutil.copytree(CONFIGS.parent / source, tmp_path / inside)
    monkeypatch.setattr(config_file, "__file__", str(tmp_path / "seq2seq_jax" / "config_file.py"))
    monkeypatch.chdir(tmp_path)
    assert find_config(None) == tmp_path / "seq2seq_jax" / "configs" / "default.py"
    assert isinstance(load_config(find_config(None)), Config)
