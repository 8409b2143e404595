"""An index of compressed candidate gradients: new queries are scored without a pass over the model.

In the eigenbasis of EK-FAC the score is a sum over coordinates c (a layer's block, row r and column
i) of w̃_c d̃_c, with w̃ = Q_Bᵀ W Q_A and d̃ = Q_Bᵀ D Q_A. As E[d̃_c²] = Λ_c, a coordinate carries
Λ_c E[w̃_c²] of the expected squared score: Λ_c² / (Λ_c + d)² for queries with the documents' own
spectrum, whose w̃ = q̃ / (Λ + d); other queries need a sample of them, and those of several stages
are other queries. The index keeps d̃ at the K coordinates that carry most, over all layers
together, as x_c = d̃_c / √(Λ_c + d) / σ in 16 bits: whitened, so that one scale σ per document
suits all of them, and

    s(z) ≈ σ_z Σ_c x_zc w̃_c √(Λ_c + d).

The inverse curvature flattens the spectrum, so that a score is a sum of many small terms and a
small K may keep little of it: measure the `error`, give `typical` queries, and let the index
propose candidates for `influence.score` to rank.

On disk: blocks of safetensors, written as `msif.scale.blocks` does, and header.json with the
SHA-256 of each; K numbers and 16 bytes a document. Sign and unit as in `msif.core.influence`:
positive = proponent.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from msif.core import files, influence
from msif.core.capture import passes
from msif.core.data import Sequence
from msif.core.kronecker import EKFAC, LayerFactors
from msif.core.layers import Tracked, Vectors
from msif.core.models import model_digest
from msif.core.objectives import Objective, loss
from msif.scale import processes
from msif.scale.blocks import (
    announce,
    finished,
    function_name,
    in_blocks,
    stream_length,
    tensors_digest,
)

SCHEMA = 1
BLOCK = "block-{:06d}.safetensors"
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of an index; the k of all layers sum to K.

    factors: {layer: LayerFactors}. places: {layer: (k,) int64} into its flattened (blocks, r, i),
    ascending. spread: {layer: (k,)} √(Λ + d) there."""

    factors: Mapping[str, LayerFactors]
    places: dict[str, Tensor]
    spread: dict[str, Tensor]

    @property
    def size(self) -> int:
        """K."""
        return sum(map(len, self.places.values()))

    def queries(self, w: Vectors) -> Tensor:
        """w̃ √(Λ + d) of query vectors {layer: (q, o, i)}: (q, K).

        Raises ValueError for query vectors of other layers."""
        influence.same_layers(w, self.factors, "the query vectors and the index")

        def kept(name):
            rotated = self.factors[name].to(w[name].device).rotate(w[name]).flatten(1)
            at = self.places[name].to(w[name].device)
            return rotated[:, at] * self.spread[name].to(w[name])

        return torch.cat([kept(name) for name in self.places], 1)

    def documents(
        self,
        tracked: Tracked,
        documents: list[Sequence],
        batch_size: int = 32,
        objective: Objective = loss,
    ) -> tuple[Tensor, Tensor]:
        """d̃ / √(Λ + d) of each document, (n, K), and ‖∇ℓ_z‖ over all tracked layers, (n,).

        Both in at least float32, on the CPU. Raises ValueError for other tracked layers, and what
        `capture.passes` raises."""
        names = [x.name for x in tracked.layers]
        influence.same_layers(names, self.factors, "the tracked layers and the factors")
        dtype = torch.promote_types(next(tracked.model.parameters()).dtype, torch.float32)
        rows = torch.zeros(len(documents), self.size, dtype=dtype)
        squares = torch.zeros(len(documents), dtype=dtype)
        at, columns = {x.index: n for n, x in enumerate(documents)}, self._columns()

        def consume(layer, a, g, draw, batch):
            here = torch.tensor([at[index] for index in batch.index.tolist()])
            factors = self.factors[layer.name].to(g.device)
            D = factors.rotated_gradient(a, g, layer.bias).flatten(1)
            squares[here] += torch.linalg.vector_norm(D, dim=1).square().to(squares.device)
            kept = D[:, self.places[layer.name].to(D.device)] / self.spread[layer.name].to(D)
            rows[here, columns[layer.name]] = kept.to(rows.device)

        passes(tracked, documents, [objective], batch_size, consume)
        return rows, squares.sqrt()

    def _columns(self):
        ends = torch.tensor([0, *map(len, self.places.values())]).cumsum(0).tolist()
        return {name: slice(*ends[n : n + 2]) for n, name in enumerate(self.places)}


