"""Scores of a corpus that does not fit in memory: read as a stream, scored in blocks (see
`msif.scale.blocks`), one parquet file each.

The most extreme documents are then read off the files, with
top_k(S ∪ S') = top_k(top_k(S) ∪ S'): no process ever holds more than one block of scores.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from msif.core import checks, files, influence
from msif.core.data import Sequence
from msif.core.digests import function_digest, layers_key, tensors_digest
from msif.core.extras import need
from msif.core.layers import Tracked, Vectors
from msif.core.model_digest import model_digest
from msif.core.objectives import Objective, loss
from msif.core.resources import gib
from msif.core.rows import document_ids, format_of
from msif.core.spent import share_said
from msif.core.vectors import check_vectors
from msif.scale import processes
from msif.scale.blocks import announce, finished, in_blocks, stream_length

PART = "part-{:06d}.parquet"
FOOTER = 1500  # bytes of a parquet file besides its numbers


@dataclass(frozen=True)
class TopScores:
    """The documents of highest (proponents) and lowest (opponents) score of each query, most
    extreme first, ties by index.

    Indices (q, k) int64, values (q, k) float32 in the unit of the scores; k = top, or all documents
    if they are fewer."""

    proponents: Tensor
    proponent_values: Tensor
    opponents: Tensor
    opponent_values: Tensor


@dataclass(frozen=True)
class Estimate:
    """What scoring a corpus will take: hours (with the processes of this run), disk in bytes,
    tokens/s of one process."""

    documents: int
    hours: float
    disk: int
    tokens_per_second: float


def tokenised(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Sequence]:
    """The documents of a stream of texts, as `data.encode_documents` makes them.

    An index is the text's number in the stream: blank texts and those of fewer than 2 tokens
    (nothing to predict) are left out, but counted. Raises ValueError for a max_length below 2 and
    for what is no collection of texts; while it is gone through, for what is no text, naming its
    number."""
    max_length = checks.whole("max_length", max_length, 2)
    return _tokenised(iter(checks.several("document", texts)), tokenizer, max_length)


def _tokenised(stream, tokenizer, max_length):
    number, form = 0, format_of(tokenizer)
    while few := list(islice(stream, 256)):  # fast tokenizers share a list out over the cores
        few = [checks.text(f"document {n}", text) for n, text in enumerate(few, number)]
        for text, ids in zip(few, document_ids(few, tokenizer, form)):
            if text.strip() and len(row := ids[:max_length]) > 1:
                yield Sequence(number, row, row)
            number += 1


def score_corpus(
    tracked: Tracked,
    sequences: Iterable[Sequence],
    w: Vectors,
    folder: str | Path,
    *,
    block: int = 1024,
    batch_size: int = 32,
    top: int = 100,
    normalised: bool = False,
    documents: int | None = None,
    objective: Objective = loss,
    title: str | None = None,
    score: Callable[..., influence.Scores] = influence.score,
) -> TopScores:
    """Score a stream of sequences (indices rising) for the query vectors w ({layer: (q, o, i)})
    into `folder`.

    Positive = proponent; sign and unit as in `msif.core.influence`. The parts hold `index` int64,
    `norm` ‖∇ℓ_z‖ float32 and `score` (q float32 numbers); read them with `read_scores`, other tops
    with `top_scores`. normalised: rank by score / norm. documents: their number where the stream
    does not know it, for the plan, the check of the disk and the progress bar, whose title is
    `title` (None: silent). score: called as `influence.score` is. It and the objective are known by
    all that they compute with (`digests.function_digest`). Another batch size or number of
    processes may finish what one began (rounding apart); w must be the same to the bit in all of
    them.

    Raises ValueError for a folder with the work of other inputs or anything else, query vectors
    that do not fit the layers, a stream that changed, and a sequence that the model cannot read;
    FloatingPointError for what is not finite; `files.Busy` for a second run; MemoryError; OSError
    for a full disk."""
    batch_size, top = checks.whole("batch_size", batch_size), checks.whole("top", top)
    block = checks.whole("block", block)
    queries = check_vectors(w, tracked)
    documents = stream_length(sequences, documents)
    key = {
        "w": tensors_digest(w),
        "model": model_digest(tracked.model),
        "layers": layers_key(tracked.layers),
        "objective": function_digest(objective),
        "score": function_digest(score),
    }
    disk = partial(part_bytes, queries=queries, block=block)
    memory = _memory(tracked.layers, w, block, min(batch_size, block))
    announce(folder, PART, block, documents, disk, memory, title, f"{queries} queries")

    def write(path, few, stamp):
        found = score(tracked, few, w, batch_size=batch_size, objective=objective)
        _write(path, few, found, queries, stamp)

    with share_said(tracked.model, title, "pass"):
        in_blocks(sequences, folder, key, block, PART, write, _stamp, documents, title)
    return top_scores(folder, top, normalised)


def part_bytes(documents: int, queries: int, block: int = 1024) -> int:
    """Bytes of the parts of that many documents: 12 + 4.07 q a document, and a footer a block."""
    return round(documents * (12 + 4.07 * queries)) + FOOTER * -(-documents // block)


def _memory(layers, w, block, batch_size):
    """Bytes of a block's scores in the precision of w and as written, and of a batch's gradients of
    the largest layer."""
    one = next(iter(w.values()))
    gradients = batch_size * max(x.out_features * x.inputs for x in layers)
    return 2 * one.element_size() * (block * (len(one) + 1) + gradients)


def _write(path, sequences, found, queries, stamp):
    values, norms = found.values.T.float().cpu().contiguous(), found.norms.float().cpu()
    finite = values.isfinite().all(1) & norms.isfinite()
    for x, good in zip(sequences, finite.tolist()):
        if not good:
            raise FloatingPointError(
                f"a score of sequence {x.index} is NaN or infinite in float32: "
                f"check the query vectors w"
            )
    pa, pq = need("pyarrow"), need("pyarrow.parquet")
    columns = [
        pa.array([x.index for x in sequences], pa.int64()),
        pa.array(norms.numpy()),
        pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), queries),
    ]
    schema = pa.schema(
        [
            pa.field("index", pa.int64(), False),
            pa.field("norm", pa.float32(), False),
            pa.field("score", pa.list_(pa.field("item", pa.float32(), False), queries), False),
        ]
    )
    checksum = files.checksum(_tensors(pa.Table.from_arrays(columns, schema=schema)))
    schema = schema.with_metadata({"stamp": stamp, "crc32": str(checksum)})
    with files.atomic(path) as temporary:
        pq.write_table(
            pa.Table.from_arrays(columns, schema=schema),
            temporary,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )


def _tensors(table):
    """{"index" (n,), "norm" (n,), "score" (n q,)} of a part's table."""
    scores = table["score"].combine_chunks().flatten()
    found = {"index": table["index"], "norm": table["norm"], "score": scores}
    return {name: torch.tensor(x.to_numpy()) for name, x in found.items()}


