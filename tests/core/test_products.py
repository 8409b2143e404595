"""Each product equals its formula in every order that its shape may choose, in float64:
1e-12 is roundoff."""

import pytest
import torch
from support.tiny import relative

from msif.core import products
from msif.core.kronecker import LayerFactors

ROWS = pytest.mark.parametrize(
    "rows", [None, torch.tensor([[3, 0], [5, 1], [2, 4]])], ids=["layer", "heads"]
)
BIAS = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def captured(n=4, s=3, i=5, o=6):
    """(a, g), the last position of the first sequence padded."""
    a, g = (torch.randn(n, s, d, dtype=torch.float64) for d in (i, o))
    a[0, -1], g[0, -1] = 0, 0
    return a, g


def plain_gradient(a, g, bias):
    ones = torch.ones(*a.shape[:2], 1).double()
    return torch.einsum("nso,nsi->noi", g, torch.cat([a, ones], 2) if bias else a)


def orthogonal(*shape):
    return torch.linalg.qr(torch.randn(*shape, dtype=torch.float64))[0]


@BIAS
def test_a_sequence_gradient_is_the_sum_of_outer_products(bias):
    a, g = captured()
    assert relative(products.sequence_gradient(a, g, bias), plain_gradient(a, g, bias)) < 1e-12


@pytest.mark.parametrize("width", [1, 5, 600])  # 600: three tiles, the last one smaller
def test_the_upper_triangle_by_tiles_mirrors_to_the_gram_matrix(width):
    x = torch.randn(7, width, dtype=torch.float64)
    total = torch.zeros(width, width, dtype=torch.float64)
    products.add_gram(total, x[:3])
    products.add_gram(total, x[3:])
    assert relative(products.mirrored(total), x.mT @ x) < 1e-12


@BIAS
def test_the_gram_matrix_of_inputs_has_the_biass_row_and_column(bias):
    x = torch.randn(7, 4, dtype=torch.float64)
    full = torch.cat([x, torch.ones(7, 1)], 1) if bias else x
    total = torch.zeros(4 + bias, 4 + bias, dtype=torch.float64)
    products.add_input_gram(total, x, bias)
    assert relative(products.mirrored(total), full.mT @ full) < 1e-12


@BIAS
@ROWS
@pytest.mark.parametrize(
    "positions", [1, 3, 5, 6, 100]
)  # rotate both before, one before and one after, both after
@pytest.mark.parametrize("workspace", [1, 10**6])
def test_squares_of_rotated_gradients_equal_the_formula_in_every_order(
    positions, rows, bias, workspace, monkeypatch
):
    monkeypatch.setattr(products, "WORKSPACE", workspace)
    r = 6 if rows is None else 2
    Q_A, Q_B = orthogonal(5 + bias, 5 + bias), orthogonal(6 // r, r, r)
    a, g = captured(s=positions)
    D = plain_gradient(a, g, bias)
    rotated = torch.einsum(
        "bpr,nbpi,ij->nbrj", Q_B, D[:, torch.arange(6)[None] if rows is None else rows], Q_A
    )
    total = torch.zeros(*rotated.shape[1:3], 8, dtype=torch.float64)  # 6 or 5 columns, aligned to 8
    for few in (slice(0, 1), slice(1, None)):
        products.add_squares(total, a[few], g[few], bias, products.aligned(Q_A), Q_B, rows)
    assert (
        relative(total[..., : 5 + bias], rotated.square().sum(0)) < 1e-12
        and (total[..., 5 + bias :] == 0).all()
    )
    factors = LayerFactors(rows, Q_A, Q_B, *[torch.empty(0)] * 4)
    assert (
        relative(factors.rotate(D), rotated) < 1e-12
        and relative(factors.rotate_back(rotated), D) < 1e-12
    )
