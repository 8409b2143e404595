"""TRAK: random projections of the margin's gradient, over several models.

    s(z) = φ(query)ᵀ (ΦᵀΦ + r I)⁻¹ φ(z) (1 − p_z),   φ = Pᵀ∇m,   m the margin, P random (of traker)

r is `ridge` × the mean diagonal of ΦᵀΦ; none in the source, Park et al. 2023 (arXiv 2303.14186),
where features are few beside documents.
"""

import torch

from msif.core import models
from msif.core.capture import gradients
from msif.core.data import NO_LOSS, batches
from msif.core.extras import need
from msif.core.objectives import align
from msif.core.products import flatten


def margin(logits, batch):
    """TRAK's model output m = Σ_t log(p_t / (1 − p_t)) over the labelled tokens: (n,), nats."""
    z, y = align(logits, batch.labels)
    log_p = z.log_softmax(2).gather(2, y.clamp(min=0)[..., None])[..., 0]
    log_rest = z.scatter(2, y.clamp(min=0)[..., None], -torch.inf).logsumexp(2) - z.logsumexp(2)
    return ((log_p - log_rest) * (y != NO_LOSS)).sum(1)


def error_probability(logits, batch):
    """TRAK's 1 − p, mean over the labelled tokens: (n,). It is −∂ℓ/∂m of one token."""
    z, y = align(logits, batch.labels)
    p = z.softmax(2).gather(2, y.clamp(min=0)[..., None])[..., 0]
    labelled = y != NO_LOSS
    return ((1 - p) * labelled).sum(1) / labelled.sum(1)


@torch.no_grad()
def errors(model, sequences, batch_size=64):
    """`error_probability` of each sequence at a model: (n,), on the CPU."""
    few = batches(sequences, batch_size)
    return torch.cat([error_probability(models.logits(model, batch), batch).cpu() for batch in few])


def projector(layers, dimension, seed, dtype=torch.float32):
    """Pᵀ: rows (n, P) -> (n, dimension), random signs, by traker; it holds P · dimension
    numbers."""
    size = sum(x.out_features * x.inputs for x in layers)
    found = need("trak.projectors").BasicProjector(
        size, dimension, seed, "rademacher", "cpu", block_size=dimension, dtype=dtype
    )
    return lambda rows: found.project(rows, model_id=0)


def trak_features(tracked, sequences, project, batch_size=64):
    """φ = Pᵀ∇m of each sequence: (n, dimension), on the CPU; `project` maps rows (n, P) there, in
    the order of `layers`."""

    def features(few):
        return project(flatten(gradients(tracked, few, margin, batch_size)).cpu())

    starts = range(0, len(sequences), batch_size)
    return torch.cat([features(sequences[i : i + batch_size]) for i in starts])


def trak(queries, candidates, weights, ridge=0.0):
    """TRAK's scores (q, n) from lists over models: φ(query) (q, k), φ(z) (n, k) and 1 − p_z (n,).

    Scores and weights are averaged over models before they are multiplied, as in the source.
    ridge: relative to the mean diagonal of ΦᵀΦ. Raises ValueError for a negative one, and without
    any for fewer candidates than features, whose ΦᵀΦ has no inverse."""
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"a ridge of {ridge!r}: expected a finite number, at least 0")
    if not ridge and (n := len(candidates[0])) < (k := candidates[0].shape[1]):
        raise ValueError(
            f"{n} candidates for {k} features: ΦᵀΦ is singular; "
            f"project to fewer than {n} dimensions, or give a ridge"
        )
    scores = [q @ _solved(phi, ridge) for q, phi in zip(queries, candidates)]
    return torch.stack(scores).mean(0) * torch.stack(weights).mean(0)


def _solved(phi, ridge):
    """(ΦᵀΦ + r I)⁻¹ Φᵀ: (k, n)."""
    gram = phi.mT @ phi
    if ridge:
        gram.diagonal().add_(ridge * gram.diagonal().mean())
    return torch.linalg.solve(gram, phi.mT)
