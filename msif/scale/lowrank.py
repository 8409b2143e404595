"""Preconditioned queries of low rank, for the layers where they make scoring cheaper.

A query's vector of one layer is replaced by W ≈ U Vᵀ, so that
⟨W, Σ_t g_t a_tᵀ⟩ = Σ_t (Uᵀg_t)·(Vᵀa_t) needs no gradient D: R (o + i) multiplications a position,
R the ranks of all queries together, against (s + q)/s · o·i with D.

With covariances A and B a candidate's D has E[⟨X, D⟩²] ∝ ‖B^½ X A^½‖² (K-FAC's view), so the
singular values σ of B^½ W A^½ say what a truncated score loses. For each query the smallest σ of
all layers go, until √(Σ gone σ² / Σ σ²) reaches `error`: the expected root-mean-square error of its
scores over their root mean square. A layer whose ranks would cost more than D keeps W as it is.
Grosse et al. 2023 (arXiv 2308.03296, section 3.2.2) truncate W itself, to a fixed rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from msif.core.capture import passes
from msif.core.data import Sequence, check
from msif.core.influence import Scores
from msif.core.kronecker import EKFAC
from msif.core.layers import Tracked, Vectors
from msif.core.models import limits
from msif.core.objectives import Objective, loss
from msif.core.products import transposed_gradient
from msif.core.vectors import check_shape, finite_vectors, same_layers

FLOOR = 1e-9  # of the largest eigenvalue: below, a direction has no part in any candidate's D


@dataclass(frozen=True)
class LowRank:
    """U (o, R), V (i, R) of all queries side by side; query (R,) int64: whose column it is.

    count: how many queries there are."""

    U: Tensor
    V: Tensor
    query: Tensor
    count: int

    def scores(self, a: Tensor, g: Tensor, bias: bool) -> Tensor:
        """(q, n) of a batch: a (n, s, inputs), g (n, s, o)."""
        both = torch.promote_types(self.U.dtype, g.dtype)
        a, g, U, V = (x.to(g.device, both) for x in (a, g, self.U, self.V))
        right = a @ V[:-1] + V[-1] if bias else a @ V
        columns = ((g @ U) * right).sum(1).mT
        zeros = g.new_zeros(self.count, len(g))
        return zeros.index_add_(0, self.query.to(g.device), columns)


@dataclass(frozen=True)
class Whole:
    """W (q, o, i), where that is cheaper."""

    W: Tensor

    def scores(self, a: Tensor, g: Tensor, bias: bool) -> Tensor:
        """(q, n) of a batch, as `LowRank.scores`."""
        both = torch.promote_types(self.W.dtype, g.dtype)
        D = transposed_gradient(a, g, bias).flatten(1)
        return self.W.mT.flatten(1).to(g.device, both) @ D.to(both).mT


@dataclass(frozen=True)
class Compressed:
    """{layer: LowRank or Whole} and the expected relative error of each query's scores (q,)."""

    layers: dict[str, LowRank | Whole]
    error: Tensor

    @property
    def ranks(self) -> dict[str, float]:
        """{layer: mean rank of a query}, of the layers of low rank."""
        return {
            name: x.U.shape[1] / x.count
            for name, x in self.layers.items()
            if isinstance(x, LowRank)
        }


def compress(w: Vectors, factors: EKFAC, error: float = 0.01, positions: int = 128) -> Compressed:
    """w ({layer: (q, o, i)} of `influence.precondition`) as `Compressed`, to the stated error.

    factors: the `ekfac.EKFAC` of the candidates' stage. positions: a candidate's typical length in
    tokens. Raises ValueError unless 0 < error < 1, and for factors of other layers."""
    if not 0 < error < 1:
        raise ValueError(
            f"error is {error!r}: expected a relative error between 0 and 1, such as 0.01"
        )
    same_layers(w, factors.layers, "the query vectors and the factors")
    queries = finite_vectors(w, "query vectors")
    whitened = {name: _whitened(name, x, queries, factors.factors[name]) for name, x in w.items()}
    squares = [_squares(M) for M in whitened.values()]
    total = sum(x.sum(1) for x in squares)
    kept = _kept(torch.cat(squares, 1), error).split([x.shape[1] for x in squares], 1)
    layers, lost = {}, 0
    for (name, W), M, square, keep in zip(w.items(), whitened.values(), squares, kept):
        cheaper = int(keep.sum()) * sum(W.shape[1:]) < (1 + len(W) / positions) * W[0].numel()
        layers[name] = _low_rank(M, keep, W.dtype, factors.factors[name]) if cheaper else Whole(W)
        lost = lost + (square * ~keep * cheaper).sum(1)
    return Compressed(layers, (lost / total).sqrt())


