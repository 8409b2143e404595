"""Work over a stream of documents in blocks of one file each, whole or absent, so that it can be killed, resumed and shared.

Block b is the documents bB, …, (b+1)B − 1 of the stream and belongs to process b mod P; all processes read the same stream. Its
file depends on nothing but the block and the work's key, so a run that is killed goes on from the files it finds and ends with
the same bytes. `msif.scale.streaming` writes scores this way, `msif.scale.index` compressed gradients.
"""

import hashlib
import json
from itertools import chain, islice
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from msif.core import files
from msif.core.data import digest
from msif.core.resources import gib, require
from msif.scale import processes


def announce(folder, name, block, documents, disk, memory, title, what):
    """Raise unless a run fits beside what an earlier one wrote, and say what it takes. disk(n): bytes of n documents."""
    if block < 1:
        raise ValueError(f"block is {block}; expected at least 1 document")
    written = sum(path.stat().st_size for path in Path(folder).glob(name.partition("{")[0] + "*"))
    require(
        memory=memory,
        disk=max(0, disk(documents or block) - written),
        folder=folder,
        what=f"{what} into {folder}",
    )
    if title is not None and processes.rank_and_size()[0] == 0:
        print(
            f"{title}: {f'{documents:,}' if documents else 'an unknown number of'} documents, {what}; on disk "
            f"{gib(disk(10**6))} per million documents; in memory {gib(memory)} beside the model and its activations"
        )


def in_blocks(sequences, folder, key, block, name, write, stamp_of, documents=None, title=None):
    """Write one file folder/name.format(b) for each `block` sequences of a stream, unless it is there from an earlier run.

    key: JSON values that the files depend on besides the stream. write(path, few, stamp) writes one; stamp_of(path) gives the
    stamp of a written one back. Raises ValueError for another key in the folder, and for a file whose block has changed."""
    rank, folder = processes.rank_and_size()[0], Path(folder)
    first = list(islice(sequences := iter(sequences), 1))
    if not first:
        raise ValueError(
            "there are no sequences to score; expected at least one, of at least 2 tokens"
        )
    key = {"first sequence": digest(first), "block": block, **key}
    with files.exclusive(
        folder / f".rank-{rank}"
    ):  # the ranks of one run do not exclude each other, two runs do
        if rank == 0:  # the others write nothing before the barrier
            for left in folder.glob(
                f".{name.partition('{')[0]}*.partial"
            ):  # by a run that was killed
                left.unlink()
            files.same_work(folder, key)
        processes.barrier()
        files.same_work(folder, key)
        total = _each_block(
            chain(first, sequences),
            folder,
            key,
            block,
            name,
            write,
            stamp_of,
            tqdm(total=documents, desc=title, unit=" documents", disable=title is None or rank > 0),
        )
        processes.barrier()
        if rank == 0:
            with files.atomic(folder / "done.json") as temporary:
                temporary.write_text(json.dumps({"name": name, "blocks": total}) + "\n")
        processes.barrier()


def _each_block(sequences, folder, key, block, name, write, stamp_of, bar):
    """Write this process's blocks; how many blocks there are."""
    (rank, size), tokens, seconds, number = processes.rank_and_size(), 0, 0, -1
    with bar:
        for number, few in enumerate(_blocks(sequences, block)):
            path = folder / name.format(number)
            if number % size == rank:
                stamp, start = (
                    hashlib.sha256((json.dumps(key) + digest(few)).encode()).hexdigest(),
                    perf_counter(),
                )
                if not path.exists():
                    write(path, few, stamp)
                    tokens, seconds = (
                        tokens + sum(len(x.input_ids) for x in few),
                        seconds + perf_counter() - start,
                    )
                    bar.set_postfix_str(
                        f"{tokens / seconds:,.0f} tokens/s"
                        + f" on each of {size} processes" * (size > 1)
                    )
                elif stamp_of(path) != stamp:
                    raise ValueError(
                        f"{path} holds other documents than block {number} of this stream: read the corpus in the "
                        f"same order, or choose another folder (a corpus that grew: remove this file)"
                    )
            bar.update(len(few))
    return number + 1


def _blocks(sequences, block):
    """Lists of `block` sequences, the last may be shorter; rising indices are distinct ones, at no memory."""
    last = None
    while few := list(islice(sequences, block)):
        for x in few:
            if last is not None and x.index <= last:
                raise ValueError(
                    f"sequence {x.index} comes after sequence {last}: the indices of a stream must rise"
                )
            last = x.index
        yield few


def finished(folder):
    """The files that a finished `in_blocks` left in a folder, in the order of the stream; ValueError naming what is missing."""
    done = Path(folder) / "done.json"
    if not done.exists():
        raise ValueError(
            f"{folder} holds no finished run (no done.json): run the same command again, it goes on where it ended"
        )
    done = json.loads(done.read_text())
    names = [done["name"].format(number) for number in range(done["blocks"])]
    there = {path.name for path in Path(folder).glob(done["name"].partition("{")[0] + "*")}
    if differing := sorted(there ^ set(names)):
        what = (
            "is missing: run the same command again"
            if differing[0] in names
            else "lies beyond the end of the finished run"
        )
        raise ValueError(f"{Path(folder) / differing[0]} {what} ({len(differing)} such files)")
    return [Path(folder) / name for name in names]


def tensors_digest(tensors):
    """sha256 (hex) of {name: tensor}: names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        sha.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def function_name(function):
    """A name that is the same in every run, of a function, a partial one with its arguments, or a callable object's class."""
    inner = getattr(function, "func", function)
    arguments = [*getattr(function, "args", ()), *sorted(getattr(function, "keywords", {}).items())]
    return getattr(inner, "__qualname__", type(inner).__qualname__) + (
        f"{arguments}" if arguments else ""
    )
