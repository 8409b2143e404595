"""Similarities of gradients, without any inverse; {layer: (n, o, i)} of queries and candidates.

    gradient dot          ⟨q, ∇ℓ_z⟩
    cosine                ⟨q, ∇ℓ_z⟩ / (‖q‖ ‖∇ℓ_z‖)
    CKA of gradients      mean over layers of ‖Xᵀ Y‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), X = ∇ℓ_z and Y = q centred
                          over outputs; no sign

Source of CKA: Kornblith et al. 2019 (arXiv 1905.00414).
"""

import torch

from msif.core.products import flatten


def dot(w, g):
    """⟨w, ∇ℓ_z⟩: {layer: (q, o, i)}, {layer: (n, o, i)} -> (q, n)."""
    return sum(x.flatten(1) @ g[name].flatten(1).mT for name, x in w.items())


def cosine(w, g):
    """`dot` divided by both norms over all layers: (q, n)."""
    return dot(w, g) / (flatten(w).norm(dim=1)[:, None] * flatten(g).norm(dim=1))


def cka(q, g):
    """Linear CKA of the gradients as (o, i) matrices, mean over layers: (q, n) in [0, 1]; it has
    no sign.

    ‖Xᵀ Y‖² = ⟨XXᵀ, YYᵀ⟩ by (o, o) Gram matrices."""
    return sum(_gram(q[name]) @ _gram(g[name]).mT for name in q) / len(q)


def _gram(x):
    """(n, o·o): centred X Xᵀ, divided by its norm."""
    x = x - x.mean(1, keepdim=True)
    tiny = 1e-300 if x.dtype == torch.float64 else 1e-30
    return torch.nn.functional.normalize((x @ x.mT).flatten(1), eps=tiny)
