"""Whether a folder still holds, byte for byte, what was written to it."""

import json
import os
import zlib
from pathlib import Path

CHECKSUMS = "checksums.json"  # in the folder

_BLOCK = 1 << 20  # bytes read at once


def write_checksums(folder: Path, name: str) -> None:
    """Notes in `folder` the size and the CRC-32 of every file in it, and `name`, under which the folder will be found.

    Raises:
      OSError: a file cannot be read, or the note not written.
    """
    noted = {"folder": name, "files": {file: _checksum(folder / file) for file in sorted(_files(folder))}}
    (folder / CHECKSUMS).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with `folder` since `write_checksums`, or None: it is as it was written.

    Reads every byte, more than one GB a second. Files that somebody added are no damage.
    """
    if not os.path.isdir(folder):
        return "it is no folder"
    try:
        noted = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        name, checksums, there = noted["folder"], dict(noted["files"]), _files(folder)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return f"{CHECKSUMS} cannot be read"
    if name != folder.name:
        return f"it was written as {name}"
    for file, checksum in checksums.items():
        try:
            if file not in there or _checksum(folder / file) != checksum:  # no file outside of the folder is opened
                return f"{file} is not what was written"
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
    return None


def text_checksum(text: str) -> int:
    """Returns the CRC-32 of a text."""
    return zlib.crc32(text.encode())


def _files(folder: Path) -> set[str]:
    """Returns the files in and below `folder`, but for the note itself."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names - {CHECKSUMS}


def _checksum(path: Path) -> list[int]:
    """Returns size and CRC-32 of a file."""
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]
