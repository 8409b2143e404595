"""Gradients compressed to the coordinates of EK-FAC's eigenbasis that carry most of a score.

In the eigenbasis the score is a sum over coordinates c (a layer's block, row r and column i) of
w̃_c d̃_c, with w̃ = Q_Bᵀ W Q_A and d̃ = Q_Bᵀ D Q_A. As E[d̃_c²] = Λ_c, a coordinate carries
Λ_c E[w̃_c²] of the expected squared score: Λ_c² / (Λ_c + d)² for queries with the documents' own
spectrum, whose w̃ = q̃ / (Λ + d); other queries need a sample of them, and those of several stages
are other queries. Kept are d̃ at the K coordinates that carry most, over all layers together, as
x_c = d̃_c / √(Λ_c + d) / σ in 16 bits: whitened, so that one scale σ per document suits all of
them, and

    s(z) ≈ σ_z Σ_c x_zc w̃_c √(Λ_c + d).

The inverse curvature flattens the spectrum, so that a score is a sum of many small terms and a
small K may keep little of it: measure the `error`, and give `typical` queries. Sign and unit as in
`msif.core.influence`: positive = proponent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from msif.core import checks, influence
from msif.core.capture import passes
from msif.core.data import Sequence, check
from msif.core.kronecker import EKFAC, LayerFactors
from msif.core.layers import Tracked, Vectors
from msif.core.models import limits
from msif.core.objectives import Objective, loss
from msif.core.vectors import check_shape, finite_vectors, same_layers


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
        same_layers(w, self.factors, "the query vectors and the index")

        queries = finite_vectors(w, "query vectors")

        def kept(name):
            factors = self.factors[name].to(w[name].device)
            sizes = factors.out_values.numel(), factors.in_values.numel()
            check_shape(name, w[name], queries, *sizes)
            rotated = factors.rotate(w[name]).flatten(1)
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
        same_layers(names, self.factors, "the tracked layers and the factors")
        check(documents, *limits(tracked.model))
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
    E[w̃²]; None: queries like the documents. Raises ValueError for a size below 1, a damping that
    is none, and queries of other layers."""
    size = checks.whole("size", size)
    if not isinstance(damping, influence.Damping):
        raise ValueError(f"damping is {damping!r}: expected a Damping, such as Damping(0.1)")
    if typical is not None:
        same_layers(typical, factors.layers, "the typical queries and the factors")
        finite_vectors(typical, "typical queries")
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


def packed(rows: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """(x, σ): (n, K) in `dtype`, its largest entry 1 in each row, and (n,) float32."""
    scale = rows.abs().amax(1).float()
    scale = torch.where(scale > 0, scale, 1.0)
    return (rows / scale[:, None]).to(getattr(torch, dtype)), scale


def product(query: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """Scores (q, n), in the precision of `Coordinates.queries`' (q, K), with what `packed` gave."""
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
    found = product(coordinates.queries(w), *packed(rows, dtype))
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
