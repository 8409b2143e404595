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


def test_trak_needs_more_candidates_than_features():
    with pytest.raises(ValueError, match="2 candidates for 3 features"):
        trak.trak([torch.ones(1, 3)], [torch.ones(2, 3)], [torch.ones(2)])


def test_the_projector_is_one_linear_map_that_keeps_inner_products_on_average():
    project = trak.projector(LAYERS, 4000, seed=0, dtype=torch.float64)
    q = flat(vectors())
    assert relative(project(2 * q[:1] + q[1:2]), 2 * project(q[:1]) + project(q[1:2])) < 1e-12
    products = project(q) @ project(q).mT / 4000  # errors of about 1/√4000 = .016 each
    assert relative(products, q @ q.mT) < 0.1
