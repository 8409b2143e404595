"""State that survives `kill -9`: files that are whole or absent, and folders that one run at a time may write.

Tensors are safetensors and the rest is JSON, so nothing is ever unpickled.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch

from msif.core.resources import gib


class Busy(RuntimeError):
    """Another process writes to this folder."""


@contextmanager
def exclusive(folder):
    """Hold `folder` (made if it is not there) for this process; Busy, naming the other one, if it is held.

    The lock belongs to the process: the system drops it however the process ends, and nothing is left to clean up."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy(
                f"{folder} is being written by process {file.read().strip() or '?'}: wait for it, stop it, or choose "
                f"another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def atomic(path, durable=True):
    """A temporary path to write to, moved to `path` when the block ends well and removed when it does not.

    durable: also after a power cut; a killed process does not need it. Raises OSError on a full disk, saying how much is free and that earlier checkpoints are whole."""
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
            raise OSError(
                errno.ENOSPC,
                f"the disk is full while writing {path} ({gib(shutil.disk_usage(path.parent).free)} "
                f"free). Nothing is lost: free some space and run the same command again; it goes on from its last "
                f"checkpoint",
            ) from error
        raise


def write_text(path, text):
    """Write text (UTF-8) to `path`, whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(text, "utf-8", newline="\n")


def write_json(path, value, **options):
    """Write a JSON value and a line's end to `path`, whole or not at all. options: of `json.dumps`."""
    write_text(path, json.dumps(value, **{"indent": 1, **options}) + "\n")


def write_json_lines(path, rows):
    """Write one JSON value a line to `path` (UTF-8, as it is read), whole or not at all."""
    with atomic(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_lines(path):
    """The values of a file of one JSON value a line; ValueError naming file and line for anything else."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield parsed_line(path, number, line)


def parsed_line(path, number, line):
    """The JSON value of one line of a file; ValueError naming file and line for anything else."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is not JSON ({error.msg}): write or download it anew"
        ) from error


def sha256_of_file(path):
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value):
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _full(error):
    """Safetensors reports a full disk by message alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(
        error
    )


def save(path, tensors, durable=True, **state):
    """Write {name: tensor} and a few JSON values to `path`, whole or not at all."""
    with atomic(path, durable) as partial:
        safetensors.torch.save_file(
            {name: x.contiguous() for name, x in tensors.items()},
            partial,
            {"state": json.dumps(state)},
        )


def load(path, device="cpu"):
    """({name: tensor}, state) of a file that `save` wrote; ({}, {}) if there is none."""
    if not Path(path).exists():
        return {}, {}
    with safetensors.safe_open(path, "pt", device=str(device)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(
            file.metadata()["state"]
        )


def same_work(folder, key):
    """Record in `folder` what its checkpoints belong to; ValueError, naming what differs, if they belong to something else."""
    path = Path(folder) / "work.json"
    key = json.loads(json.dumps(key))
    if not path.exists():
        write_json(path, key)
    elif differing := [
        name
        for name, value in key.items()
        if (found := json.loads(path.read_text())).get(name) != value
    ]:
        name = differing[0]
        raise ValueError(
            f"{folder} holds the work of other inputs or settings: {', '.join(differing)} differ (there "
            f"{str(found.get(name))[:60]!r}, now {str(key[name])[:60]!r} for {name}). Choose another folder, or remove this one"
        )
