from pathlib import Path

import pytest

from seq2seq_jax.cache import cache_dir, whole_directory, write_whole


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQ2SEQ_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "seq2seq_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "seq2seq_jax"
    monkeypatch.setenv("SEQ2SEQ_JAX_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "deep" / "final"
    with pytest.raises(ZeroDivisionError), whole_directory(final) as beside:
        (beside / "a").write_text("1")
        raise ZeroDivisionError
    assert list(final.parent.iterdir()) == []
    with whole_directory(final) as beside:
        (beside / "a").write_text("1")
        assert not final.exists()
    assert _files(final.parent) == ["final", "final/a"]


def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path):
    final = tmp_path / "final"
    with whole_directory(final) as beside:
        (beside / "a").write_text("ours")
        final.mkdir()
        (final / "a").write_text("theirs")
    assert (final / "a").read_text() == "theirs"
    assert _files(tmp_path) == ["final", "final/a"]


def test_a_file_is_replaced_whole(tmp_path):
    write_whole(tmp_path / "in" / "a.json", "old")
    write_whole(tmp_path / "in" / "a.json", "new")
    assert _files(tmp_path) == ["in", "in/a.json"]
    assert (tmp_path / "in" / "a.json").read_text() == "new"


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