def _read(path):
    """(stamp, tensors) of a part, or what is wrong with it."""
    pa, pq = need("pyarrow"), need("pyarrow.parquet")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        stamp, checksum = (table.schema.metadata[x].decode() for x in (b"stamp", b"crc32"))
        found = _tensors(table)
        if checksum != str(files.checksum(found)):
            raise ValueError("its checksum differs")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or of another version ({error}): remove it and run again; "
            f"only its documents are scored again"
        ) from error
    return stamp, found


def _stamp(path):
    return _read(path)[0]


def read_scores(
    folder: str | Path, query: int | None = None
) -> Iterator[tuple[Tensor, influence.Scores]]:
    """Iterate over the parts of a finished run: index (n,) int64, and `influence.Scores` whose
    values are (q, n) float32, or (n,) of one query.

    Raises ValueError naming a missing or damaged part, and one of another run or place."""
    for path, expected in finished(folder).items():
        stamp, found = _read(path)
        if stamp != expected:
            raise ValueError(
                f"{path} is not the part that the run of this folder wrote there: put back the "
                f"file, or remove it and run again; only its documents are scored again"
            )
        index, norms = found["index"], found["norm"]
        values = found["score"].view(len(index), -1).T
        yield index, influence.Scores(values if query is None else values[query], norms)


def top_scores(folder: str | Path, top: int = 100, normalised: bool = False) -> TopScores:
    """`TopScores` of a finished run, by score or by score / norm, in one pass over its parts.

    Raises ValueError for a top below 1, and what `read_scores` raises."""
    top = checks.whole("top", top)
    best: dict[bool, tuple[Tensor, Tensor]] = {}  # by whether the highest come first
    for numbers, scores in read_scores(folder):
        values = scores.normalised() if normalised else scores.values
        index = numbers.expand(len(values), -1)
        for highest in (True, False):
            best[highest] = _merged(best.get(highest), index, values, top, highest)
    return TopScores(*best[True], *best[False])


def _merged(kept, index, values, top, highest):
    """The first `top` of what is kept and a block; a stable sort keeps ties in the order of their
    index."""
    if kept is not None:
        index, values = torch.cat([kept[0], index], 1), torch.cat([kept[1], values], 1)
    values, order = values.sort(dim=1, descending=highest, stable=True)
    return index.gather(1, order[:, :top]), values[:, :top]


def estimate(
    tracked: Tracked,
    sample: list[Sequence],
    w: Vectors,
    documents: int,
    batch_size: int = 32,
    objective: Objective = loss,
) -> Estimate:
    """Time a sample (sequences as long as the corpus's) and print what `documents` of them will
    take."""

    def scored(few):
        return influence.score(tracked, few, w, batch_size=batch_size, objective=objective)

    scored(sample[:batch_size])  # the first batch allocates
    start = perf_counter()
    found = scored(sample)
    found.values.sum().item()  # waits for an accelerator
    seconds = perf_counter() - start
    rank, size = processes.rank_and_size()
    queries = len(found.values)
    speed = sum(len(x.input_ids) for x in sample) / seconds

    def hours(n: int) -> float:
        return n * seconds / len(sample) / size / 3600

    if rank == 0:
        print(
            f"{documents:,} documents, {queries} queries: {hours(documents):.2f} hours "
            f"with {size} process(es) of {speed:,.0f} tokens/s, "
            f"{gib(part_bytes(documents, queries))} of parts; "
            f"per million documents {hours(10**6):.2f} hours, "
            f"{gib(part_bytes(10**6, queries))}"
        )
    return Estimate(documents, hours(documents), part_bytes(documents, queries), speed)
