"""Similarities of gradients against their formulas."""

import pytest
import torch
from support.tiny import relative
from support.two_layers import LAYERS, SEQUENCES, TRACKED, flat, vectors

from msif.core.capture import gradients
from msif.core.objectives import loss
from msif.rivals import similarities


def test_dot_and_cosine_range_over_all_layers():
    g = gradients(TRACKED, SEQUENCES, loss)
    assert relative(similarities.dot(vectors(), g), flat(vectors()) @ flat(g).mT) < 1e-12
    expected = torch.nn.functional.cosine_similarity(flat(vectors())[:, None], flat(g)[None], dim=2)
    assert relative(similarities.cosine(vectors(), g), expected) < 1e-12


def test_cka_is_the_normalised_cross_covariance_of_two_gradients():
    g = gradients(TRACKED, SEQUENCES, loss)
    found, total = similarities.cka(vectors(), g), 0
    for layer in LAYERS:
        X, Y = (v[layer.name][1] - v[layer.name][1].mean(0) for v in (vectors(), g))
        total += (X.mT @ Y).square().sum() / ((X.mT @ X).norm() * (Y.mT @ Y).norm())
    assert found[1, 1].item() == pytest.approx(total.item() / len(LAYERS), rel=1e-10)
    assert torch.allclose(
        similarities.cka(g, g).diagonal(), torch.ones(len(SEQUENCES), dtype=torch.float64)
    )
