import os
import stat
from pathlib import Path

import jax
import pytest

from seq2seq_jax import compiled
from seq2seq_jax.compiled import keep_compiled_programs, make_private


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own; JAX's settings are as before afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    path = tmp_path / "cache"
    monkeypatch.setenv("SEQ2SEQ_JAX_CACHE", str(path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield path
    for name, value in before.items():
        jax.config.update(name, value)


def kept_in() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 - made when JAX is imported


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_compiled_programs_are_kept_in_a_folder_of_the_user_alone(cache):
    keep_compiled_programs()
    folder = cache / f"compiled-{os.getuid()}"
    assert os.path.dirname(kept_in() or "") == str(folder)
    assert mode(folder) == 0o700


def test_a_folder_that_others_could_read_is_closed_to_them(cache):
    folder = cache / "mine"
    folder.mkdir(parents=True, mode=0o755)
    assert make_private(folder) == (folder, "")
    assert mode(folder) == 0o700


def test_compiled_programs_are_not_kept_where_others_may_write(cache):
    folder = cache / f"compiled-{os.getuid()}"
    folder.mkdir(parents=True)
    for unsafe in (folder, cache):
        unsafe.chmod(0o777)
        with pytest.warns(UserWarning, match=f"^Compiled programs are not kept .* may write in {unsafe}, and"):
            keep_compiled_programs()
        assert kept_in() is None
        unsafe.chmod(0o755)
    keep_compiled_programs()
    assert kept_in()


def test_a_folder_that_all_share_is_safe_where_nobody_may_replace_what_belongs_to_others(cache):
    cache.mkdir()
    cache.chmod(0o1777)
    assert make_private(cache / "mine") == (cache / "mine", "")
    (cache / "mine").chmod(0o1777)
    assert "other users may write" in make_private(cache / "mine")[1]


def test_a_folder_is_judged_by_where_it_lies_and_not_by_a_link_to_it(cache, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    cache.mkdir()
    (cache / "mine").symlink_to(tmp_path / "shared")
    folder, danger = make_private(cache / "mine")
    assert folder == tmp_path / "shared" and danger == f"other users may write in {folder}"


def test_a_folder_of_another_user_is_not_used(cache, monkeypatch):
    make_private(cache / "mine")
    owner = os.getuid()
    monkeypatch.setattr(compiled.os, "getuid", lambda: owner + 4321)
    assert "belongs to" in make_private(cache / "mine")[1]


def test_the_group_of_one_user_is_that_user(cache, monkeypatch):
    folder = cache / "mine"
    make_private(folder)
    folder.chmod(0o770)
    monkeypatch.setattr(compiled, "_is_own_group", lambda group: False)
    assert "other users may write" in make_private(folder)[1]
    monkeypatch.setattr(compiled, "_is_own_group", lambda group: True)
    assert make_private(folder)[1] == ""


def test_without_a_cache_folder_nothing_is_kept_and_nothing_breaks(cache):
    cache.touch()
    keep_compiled_programs()
    assert kept_in() is None
