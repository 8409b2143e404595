"""The Gauss-Newton product and two baselines agree with an independent implementation,
curvlinops 3.0.1, on a small GPT-NeoX."""

import pytest
import torch
from support.tiny import VOCAB, neox, relative
from torch import nn

from msif.core.capture import gradients
from msif.core.data import Sequence
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.curvature.gauss_newton import GaussNewton, exact_attention
from msif.rivals import inverses

pytest.importorskip(
    "curvlinops",
    reason="installed by .ci/run: pip install --no-deps curvlinops-for-pytorch==3.0.1 "
    "and what it imports",
)

from curvlinops import (  # noqa: E402
    CGInverseLinearOperator,
    GGNLinearOperator,
    NeumannInverseLinearOperator,
)

DAMPING, COUNT = 0.3, 6


class Logits(nn.Module):
    """ids (n, S) -> the logits (n·(S − 1), V) of every label."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, ids):
        return self.net(input_ids=ids).logits[:, :-1].flatten(0, 1)


class Damped:
    """G + d beside its shapes, as curvlinops' solvers ask for it;
    its own sum of operators needs a second operator."""

    def __init__(self, G):
        self.G = G
        self._in_shape = G._in_shape
        self._out_shape = G._out_shape
        self.dtype = G.dtype
        self.device = G.device
        self._out_shape_flat = G._out_shape_flat

    def __matmul__(self, x):
        return self.G @ x + DAMPING * x

    def _matmat(self, X):
        return [g + DAMPING * x for g, x in zip(self.G._matmat(X), X)]


@pytest.fixture(scope="module")
def both():
    """(layers, our product, our vectors, their G, the same vectors as their columns)."""
    net, g = neox(), torch.Generator().manual_seed(3)
    ids = torch.randint(VOCAB, (COUNT, 5), generator=g)
    tracked_model = tracked(net, "layers.1.mlp")
    sequences = [Sequence(i, tuple(row), tuple(row)) for i, row in enumerate(ids.tolist())]
    v = gradients(tracked_model, sequences[:2], loss)
    net.set_attn_implementation("eager")
    parameters = [
        p
        for layer in tracked_model.layers
        for p in (net.get_submodule(layer.name).weight, net.get_submodule(layer.name).bias)
    ]
    with exact_attention():
        theirs = GGNLinearOperator(
            Logits(net),
            nn.CrossEntropyLoss(reduction="sum"),
            parameters,
            [(ids, ids[:, 1:].flatten())],
        )
        theirs = theirs * (1 / COUNT)
        yield GaussNewton(tracked_model, sequences).product, v, theirs, columns(v)


def columns(v):
    """{layer: (q, o, i)} as the parameters of curvlinops, a vector the last axis,
    flattened: (P, q)."""
    return torch.cat(
        [part.reshape(len(x), -1) for x in v.values() for part in (x[..., :-1], x[..., -1])], 1
    ).mT


def test_products_agree(both):
    product, v, theirs, x = both
    assert relative(columns(product(v)), theirs @ x) < 1e-10


def test_conjugate_gradients_agree(both):
    product, v, theirs, x = both
    ours = inverses.conjugate_gradients(product, dict.fromkeys(v, DAMPING), v, [4])[4]
    solver = CGInverseLinearOperator(
        Damped(theirs), max_iter=4, max_tridiag_iter=0, eps=1e-30, tolerance=0.0
    )
    assert relative(columns(ours), solver @ x) < 1e-10


def test_the_neumann_series_agrees(both):
    product, v, theirs, x = both
    ours = inverses.lissa(product, dict.fromkeys(v, DAMPING), v, [5], 0.01)[5]
    assert (
        relative(
            columns(ours), NeumannInverseLinearOperator(Damped(theirs), num_terms=5, scale=0.01) @ x
        )
        < 1e-10
    )