def score(
    tracked: Tracked,
    candidates: list[Sequence],
    compressed: Compressed,
    *,
    batch_size: int = 32,
    objective: Objective = loss,
    norms: bool = False,
    title: str | None = None,
) -> Scores:
    """`influence.score` for compressed queries: values (q, n) in their precision, positive =
    proponent.

    norms: also ‖∇ℓ_z‖ (n,), from the positions' products in s²(o + i); else None. title: of the
    progress bar (None: silent). Raises ValueError for queries of other layers."""
    same_layers(
        compressed.layers,
        [x.name for x in tracked.layers],
        "the query vectors and the tracked layers of the candidates' model",
    )
    first = next(iter(compressed.layers.values()))
    one = first.U if isinstance(first, LowRank) else first.W
    values = one.new_zeros(len(compressed.error), len(candidates))
    squares = one.new_zeros(len(candidates))
    check(candidates, *limits(tracked.model))
    at = {x.index: n for n, x in enumerate(candidates)}

    def consume(layer, a, g, draw, batch):
        here = [at[index] for index in batch.index.tolist()]
        values[:, here] += compressed.layers[layer.name].scores(a, g, layer.bias).to(values)
        if norms:
            squares[here] += ((g @ g.mT) * (a @ a.mT + layer.bias)).sum((1, 2)).to(squares)

    passes(tracked, candidates, [objective], batch_size, consume, title)
    return Scores(values, squares.sqrt() if norms else None)


def _roots(values):
    return values.double().clamp(min=FLOOR * values.max().double()).sqrt()


def _whitened(name, W, queries, factors):
    """M = B^½ W A^½ of each query in the eigenbases, float64: (q, blocks·r, i)."""
    check_shape(name, W, queries, factors.out_values.numel(), factors.in_values.numel())
    rotated = factors.rotate(W).flatten(1, 2).double()
    return _roots(factors.out_values).flatten()[:, None] * rotated * _roots(factors.in_values)


def _gram(M):
    """M Mᵀ or MᵀM, whichever is smaller: its eigenvalues are M's squared singular values, at a
    tenth of a decomposition of M."""
    return M @ M.mT if M.shape[1] <= M.shape[2] else M.mT @ M


def _squares(M):
    return torch.linalg.eigvalsh(_gram(M)).clamp(min=0)


def _kept(squares, error):
    """Which singular values stay: (q, k) bool, all but the smallest, whose squares come to at most
    error² of the whole."""
    order = squares.argsort(1)
    lost = squares.gather(1, order).cumsum(1) / squares.sum(1, keepdim=True)
    return torch.empty_like(squares, dtype=torch.bool).scatter_(1, order, lost > error**2)


def _low_rank(M, keep, dtype, factors):
    """U and V in the layer's own coordinates: the roots of B and A undone, the eigenbases rotated
    back."""
    query, column = keep.nonzero(as_tuple=True)
    vectors = torch.linalg.eigh(_gram(M)).eigenvectors
    one = vectors[query, :, column]  # (R, the smaller side)
    if M.shape[1] <= M.shape[2]:  # M ≈ Σ x xᵀM over left singular vectors x, or Σ M y yᵀ
        U, V = one, (vectors.mT @ M)[query, column]
    else:
        U, V = (M @ vectors)[query, :, column], one
    U = (U / _roots(factors.out_values).flatten()).unflatten(1, factors.out_values.shape)
    V = V / _roots(factors.in_values)
    U = torch.einsum("bor,Rbr->Rbo", factors.basis_out.double(), U).flatten(1)
    if factors.rows is not None:
        U = torch.empty_like(U).index_copy_(1, factors.rows.flatten(), U)
    V = factors.basis_in.double() @ V.mT
    return LowRank(U.mT.to(dtype).contiguous(), V.to(dtype).contiguous(), query, len(M))
