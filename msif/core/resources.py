"""Is there room for what is about to be computed? Asked before it starts."""

import os
import shutil
from pathlib import Path


def available_memory() -> int | None:
    """Bytes of memory that a new allocation can have, or None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(x for x in meminfo.read_text().splitlines() if x.startswith("MemAvailable"))
        return min([int(line.split()[1]) * 1024, *_left_in_container()])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def require(*, what: str, memory: int = 0, disk: int = 0, folder: str | Path = ".") -> None:
    """Raise MemoryError or OSError, naming what is needed and what there is, unless both fit.

    memory, disk: in bytes. what: what needs them, the beginning of the message.
    """
    free = available_memory()
    if free is not None and memory > free:
        raise MemoryError(
            f"{what}: needs {gib(memory)} of memory, {gib(free)} is free. Use more partitions, a "
            f"smaller batch or fewer layers, or a larger machine."
        )
    free = shutil.disk_usage(_existing(Path(folder))).free
    if disk > free:
        raise OSError(
            f"{what}: needs {gib(disk)} of disk at {folder}, {gib(free)} is free. Free some, or "
            f"use another folder."
        )


def _left_in_container(folder=Path("/sys/fs/cgroup")):
    """[bytes left of a container's own limit], or [] where there is none."""
    limit, used = folder / "memory.max", folder / "memory.current"
    if not (limit.exists() and used.exists()) or limit.read_text().strip() == "max":
        return []
    return [int(limit.read_text()) - int(used.read_text())]


def gib(size: float) -> str:
    """A number of bytes in GiB, as text with its unit."""
    return f"{size / 2**30:.2f} GiB"


def _existing(folder):
    folder = folder.resolve()
    return next(p for p in (folder, *folder.parents) if p.exists())
