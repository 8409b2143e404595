"""Smooth training moves on as it began; and the number is the formula's, parameter by parameter."""

import pytest
import torch
from torch import nn

from msif.core.metasmoothness import document_weights, metasmoothness


def model(values):
    """A model whose parameters are these."""
    net = nn.Module()
    net.a, net.b = (nn.Parameter(torch.tensor(x)) for x in (values[:2], values[2:]))
    return net


def test_it_is_the_share_of_the_change_whose_direction_stays():
    """Of changes 2, 1, 1 and 4 the first goes on, the second turns, the third stops half-way, and
    the last goes on: (2 − 1 + 0 + 4) / 8."""
    zero, one, two = [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 1.0, -3.0], [2.0, 1.0, 1.0, -4.0]
    assert metasmoothness([model(x) for x in (zero, one, two)]) == pytest.approx(5 / 8)


def test_least_squares_that_are_trained_to_the_end_are_smooth():
    """The solution of weighted least squares is a smooth function of the weights: S is near 1, and
    nearer for a smaller step; with noise in place of training it is near 0."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 8, generator=rng), torch.randn(200, 5, generator=rng)

    def solved(w):
        net = nn.Linear(8, 5, bias=False)
        net.weight.data = torch.linalg.solve(x.T @ (w[:, None] * x), x.T @ (w[:, None] * y)).T
        return net

    smooth = [metasmoothness([solved(w) for w in document_weights(200, 1, h)]) for h in (0.1, 0.01)]
    assert 0.95 < smooth[0] <= 1 and smooth[1] > 0.99
    noise = [nn.Linear(100, 100) for _ in range(3)]
    for net in noise:
        net.weight.data.normal_(generator=rng)
    # Of three independent points the second step turns back two times in three.
    assert metasmoothness(noise) < 0


def test_the_weights_move_along_one_direction():
    w = document_weights(1000, seed=3, step=0.2)
    assert torch.equal(w[0], torch.ones(1000))
    assert torch.allclose(w[2] - w[0], 2 * (w[1] - w[0]), atol=1e-6)
    assert w[1].std() == pytest.approx(0.2, rel=0.1)
    assert torch.equal(w, document_weights(1000, seed=3, step=0.2))
    assert not torch.equal(w, document_weights(1000, seed=4, step=0.2))


def test_what_cannot_be_compared_is_refused():
    same = model([0.0, 1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="the first and the last model are equal"):
        metasmoothness([same, same, same])
    other = model([1.0, 1.0, 2.0, 4.0])
    for models, which in (
        ([same, same, other], "first and the second"),
        ([other, same, same], "second and the last"),
        ([same, other, same], "first and the last"),
    ):
        with pytest.raises(ValueError, match=f"the {which} model are equal; expected three that"):
            metasmoothness(models)
    for wrong in (float("nan"), float("inf")):
        for n, which in enumerate(("first", "second", "last")):
            models = [same, other, model([0.0, 0.5, 0.0, 0.0])]
            models[n] = model([0.0, 1.0, wrong, 3.0])
            with pytest.raises(ValueError, match=f"b of the {which} model has numbers that are N"):
                metasmoothness(models)
    with pytest.raises(ValueError, match="2 models; expected three"):
        metasmoothness([same, same])
    with pytest.raises(ValueError, match="differ in names or shapes"):
        metasmoothness([same, same, nn.Linear(2, 2)])
    for step in (0, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"step is {step}; expected a positive, finite number"):
            document_weights(3, step=step)
