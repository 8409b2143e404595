"""Scores of a corpus that does not fit in memory: read as a stream, scored in blocks, each block one file, whole or absent.

Block b is the documents bB, …, (b+1)B − 1 of the stream. It belongs to process b mod P, and its scores s(z) = ⟨w, ∇ℓ_z⟩ go to
part-b.parquet. All processes read the same stream. A block's file depends on nothing but the block, so a run that is killed
goes on from the files it finds and ends with the same bytes. The most extreme documents are then read off the files, with
top_k(S ∪ S') = top_k(top_k(S) ∪ S'): no process ever holds more than one block of scores.
"""
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from msif import checkpoints, distributed, influence
from msif.data import Sequence, digest
from msif.extras import need
from msif.models import model_digest
from msif.objectives import loss
from msif.resources import gib, require

PART = "part-{:06d}.parquet"
FOOTER = 1500                       # bytes of a parquet file besides its numbers


@dataclass(frozen=True)
class TopScores:
    """The documents of highest (proponents) and lowest (opponents) score of each query, most extreme first, ties by index.

    Indices (q, k) int64, values (q, k) float32 in the unit of the scores; k = top, or all documents if they are fewer."""
    proponents: torch.Tensor
    proponent_values: torch.Tensor
    opponents: torch.Tensor
    opponent_values: torch.Tensor


@dataclass(frozen=True)
class Estimate:
    """What scoring a corpus will take: hours (with the processes of this run), disk in bytes, tokens/s of one process."""
    documents: int
    hours: float
    disk: int
    tokens_per_second: float


def tokenised(texts, tokenizer, max_length):
    """The documents of a stream of texts, as `data.encode_documents` makes them: an iterator of `data.Sequence`.

    An index is the text's number in the stream: texts of fewer than 2 tokens (nothing to predict) are left out, but counted."""
    texts, number = iter(texts), 0
    while few := list(islice(texts, 256)):                       # fast tokenizers share a list out over the cores
        for ids in tokenizer(few, verbose=False)["input_ids"]:
            if len(row := tuple(ids[:max_length])) > 1:
                yield Sequence(number, row, row)
            number += 1


def score_corpus(model, layers, sequences, w, folder, *, block=1024, batch_size=32, top=100, normalised=False, documents=None,
                 objective=loss, title=None, score=influence.score):
    """Score a stream of `data.Sequence` (indices rising) for the query vectors w ({layer: (q, o, i)}) into `folder`: `TopScores`.

    Positive = proponent; sign and unit as in `msif.influence`. The parts hold `index` int64, `norm` ‖∇ℓ_z‖ float32 and `score`
    (q float32 numbers); read them with `read_scores`, other tops with `top_scores`. normalised: rank by score / norm.
    documents: their number where the stream does not know it, for the plan, the check of the disk and the progress bar, whose
    title is `title` (None: silent). score: called as `influence.score` is. Another batch size or number of processes may finish
    what one began (rounding apart); w must be the same to the bit in all of them.

    Raises ValueError for a folder with the work of other inputs, a stream that changed, and a sequence that the model cannot
    read; FloatingPointError for what is not finite; checkpoints.Busy for a second run; MemoryError; OSError for a full disk."""
    queries, documents = len(next(iter(w.values()))), len(sequences) if hasattr(sequences, "__len__") else documents
    key = {"w": tensors_digest(w), "model": model_digest(model), "layers": [str(x) for x in layers],
           "objective": function_name(objective), "score": function_name(score)}
    plan(folder, PART, block, documents, partial(part_bytes, queries=queries, block=block),
         _memory(layers, w, block, batch_size), title, f"{queries} queries")

    def write(path, few, stamp):
        _write(path, few, score(model, layers, few, w, batch_size=batch_size, objective=objective), queries, stamp)

    in_blocks(sequences, folder, key, block, PART, write, _stamp, documents, title)
    return top_scores(folder, top, normalised)


