"""The memory that a program may use on each device."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import jax


def available_bytes(devices: Iterable[jax.Device]) -> int | None:
    """Returns the bytes that a program may use on each of `devices`, as far as they are this process's.

    None where nobody says.

    Devices with memory of their own have a limit. CPU devices share what the
    machine has left, and the control group of the process.
    """
    devices = [device for device in devices if device.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        room = [*_machine_room(Path("/")), *_group_room(Path("/"))]
        return max(min(room), 0) // len(devices) if room else None
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    return min(limits) or None


def _machine_room(root: Path) -> Iterator[int]:
    """Yields the bytes that Linux could give to a program without swapping."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


_GROUP_FILES = {  # cgroup v2 and v1: limit, usage, and the line of memory.stat with what is cached and can go
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _group_room(root: Path) -> Iterator[int]:
    """Yields the bytes left within the limits of the process's control group and of those above it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in {*controllers.split(",")} & {*_GROUP_FILES}:
            folder, limit, usage, cached = _GROUP_FILES[controller]
            parts = Path(path).parts[1:]
            for depth in range(len(parts) + 1):
                group = root / folder / Path(*parts[:depth])
                numbers = [int(text) for name in (limit, usage) for text in _lines(group / name) if text.isdigit()]
                stat = dict(text.split() for text in _lines(group / "memory.stat"))
                if len(numbers) == 2:
                    yield numbers[0] - numbers[1] + int(stat.get(cached, 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
