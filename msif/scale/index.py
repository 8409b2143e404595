"""An index of compressed candidate gradients: new queries are scored without a pass over the model.

Each candidate's gradient is kept at the K `coordinates` that carry most of the scores to come, so
that the index proposes candidates for `influence.score` to rank: measure the `error`, and give
`typical` queries, see `msif.scale.coordinates`.

On disk: blocks of safetensors, written as `msif.scale.blocks` does, and header.json with the
SHA-256 of each; K numbers and 16 bytes a document. Sign and unit as in `msif.core.influence`:
positive = proponent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from msif.core import files, influence
from msif.core.data import Sequence
from msif.core.digests import function_digest, layers_key, tensors_digest
from msif.core.kronecker import EKFAC
from msif.core.layers import Tracked, Vectors
from msif.core.model_digest import model_digest
from msif.core.objectives import Objective, loss
from msif.scale import processes
from msif.scale.blocks import announce, finished, in_blocks, stream_length
from msif.scale.coordinates import Coordinates, choose, error, packed, product

SCHEMA = 1
BLOCK = "block-{:06d}.safetensors"
DTYPES = ("float16", "bfloat16", "float32")


def build(
    tracked: Tracked,
    candidates: Iterable[Sequence],
    factors: EKFAC,
    damping: influence.Damping,
    folder: str | Path,
    *,
    size: int,
    block: int = 1024,
    batch_size: int = 32,
    dtype: str = "float16",
    typical: Vectors | None = None,
    held_out: tuple[list[Sequence], Vectors] | None = None,
    documents: int | None = None,
    objective: Objective = loss,
    title: str | None = None,
) -> "Index":
    """Index a stream of candidates (indices rising) at `size` coordinates into `folder`.

    factors: the `EKFAC` of the candidates' stage; damping, typical: see `choose`. dtype: float16,
    bfloat16 or float32. held_out: (documents, w) to measure the `error` on, kept in the header.
    documents: their number, if the stream does not know it. Several processes share the work, and a
    killed run goes on, as in `streaming.score_corpus`; it raises what that raises."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    chosen = choose(factors, damping, size, typical)
    bytes_each = document_bytes(chosen.size, dtype)
    about = {
        "model": model_digest(tracked.model),
        "factors": _digest(factors),
        "damping": str(damping),
        "dtype": dtype,
        "layers": layers_key(tracked.layers),
        "size": chosen.size,
        "coordinates": tensors_digest(chosen.places),
        "objective": function_digest(objective),
        "bytes_per_document": bytes_each,
    }
    documents = stream_length(candidates, documents)
    memory = 12 * block * chosen.size
    what = f"{chosen.size:,} coordinates"
    announce(folder, BLOCK, block, documents, lambda n: n * bytes_each, memory, title, what)
    run: dict[str, Any] = {"batch_size": batch_size, "objective": objective}
    measured = error(chosen, tracked, *held_out, dtype=dtype, **run) if held_out else None

    def write(path, few, stamp):
        rows, norms = chosen.documents(tracked, few, **run)
        rows, scale = packed(rows, dtype)
        index = torch.tensor([x.index for x in few])
        tensors = {"rows": rows, "scale": scale, "norms": norms.float(), "index": index}
        files.save(path, tensors, stamp=stamp)

    in_blocks(candidates, folder, about, block, BLOCK, write, _stamp, documents, title)
    if processes.rank_and_size()[0] == 0:
        _finish(Path(folder), chosen, {"schema": SCHEMA, **about, "error": measured})
    processes.barrier()
    return open(folder, factors)


def document_bytes(size: int, dtype: str = "float16") -> int:
    """Bytes of one document on disk: its `size` numbers, index, norm and scale."""
    return size * getattr(torch, dtype).itemsize + 16


def _finish(folder, chosen, header):
    """Write the coordinates, then the header: an index without one is not finished."""
    tensors = {
        f"{name} {what}": x
        for what in ("places", "spread")
        for name, x in getattr(chosen, what).items()
    }
    path = folder / "coordinates.safetensors"
    files.save(path, tensors)
    sums = {x.name: files.sha256_of_file(x) for x in [path, *finished(folder)]}
    header = {**header, "files": sums}
    files.write_record(folder / "header.json", header)


@dataclass(frozen=True)
class Index:
    """A finished index.

    header: how it was built, and its error. index: (n,) int64, the candidates' own indices, in the
    order of the scores. norms: (n,) float32, ‖∇ℓ_z‖ over the tracked layers."""

    folder: Path
    header: dict[str, Any]
    coordinates: Coordinates
    index: Tensor
    norms: Tensor

    def score(self, w: Vectors) -> influence.Scores:
        """`influence.Scores` of all candidates for query vectors w of `influence.precondition`
        ({layer: (q, o, i)}).

        values: (q, n) in the precision of w, one product per memory-mapped block."""
        query = self.coordinates.queries(w)
        found = [
            product(query, file.get_tensor("rows"), file.get_tensor("scale"))
            for file in _blocks(self.folder, self.header)
        ]
        return influence.Scores(torch.cat(found, 1), self.norms.to(query))


def open(folder: str | Path, factors: EKFAC) -> Index:
    """The `Index` in a folder that `build` finished, with the factors it was built with.

    Raises ValueError, naming the file, for one that is missing or changed (every file is read once
    to check), and for other factors."""
    folder = Path(folder)
    header = _read_header(folder / "header.json")
    if _digest(factors) != header["factors"]:
        raise ValueError(
            f"{folder} was built with factors of other eigenbases: load those, or build it again"
        )
    for name, expected in header["files"].items():
        if not (folder / name).is_file() or files.sha256_of_file(folder / name) != expected:
            raise ValueError(
                f"{folder / name} is missing, truncated or changed since it was written: "
                f"remove it and build again"
            )
    stored, _ = files.load(folder / "coordinates.safetensors")
    places = {name: stored[f"{name} places"] for name in factors.factors}
    spread = {name: stored[f"{name} spread"] for name in factors.factors}
    numbers = [(x.get_tensor("index"), x.get_tensor("norms")) for x in _blocks(folder, header)]
    index = torch.cat([index for index, _ in numbers])
    norms = torch.cat([norms for _, norms in numbers])
    return Index(folder, header, Coordinates(factors.factors, places, spread), index, norms)


def _read_header(path):
    if not path.exists():
        raise ValueError(
            f"{path.parent} holds no finished index (no header.json): run the same `build` again"
        )
    header = files.read_record(path)
    if header.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no index of schema {SCHEMA}: build it again")
    return header


def _blocks(folder, header):
    """The open files of the blocks, memory-mapped, one after the other."""
    for name in header["files"]:
        if name.startswith("block-"):
            with safetensors.safe_open(folder / name, "pt") as file:
                yield file


def _stamp(path):
    return files.load(path)[1]["stamp"]


def _digest(factors):
    """sha256 (hex) of the eigenbases themselves: factors fitted twice on equal data may differ in
    the signs of their vectors."""
    bases = {
        f"{name} {what}": getattr(x, f"basis_{what}")
        for name, x in factors.factors.items()
        for what in ("in", "out")
    }
    return tensors_digest(bases)
