"""Is there room for what is about to be computed? Asked before it starts; and what it took."""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch


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


def return_memory() -> None:
    """Freed memory back to the system, from which glibc's allocator holds it; without glibc there
    is nothing to do."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_taken(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that the process (on a GPU: its allocator) took at the peak of call(), above what it
    held before; None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        call()
        return torch.cuda.max_memory_reserved(device) - before
    return_memory()
    try:  # Linux: forget the peak so far
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
        call()
        return None
    call()
    return _status("VmHWM") - before


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{key}:"))


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