def part_bytes(documents, queries, block=1024):
    """Bytes of the parts of that many documents: 12 + 4.07 q a document, and a footer a block."""
    return round(documents * (12 + 4.07 * queries)) + FOOTER * -(-documents // block)


def plan(folder, name, block, documents, disk, memory, title, what):
    """Raise unless a run fits beside what an earlier one wrote, and say what it takes. disk(n): bytes of n documents."""
    if block < 1:
        raise ValueError(f"block is {block}; expected at least 1 document")
    written = sum(path.stat().st_size for path in Path(folder).glob(name.partition("{")[0] + "*"))
    require(memory=memory, disk=max(0, disk(documents or block) - written), folder=folder, what=f"{what} into {folder}")
    if title is not None and distributed.rank_and_size()[0] == 0:
        print(f"{title}: {f'{documents:,}' if documents else 'an unknown number of'} documents, {what}; on disk "
              f"{gib(disk(10**6))} per million documents; in memory {gib(memory)} beside the model and its activations")


def _memory(layers, w, block, batch_size):
    """Bytes of a block's scores in the precision of w and as written, and of a batch's gradients of the largest layer."""
    one = next(iter(w.values()))
    gradients = batch_size * max(x.out_features * (x.in_features + x.bias) for x in layers)
    return 2 * one.element_size() * (block * (len(one) + 1) + gradients)


def in_blocks(sequences, folder, key, block, name, write, stamp_of, documents=None, title=None):
    """Write one file folder/name.format(b) for each `block` sequences of a stream, unless it is there from an earlier run.

    key: JSON values that the files depend on besides the stream. write(path, few, stamp) writes one; stamp_of(path) gives the
    stamp of a written one back. Raises ValueError for another key in the folder, and for a file whose block has changed."""
    (rank, size), folder = distributed.rank_and_size(), Path(folder)
    first = list(islice(sequences := iter(sequences), 1))
    if not first:
        raise ValueError("there are no sequences to score; expected at least one, of at least 2 tokens")
    key = {"first sequence": digest(first), "block": block, **key}
    with checkpoints.exclusive(folder / f".rank-{rank}"):        # the ranks of one run do not exclude each other, two runs do
        if rank == 0:                                            # the others write nothing before the barrier
            for left in folder.glob(f".{name.partition('{')[0]}*.partial"):       # by a run that was killed
                left.unlink()
            checkpoints.same_work(folder, key)
        distributed.barrier()
        checkpoints.same_work(folder, key)
        total = _each_block(chain(first, sequences), folder, key, block, name, write, stamp_of, tqdm(
            total=documents, desc=title, unit=" documents", disable=title is None or rank > 0))
        distributed.barrier()
        if rank == 0:
            with checkpoints.atomic(folder / "done.json") as temporary:
                temporary.write_text(json.dumps({"name": name, "blocks": total}) + "\n")
        distributed.barrier()


def _each_block(sequences, folder, key, block, name, write, stamp_of, bar):
    """Write this process's blocks; how many blocks there are."""
    (rank, size), tokens, seconds, number = distributed.rank_and_size(), 0, 0, -1
    with bar:
        for number, few in enumerate(_blocks(sequences, block)):
            path = folder / name.format(number)
            if number % size == rank:
                stamp, start = hashlib.sha256((json.dumps(key) + digest(few)).encode()).hexdigest(), perf_counter()
                if not path.exists():
                    write(path, few, stamp)
                    tokens, seconds = tokens + sum(len(x.input_ids) for x in few), seconds + perf_counter() - start
                    bar.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s" + f" on each of {size} processes" * (size > 1))
                elif stamp_of(path) != stamp:
                    raise ValueError(f"{path} holds other documents than block {number} of this stream: read the corpus in the "
                                     f"same order, or choose another folder (a corpus that grew: remove this file)")
            bar.update(len(few))
    return number + 1


def _blocks(sequences, block):
    """Lists of `block` sequences, the last may be shorter; rising indices are distinct ones, at no memory."""
    last = None
    while few := list(islice(sequences, block)):
        for x in few:
            if last is not None and x.index <= last:
                raise ValueError(f"sequence {x.index} comes after sequence {last}: the indices of a stream must rise")
            last = x.index
        yield few


def _write(path, sequences, found, queries, stamp):
    values, norms = found.values.T.float().cpu().contiguous(), found.norms.float().cpu()
    for x, finite in zip(sequences, (values.isfinite().all(1) & norms.isfinite()).tolist()):
        if not finite:
            raise FloatingPointError(f"a score of sequence {x.index} is NaN or infinite in float32: check the query vectors w")
    pa, pq = need("pyarrow"), need("pyarrow.parquet")
    columns = [pa.array([x.index for x in sequences], pa.int64()), pa.array(norms.numpy()),
               pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), queries)]
    schema = pa.schema([pa.field("index", pa.int64(), False), pa.field("norm", pa.float32(), False),
                        pa.field("score", pa.list_(pa.field("item", pa.float32(), False), queries), False)], {"stamp": stamp})
    with checkpoints.atomic(path) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), temporary, compression="none",
                       use_dictionary=False, write_page_checksum=True)


