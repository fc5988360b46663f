import json
import shutil

import pytest

from seq2seq_jax.checksums import CHECKSUMS, find_damage, write_checksums


@pytest.fixture
def folder(tmp_path):
    """Three files, noted."""
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_bytes(bytes(range(200)))
    (folder / "inner" / "b").write_bytes(b"b")
    (folder / "empty").touch()
    write_checksums(folder, "folder")
    return folder


def test_what_was_written_is_whole_whatever_else_came(folder):
    assert find_damage(folder) is None
    (folder / "inner" / "other").write_text("added later")
    assert find_damage(folder) is None


@pytest.mark.parametrize("name", ["a", "inner/b", CHECKSUMS])
def test_every_flipped_bit_is_damage(folder, name):
    content = (folder / name).read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (folder / name).write_bytes(flipped)
        assert find_damage(folder), f"byte {place} of {name}"
    (folder / name).write_bytes(content)
    assert find_damage(folder) is None


@pytest.mark.parametrize("name", ["a", "inner/b", "empty", CHECKSUMS])
@pytest.mark.parametrize("damage", ["missing", "longer", "a folder", "a link to nothing"])
def test_a_file_that_is_not_the_one_written_is_damage(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "longer":
        path.write_bytes(content + b"}")
    elif damage == "a folder":
        path.mkdir()
    elif damage == "a link to nothing":
        path.symlink_to(folder / "gone")
    assert name in str(find_damage(folder))


def test_one_file_in_another_s_place_is_damage(folder):
    (folder / "a").rename(folder / "c")
    (folder / "inner" / "b").rename(folder / "a")
    (folder / "c").rename(folder / "inner" / "b")
    assert find_damage(folder) == "a is not what was written"


def test_one_folder_in_another_s_place_is_damage(folder):
    other = folder.with_name("other")
    folder.rename(other)
    assert find_damage(other) == "it was written as folder"
    assert find_damage(folder) == "it is no folder"


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "{}", '{"folder": "folder", "files": 3}'])
def test_a_note_of_another_form_is_damage(folder, text):
    (folder / CHECKSUMS).write_text(text)
    assert find_damage(folder) == f"{CHECKSUMS} cannot be read"


@pytest.mark.parametrize("name", ["../outside", "/dev/zero"])
def test_nothing_outside_of_the_folder_is_read(folder, name):
    shutil.copy(folder / "a", folder.parent / "outside")
    noted = json.loads((folder / CHECKSUMS).read_text())
    noted["files"][name] = noted["files"]["a"]
    (folder / CHECKSUMS).write_text(json.dumps(noted))
    assert find_damage(folder) == f"{name} is not what was written"
