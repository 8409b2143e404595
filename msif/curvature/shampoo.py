"""Eigenvalue-corrected Shampoo: EK-FAC's form in other bases, those of whole gradients.

For one block of a layer, with D the pseudo-gradient of a sequence:

    L = E_seq[D Dᵀ] = U_L diag(λ_L) U_Lᵀ,   R = E_seq[Dᵀ D] = U_R diag(λ_R) U_Rᵀ,     first pass
    Λ = E_seq[(U_Lᵀ D U_R)²]                                                         second pass
    f(G): V ↦ U_L [f(Λ) ∘ (U_Lᵀ V U_R)] U_Rᵀ

EK-FAC's A and B are means over single tokens, so its bases see what a token's gradient g aᵀ looks
like; L and R see sums over a sequence's tokens, of which G is made. For sequences of one token L is
E[‖a‖² g gᵀ] and R is E[‖g‖² a aᵀ]. R is shared by a layer's blocks, as A is. Source: Shampoo (Gupta
et al. 2018, arXiv 1802.09568), corrected as EK-FAC corrects K-FAC and as SOAP does (Vyas et al.
2024, arXiv 2409.11321). Index letters as in `msif.core.capture`.
"""

from dataclasses import replace

import torch

from msif.core import checks
from msif.core.capture import passes
from msif.core.coverage import say_coverage
from msif.core.ekfac import corrected_eigenvalues, eigenbases, header
from msif.core.kronecker import EKFAC, block_shape
from msif.core.objectives import fisher_losses
from msif.core.products import sequence_gradient, split
from msif.core.resources import require

CAST = ("basis_in", "basis_out", "in_values", "out_values", "positions")


def fit(tracked, sequences, *, labels="gaussian", samples=2, seed=0, batch_size=32, title=None):
    """As `ekfac.fit`: an `EKFAC`, for `Stage`, `store.save` and everything else that takes one.

    Its in_values are λ_R / tr R and its positions 1, so that `kfac()` of it is Shampoo without the
    correction, L ⊗ R / tr R. L and R are summed in float64, Λ in the model's precision as EK-FAC's
    is. Raises MemoryError where they will not fit, FloatingPointError naming a layer that is not
    finite.
    """
    checks.whole("the number of tracked layers", len(tracked.layers))
    require(
        memory=16 * sum(map(_numbers, tracked.layers)),  # float64 sums, bases, Λ, and their `eigh`
        what=f"Shampoo factors of {len(tracked.layers)} layers",
    )
    say_coverage(tracked, title)
    run = (tracked, sequences, fisher_losses(labels, samples, seed), batch_size)
    dtype = torch.promote_types(next(tracked.model.parameters()).dtype, torch.float32)
    found = second_moments(*run, title)
    bases = {x.name: _bases(x, *found.pop(x.name), dtype) for x in tracked.layers}
    about = header(tracked, sequences, labels, len(run[2]), seed) | {"bases": "Shampoo"}
    return EKFAC(corrected_eigenvalues(*run, bases, title), about)


def second_moments(tracked, sequences, objectives, batch_size=32, title=None):
    """{layer: (L (blocks, r, r), R (i, i))}, float64 means over sequences and draws.

    Raises FloatingPointError naming a layer whose means are not finite."""
    sums = {}

    def consume(layer, a, g, draw, batch):
        D = sequence_gradient(a, g, layer.bias).double()
        if layer.name not in sums:
            blocks, r = block_shape(layer)
            sums[layer.name] = D.new_zeros(blocks, r, r), D.new_zeros(D.shape[2], D.shape[2])
        L, R = sums[layer.name]
        for total, x in zip(L, split(D, layer.rows, 1).unbind(1)):
            side = x.transpose(0, 1).flatten(1)  # (r, n·i)
            total.addmm_(side, side.mT)
        rows = D.flatten(0, 1)
        R.addmm_(rows.mT, rows)

    passes(tracked, sequences, objectives, batch_size, consume, title and f"{title}: moments")
    count = len(sequences) * len(objectives)
    return {name: tuple(_finite(x / count, name) for x in both) for name, both in sums.items()}


def _bases(layer, L, R, dtype):
    """`LayerFactors` still without eigenvalues, in the precision of the layer's gradients."""
    found = eigenbases(layer.rows, R / R.trace().clamp(min=1e-300), L, 1.0)
    cast = {name: getattr(found, name).to(dtype) for name in CAST}
    return replace(found, **cast)


def _numbers(layer):
    blocks, r = block_shape(layer)
    return blocks * r**2 + layer.inputs**2 + layer.out_features * layer.inputs


def _finite(x, name):
    if not torch.isfinite(x).all():
        raise FloatingPointError(
            f"a second moment of {name} is NaN or infinite: its gradients overflow; scale the loss "
            f"or leave the layer out"
        )
    return x