def _parquet(path, read):
    """read(path), with a damaged file named."""
    try:
        return read(path)
    except (need("pyarrow").ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and run again; only its documents are scored again") from error


def _stamp(path):
    return (_parquet(path, need("pyarrow.parquet").read_schema).metadata or {}).get(b"stamp", b"").decode()


def finished(folder):
    """The files that a finished `in_blocks` left in a folder, in the order of the stream; ValueError naming what is missing."""
    done = Path(folder) / "done.json"
    if not done.exists():
        raise ValueError(f"{folder} holds no finished run (no done.json): run the same command again, it goes on where it ended")
    done = json.loads(done.read_text())
    names = [done["name"].format(number) for number in range(done["blocks"])]
    there = {path.name for path in Path(folder).glob(done["name"].partition("{")[0] + "*")}
    if differing := sorted(there ^ set(names)):
        what = "is missing: run the same command again" if differing[0] in names else "lies beyond the end of the finished run"
        raise ValueError(f"{Path(folder) / differing[0]} {what} ({len(differing)} such files)")
    return [Path(folder) / name for name in names]


def read_scores(folder, query=None):
    """Iterate over the parts of a finished run: index (n,) int64, and `influence.Scores` whose values are (q, n) float32, or (n,)
    of one query. Raises ValueError naming a missing or damaged part (pages carry checksums)."""
    pq = need("pyarrow.parquet")
    for path in finished(folder):
        table = _parquet(path, partial(pq.read_table, page_checksum_verification=True))
        index, norms = (torch.tensor(table[name].to_numpy()) for name in ("index", "norm"))
        values = torch.tensor(table["score"].combine_chunks().flatten().to_numpy()).view(len(index), -1).T
        yield index, influence.Scores(values if query is None else values[query], norms)


def top_scores(folder, top=100, normalised=False):
    """`TopScores` of a finished run, by score or by score / norm, in one pass over its parts."""
    if top < 1:
        raise ValueError(f"top is {top}; expected at least 1 document")
    best = {}
    for index, scores in read_scores(folder):
        values = scores.normalised() if normalised else scores.values
        for highest in (True, False):
            best[highest] = _merged(best.get(highest), index.expand(len(values), -1), values, top, highest)
    return TopScores(*best[True], *best[False])


def _merged(kept, index, values, top, highest):
    """The first `top` of what is kept and a block; a stable sort keeps ties in the order of their index."""
    if kept is not None:
        index, values = torch.cat([kept[0], index], 1), torch.cat([kept[1], values], 1)
    values, order = values.sort(dim=1, descending=highest, stable=True)
    return index.gather(1, order[:, :top]), values[:, :top]


def estimate(model, layers, sample, w, documents, batch_size=32, objective=loss):
    """Time a sample (a list of sequences, as long as the corpus's) and print what `documents` of them will take: `Estimate`."""
    run = {"batch_size": batch_size, "objective": objective}
    influence.score(model, layers, sample[:batch_size], w, **run)                    # the first batch allocates
    start = perf_counter()
    found = influence.score(model, layers, sample, w, **run)
    found.norms.sum().item()                                                         # waits for an accelerator
    seconds, (rank, size), queries = perf_counter() - start, distributed.rank_and_size(), len(found.values)
    hours = lambda n: n * seconds / len(sample) / size / 3600
    speed = sum(len(x.input_ids) for x in sample) / seconds
    if rank == 0:
        print(f"{documents:,} documents, {queries} queries: {hours(documents):.2f} hours with {size} process(es) of {speed:,.0f} "
              f"tokens/s, {gib(part_bytes(documents, queries))} of parts; per million documents {hours(10**6):.2f} hours, "
              f"{gib(part_bytes(10**6, queries))}")
    return Estimate(documents, hours(documents), part_bytes(documents, queries), speed)


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
    return getattr(inner, "__qualname__", type(inner).__qualname__) + (f"{arguments}" if arguments else "")
