"""A stage that is trained on preferences (DPO; Rafailov et al. 2023, arXiv 2305.18290).

    m_j(θ; θ_start) = −log σ(u_j),   u_j = b [h_j(θ) − h_j(θ_start)],
    h_j(θ) = log π_θ(chosen_j) − log π_θ(rejected_j):

the reference model is the one that the stage starts from; no label smoothing. With c_j =
b² σ(u_j) σ(−u_j) / M over M pairs, u_j at the stage's end, the Gauss-Newton matrix and the cross
term are

    H = Σ_j c_j ∇h_j(θ) ∇h_j(θ)ᵀ,   X = −∂²/∂θ∂θ_start = Σ_j c_j ∇h_j(θ) ∇h_j(θ_start)ᵀ,

and T = (X + α)ᵀ (H + α)⁻¹ (`stages.Stage`). X has no approximation in it but its basis: where ∇h_j
is the same at both ends, T = 1 for any α. In EK-FAC's basis of H, Λ = Σ_j c_j d̃_j(θ)² and Λ× =
Σ_j c_j d̃_j(θ) ∘ d̃_j(θ_start), d̃ = Q_Bᵀ D Q_A with D the gradient of h_j, so that T is a ratio a
coordinate, (Λ× + α) / (Λ + α). Nothing is drawn at random here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from msif.core import ekfac, pairs
from msif.core.capture import audits, frozen, groups, one_batch
from msif.core.coverage import coverage, say_coverage
from msif.core.data import Batch
from msif.core.generation import log_probabilities
from msif.core.kronecker import EKFAC, LayerFactors, factor_bytes
from msif.core.layers import Tracked, Vectors
from msif.core.model_digest import model_digest
from msif.core.models import limits
from msif.core.objectives import log_probability
from msif.core.pairs import Pair
from msif.core.resources import require
from msif.core.selfcheck import batching
from msif.core.spent import share_said
from msif.core.vectors import same_layers

LABELS = "preferences"  # what headers of such factors have as `labels`


@dataclass(frozen=True)
class DPO:
    """DPO's loss against a reference model.

    b: its strength (trl's beta), > 0. reference: {pair's index: h_j of the reference model}, nats.
    """

    b: float
    reference: Mapping[int, float]

    def __post_init__(self):
        if isinstance(self.b, bool) or not isinstance(self.b, Real) or not 0 < self.b < math.inf:
            raise ValueError(f"DPO's b is {self.b!r}: expected a finite number > 0")
        object.__setattr__(self, "b", float(self.b))  # of numpy, too

    def __call__(self, logits: Tensor, rows: Batch) -> Tensor:
        """m_j of n pairs, whose 2n rows (`pairs.rows_of`) the logits are of: (n,), nats."""
        h = margin(logits, rows)
        indices = rows.index[: len(h)].tolist()
        if missing := [x for x in indices if x not in self.reference]:
            raise ValueError(f"the reference has no margin of the pairs {missing[:5]}: add them")
        before = torch.tensor([self.reference[x] for x in indices], dtype=torch.float64).to(h)
        return softplus(-self.b * (h - before))

    def weights(self, items: list[Pair], h: Tensor) -> dict[int, float]:
        """{pair's index: √(M c_j) = b √(σ(u_j) σ(−u_j))} of pairs with margins h (n,)."""
        before = torch.tensor([self.reference[x.index] for x in items], dtype=torch.float64).to(h)
        u = self.b * (h - before)
        found = self.b * (u.sigmoid() * (-u).sigmoid()).sqrt()
        return {x.index: w for x, w in zip(items, found.tolist())}


def margin(logits: Tensor, rows: Batch) -> Tensor:
    """h_j of n pairs, whose 2n rows the logits are of: (n,), nats."""
    chosen, rejected = log_probability(logits, rows).unflatten(0, (2, -1))
    return chosen - rejected


def margins(model: nn.Module, items: list[Pair], batch_size: int = 32) -> Tensor:
    """h_j of each pair: (n,) float64, nats. Raises ValueError as `capture.groups`."""
    pairs.check(items, *limits(model))
    batching(Tracked(model, []), pairs.rows_of(items), 2 * batch_size)  # `log_probabilities` asks
    chosen, rejected = log_probabilities(model, pairs.rows_of(items), batch_size).chunk(2)
    return chosen - rejected


def against(model: nn.Module, items: list[Pair], b: float = 0.1, batch_size: int = 32) -> DPO:
    """The loss of these pairs with this model as reference: that which the stage started from."""
    found = margins(model, items, batch_size).tolist()
    return DPO(b, {x.index: h for x, h in zip(items, found)})


@dataclass(frozen=True)
class EigenCross:
    """X of a stage in the eigenbases of its factors.

    values: {layer: Λ× (blocks, r, i)}.
    """

    factors: Mapping[str, LayerFactors]
    values: Mapping[str, Tensor]

    def transposed(self, v: Vectors) -> Vectors:
        """Xᵀ v: V ↦ Q_B [Λ× ∘ (Q_Bᵀ V Q_A)] Q_Aᵀ; v: {layer: (q, o, i)}."""

        def crossed(name, x):
            factors = self.factors[name].to(x.device)
            rotated = factors.rotate(x)
            return factors.rotate_back(rotated * self.values[name].to(rotated))

        return {name: crossed(name, x) for name, x in v.items()}


@dataclass(frozen=True)
class Preferences:
    """What a stage of preferences brings to its `Stage`.

    curvature, cross: H and X. loss: m_j, whose gradient pairs are scored by.
    """

    curvature: EKFAC
    cross: EigenCross
    loss: DPO


def fit(
    end: Tracked,
    start: Tracked,
    items: list[Pair],
    *,
    b: float = 0.1,
    batch_size: int = 32,
    title: str | None = None,
) -> Preferences:
    """H and X of a stage that went from one model to the other on these pairs, in EK-FAC's form.

    Two passes over the pairs at `end`, and one at both; a batch's inputs and gradients of all
    layers are held between the models. Raises ValueError for models that do not track the same
    layers, for pairs that they cannot read, and as `capture.groups` for either model; MemoryError
    where the factors will not fit.
    """
    same_layers(end.names, start.names, "the stage's end and its start")
    for model in (end, start):
        groups(model, items, batch_size)
    require(
        memory=3 * sum(map(factor_bytes, end.layers)),
        what=f"EK-FAC factors of {len(end.layers)} layers, with their cross term",
    )
    say_coverage(end, title)
    loss = against(start.model, items, b, batch_size)
    weights = loss.weights(items, margins(end.model, items, batch_size))

    def scaled(logits, rows):
        h = margin(logits, rows)
        each = [weights[x] for x in rows.index[: len(h)].tolist()]
        return h * torch.tensor(each, dtype=torch.float64).to(h)

    run = (end, items, [scaled], batch_size)
    with share_said(end.model, title, "fit"):
        bases = {name: ekfac.eigenbases(*x) for name, x in ekfac.covariances(*run, title).items()}
        factors = ekfac.corrected_eigenvalues(*run, bases, title)
        cross = _cross(end, start, items, scaled, batch_size, factors)
    return Preferences(
        EKFAC(factors, header(end, start, items, loss.b)), EigenCross(factors, cross), loss
    )


def _cross(end, start, items, objective, batch_size, factors):
    """{layer: Λ×}, from one pass over the pairs at both models."""
    total = {name: torch.zeros_like(x.eigenvalues) for name, x in factors.items()}

    def rotated(layer, a, g):
        return factors[layer.name].to(a.device).rotated_gradient(a, g, layer.bias)

    batches = groups(end, items, batch_size)
    again = audits(items, batches)
    with frozen(end.model), frozen(start.model):
        for number, group in enumerate(batches):
            held = {}

            def hold(layer, a, g, draw, batch):
                held[layer.name] = a, g

            def multiply(layer, a, g, draw, batch):
                both = rotated(layer, a, g) * rotated(
                    layer, *(x.to(a) for x in held.pop(layer.name))
                )
                total[layer.name] += both.sum(0).to(total[layer.name])

            few = [items[n] for n in group]
            one_batch(end, few, [objective], hold, again.get(number))
            one_batch(start, few, [objective], multiply, again.get(number))
    return {name: x / len(items) for name, x in total.items()}


def header(end: Tracked, start: Tracked, items: list[Pair], b: float) -> dict[str, Any]:
    """What factors of preferences were made from, as JSON values."""
    rows = pairs.rows_of(items)
    return {
        "labels": LABELS,
        "samples": 1,
        "seed": 0,
        "b": b,
        "sequences": len(items),
        "tokens": sum(len(x.input_ids) for x in rows),
        "coverage": coverage(end).header(),
        "model": model_digest(end.model),
        "start": model_digest(start.model),
        "data": pairs.digest(items),
    }