def choose(
    factors: EKFAC, damping: influence.Damping, size: int, typical: Vectors | None = None
) -> Coordinates:
    """The `Coordinates` that carry most of the expected squared score, at most `size` of them, over
    all layers of an `EKFAC`.

    damping: the `influence.Damping` d of the candidates' own stage, of each layer as in `Stage`;
    give α + d if it has an α. typical: query vectors {layer: (q, o, i)} like those to come, for
    E[w̃²]; None: queries like the documents. Raises ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1 coordinate per document")
    top = [
        _largest(x, damping, size, typical and typical[name]) for name, x in factors.factors.items()
    ]
    shares = [share for share, *_ in top]
    counts = [len(share) for share in shares]
    chosen = torch.zeros(sum(counts), dtype=torch.bool)
    chosen[torch.cat(shares).topk(min(size, len(chosen))).indices] = True
    places, spread = {}, {}
    for name, (_, at, damped), kept in zip(factors.factors, top, chosen.split(counts)):
        places[name], order = at[kept].sort()
        spread[name] = damped[kept][order].sqrt()
    return Coordinates(factors.factors, places, spread)


def _largest(factors, damping, size, w):
    """Λ E[w̃²], places and Λ + d of a layer's coordinates that can be among the `size` largest of
    all layers."""
    values = factors.eigenvalues.double().flatten()
    damped = values + damping.of(values.mean())
    damped[damped == 0] = 1  # carries nothing
    if w is None:
        expected = values / damped**2
    else:
        expected = factors.rotate(w.to(factors.basis_in)).double().square().mean(0).flatten()
    share, at = (values * expected).topk(min(size, len(values)))
    return share.cpu(), at.cpu(), damped[at].cpu()


def _packed(rows, dtype):
    """(x, σ): (n, K) in `dtype`, its largest entry 1 in each row, and (n,) float32."""
    scale = rows.abs().amax(1).float()
    scale = torch.where(scale > 0, scale, 1.0)
    return (rows / scale[:, None]).to(getattr(torch, dtype)), scale


def _product(query, rows, scale):
    return query @ rows.to(query).mT * scale.to(query)


def error(
    coordinates: Coordinates,
    tracked: Tracked,
    documents: list[Sequence],
    w: Vectors,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    objective: Objective = loss,
) -> dict[str, float]:
    """How far an index is from `influence.score` on held-out documents, for query vectors w
    ({layer: (q, o, i)}).

    "relative_rms": ‖ŝ − s‖ / ‖s‖ over all queries and documents; "spearman": the Spearman
    correlation over documents, mean over queries; and how many "documents" and "queries" that is.
    Needs no index, so that K can be chosen before it is built."""
    expected = influence.score(
        tracked, documents, w, batch_size=batch_size, objective=objective
    ).values
    rows, _ = coordinates.documents(tracked, documents, batch_size, objective)
    found = _product(coordinates.queries(w), *_packed(rows, dtype))
    return {
        "relative_rms": ((found - expected).norm() / expected.norm()).item(),
        "documents": len(documents),
        "queries": len(found),
        "spearman": _rank_correlation(found.cpu(), expected.cpu()),
    }


def _rank_correlation(a, b):
    """Spearman's ρ of each row of a with that of b, (q, n), ties at their mean rank; the mean over
    rows."""

    def ranks(x):
        x = x.contiguous()
        ordered = x.sort(1).values
        below = torch.searchsorted(ordered, x)
        return (below + torch.searchsorted(ordered, x, right=True)).double()

    pairs = zip(ranks(a), ranks(b))
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean())


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
        "layers": [str(x) for x in tracked.layers],
        "size": chosen.size,
        "coordinates": tensors_digest(chosen.places),
        "objective": function_name(objective),
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
        rows, scale = _packed(rows, dtype)
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
    files.write_json(folder / "header.json", {**header, "sha256": files.sha256_of(header)})


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
            _product(query, file.get_tensor("rows"), file.get_tensor("scale"))
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
    try:
        header = json.loads(path.read_text())
        if header.pop("sha256") == files.sha256_of(header) and header["schema"] == SCHEMA:
            return header
    except (ValueError, KeyError, AttributeError):
        pass
    raise ValueError(
        f"{path} changed since it was written, or is of another version: build the index again"
    )


def _blocks(folder, header):
    """The open files of the blocks, memory-mapped, one after the other."""
    for name in header["files"]:
        if name.startswith("block-"):
            with safetensors.safe_open(folder / name, "pt") as file:
                yield file


def _stamp(path):
    try:
        with safetensors.safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])["stamp"]
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it and build again; "
            f"only its documents are read again"
        ) from error


def _digest(factors):
    """sha256 (hex) of the eigenbases themselves: factors fitted twice on equal data may differ in
    the signs of their vectors."""
    bases = {
        f"{name} {what}": getattr(x, f"basis_{what}")
        for name, x in factors.factors.items()
        for what in ("in", "out")
    }
    return tensors_digest(bases)
