"""Work over a stream of documents in blocks of one file each, whole or absent, so that it can be
killed, resumed and shared.

Block b is the documents bB, …, (b+1)B − 1 of the stream and belongs to process b mod P; all
processes read the same stream. Its file depends on nothing but the block and the work's key, so a
run that is killed goes on from the files it finds and ends with the same bytes.
`msif.scale.streaming` writes scores this way, `msif.scale.index` compressed gradients.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sized
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from msif.core import files
from msif.core.data import Sequence, digest
from msif.core.resources import gib, require
from msif.scale import processes


def stream_length(sequences: Iterable[Sequence], documents: int | None) -> int | None:
    """How many documents there are: as the stream knows, else as it is told; None: unknown."""
    return len(sequences) if isinstance(sequences, Sized) else documents


def announce(
    folder: str | Path,
    name: str,
    block: int,
    documents: int | None,
    disk: Callable[[int], int],
    memory: int,
    title: str | None,
    what: str,
) -> None:
    """Raise unless a run fits beside what an earlier one wrote, and say what it takes.

    name: of the blocks' files, as for `in_blocks`. disk(n): bytes of n documents; documents None:
    room for one block is asked for. memory: bytes. title: None for silence. Raises ValueError for
    a block of no document, MemoryError or OSError where there is no room.
    """
    if block < 1:
        raise ValueError(f"block is {block}; expected at least 1 document")
    written = sum(path.stat().st_size for path in Path(folder).glob(_pattern(name)))
    require(
        memory=memory,
        disk=max(0, disk(documents or block) - written),
        folder=folder,
        what=f"{what} into {folder}",
    )
    if title is not None and processes.rank_and_size()[0] == 0:
        count = f"{documents:,}" if documents else "an unknown number of"
        print(
            f"{title}: {count} documents, {what}; "
            f"on disk {gib(disk(10**6))} per million documents; "
            f"in memory {gib(memory)} beside the model and its activations"
        )


def in_blocks(
    sequences: Iterable[Sequence],
    folder: str | Path,
    key: dict[str, Any],
    block: int,
    name: str,
    write: Callable[[Path, list[Sequence], str], None],
    stamp_of: Callable[[Path], str],
    documents: int | None = None,
    title: str | None = None,
) -> None:
    """Write one file folder/name.format(b) for each `block` sequences of a stream, unless it is
    there from an earlier run.

    key: JSON values that the files depend on besides the stream. write(path, few, stamp) writes
    one; stamp_of(path) gives the stamp of a written one back. documents: their number, for the
    progress bar, whose title is `title` (None: silent). Raises ValueError for another key in the
    folder, for a file whose block has changed, for indices that do not rise and for an empty
    stream; `files.Busy` while another run writes there.
    """
    rank, folder = processes.rank_and_size()[0], Path(folder)
    stream = iter(sequences)
    first = list(islice(stream, 1))
    if not first:
        raise ValueError(
            "there are no sequences to score; expected at least one, of at least 2 tokens"
        )
    key = {"first sequence": digest(first), "block": block, **key}
    silent = title is None or rank > 0
    # The ranks of one run do not exclude each other, two runs do.
    with files.exclusive(folder / f".rank-{rank}"):
        if rank == 0:  # the others write nothing before the barrier
            for left in folder.glob(f".{_pattern(name)}.partial"):  # by a run that was killed
                left.unlink()
            files.same_work(folder, key)
        processes.barrier()
        files.same_work(folder, key)
        bar = tqdm(total=documents, desc=title, unit=" documents", disable=silent)
        blocks = _blocks(chain(first, stream), block)
        total = _each_block(blocks, folder, key, name, write, stamp_of, bar)
        processes.barrier()
        if rank == 0:
            with files.atomic(folder / "done.json") as temporary:
                temporary.write_text(json.dumps({"name": name, "blocks": total}) + "\n")
        processes.barrier()


def _pattern(name):
    """Glob of the files called name.format(b)."""
    return name.partition("{")[0] + "*"


def _each_block(blocks, folder, key, name, write, stamp_of, bar):
    """Write this process's blocks; how many blocks there are."""
    rank, size = processes.rank_and_size()
    shared = f" on each of {size} processes" if size > 1 else ""
    tokens, seconds, number = 0, 0.0, -1
    with bar:
        for number, few in enumerate(blocks):
            path = folder / name.format(number)
            if number % size == rank:
                stamp = hashlib.sha256((json.dumps(key) + digest(few)).encode()).hexdigest()
                if not path.exists():
                    start = perf_counter()
                    write(path, few, stamp)
                    seconds += perf_counter() - start
                    tokens += sum(len(x.input_ids) for x in few)
                    bar.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s{shared}")
                elif stamp_of(path) != stamp:
                    raise ValueError(
                        f"{path} holds other documents than block {number} of this stream: "
                        f"read the corpus in the same order, or choose another folder "
                        f"(a corpus that grew: remove this file)"
                    )
            bar.update(len(few))
    return number + 1


def _blocks(sequences, block):
    """Lists of `block` sequences, the last may be shorter.

    That indices rise is what makes them distinct: known without memory of the earlier ones."""
    last = None
    while few := list(islice(sequences, block)):
        for x in few:
            if last is not None and x.index <= last:
                raise ValueError(
                    f"sequence {x.index} comes after sequence {last}: "
                    f"the indices of a stream must rise"
                )
            last = x.index
        yield few


def finished(folder: str | Path) -> list[Path]:
    """The files that a finished `in_blocks` left in a folder, in the order of the stream.

    Raises ValueError naming what is missing, or what lies there besides."""
    folder = Path(folder)
    if not (folder / "done.json").exists():
        raise ValueError(
            f"{folder} holds no finished run (no done.json): "
            f"run the same command again, it goes on where it ended"
        )
    done = json.loads((folder / "done.json").read_text())
    names = [done["name"].format(number) for number in range(done["blocks"])]
    there = {path.name for path in folder.glob(_pattern(done["name"]))}
    if differing := sorted(there ^ set(names)):
        what = (
            "is missing: run the same command again"
            if differing[0] in names
            else "lies beyond the end of the finished run"
        )
        raise ValueError(f"{folder / differing[0]} {what} ({len(differing)} such files)")
    return [folder / name for name in names]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of {name: tensor}: names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        sha.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def function_name(function: Callable[..., Any]) -> str:
    """A name that is the same in every run: of a function, of a partial one with its arguments, or
    of a callable object's class."""
    inner = getattr(function, "func", function)
    keywords = sorted(getattr(function, "keywords", {}).items())
    arguments = [*getattr(function, "args", ()), *keywords]
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{name}{arguments}" if arguments else name
