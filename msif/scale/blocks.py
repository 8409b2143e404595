"""Work over a stream of documents in blocks of one file each, whole or absent, so that it can be
killed, resumed and shared.

Block b is the documents bB, …, (b+1)B − 1 of the stream and belongs to process b mod P; all
processes read the same stream. Its file depends on nothing but the block and the work's key, of
both of which it carries a digest, its stamp, so a run that is killed goes on from the files it
finds and ends with the same bytes. done.json, written last, lists the stamps of all blocks.
`msif.scale.streaming` writes scores this way, `msif.scale.index` compressed gradients.
"""

from collections.abc import Callable, Iterable, Sized
from itertools import chain, islice
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from msif.core import checks, files
from msif.core.data import Sequence, digest
from msif.core.resources import gib, require
from msif.scale import processes

# What may lie in a folder before its first run: the query vectors that `msif.api` keeps there.
BESIDE = {"w.safetensors"}


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
    """Raise unless a run may write to a folder and fits beside what an earlier one wrote there, and
    say what it takes.

    name: of the blocks' files, as for `in_blocks`. disk(n): bytes of n documents; documents None:
    room for one block is asked for. memory: bytes. title: None for silence. Raises ValueError for
    a block of no document and for a folder that holds something else, MemoryError or OSError where
    there is no room.
    """
    checks.whole("block", block)
    _free(Path(folder))
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


def _free(folder):
    """ValueError for a file, and for a folder of anything but blocks."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder: choose another")
    names = {x.name for x in folder.glob("*") if x.name[0] != "."} - BESIDE
    if names and "work.json" not in names:
        raise ValueError(
            f"{folder} holds {min(names)!r}, which is not of this work: choose another folder, or "
            f"empty it"
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
    one; stamp_of(path) gives the stamp of a written one back, having checked that the file is
    whole. documents: their number, for the progress bar, whose title is `title` (None: silent).
    Raises ValueError for another key in the folder, for a file whose block has changed or is
    damaged, for one beyond the stream's end, for indices that do not rise and for an empty stream;
    `files.Busy` while another run writes there.
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
            files.sweep(folder)
            files.same_work(folder, key)
        processes.barrier()
        files.same_work(folder, key)
        bar = tqdm(total=documents, desc=title, unit=" documents", disable=silent)
        blocks = _blocks(chain(first, stream), block)
        stamps = _each_block(blocks, folder, key, name, write, stamp_of, bar)
        processes.barrier()
        if rank == 0:
            done = {"name": name, "stamps": stamps}
            _complete(folder, done)
            files.write_record(folder / "done.json", done)
        processes.barrier()


def _pattern(name):
    """Glob of the files called name.format(b)."""
    return name.partition("{")[0] + "*"


def _each_block(blocks, folder, key, name, write, stamp_of, bar):
    """Write this process's blocks; the stamps of all, if this is the first process."""
    rank, size = processes.rank_and_size()
    shared = f" on each of {size} processes" if size > 1 else ""
    tokens, seconds, stamps = 0, 0.0, []
    with bar:
        for number, few in enumerate(blocks):
            path = folder / name.format(number)
            if rank == 0 or number % size == rank:
                stamp = files.sha256_of([key, digest(few)])
                stamps.append(stamp)
            if number % size == rank:
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
    return stamps


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


def finished(folder: str | Path) -> dict[Path, str]:
    """{file: stamp} that a finished `in_blocks` left in a folder, in the order of the stream.

    Raises ValueError naming what is missing, or what lies there besides."""
    folder = Path(folder)
    if not (folder / "done.json").exists():
        raise ValueError(
            f"{folder} holds no finished run (no done.json): "
            f"run the same command again, it goes on where it ended"
        )
    return _complete(folder, files.read_record(folder / "done.json"))


def _complete(folder, done):
    """What `finished` gives, of what done.json says or will say."""
    found = {folder / done["name"].format(n): stamp for n, stamp in enumerate(done["stamps"])}
    there = set(folder.glob(_pattern(done["name"])))
    if differing := sorted(there ^ found.keys()):
        what = (
            "is missing: run the same command again"
            if differing[0] in found
            else "lies beyond the end of the stream: choose another folder, or remove it"
        )
        raise ValueError(f"{differing[0]} {what} ({len(differing)} such files)")
    return found
