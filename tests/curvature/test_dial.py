"""Refined stages against explicit matrices: from EK-FAC at no iterations to the exact solve at
enough of them.

A GPT-NeoX whose tracked layers have 248 weights; products by the oracle's explicit matrix.
"""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from support.tiny import documents, neox, relative

from msif.core import ekfac
from msif.core.influence import Damping, Stage, precondition
from msif.core.layers import Tracked, tracked
from msif.core.products import flatten, unflatten
from msif.curvature.conjugate import block_cg, cg
from msif.curvature.dial import Refined, low_rank, pseudo_gradients
from msif.study.exact.oracle import Network, solve

Q, COUPLED = 4, ("gpt_neox.layers.1.mlp.dense_4h_to_h",)


@pytest.fixture(scope="module")
def case():
    """(stage without iterations, G, model, layers, sequences, right-hand sides)"""
    torch.manual_seed(0)
    net, data = neox(), documents(12)
    tracked_model = tracked(net, r"layers\.\d\.attention\.dense|layers\.1\.mlp\.dense_4h_to_h")
    oracle = Network.of(net, tracked_model.layers)
    G = oracle.gauss_newton(oracle.weights(), data)
    stage = Refined(
        ekfac.fit(tracked_model, data),
        Damping(0.02),
        Damping(0.1),
        product=lambda v: unflatten(flatten(v) @ G, v),
    )
    v = {
        x.name: torch.randn(Q, x.out_features, x.in_features + x.bias, dtype=torch.float64)
        for x in tracked_model.layers
    }
    return stage, G, net, tracked_model.layers, data, v


def shifts(stage, v, new=()):
    """D, the diagonal of shifts: (P,)."""
    means = {name: stage.curvature.factors[name].eigenvalues.mean() for name in v}
    return torch.cat(
        [
            means[name] * (0.02 + 0.1 * (name not in new)) * x.new_ones(x[0].numel())
            for name, x in v.items()
        ]
    )


def test_no_iterations_are_ekfac_exactly(case):
    stage, *_, v = case
    plain = Stage(stage.curvature, stage.damping, stage.alpha)
    for name in v:
        assert torch.equal(stage.inverse(v)[name], plain.inverse(v)[name])
        assert relative(stage.transfer(v)[name], plain.transfer(v)[name]) < 1e-12


@pytest.mark.parametrize("new", [(), COUPLED], ids=["all shared", "with a new layer"])
def test_enough_iterations_solve_the_whole_damped_system(case, new):
    stage, G, *_, v = case
    exact = solve(G + torch.diag(shifts(stage, v, new)), flatten(v), 0.0)
    found = replace(stage, new=new, iterations=100).inverse(v)
    assert relative(flatten(found), exact) < 1e-8


def test_transfer_is_alpha_times_the_inverse_and_forgets_new_layers(case):
    stage, *_, v = case
    stage = replace(stage, new=COUPLED, iterations=3)
    moved, solved = stage.transfer(v), stage.inverse(v)
    assert set(moved) == set(v) - set(COUPLED)
    for name, x in moved.items():
        assert (
            relative(x, 0.1 * stage.curvature.factors[name].eigenvalues.mean() * solved[name])
            < 1e-12
        )


def test_the_correction_is_the_inverse_of_ekfac_shrunk_with_the_sampled_gradients(case):
    stage, _, net, layers, data, v = case
    u = pseudo_gradients(Tracked(net, layers), data, samples=2)
    eye = unflatten(torch.eye(flatten(v).shape[1], dtype=torch.float64), v)
    K = flatten(stage.curvature.apply(lambda eigenvalues, mean: eigenvalues, eye))
    M = 0.3 * K + 0.7 * flatten(u).mT @ flatten(u) + torch.diag(shifts(stage, v))
    found = replace(stage, correction=low_rank(stage, u, share=0.7)).inverse(v)
    assert relative(flatten(found), solve(M, flatten(v), 0.0)) < 1e-9


def test_pseudo_gradients_have_the_gauss_newton_matrix_for_second_moment(case):
    """600 rank-one terms in 248 dimensions: the error of a Wishart matrix, in the Frobenius norm,
    is about √(tr²/n)."""
    _, G, net, layers, data, _ = case
    u = flatten(pseudo_gradients(Tracked(net, layers), data, samples=50))
    assert relative(u.mT @ u, G) < 2 * (G.trace() / G.norm() / len(u) ** 0.5).item()


def energies(A, b, method, k):
    """The error of k iterates in the norm of A: (k, q)."""
    exact = solve(A, b, 0.0)
    return torch.stack(
        [((x - exact) @ A * (x - exact)).sum(1) for x, _ in islice(method(lambda x: x @ A, b), k)]
    )


def test_every_iteration_is_nearer_and_the_block_is_nearer_than_each_query_alone():
    root = torch.randn(60, 40, dtype=torch.float64)
    A, b = root.mT @ root + 0.01 * torch.eye(40), torch.randn(5, 40, dtype=torch.float64)
    together, alone = energies(A, b, block_cg, 7), energies(A, b, cg, 7)
    assert (together.diff(dim=0) < 0).all() and (alone.diff(dim=0) < 0).all()
    assert (together <= alone * (1 + 1e-9)).all() and (together[-1] < alone[-1] / 2).all()


def test_equal_and_zero_queries_do_no_harm():
    root = torch.randn(60, 40, dtype=torch.float64)
    A, b = root.mT @ root + torch.eye(40), torch.randn(4, 40, dtype=torch.float64)
    b[1], b[2] = b[0], 0
    for method, k in ((block_cg, 30), (cg, 60)):
        x, residuals = list(islice(method(lambda x: x @ A, b), k))[-1]
        assert relative(x, solve(A, b, 0.0)) < 1e-6 and residuals.max() < 1e-6


def test_reported_residuals_are_those_of_the_iterate():
    root = torch.randn(60, 40, dtype=torch.float64)
    A, b = root.mT @ root + torch.eye(40), torch.randn(3, 40, dtype=torch.float64)
    for method in (block_cg, cg):
        for x, residuals in islice(method(lambda x: x @ A, b), 4):
            assert torch.allclose(residuals, (b - x @ A).norm(dim=1) / b.norm(dim=1))


def test_stages_chain_as_they_do_with_ekfac(case):
    stage, G, *_, v = case
    stages = [replace(stage, alpha=Damping(0.0), iterations=100), replace(stage, iterations=100)]
    D = shifts(stage, v)
    moved = solve(G + torch.diag(D), flatten(v), 0.0) * D * (0.1 / 0.12)
    expected = solve(G + torch.diag(D * (0.02 / 0.12)), moved, 0.0)
    assert relative(flatten(precondition(v, stages)[0]), expected) < 1e-8


def test_bad_settings_are_refused(case):
    stage, _, net, layers, data, _ = case
    with pytest.raises(ValueError, match="need a product"):
        Refined(stage.curvature, iterations=2)
    with pytest.raises(ValueError, match="iterations is -1"):
        replace(stage, iterations=-1)
    with pytest.raises(ValueError, match="share is 1"):
        low_rank(stage, pseudo_gradients(Tracked(net, layers), data), share=1)
