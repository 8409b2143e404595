"""State that survives `kill -9`, and is known for what it is.

Files are whole or absent, and folders are such that one run at a time may write. Tensors are
safetensors and the rest is JSON, so nothing is ever unpickled.

Every file says what it is. A file of tensors (`save`) carries its own name, a checksum of its
numbers, and what its writer says they were made from; a record (`write_record`) carries its own
SHA-256; a folder of work (`same_work`) holds a record of what it was begun with. Their readers
check all of that, and raise `Damaged` or ValueError naming the file.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import zlib
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


class Damaged(ValueError):
    """A file is not as it was written."""


def damaged(path: str | Path, why: object) -> Damaged:
    """The error to raise for a file, and what to do about it."""
    return Damaged(
        f"{path}: truncated or changed since it was written, or by another version ({why}). "
        f"Remove it and run the same command again"
    )


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
    """Write {name: tensor} and a few JSON values to `path`, whole or not at all.

    state: what the tensors are and were made from, as `load` can ask for it.
    """
    whole = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
    stamp = {"file": Path(path).name, "crc32": checksum(whole), **state}
    with atomic(path, durable) as partial:
        safetensors.torch.save_file(whole, partial, {"state": json.dumps(stamp)})


def load(path: str | Path, **expected: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """({name: tensor} on the CPU, state) of a file that `save` wrote; ({}, {}) if there is none.

    Raises `Damaged` for another checksum, ValueError for a file that was written under another
    name or whose state differs from what is expected.
    """
    path = Path(path)
    if not path.exists():
        return {}, {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            state = json.loads(file.metadata()["state"])
        if state.pop("crc32") != checksum(tensors):
            raise damaged(path, "its checksum differs")
        expected = {"file": path.name, **json.loads(json.dumps(expected))}
        for name, value in expected.items():
            if state[name] != value:
                raise ValueError(
                    f"{path} is a file of something else, copied or renamed: {name} is "
                    f"{str(state[name])[:60]!r} there, expected {str(value)[:60]!r}. Remove it and "
                    f"run the same command again"
                )
    except (safetensors.SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise damaged(path, error) from error
    del state["file"]
    return tensors, state


def checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of {name: tensor} on the CPU: of names, dtypes, shapes and bytes.

    Against accidents, at several times the speed of a SHA.
    """
    crc = 0
    for name, x in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {x.dtype} {tuple(x.shape)}\n".encode(), crc)
        crc = zlib.crc32(x.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return crc


def write_record(path: str | Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its own SHA-256 to `path`, whole or not at all."""
    value = json.loads(json.dumps(value))
    write_json(path, {**value, "sha256": sha256_of(value)})


def read_record(path: str | Path) -> dict[str, Any]:
    """What `write_record` wrote. Raises `Damaged` for anything else, FileNotFoundError for none."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        expected = found.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, f"no JSON object with its SHA-256: {error}") from error
    if expected != sha256_of(found):
        raise damaged(path, "its SHA-256 differs")
    return found


def sweep(folder: str | Path) -> None:
    """Remove what killed writers left half written. For the one run that holds the folder."""
    for left in Path(folder).glob(".*.partial"):
        left.unlink(missing_ok=True)


def same_work(folder: str | Path, key: dict[str, Any]) -> None:
    """Record in `folder` what its checkpoints belong to.

    key: JSON values by name. Raises ValueError, naming what differs, if they belong to something
    else.
    """
    path = Path(folder) / "work.json"
    key = json.loads(json.dumps(key))
    if not path.exists():
        write_record(path, key)
        return
    found = read_record(path)
    differing = [x for x in {**key, **found} if key.get(x) != found.get(x)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{folder} holds the work of other inputs or settings: {', '.join(differing)} differ "
            f"(there {str(found.get(name))[:60]!r}, now {str(key.get(name))[:60]!r} for {name}). "
            f"Choose another folder, or remove this one"
        )
