"""The multi-stage influence function.

A model is trained in stages 1 (pre-training), …, K (fine-tuning). Stage k starts at θ_{k−1} and stays near it with strength
α_k: θ_k = argmin J_k(θ) + α_k/2 ‖θ − θ_{k−1}‖². A measurement f(θ_K), such as the log-probability of an answer, then depends on
the weight w_z of a document z of stage j through

    df/dw_z = s_j(z) = ⟨w_j, ∇ℓ_z(θ_j)⟩,   w_j = (H_j + α_j + d_j)⁻¹ T_{j+1} ⋯ T_K ∇(−f)(θ_K),   T_k = α_k (H_k + α_k + d_k)⁻¹,

T_K first. Sign: positive = proponent (more weight on z raises f). Unit: the unit of f (nats) per unit of weight, where every
document of the stage weighs 1/N; −s_j(z)/N estimates f without z minus f with z. Only the tracked layers take part: all
other parameters count as fixed. The derivative is exact for stages trained to their optimum with the exact H; α is a
modelling choice where fine-tuning has no proximal term, and the size of a score depends on it. K = 1 is the ordinary influence function. Source: Bao et al. 2025 (arXiv 2505.05017), here with
the factor α that follows from differentiating the stages' optimality conditions.
"""

from dataclasses import dataclass, field

import torch

from msif.core.capture import gradients, passes
from msif.core.data import buckets
from msif.core.objectives import log_probability, loss
from msif.core.products import transposed_gradient
from msif.core.resources import require


@dataclass(frozen=True)
class Damping:
    """A number added to the eigenvalues: `value` × the layer's mean eigenvalue, or `value` itself if not relative."""

    value: float
    relative: bool = True

    def __post_init__(self):
        if isinstance(self.value, str) or not 0 <= self.value < float("inf"):
            raise ValueError(f"damping or α of {self.value!r}: expected a finite number ≥ 0")

    def of(self, mean):
        return self.value * mean if self.relative else self.value


NONE = Damping(0.0)


@dataclass(frozen=True)
class Stage:
    """One stage of training as the influence function sees it.

    curvature: has `layers` and `apply(f, v, new, f_new)` (`ekfac.EKFAC`, `dense.Dense`). damping d: numerical. alpha α: how
    strongly the stage stays near its start (for stage 1: its L2 regularisation). new: layers that earlier stages lack, such
    as a classification head; they carry no α.
    """

    curvature: object
    damping: Damping = NONE
    alpha: Damping = NONE
    new: tuple = ()

    @property
    def forgets(self):
        """Does nothing of where the stage starts reach its end?"""
        return self.alpha.value == 0

    def inverse(self, v):
        """(H + αP + d)⁻¹ v."""
        return self.curvature.apply(self._inverse, v, self.new, self._inverse_new)

    def transfer(self, v):
        """T v = α (H + αP + d)⁻¹ v on the layers that earlier stages have."""
        moved = self.curvature.apply(
            lambda *at: self._inverse(*at) * self.alpha.of(at[1]), v, self.new, self._inverse_new
        )
        return {name: x for name, x in moved.items() if name not in self.new}

    def _inverse(self, eigenvalues, mean):
        return _reciprocal(eigenvalues + self.alpha.of(mean) + self.damping.of(mean))

    def _inverse_new(self, eigenvalues, mean):
        return _reciprocal(eigenvalues + self.damping.of(mean))


def _reciprocal(x):
    """1 / x, unless some x is no more than rounding error beside the largest."""
    if not (x > 1e-12 * x.max()).all():
        raise ValueError(
            f"a singular block: its damped eigenvalues go from {x.min().item():.3g} to {x.max().item():.3g}. Give the stage a "
            f"damping > 0, for instance Damping(1e-3); where all eigenvalues of a layer are 0, an absolute one"
        )
    return 1 / x


def check(stages):
    """Raise ValueError unless each stage tracks the layers of the one before it plus its own declared new ones."""
    for k, (earlier, later) in enumerate(zip(stages, stages[1:]), start=2):
        before, now = set(earlier.curvature.layers), set(later.curvature.layers) - set(later.new)
        if before != now:
            raise ValueError(
                f"stages {k - 1} and {k} do not share the tracked layers; only in stage {k - 1}: "
                f"{sorted(before - now)}, only in stage {k}: {sorted(now - before)} (a layer that stage {k} "
                f"adds, such as a head, must be named in its `new`)"
            )
        if later.forgets:
            raise ValueError(
                f"stage {k} has α = 0: it forgets its start, so no earlier document has influence; give it an "
                f"alpha > 0, for instance Damping(0.1)"
            )
    if not stages:
        raise ValueError(
            "there are no stages: expected at least one, the stage whose documents are scored"
        )
    if stages[0].new:
        raise ValueError(
            f"stage 1 has new layers {stages[0].new}: there is no earlier stage that could lack them"
        )


