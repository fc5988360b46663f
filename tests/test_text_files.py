import gzip
import io
import os
from pathlib import Path

import pytest

from seq2seq_jax import text_files
from seq2seq_jax.errors import UserError
from seq2seq_jax.text_files import check_apart, chunks, open_input, open_output


def lines_of(content: bytes) -> list[str]:
    return [line for lines in chunks(io.BytesIO(content), "it") for line in lines]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 17])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n\nß日\n", ["a", "", "ß日"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\u2028b\x0cc\x85d\re\n", ["a\u2028b\x0cc\x85d\re"]),
        ("\ufeffa\n\ufeffb", ["a", "\ufeffb"]),
    ],
)
def test_lines_are_the_same_however_the_bytes_arrive(monkeypatch, size, content, lines):
    monkeypatch.setattr(text_files, "CHUNK", size)
    assert lines_of(content.encode()) == lines


@pytest.mark.parametrize("size", [1, 5, 1 << 17])
def test_a_line_that_is_not_utf8_is_named_after_the_lines_before_it(monkeypatch, size):
    monkeypatch.setattr(text_files, "CHUNK", size)
    arrived = []
    with pytest.raises(UserError, match=r"^it, line 3: not UTF-8 \(byte 0xe4 at column 2\)"):
        for lines in chunks(io.BytesIO(b"a\nb\nz\xe4\nc\n"), "it"):
            arrived += lines
    assert arrived == ["a", "b"]


def test_gzip_is_read_as_text_and_a_damaged_one_is_told(tmp_path):
    path = tmp_path / "in.gz"
    whole = gzip.compress("".join(f"{number} ß\n" for number in range(5000)).encode())
    path.write_bytes(whole)
    with open_input(path) as file:
        assert [line for lines in chunks(file, "it") for line in lines] == [f"{number} ß" for number in range(5000)]
    for damaged in (whole[: len(whole) // 2], b"not gzip at all", whole[:100] + b"\xff" * 100 + whole[200:]):
        path.write_bytes(damaged)
        with open_input(path) as file, pytest.raises(UserError, match="it is not a whole gzip file"):
            list(chunks(file, "it"))


def test_an_output_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(RuntimeError), open_output(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with open_output(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_what_an_output_is_written_beside_is_left_alone(tmp_path):
    path, precious = tmp_path / "out", tmp_path / "precious"
    precious.write_text("precious")
    for name in ("out.tmp", "out.partial"):
        (tmp_path / name).symlink_to(precious)
    with open_output(path) as file:
        file.write(b"whole")
    assert {each.name for each in tmp_path.iterdir()} == {"out", "out.tmp", "out.partial", "precious"}
    assert (path.read_bytes(), precious.read_text()) == (b"whole", "precious")


def test_an_output_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    link, path, pipe = tmp_path / "link", tmp_path / "out", tmp_path / "pipe"
    link.symlink_to(path)
    with open_output(link) as file:
        file.write(b"whole")
    assert link.is_symlink() and path.read_bytes() == b"whole"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open_output(pipe) as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


def test_files_that_are_open_already_are_written_and_not_replaced(tmp_path, capfd):
    (tmp_path / "open").write_bytes(b"before ")
    with (tmp_path / "open").open("ab") as file:
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            with open_output(Path(name)) as target:
                target.write(b"more ")
    assert (tmp_path / "open").read_bytes() == b"before more more "
    with open_output(Path("/dev/stdout")) as target:
        target.write(b"shown")
    with open_output(Path("/dev/null")) as target:
        target.write(b"lost")
    assert capfd.readouterr().out == "shown"
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("name", ["", "no/folder", "/proc/new", "/dev/fd/999", "x" * 256])
def test_an_output_that_cannot_be_written_is_told(tmp_path, name):
    with pytest.raises(UserError, match="^Cannot write "), open_output(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_output_that_is_the_input_is_refused(tmp_path, link):
    path = tmp_path / "in"
    path.write_text("text\n")
    link(path, tmp_path / "out")
    (tmp_path / "other").write_text("text\n")
    with open_input(path) as source:
        for output in (path, tmp_path / "out"):
            with pytest.raises(UserError, match="is what is read; write to another file"):
                with open_output(output) as target:
                    check_apart(source, target, output)
        for output in (tmp_path / "other", tmp_path / "new"):
            with open_output(output) as target:
                check_apart(source, target, output)
    assert path.read_text() == "text\n"
    with open("/dev/null", "rb") as source, open_output(Path("/dev/null")) as target:
        check_apart(source, target, Path("/dev/null"))
