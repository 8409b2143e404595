"""State that survives `kill -9`.

Files are whole or absent, and folders are such that one run at a time may write.

Tensors are safetensors and the rest is JSON, so nothing is ever unpickled.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from msif.core.resources import gib


class Busy(RuntimeError):
    """Another process writes to this folder."""


@contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Hold `folder` (made if it is not there) for this process.

    Raises Busy, naming the other process, if it is held. The lock belongs to the process: the
    system drops it however the process ends, and nothing is left to clean up.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "?"
            raise Busy(
                f"{folder} is being written by process {holder}: wait for it, stop it, or choose "
                f"another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def atomic(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write to, moved to `path` if the block ends well, else removed.

    durable: also after a power cut; a killed process does not need it. Raises OSError on a full
    disk, saying how much is free and that earlier checkpoints are whole.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if _full(error):
            free = gib(shutil.disk_usage(path.parent).free)
            raise OSError(
                errno.ENOSPC,
                f"the disk is full while writing {path} ({free} free). Nothing is lost: free some "
                f"space and run the same command again; it goes on from its last checkpoint",
            ) from error
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write text (UTF-8) to `path`, whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(text, "utf-8", newline="\n")


def write_json(path: str | Path, value: Any, **options: Any) -> None:
    """Write a JSON value and a line's end to `path`, whole or not at all.

    options: of `json.dumps`.
    """
    write_text(path, json.dumps(value, **{"indent": 1, **options}) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line to `path` (UTF-8), whole or not at all."""
    with atomic(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_lines(path: str | Path) -> Iterator[Any]:
    """The values of a file of one JSON value a line.

    Raises ValueError, naming file and line, for anything else.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield parsed_line(path, number, line)


def parsed_line(path: str | Path, number: int, line: str) -> Any:
    """The JSON value of one line of a file; ValueError naming file and line for anything else."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is not JSON ({error.msg}): write or download it anew"
        ) from error


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _full(error):
    """safetensors reports a full disk by message alone."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or "No space left" in str(error)


def save(path: str | Path, tensors: dict[str, Tensor], durable: bool = True, **state: Any) -> None:
    """Write {name: tensor} and a few JSON values to `path`, whole or not at all."""
    with atomic(path, durable) as partial:
        whole = {name: x.contiguous() for name, x in tensors.items()}
        safetensors.torch.save_file(whole, partial, {"state": json.dumps(state)})


def load(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """({name: tensor}, state) of a file that `save` wrote; ({}, {}) if there is none."""
    if not Path(path).exists():
        return {}, {}
    with safetensors.safe_open(path, "pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, json.loads(file.metadata()["state"])


def same_work(folder: str | Path, key: dict[str, Any]) -> None:
    """Record in `folder` what its checkpoints belong to.

    key: JSON values by name. Raises ValueError, naming what differs, if they belong to something
    else.
    """
    path = Path(folder) / "work.json"
    key = json.loads(json.dumps(key))
    if not path.exists():
        write_json(path, key)
        return
    found = json.loads(path.read_text())
    differing = [name for name, value in key.items() if found.get(name) != value]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder} holds the work of other inputs or settings: {', '.join(differing)} differ "
            f"(there {str(found.get(name))[:60]!r}, now {str(key[name])[:60]!r} for {name}). "
            f"Choose another folder, or remove this one"
        )
