import gzip
import io
import os
from pathlib import Path

import pytest

from seq2seq_jax import text_files
from seq2seq_jax.errors import UserError
from seq2seq_jax.text_files import check_apart, check_exists, chunks, open_input, open_output, read_lines


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
        ("\ufeffa\n\ufeffb\ufeff\r\n", ["a", "b\ufeff"]),
        ("\ufeff", [""]),
        ("a\r", ["a"]),
        ("a\n\rb\r\r", ["a", "\rb\r"]),
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


class Endless(io.BytesIO):
    """A stream without an end and without a newline, which counts what was read of it."""

    def __init__(self, byte: bytes) -> None:
        super().__init__()
        self.byte, self.num_read = byte, 0

    def read1(self, size: int | None = -1, /) -> bytes:
        assert size is not None and size > 0
        self.num_read += size
        return self.byte * size


@pytest.mark.parametrize(("byte", "message"), [(b"a", "line 1 has more than 1,048,576 bytes"), (b"\0", "a NUL byte")])
def test_a_stream_without_lines_is_refused_after_the_longest_line(byte, message):
    stream = Endless(byte)
    with pytest.raises(UserError, match=message):
        list(chunks(stream, "it"))
    assert stream.num_read <= text_files.LONGEST_LINE + text_files.CHUNK


@pytest.mark.parametrize("size", [1, 5, 1 << 17])
def test_a_line_too_long_is_refused_after_the_lines_before_it(monkeypatch, size):
    monkeypatch.setattr(text_files, "CHUNK", size)
    monkeypatch.setattr(text_files, "LONGEST_LINE", 6)
    assert lines_of(b"a\n123456\n\n123456") == ["a", "123456", "", "123456"]
    for content in (b"a\n123456\n1234567\nb\n", b"a\n123456\n" + b"1" * 50):
        arrived = []
        with pytest.raises(UserError, match="^it, line 3 has more than 6 bytes"):
            for lines in chunks(io.BytesIO(content), "it"):
                arrived += lines
        assert arrived == ["a", "123456"]


def test_a_small_gzip_file_of_one_endless_line_is_refused(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"a" * (1 << 23)))
    with pytest.raises(UserError, match="bomb.gz, line 1 has more than"):
        list(read_lines(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\n".encode("utf-16"), "^it is not UTF-8 but UTF-16; .* -f utf-16 "),
        ("a\nb\n".encode("utf-32"), "^it is not UTF-8 but UTF-32; .* -f utf-32 "),
        ("ab d\nb\n".encode("utf-16-le"), "^it is not UTF-8 but UTF-16; .* -f utf-16le "),
        ("Ein Hünd\nb\n".encode("utf-16-be"), "^it is not UTF-8 but UTF-16; .* -f utf-16be "),
        (gzip.compress(b"a\n", mtime=0), "^it is not UTF-8 but gzip without .gz"),
        (b"a\nb\0c\n", "^it, line 2: a NUL byte at column 2,"),
        (b"\0", "^it, line 1: a NUL byte at column 1,"),
        (b"a\rb\rc\r", r"^it has no newline: its lines end in carriage returns alone.* tr '\\r' '\\n'"),
        (b"abc\r" * (1 << 19), "^it has no newline: its lines end in carriage returns alone"),
    ],
)
def test_what_is_no_text_is_refused_with_what_it_is(content, message):
    with pytest.raises(UserError, match=message):
        lines_of(content)


def test_a_stream_that_cannot_be_read_is_told():
    class Broken(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(UserError, match=r"^Cannot read it: Input/output error\.$"):
        list(chunks(Broken(), "it"))


def test_a_pipe_that_is_open_is_read_and_what_would_wait_for_ever_is_refused(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"a\nb")
    os.close(writer)
    assert list(read_lines(Path(f"/dev/fd/{reader}"))) == ["a", "b"]
    os.close(reader)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        check_exists(path)
        with pytest.raises(UserError, match=f"^{path} is a pipe or a device"):
            list(read_lines(path))
    with open_input(Path("/dev/zero")) as stream, pytest.raises(UserError, match="/dev/zero, line 1: a NUL byte"):
        list(chunks(stream, "/dev/zero"))


def test_gzip_is_read_as_text_and_a_damaged_one_is_told(tmp_path):
    path = tmp_path / "in.gz"
    whole = gzip.compress("".join(f"{number} ß\n" for number in range(5000)).encode())
    path.write_bytes(whole)
    with open_input(path) as file:
        assert [line for lines in chunks(file, "it") for line in lines] == [f"{number} ß" for number in range(5000)]
    for damaged in (whole[: len(whole) // 2], b"not gzip at all", whole[:100] + b"\xff" * 100 + whole[200:]):
        path.write_bytes(damaged)
        with (
            open_input(path) as file,
            pytest.raises(UserError, match=r"it is not a whole gzip file: damaged after line [\d,]+ \("),
        ):
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
