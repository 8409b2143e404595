"""Eigenvalue-corrected Shampoo against its formula with explicit matrices, in float64.

Tolerance 1e-8 relative: float64 sums in another order (roundoff of the damped inverse ~1e-11).
"""

import pytest
import torch
from support.tiny import (
    damped_inverse,
    documents,
    gpt2,
    inputs_and_output_gradients,
    matrix_function,
    neox,
    plain_loss,
    pseudo,
    relative,
    weight_gradients,
)

from msif.core import store
from msif.core.data import NO_LOSS, Sequence
from msif.core.influence import Damping, Stage, precondition
from msif.core.layers import tracked
from msif.core.objectives import fisher_losses
from msif.curvature import shampoo

DOCUMENTS = documents(7)


def blocks_of(layer, D):
    """[(flat indices of the block, U_L ⊗ U_R, Λ flattened)] of gradients D (n, o, i)."""
    R, found = (D.mT @ D).mean(0), []
    for rows in torch.arange(layer.out_features)[None] if layer.rows is None else layer.rows:
        few = D[:, rows]
        U = torch.kron(torch.linalg.eigh((few @ few.mT).mean(0))[1], torch.linalg.eigh(R)[1])
        at = (rows[:, None] * len(R) + torch.arange(len(R))).flatten()
        found.append((at, U, (few.flatten(1) @ U).square().mean(0)))
    return found


def drawn(model, layers, labels, sequences=DOCUMENTS):
    """{layer: (draws · n, o, i)}: every pseudo-gradient, by plain autograd."""
    scalars = [plain_loss] if labels == "true" else [pseudo(x) for x in fisher_losses(labels, 2, 0)]
    each = [weight_gradients(model, layers, sequences, scalar) for scalar in scalars]
    return {x.name: torch.cat([g[x.name] for g in each]) for x in layers}


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("make, labels", [(neox, "gaussian"), (gpt2, "true")])
def test_factors_and_apply_equal_the_dense_formula(make, labels, per_head):
    model = make()
    net = tracked(model, per_head=per_head)
    factors = shampoo.fit(net, DOCUMENTS, labels=labels, samples=2, batch_size=3)
    gradients = drawn(model, net.layers, labels)
    for x in net.layers:
        dense = blocks_of(x, gradients[x.name])
        v = torch.randn(2, x.out_features, x.inputs, dtype=torch.float64)
        for f in (lambda values, mean: values, damped_inverse):
            expected = (v.flatten(1) @ matrix_function(dense, f)).reshape_as(v)
            assert relative(factors.apply(f, {x.name: v})[x.name], expected) < 1e-8, x.name


def test_without_the_correction_it_is_shampoo():
    """kfac(): L ⊗ R / tr R."""
    model = neox()
    net = tracked(model, "layers.1.mlp")
    factors = shampoo.fit(net, DOCUMENTS, samples=2).kfac()
    for name, D in drawn(model, net.layers, "gaussian").items():
        L, R = (D @ D.mT).mean(0), (D.mT @ D).mean(0)
        v = torch.randn(2, *D.shape[1:], dtype=torch.float64)
        found = factors.apply(lambda values, mean: values, {name: v})[name]
        assert relative(found, L @ v @ R / R.trace()) < 1e-8


def test_of_one_labelled_token_the_moments_are_those_of_a_weighted_outer_product():
    """In the last layer's output a loss on one token has rank one: D = g aᵀ, so that L is
    E[‖a‖² g gᵀ], R is E[‖g‖² a aᵀ], and every D lies in the span of both bases."""
    model = neox()
    net = tracked(model, "layers.1.mlp.dense_4h_to_h")
    short = [Sequence(n, (n, 11 - n), (NO_LOSS, 11 - n)) for n in range(5)]
    ((name, (L, R)),) = shampoo.second_moments(net, short, fisher_losses("true", 1, 0)).items()
    pairs = [inputs_and_output_gradients(model, net.layers, s, plain_loss)[name] for s in short]
    a, g = (torch.stack([pair[k][0] for pair in pairs]) for k in (0, 1))  # of the first position
    assert all(pair[1][1:].abs().max() < 1e-12 for pair in pairs)
    assert relative(L[0], (a.square().sum(1)[:, None] * g).mT @ g / 5) < 1e-10
    assert relative(R, (g.square().sum(1)[:, None] * a).mT @ a / 5) < 1e-10
    fitted = shampoo.fit(net, short, labels="true").factors[name]
    energy = (a.square().sum(1) * g.square().sum(1)).mean()
    assert relative(fitted.eigenvalues.sum(), energy) < 1e-10


def test_it_stands_in_a_stage_and_on_disk_as_ekfac_does(tmp_path):
    net = tracked(neox(), "layers.1.mlp")
    factors = shampoo.fit(net, DOCUMENTS)
    store.save(factors, tmp_path / "factors")
    again = store.load(tmp_path / "factors", net)
    assert again.header["bases"] == "Shampoo"
    v = {x.name: torch.randn(2, x.out_features, x.inputs, dtype=torch.float64) for x in net.layers}
    both = [
        precondition(v, [Stage(x, Damping(1e-2)), Stage(x, alpha=Damping(0.1))])[0]
        for x in (factors, again)
    ]
    for x in net.layers:
        dense = blocks_of(x, drawn(net.model, net.layers, "gaussian")[x.name])
        chain = matrix_function(dense, lambda y, m: 0.1 * m / (y + 0.1 * m) / (y + 1e-2 * m))
        expected = (v[x.name].flatten(1) @ chain).reshape_as(v[x.name])
        assert all(relative(found[x.name], expected) < 1e-8 for found in both)
