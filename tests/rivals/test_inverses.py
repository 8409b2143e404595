"""Inverses against the Gauss-Newton matrix written out."""

import pytest
import torch
from support.tiny import pseudo, relative, weight_gradients
from support.two_layers import (
    DAMPING,
    LAYERS,
    MODEL,
    PRODUCT,
    SEQUENCES,
    TRACKED,
    dense,
    flat,
    vectors,
)

from msif.core.objectives import fisher_losses
from msif.curvature.gauss_newton import GaussNewton
from msif.rivals import inverses


def test_enough_conjugate_gradients_are_the_inverse_with_its_sign():
    found = inverses.conjugate_gradients(PRODUCT, DAMPING, vectors(), [60])[60]
    exact = flat(vectors()) @ dense().inverse()
    assert relative(flat(found), exact) < 1e-8  # 60 steps reach rounding error here


def test_conjugate_gradients_are_best_in_the_krylov_space_of_each_query():
    """After k steps, w minimises the error in the norm of G + d over span{q, (G + d)q, …}."""
    found = flat(inverses.conjugate_gradients(PRODUCT, DAMPING, vectors(), [1, 3])[3])
    for w, b in zip(found, flat(vectors())):
        K = torch.linalg.qr(torch.stack([b, dense() @ b, dense() @ dense() @ b], 1))[0]
        assert relative(w, K @ torch.linalg.solve(K.mT @ dense() @ K, K.mT @ b)) < 1e-8


def test_no_iteration_of_conjugate_gradients_is_zero():
    assert not flat(inverses.conjugate_gradients(PRODUCT, DAMPING, vectors(), [0, 1])[0]).any()


def test_lissa_on_the_whole_matrix_is_the_neumann_series():
    scale, A = 0.5 / torch.linalg.eigvalsh(dense())[-1], dense()
    step = torch.eye(len(A), dtype=torch.float64) - scale * A
    series = scale * sum(torch.linalg.matrix_power(step, j) for j in range(8))
    found = inverses.lissa(PRODUCT, DAMPING, vectors(), [7], scale.item())[7]
    assert relative(flat(found), flat(vectors()) @ series) < 1e-10


def test_lissa_with_a_step_too_large_says_what_to_lower():
    with pytest.raises(ValueError, match="scale"):
        inverses.lissa(PRODUCT, DAMPING, vectors(), [50], 1e3)


def test_a_sampled_product_averages_to_the_whole_product():
    """Over disjoint batches exactly; here each sequence alone, over draws that cover them all."""
    single = [GaussNewton(TRACKED, [s]).product(vectors()) for s in SEQUENCES]
    assert relative(sum(map(flat, single)) / len(single), flat(PRODUCT(vectors()))) < 1e-12
    drawn = flat(inverses.sampled_product(TRACKED, SEQUENCES, 1)(vectors()))
    assert min(relative(drawn, flat(x)) for x in single) < 1e-12


def test_sampled_products_draw_anew_and_repeat_with_their_seed():
    one, same, other = (inverses.sampled_product(TRACKED, SEQUENCES, 2, seed) for seed in (0, 0, 1))
    first, again = flat(one(vectors())), flat(one(vectors()))
    assert torch.equal(first, flat(same(vectors()))) and not torch.equal(first, again)
    assert not torch.equal(first, flat(other(vectors())))


def test_eigenpairs_after_many_iterations_are_the_leading_ones():
    values, U = inverses.eigenpairs(PRODUCT, DAMPING, vectors(), 3, 60)
    assert relative(values, torch.linalg.eigvalsh(dense()).flip(0)[:3]) < 1e-8
    assert relative(flat(U) @ dense(), values[:, None] * flat(U)) < 1e-6


def test_arnoldi_is_the_inverse_on_the_leading_eigenvectors_and_zero_elsewhere():
    values, vecs = torch.linalg.eigh(dense())
    U = vecs[:, -4:]
    found = inverses.arnoldi(*inverses.eigenpairs(PRODUCT, DAMPING, vectors(), 4, 80), vectors())
    assert relative(flat(found), flat(vectors()) @ U / values[-4:] @ U.mT) < 1e-6


def test_the_rank_of_arnoldi_is_less_than_its_iterations():
    with pytest.raises(ValueError, match="rank is 5 after 5"):
        inverses.eigenpairs(PRODUCT, DAMPING, vectors(), 5, 5)


def test_diagonal_fisher_is_the_mean_square_of_whole_weight_gradients():
    objectives = fisher_losses("gaussian", 2, 0)
    found = inverses.diagonal_fisher(TRACKED, SEQUENCES, objectives, batch_size=4)
    each = [
        weight_gradients(MODEL, LAYERS, SEQUENCES, pseudo(objective)) for objective in objectives
    ]
    for name, x in found.items():
        expected = torch.cat([e[name] for e in each]).square().mean(0)
        assert relative(x, expected) < 1e-10
        inverse = inverses.diagonal_inverse(found, DAMPING, vectors())[name]
        assert torch.allclose(inverse * (expected + DAMPING[name]), vectors()[name])


def test_a_layer_without_damping_is_named():
    with pytest.raises(ValueError, match=LAYERS[1].name):
        inverses.operator(PRODUCT, {LAYERS[0].name: 0.1}, vectors())