def query_gradients(tracked, queries, measurement=log_probability, batch_size=32):
    """∇(−f) of each query at the last stage's model: {layer: (q, o, i)}. measurement: (logits, batch) -> (n,)."""
    size = (
        2
        * 4
        * len(queries)
        * sum(x.out_features * (x.in_features + x.bias) for x in tracked.layers)
    )  # one copy to precondition
    require(
        memory=size, what=f"gradients of {len(queries)} queries over {len(tracked.layers)} layers"
    )
    return gradients(
        tracked, queries, lambda logits, batch: -measurement(logits, batch), batch_size
    )


def precondition(query, stages):
    """[w_1, …, w_K], each {layer: (q, o, i)}: s_j(z) = ⟨w_j, ∇ℓ_z(θ_j)⟩ for a document z of stage j."""
    check(stages)
    same_layers(
        query, stages[-1].curvature.layers, "the query gradients and the last stage's curvature"
    )
    solved = []
    for k, stage in reversed(list(enumerate(stages))):
        solved.insert(0, stage.inverse(query))
        query = stage.transfer(query) if k else None
    return solved


def same_layers(a, b, what):
    """ValueError unless two collections of layer names hold the same ones."""
    if difference := set(a) ^ set(b):
        raise ValueError(
            f"{what} do not have the same layers; only one of them has {sorted(difference)}"
        )


@dataclass(frozen=True)
class Scores:
    """values: (q, n), positive = proponent. norms: (n,) ‖∇ℓ_z‖ over the tracked layers. layers: {name: (q, n)}, they sum to values."""

    values: torch.Tensor
    norms: torch.Tensor
    layers: dict = field(default_factory=dict)

    def normalised(self):
        """Divided by the candidate's gradient norm, so that long or badly fitted documents are not favoured: (q, n)."""
        return self.values / self.norms.clamp(min=torch.finfo(self.norms.dtype).tiny)


def score(tracked, candidates, w, *, batch_size=32, per_layer=False, objective=loss, title=None):
    """Scores of every candidate (n sequences) for every query vector of w ({layer: (q, o, i)}): one forward and backward each.

    `model` is the one of the candidates' own stage. Vectors of several methods can be stacked along q: one pass serves all.
    """
    same_layers(
        w,
        [layer.name for layer in tracked.layers],
        "the query vectors and the tracked layers of the candidates' model",
    )
    weights = {
        name: x.mT.flatten(1) for name, x in w.items()
    }  # no copy of w where `queries.preconditioned` made it
    first = next(iter(weights.values()))
    found = {
        name: first.new_zeros(len(first), len(candidates))
        for name in (weights if per_layer else ["all"])
    }
    squares, at = first.new_zeros(len(candidates)), {x.index: n for n, x in enumerate(candidates)}
    if len(at) < len(candidates):
        raise ValueError(
            f"{len(candidates) - len(at)} candidates share their index with another: each needs its own"
        )

    def consume(layer, a, g, draw, batch):
        here = torch.tensor([at[index] for index in batch.index.tolist()])
        D = transposed_gradient(a, g, layer.bias).flatten(1)
        found[layer.name if per_layer else "all"][:, here] += (
            weights[layer.name].to(D.device) @ D.mT
        ).to(first.device)
        squares[here] += torch.linalg.vector_norm(D, dim=1).square().to(first.device)

    passes(tracked, candidates, [objective], batch_size, consume, title)
    return Scores(sum(found.values()), squares.sqrt(), found if per_layer else {})


def token_scores(tracked, candidates, w, *, batch_size=32, objective=loss):
    """S split over positions: (q, n, S), Σ_t g_tᵀ W a_t = s(z); zero where padded.

    A token's score belongs to the position whose inputs the weights met; its g_t carries the losses of all later tokens."""
    same_layers(
        w,
        [layer.name for layer in tracked.layers],
        "the query vectors and the tracked layers of the candidates' model",
    )
    longest = max(len(x.input_ids) for x in candidates)
    total = []

    def consume(layer, a, g, draw, batch):
        if not total or total[-1][0] is not batch:
            total.append((batch, a.new_zeros(len(w[layer.name]), len(a), longest)))
        W = w[layer.name].to(g)
        total[-1][1][:, :, : a.shape[1]] += torch.einsum(
            "nso,qoi,nsi->qns", g, W[..., : a.shape[2]], a
        )
        if layer.bias:
            total[-1][1][:, :, : a.shape[1]] += torch.einsum("nso,qo->qns", g, W[..., -1])

    passes(tracked, candidates, [objective], batch_size, consume)
    order = torch.tensor([n for group in buckets(candidates, batch_size) for n in group])
    return torch.cat([x for _, x in total], 1)[:, order.argsort()]


def self_influence(tracked, documents, stage, batch_size=32):
    """s(z, z) = ∇ℓ_zᵀ (H + α + d)⁻¹ ∇ℓ_z ≥ 0 of each document of a stage on its own log-probability: (n,)."""

    def values(few):
        g = gradients(tracked, few, loss, batch_size)
        w = stage.inverse(g)
        return sum((w[name] * x).sum((1, 2)) for name, x in g.items())

    return torch.cat(
        [values(documents[i : i + batch_size]) for i in range(0, len(documents), batch_size)]
    )


def trajectory(scores):
    """Σ over checkpoints of scores (q, n), each divided by its one global standard deviation: (q, n), without unit."""
    return sum(values / values.std() for values in scores)
