"""Baselines against their formulas, with the Gauss-Newton matrix written out."""

from functools import cache
from math import log

import pytest
import torch
from support.tiny import documents, logits_of, neox, plain_loss, pseudo, relative, weight_gradients

from msif.core.capture import gradients
from msif.core.data import NO_LOSS, Sequence
from msif.core.layers import Tracked, tracked_layers
from msif.core.objectives import fisher_losses, loss
from msif.curvature.gauss_newton import GaussNewton
from msif.rivals import inverses, similarities, trak

MODEL = neox()
LAYERS = tracked_layers(MODEL, "layers.1.mlp")
SEQUENCES, QUERIES = documents(6), documents(3, seed=2)
PRODUCT = GaussNewton(Tracked(MODEL, LAYERS), SEQUENCES).product
DAMPING = {layer.name: 0.1 * (1 + i) for i, layer in enumerate(LAYERS)}


@cache
def vectors():
    return gradients(Tracked(MODEL, LAYERS), QUERIES, loss)


def flat(v):
    return torch.cat([x.flatten(1) for x in v.values()], 1)


@cache
def dense():
    """G + d as (P, P), from the product with every unit vector."""
    sizes = {x.name: (x.out_features, x.in_features + x.bias) for x in LAYERS}
    units = torch.eye(sum(o * i for o, i in sizes.values()), dtype=torch.float64).split(
        [o * i for o, i in sizes.values()], 1
    )
    G = flat(
        PRODUCT({name: x.unflatten(1, shape) for (name, shape), x in zip(sizes.items(), units)})
    )
    return (
        G
        + torch.cat(
            [
                torch.full((o * i,), DAMPING[name], dtype=torch.float64)
                for name, (o, i) in sizes.items()
            ]
        ).diag()
    )


def test_enough_conjugate_gradients_are_the_inverse_with_its_sign():
    found = inverses.conjugate_gradients(PRODUCT, DAMPING, vectors(), [60])[60]
    assert (
        relative(flat(found), flat(vectors()) @ dense().inverse()) < 1e-8
    )  # 60 steps reach rounding error here


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
    assert (
        relative(
            flat(inverses.lissa(PRODUCT, DAMPING, vectors(), [7], scale.item())[7]),
            flat(vectors()) @ series,
        )
        < 1e-10
    )


def test_lissa_with_a_step_too_large_says_what_to_lower():
    with pytest.raises(ValueError, match="scale"):
        inverses.lissa(PRODUCT, DAMPING, vectors(), [50], 1e3)


def test_a_sampled_product_averages_to_the_whole_product():
    """Over disjoint batches exactly; here each sequence alone, over draws that cover them all."""
    single = [GaussNewton(Tracked(MODEL, LAYERS), [s]).product(vectors()) for s in SEQUENCES]
    assert relative(sum(map(flat, single)) / len(single), flat(PRODUCT(vectors()))) < 1e-12
    drawn = flat(inverses.sampled_product(Tracked(MODEL, LAYERS), SEQUENCES, 1)(vectors()))
    assert min(relative(drawn, flat(x)) for x in single) < 1e-12


def test_sampled_products_draw_anew_and_repeat_with_their_seed():
    one, same, other = (
        inverses.sampled_product(Tracked(MODEL, LAYERS), SEQUENCES, 2, seed) for seed in (0, 0, 1)
    )
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
    found = inverses.diagonal_fisher(Tracked(MODEL, LAYERS), SEQUENCES, objectives, batch_size=4)
    each = [
        weight_gradients(MODEL, LAYERS, SEQUENCES, pseudo(objective)) for objective in objectives
    ]
    for name, x in found.items():
        expected = torch.cat([e[name] for e in each]).square().mean(0)
        assert relative(x, expected) < 1e-10
        inverse = inverses.diagonal_inverse(found, DAMPING, vectors())[name]
        assert torch.allclose(inverse * (expected + DAMPING[name]), vectors()[name])


def test_dot_and_cosine_range_over_all_layers():
    g = gradients(Tracked(MODEL, LAYERS), SEQUENCES, loss)
    assert relative(similarities.dot(vectors(), g), flat(vectors()) @ flat(g).mT) < 1e-12
    expected = torch.nn.functional.cosine_similarity(flat(vectors())[:, None], flat(g)[None], dim=2)
    assert relative(similarities.cosine(vectors(), g), expected) < 1e-12


def test_cka_is_the_normalised_cross_covariance_of_two_gradients():
    g = gradients(Tracked(MODEL, LAYERS), SEQUENCES, loss)
    found, total = similarities.cka(vectors(), g), 0
    for layer in LAYERS:
        X, Y = (v[layer.name][1] - v[layer.name][1].mean(0) for v in (vectors(), g))
        total += (X.mT @ Y).square().sum() / ((X.mT @ X).norm() * (Y.mT @ Y).norm())
    assert found[1, 1].item() == pytest.approx(total.item() / len(LAYERS), rel=1e-10)
    assert torch.allclose(
        similarities.cka(g, g).diagonal(), torch.ones(len(SEQUENCES), dtype=torch.float64)
    )


def test_the_margin_is_the_log_odds_of_the_label():
    sequence = Sequence(0, (3, 1, 4), (NO_LOSS, NO_LOSS, 4))
    p = plain_loss(MODEL, sequence).neg().exp().item()
    logits, batch = logits_of(MODEL, sequence)
    assert trak.margin(logits, batch).item() == pytest.approx(log(p / (1 - p)), rel=1e-10)
    assert trak.error_probability(logits, batch).item() == pytest.approx(1 - p, rel=1e-10)


def test_trak_without_projection_is_its_formula():
    """One model, features kept whole: φ(q)ᵀ (ΦᵀΦ)⁻¹ φ(z) (1 − p_z)."""
    keep = lambda rows: rows[:, ::40]
    phi, query = (
        trak.trak_features(Tracked(MODEL, LAYERS), s, keep, batch_size=4)
        for s in (documents(30), QUERIES)
    )
    weights = torch.linspace(0.1, 1, 30, dtype=torch.float64)
    expected = query @ (phi.mT @ phi).inverse() @ phi.mT * weights
    assert relative(trak.trak([query], [phi], [weights]), expected) < 1e-8
    doubled = trak.trak([query, 3 * query], [phi, phi], [weights, weights])
    assert relative(doubled, 2 * expected) < 1e-8


def test_trak_needs_more_candidates_than_features():
    with pytest.raises(ValueError, match="2 candidates for 3 features"):
        trak.trak([torch.ones(1, 3)], [torch.ones(2, 3)], [torch.ones(2)])


def test_the_projector_is_one_linear_map_that_keeps_inner_products_on_average():
    project = trak.projector(LAYERS, 4000, seed=0, dtype=torch.float64)
    q = flat(vectors())
    assert relative(project(2 * q[:1] + q[1:2]), 2 * project(q[:1]) + project(q[1:2])) < 1e-12
    assert (
        relative(project(q) @ project(q).mT / 4000, q @ q.mT) < 0.1
    )  # errors of about 1/√4000 = .016 each


def test_a_layer_without_damping_is_named():
    with pytest.raises(ValueError, match=LAYERS[1].name):
        inverses.operator(PRODUCT, {LAYERS[0].name: 0.1}, vectors())
