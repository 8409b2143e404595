"""The multi-stage influence function.

A model is trained in stages 1 (pre-training), …, K (fine-tuning). Stage k starts at θ_{k−1} and
stays near it with strength α_k: θ_k = argmin J_k(θ) + α_k/2 ‖θ − θ_{k−1}‖². A measurement f(θ_K),
such as the log-probability of an answer, then depends on the weight w_z of a document z of stage j
through

    df/dw_z = s_j(z) = ⟨w_j, ∇ℓ_z(θ_j)⟩,
    w_j = (H_j + α_j + d_j)⁻¹ T_{j+1} ⋯ T_K ∇(−f)(θ_K),   T_k = α_k (H_k + α_k + d_k)⁻¹,

T_K first. Sign: positive = proponent (more weight on z raises f). Unit: the unit of f (nats) per
unit of weight, where every document of the stage weighs 1/N; −s_j(z)/N estimates f without z minus
f with z. Only the tracked layers take part: all other parameters count as fixed. The derivative is
exact for stages trained to their optimum with the exact H; α is a modelling choice where
fine-tuning has no proximal term, and the size of a score depends on it. K = 1 is the ordinary
influence function. Source: Bao et al. 2025 (arXiv 2505.05017), here with the factor α that follows
from differentiating the stages' optimality conditions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from msif.core import checks, data, pairs
from msif.core.capture import gradients, grouped_passes, passes
from msif.core.kronecker import EKFAC
from msif.core.layers import Tracked, Vectors
from msif.core.models import limits
from msif.core.objectives import Objective, log_probability, loss
from msif.core.products import transposed_gradient
from msif.core.resources import require
from msif.core.spent import share_said
from msif.core.stages import NONE as NONE
from msif.core.stages import Cross as Cross
from msif.core.stages import Curvature as Curvature
from msif.core.stages import Damping as Damping
from msif.core.stages import Stage as Stage
from msif.core.stages import check as check
from msif.core.vectors import check_vectors, finite_vectors
from msif.core.vectors import same_layers as same_layers


def query_gradients(
    tracked: Tracked,
    queries: list[data.Sequence],
    measurement: Objective = log_probability,
    batch_size: int = 32,
) -> Vectors:
    """∇(−f) of each query at the last stage's model: {layer: (q, o, i)}.

    measurement: f, (logits, batch) -> (n,). Raises MemoryError where they will not fit.
    """
    checks.whole("the number of tracked layers", len(tracked.layers))
    data.check(queries, *limits(tracked.model))
    require(
        memory=2 * 4 * len(queries) * tracked.weights,  # with one copy to precondition
        what=f"gradients of {len(queries)} queries over {len(tracked.layers)} layers",
    )
    return gradients(
        tracked, queries, lambda logits, batch: -measurement(logits, batch), batch_size
    )


def precondition(query: Vectors, stages: Sequence[Stage]) -> list[Vectors]:
    """[w_1, …, w_K], each {layer: (q, o, i)}.

    s_j(z) = ⟨w_j, ∇ℓ_z(θ_j)⟩ for a document z of stage j.
    query: ∇(−f), {layer: (q, o, i)}. Raises ValueError for stages that make no chain (`check`),
    other layers than the last stage's, and a singular block; FloatingPointError for gradients that
    are not finite; MemoryError where the results will not fit.
    """
    check(stages)
    same_layers(
        query, stages[-1].curvature.layers, "the query gradients and the last stage's curvature"
    )
    queries = finite_vectors(query, "query gradients")
    copies = len(stages) + (len(stages) > 1)  # the results, and what goes on to earlier stages
    largest = max(x.nbytes for x in query.values())
    require(
        memory=copies * sum(x.nbytes for x in query.values()) + 4 * largest,
        what=f"preconditioning {queries} queries for {len(stages)} stages (fewer queries at once, "
        f"or `queries.preconditioned`, take less)",
    )
    solved: list[Vectors] = []
    for k, stage in reversed(list(enumerate(stages))):
        solved.insert(0, stage.inverse(query))
        if k:
            query = stage.transfer(query)
    return solved


@dataclass(frozen=True)
class Scores:
    """values: (q, n), positive = proponent. norms: (n,) ‖∇ℓ_z‖ over the tracked layers, or None.

    layers: {name: (q, n)}, they sum to values; empty unless asked for.
    """

    values: Tensor
    norms: Tensor | None
    layers: dict[str, Tensor] = field(default_factory=dict)

    def normalised(self) -> Tensor:
        """Divided by the candidate's gradient norm: (q, n).

        So long or badly fitted documents are not favoured. Raises FloatingPointError for a
        candidate whose gradient is too small to be squared, and yet has a score.
        """
        if self.norms is None:
            raise ValueError("these scores have no norms: ask for them where they are computed")
        least = 100 * torch.finfo(self.norms.dtype).tiny ** 0.5  # below it, squares are none
        lost = (self.norms < least) & (self.values != 0).any(0)
        if lost.any():
            n = int(lost.nonzero()[0])
            raise FloatingPointError(
                f"candidate {n} has a gradient of norm {self.norms[n].item():.1g}, of numbers too "
                f"small to be squared in {self.norms.dtype}: the model is sure of all its tokens. "
                f"Leave it out, take the values that are not normalised, or load the model in "
                f"float64"
            )
        return self.values / self.norms.clamp(min=torch.finfo(self.norms.dtype).tiny)


def score(
    tracked: Tracked,
    candidates: pairs.Items,
    w: Vectors,
    *,
    batch_size: int = 32,
    per_layer: bool = False,
    objective: Objective = loss,
    title: str | None = None,
) -> Scores:
    """Scores of every candidate for every query vector of w ({layer: (q, o, i)}).

    candidates: n sequences; or pairs, with the objective of their stage. One forward and backward
    each. `tracked` is the model of the candidates' own stage. Vectors of several methods can be
    stacked along q: one pass serves all. Raises ValueError for other layers or shapes than w's, and
    for candidates that share an index; FloatingPointError for w that is not finite.
    """
    check_vectors(w, tracked)
    pairs.check(candidates, *limits(tracked.model))
    # No copy of w where `queries.preconditioned` made it.
    weights = {name: x.mT.flatten(1) for name, x in w.items()}
    first = next(iter(weights.values()))
    parts = list(weights) if per_layer else ["all"]
    found = {name: first.new_zeros(len(first), len(candidates)) for name in parts}
    norms = first.new_zeros(len(candidates))
    at = {x.index: n for n, x in enumerate(candidates)}

    def consume(layer, a, g, draw, batch):
        here = torch.tensor([at[index] for index in batch.index.tolist()])
        D = transposed_gradient(a, g, layer.bias).flatten(1)
        both = torch.promote_types(D.dtype, first.dtype)  # w of a stage of another precision
        scores = weights[layer.name].to(D.device, both) @ D.to(both).mT
        found[layer.name if per_layer else "all"][:, here] += scores.to(first.device)
        norms[here] = norms[here].hypot(torch.linalg.vector_norm(D, dim=1).to(norms))

    with share_said(tracked.model, title, "pass"):
        passes(tracked, candidates, [objective], batch_size, consume, title)
    values = sum(found.values(), first.new_zeros(()))
    return Scores(values, norms, found if per_layer else {})


def token_scores(
    tracked: Tracked,
    candidates: pairs.Items,
    w: Vectors,
    *,
    batch_size: int = 32,
    objective: Objective = loss,
) -> Tensor:
    """s split over positions: (q, n, S), Σ_t g_tᵀ W a_t = s(z); zero where padded. Of pairs, with
    the objective of their stage, (q, n, 2S): those of the chosen row, then of the rejected one.

    w: {layer: (q, o, i)}. A token's score belongs to the position whose inputs the weights met; its
    g_t carries the losses of all later tokens. Raises ValueError for other layers or shapes than
    w's, FloatingPointError for w that is not finite.
    """
    check_vectors(w, tracked)
    pairs.check(candidates, *limits(tracked.model))
    rows, sides = cast(list[data.Sequence], candidates), 1
    if pairs.are_pairs(candidates):
        rows, sides = pairs.rows_of(candidates), 2
    longest = max(len(x.input_ids) for x in rows)
    total: list[Tensor] = []

    def consume(layer, a, g, draw, batch, group):
        W = w[layer.name].to(g)
        if not total:
            total.append(a.new_zeros(len(W), len(candidates), sides, longest))
        here = torch.einsum("nso,qoi,nsi->qns", g, W[..., : a.shape[2]], a)
        if layer.bias:
            here += torch.einsum("nso,qo->qns", g, W[..., -1])
        total[0][:, group, :, : a.shape[1] // sides] += here.unflatten(2, (sides, -1))

    grouped_passes(tracked, candidates, [objective], batch_size, consume)
    return total[0].flatten(2)


def self_influence(
    tracked: Tracked, documents: list[data.Sequence], stage: Stage, batch_size: int = 32
) -> Tensor:
    """s(z, z) = ∇ℓ_zᵀ (H + α + d)⁻¹ ∇ℓ_z ≥ 0 of each document of a stage: (n,).

    Its influence on its own log-probability, in nats per unit of weight. With EK-FAC, whose layers
    are independent, one layer of `batch_size` documents is held at a time.
    """

    data.check(documents, *limits(tracked.model))
    if type(stage) is Stage and isinstance(stage.curvature, EKFAC):
        return _by_layer(tracked, documents, stage, stage.curvature, batch_size)

    def values(few):
        g = gradients(tracked, few, loss, batch_size)
        w = stage.inverse(g)
        return sum((w[name] * x).sum((1, 2)) for name, x in g.items())

    return torch.cat(
        [values(documents[i : i + batch_size]) for i in range(0, len(documents), batch_size)]
    )


def _by_layer(tracked, documents, stage, curvature, batch_size):
    """`self_influence` as a sum over layers, in the eigenbasis."""
    found = torch.zeros(len(documents), dtype=torch.float64)

    def consume(layer, a, g, draw, batch, group):
        new = layer.name in stage.new
        f = stage.inverse_filter_of_new if new else stage.inverse_filter
        found[group] += curvature.quadratic(f, layer, a, g).cpu().double()

    grouped_passes(tracked, documents, [loss], batch_size, consume)
    dtype = torch.promote_types(tracked.model.dtype, torch.float32)
    return found.to(dtype).to(tracked.model.device)


def trajectory(scores: Iterable[Tensor]) -> Tensor:
    """Σ over checkpoints of scores (q, n), each over its one global standard deviation: (q, n).

    Without unit. Raises ValueError for no checkpoint, for shapes that differ, and for scores that
    have no spread: a single one, all equal, or not all finite.
    """
    total = torch.zeros(())
    for k, values in enumerate(scores):
        equal = values.numel() < 2 or bool(values.min() == values.max())
        if equal or not 0 < values.std() < float("inf"):
            raise ValueError(
                f"the scores of checkpoint {k} of the trajectory, of shape {tuple(values.shape)}, "
                f"are all equal or not finite: each checkpoint counts in units of its standard "
                f"deviation; leave it out, or score more documents"
            )
        if k and values.shape != total.shape:
            raise ValueError(
                f"checkpoint {k} of the trajectory has scores of shape {tuple(values.shape)}, "
                f"those before it {tuple(total.shape)}: expected one shape"
            )
        total = total + values / values.std()
    if not total.dim():
        raise ValueError("a trajectory of no scores: expected those of at least one checkpoint")
    return total
