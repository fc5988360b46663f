import struct

import pytest

from seq2seq_jax.data.corpora import tfrecords
from seq2seq_jax.data.corpora.tfrecords import crc32c, read_tfrecords
from seq2seq_jax.errors import UserError


def mask(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """A record as TensorFlow writes it."""
    length = struct.pack("<Q", len(record))
    of_length, of_record = (mask(int(checksum)) for checksum in crc32c([length, record]))
    return length + struct.pack("<I", of_length) + record + struct.pack("<I", of_record)


RECORDS = [b"hello", b"", bytes(range(256)), b"bye"]


def test_checksums_are_those_of_the_standard():
    # RFC 3720, B.4, and the check value of the catalogues.
    parts = [b"123456789", bytes(32), b"\xff" * 32, bytes(range(32)), b""]
    assert crc32c(parts).tolist() == [0xE3069283, 0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0]
    assert crc32c([]).tolist() == []


@pytest.mark.parametrize("batch", [1, 6, 1 << 22])
def test_records_come_back_in_order(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(tfrecords, "_BATCH", batch)
    (tmp_path / "a").write_bytes(b"".join(frame(record) for record in RECORDS))
    assert list(read_tfrecords(tmp_path / "a")) == RECORDS


def test_every_flipped_bit_is_told(tmp_path):
    content = b"".join(frame(record) for record in RECORDS)
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "a").write_bytes(flipped)
        with pytest.raises(UserError, match="a is damaged"):
            list(read_tfrecords(tmp_path / "a"))


def test_what_is_whole_comes_before_the_damage_is_told(tmp_path):
    content = b"".join(frame(record) for record in RECORDS)
    for damaged in (content[:-1], content[:-2] + b"xx", content + b"\0"):
        (tmp_path / "a").write_bytes(damaged)
        records = read_tfrecords(tmp_path / "a")
        assert [next(records) for _ in range(3)] == RECORDS[:3]
        with pytest.raises(UserError):
            list(records)
