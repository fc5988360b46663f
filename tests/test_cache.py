import errno
import os
import stat
from pathlib import Path

import pytest

from seq2seq_jax import cache
from seq2seq_jax.cache import (
    cache_dir,
    existing_folder,
    is_whole,
    try_lock,
    whole_directory,
    whole_file,
    write_whole,
    writing_to,
)
from seq2seq_jax.checksums import CHECKSUMS
from seq2seq_jax.errors import UserError


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
        with whole_directory(final) as theirs:
            (theirs / "a").write_text("theirs")
    assert (final / "a").read_text() == "theirs"
    assert _files(tmp_path) == ["final", "final/a"]


@pytest.mark.parametrize("damage", ["changed", "empty", "a file", "a link to nothing", "a link to itself"])
def test_what_is_damaged_is_made_again_and_said(tmp_path, damage):
    final = tmp_path / "final"
    if damage in ("changed", "empty"):
        with whole_directory(final) as beside:
            (beside / "a").write_text("1")
        (final / "a").write_text("2") if damage == "changed" else [path.unlink() for path in final.iterdir()]
    elif damage == "a file":
        final.touch()
    else:
        final.symlink_to(final if damage == "a link to itself" else tmp_path / "gone")
    assert not is_whole(final)
    with pytest.warns(UserWarning, match=f"{final} was damaged .* and has been made again"):
        with whole_directory(final) as beside:
            (beside / "a").write_text("1")
    assert is_whole(final) and not final.is_symlink() and _files(tmp_path) == ["final", "final/a"]


def test_a_file_is_replaced_whole(tmp_path):
    write_whole(tmp_path / "in" / "a.json", "old")
    write_whole(tmp_path / "in" / "a.json", "new")
    assert _files(tmp_path) == ["in", "in/a.json"]
    assert (tmp_path / "in" / "a.json").read_text() == "new"


def test_text_and_bytes_become_a_file(tmp_path):
    write_whole(tmp_path / "text", "Größe\r\n")
    assert (tmp_path / "text").read_bytes() == "Größe\r\n".encode()
    write_whole(tmp_path / "text", b"\0\xff")
    assert (tmp_path / "text").read_bytes() == b"\0\xff"


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (_files(tmp_path), path.read_text()) == (["out"], "old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert (_files(tmp_path), path.read_text()) == (["out"], "new")


def test_files_of_others_beside_a_whole_file_are_neither_written_nor_removed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out.tmp").symlink_to(tmp_path / "precious")
    (tmp_path / "out.partial").write_text("mine")
    os.utime(tmp_path / "out.partial", (0, 0))
    write_whole(tmp_path / "out", "new")
    assert _files(tmp_path) == ["out", "out.partial", "out.tmp", "precious"]
    assert (tmp_path / "precious").read_text() == "precious" and (tmp_path / "out.partial").read_text() == "mine"


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    for content in ("first", "second"):
        write_whole(tmp_path / "out", content)
        assert (tmp_path / "out").is_symlink() and (tmp_path / "elsewhere").read_text() == content


def test_a_new_file_has_the_permissions_of_the_process_and_a_replaced_one_keeps_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", "")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        write_whole(tmp_path / "old", "")
        with whole_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "old": 0o604, "folder": 0o750}


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    write_whole(tmp_path / ("n" * 255), "long")
    assert (tmp_path / ("n" * 255)).read_text() == "long"
    with pytest.raises(OSError, match="name too long"):
        write_whole(tmp_path / ("n" * 256), "longer")
    assert len(_files(tmp_path)) == 1


@pytest.mark.parametrize("whole", [whole_file, whole_directory])
def test_what_a_killed_process_left_is_removed_a_day_later_and_what_another_still_writes_is_not(
    tmp_path, whole, monkeypatch
):
    with whole(tmp_path / "alive"):
        [alive] = tmp_path.iterdir()
        dead = tmp_path / f".0123abcd{cache._PARTIAL}"
        dead.mkdir() if alive.is_dir() else dead.touch()
        for content, left in (("today", {alive, dead}), ("later", {alive})):
            if content == "later":
                for path in (alive, dead):
                    os.utime(path, (0, 0))
            write_whole(tmp_path / "other", content)
            assert set(tmp_path.iterdir()) == {*left, tmp_path / "other"}
    assert _files(tmp_path) == ["alive", "other"]


def test_the_nearest_folder_of_one_still_to_be_made_is_found_above_it(tmp_path, monkeypatch):
    assert existing_folder(tmp_path) == existing_folder(tmp_path / "runs" / "mine") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert existing_folder(Path("runs/mine")) == tmp_path


def test_what_stands_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"no folder {tmp_path}/file/a: {tmp_path}/file is a file. Move it away, or"):
        existing_folder(tmp_path / "file" / "a")
    with pytest.raises(UserError, match=f"{tmp_path}/link is a link to nothing"):
        existing_folder(tmp_path / "link")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), r"No space left on the disk of {} \(.* MB free\); free some, or set that"),
        (RuntimeError("write() failed: No space left on device; at byte 4"), "No space left on the disk of {}"),
        (OSError(errno.EROFS, "closed"), r"Cannot write {}/in/it \(Read-only file system\); set that to a folder"),
    ],
)
def test_a_disk_that_is_full_or_closed_is_one_message(tmp_path, error, message):
    with pytest.raises(UserError, match=message.format(tmp_path)) as caught, writing_to(tmp_path / "in" / "it", "that"):
        raise error
    assert caught.value.__cause__ is error and error.__cause__ is None


@pytest.mark.parametrize("obstacle", ["file", "link to nothing"])
def test_an_obstacle_is_named_with_the_setting_that_goes_round_it(tmp_path, obstacle):
    path = tmp_path / "way"
    path.touch() if obstacle == "file" else path.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{path} is a {obstacle}. Move it away, or set that to another folder"):
        with writing_to(path / "in" / "it", "that"), whole_directory(path / "in" / "it"):
            pass


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a bug")])
def test_what_is_no_fault_of_the_folder_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught, writing_to(tmp_path, "that"):
        raise error
    assert caught.value is error and error.__cause__ is None


def test_a_cache_folder_in_the_home_of_nobody_is_one_message(monkeypatch):
    monkeypatch.setenv("SEQ2SEQ_JAX_CACHE", "~no such user/cache")
    with pytest.raises(UserError, match="Set SEQ2SEQ_JAX_CACHE"):
        cache_dir()


def test_a_lock_is_held_once(tmp_path):
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert try_lock(one.fileno()) and not try_lock(other.fileno())
        one.close()
        assert try_lock(other.fileno())


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != CHECKSUMS)
