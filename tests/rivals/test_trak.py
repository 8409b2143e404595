"""TRAK against its formula, and its projection."""

from math import log

import pytest
import torch
from support.tiny import documents, logits_of, plain_loss, relative
from support.two_layers import LAYERS, MODEL, QUERIES, TRACKED, flat, vectors

from msif.core.data import NO_LOSS, Sequence
from msif.rivals import trak


def test_the_margin_is_the_log_odds_of_the_label():
    sequence = Sequence(0, (3, 1, 4), (NO_LOSS, NO_LOSS, 4))
    p = plain_loss(MODEL, sequence).neg().exp().item()
    logits, batch = logits_of(MODEL, sequence)
    assert trak.margin(logits, batch).item() == pytest.approx(log(p / (1 - p)), rel=1e-10)
    assert trak.error_probability(logits, batch).item() == pytest.approx(1 - p, rel=1e-10)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_errors_are_those_of_each_sequence_whatever_the_batches(batch_size):
    found = trak.errors(MODEL, documents(6), batch_size)
    alone = [trak.error_probability(*logits_of(MODEL, x)).item() for x in documents(6)]
    assert found.tolist() == pytest.approx(alone, rel=1e-9) and not found.requires_grad


def test_trak_without_projection_is_its_formula():
    """One model, features kept whole: φ(q)ᵀ (ΦᵀΦ)⁻¹ φ(z) (1 − p_z)."""
    keep = lambda rows: rows[:, ::40]
    phi = trak.trak_features(TRACKED, documents(30), keep, batch_size=4)
    query = trak.trak_features(TRACKED, QUERIES, keep, batch_size=4)
    weights = torch.linspace(0.1, 1, 30, dtype=torch.float64)
    expected = query @ (phi.mT @ phi).inverse() @ phi.mT * weights
    assert relative(trak.trak([query], [phi], [weights]), expected) < 1e-8
    doubled = trak.trak([query, 3 * query], [phi, phi], [weights, weights])
    assert relative(doubled, 2 * expected) < 1e-8


@pytest.mark.parametrize("ridge", [0.0, 0.1, 2.0])
def test_a_ridge_is_relative_to_the_mean_diagonal_of_each_model(ridge):
    """Two models of other scale: Σ_k φ_k(q)ᵀ (Φ_kᵀΦ_k + λ tr(Φ_kᵀΦ_k)/k I)⁻¹ φ_k(z) / 2 × mean
    weight; with a ridge also for fewer candidates than features, and 0 is no ridge."""
    g = torch.Generator().manual_seed(0)
    n = 4 if ridge else 9
    queries = [torch.randn(2, 6, generator=g, dtype=torch.float64) for _ in range(2)]
    phis = [s * torch.randn(n, 6, generator=g, dtype=torch.float64) for s in (1, 30)]
    weights = [torch.rand(n, generator=g, dtype=torch.float64) for _ in range(2)]
    expected = 0
    for q, phi in zip(queries, phis):
        gram = sum(torch.outer(z, z) for z in phi)
        gram = gram + ridge * gram.trace() / 6 * torch.eye(6, dtype=torch.float64)
        expected = expected + q @ gram.inverse() @ phi.mT / 2
    expected = expected * (weights[0] + weights[1]) / 2
    assert relative(trak.trak(queries, phis, weights, ridge), expected) < 1e-8


def test_a_large_ridge_is_the_inner_product_of_features():
    phi, q = torch.randn(5, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    found = trak.trak([q], [phi], [torch.ones(5, dtype=torch.float64)], ridge=1e9)
    scale = 1e9 * phi.square().sum() / 8
    assert relative(found * scale, q @ phi.mT) < 1e-6


def test_trak_without_a_ridge_needs_more_candidates_than_features():
    with pytest.raises(ValueError, match="2 candidates for 3 features"):
        trak.trak([torch.ones(1, 3)], [torch.ones(2, 3)], [torch.ones(2)])
    with pytest.raises(ValueError, match="a ridge of -1"):
        trak.trak([torch.ones(1, 3)], [torch.ones(2, 3)], [torch.ones(2)], ridge=-1)


def test_the_projector_is_one_linear_map_that_keeps_inner_products_on_average():
    project = trak.projector(LAYERS, 4000, seed=0, dtype=torch.float64)
    q = flat(vectors())
    assert relative(project(2 * q[:1] + q[1:2]), 2 * project(q[:1]) + project(q[1:2])) < 1e-12
    products = project(q) @ project(q).mT / 4000  # errors of about 1/√4000 = .016 each
    assert relative(products, q @ q.mT) < 0.1
