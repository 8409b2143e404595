"""The oracle against what defines it: finite differences, explicit Jacobians,
and retraining of both stages."""

from types import SimpleNamespace

import pytest
import torch
from support.tiny import (
    Regression,
    documents,
    gpt2,
    llama,
    neox,
    plain_loss,
    relative,
    weight_gradients,
)
from torch import nn
from torch.func import jacrev

from msif.core.data import NO_LOSS, Sequence
from msif.core.layers import Layer, tracked_layers
from msif.study.exact import oracle
from msif.study.exact.oracle import Network, Training

VOCAB = 5


def sequences(n, seed):
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(VOCAB, (4 + i % 2,), generator=g).tolist() for i in range(n)]
    return [Sequence(i, tuple(r), tuple(r)) for i, r in enumerate(rows)]


QUERIES = [
    Sequence(0, (1, 2, 3, 4), (NO_LOSS, NO_LOSS, 3, 4)),
    Sequence(1, (4, 0, 2), (NO_LOSS, 0, 2)),
]


class SmallMLP(nn.Module):
    """Not convex: a tanh layer of two units; the head, which only fine-tuning has,
    reads the token before."""

    def __init__(self, head=0, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.register_buffer("table", torch.randn(VOCAB, 3, generator=g, dtype=torch.float64))
        self.hidden = nn.Linear(3, 2, dtype=torch.float64)
        self.out = nn.Linear(2, VOCAB, dtype=torch.float64)
        self.head = nn.Linear(head, VOCAB, bias=False, dtype=torch.float64) if head else None
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)

    def forward(self, input_ids, attention_mask):
        x = self.table[input_ids]
        logits = self.out(self.hidden(x).tanh())
        if self.head is not None:
            logits = logits + self.head(
                nn.functional.pad(x[:, :-1, : self.head.in_features], (0, 0, 1, 0))
            )
        return SimpleNamespace(logits=logits)

    def layers(self):
        return [
            Layer(name, None, m.bias is not None, m.in_features, m.out_features)
            for name, m in self.named_children()
        ]


def stages(kind, head=0):
    """Two stages, the second with a head of `head` inputs, and where their searches begin."""
    models = [kind(), kind(head=head)]
    networks = [Network.of(m, m.layers()) for m in models]
    found = [
        Training(networks[0], sequences(8, 0), 0.05),
        Training(networks[1], sequences(6, 1), 0.2, new_l2=0.3),
    ]
    return found, [n.weights() * (0.1 if kind is Regression else 1) for n in networks]


both = pytest.mark.parametrize(
    "kind, head",
    [(Regression, 0), (Regression, 2), (SmallMLP, 0), (SmallMLP, 2)],
    ids=["convex", "convex with a head", "MLP", "MLP with a head"],
)


@both
def test_the_two_stage_score_is_the_derivative_of_f_when_a_document_is_reweighted(kind, head):
    """… and both stages are retrained. Central differences with a step of 1e-4 err by about 1e-7;
    1e-4 is ten times stricter than the claim."""
    problem, starts = stages(kind, head)
    xs = oracle.trained(problem, starts)
    for stage, found in enumerate(oracle.scores(problem, xs, QUERIES)):
        for z in range(2):
            assert relative(found[:, z], oracle.reweighted(problem, xs, QUERIES, stage, z)) < 1e-4


def test_leaving_out_the_coupling_with_the_head_is_wrong_by_more_than_a_percent():
    problem, starts = stages(SmallMLP, 2)
    xs = oracle.trained(problem, starts)
    assert (
        relative(
            oracle.scores(problem, xs, QUERIES, coupled=False)[0],
            oracle.scores(problem, xs, QUERIES)[0],
        )
        > 0.01
    )


def test_a_head_eliminated_in_closed_form_leaves_the_shared_part_of_the_whole_solve():
    H, v = torch.randn(9, 12, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    whole = oracle.solve(H @ H.mT, v, 0.1, shared=6)[:, :6]
    assert relative(oracle.solve_eliminated(H @ H.mT, v, 0.1, 6), whole) < 1e-9


def test_removal_is_training_on_the_others_from_the_start():
    problem, starts = stages(Regression)
    xs = oracle.trained(problem, starts)
    first = torch.full((8,), 1 / 8, dtype=torch.float64)
    first[[1, 4]] = 0
    again = oracle.trained(problem, [torch.zeros_like(x) for x in starts], [first, None])
    f = [-problem[1].network.losses(x, QUERIES) for x in (xs[1], again[1])]
    assert torch.allclose(
        oracle.without(problem, xs, QUERIES, [1, 4]), f[1] - f[0], rtol=0, atol=1e-9
    )


def test_removal_of_a_document_of_eight_is_roughly_minus_its_score_over_n():
    problem, starts = stages(Regression)
    xs = oracle.trained(problem, starts)
    removed = torch.stack([oracle.without(problem, xs, QUERIES, [z], steps=1) for z in range(4)], 1)
    assert (
        torch.corrcoef(
            torch.stack(
                [removed.flatten(), -oracle.scores(problem, xs, QUERIES)[0][:, :4].flatten()]
            )
        )[0, 1]
        > 0.9
    )


def test_a_stage_without_an_optimum_in_reach_says_so():
    problem, starts = stages(SmallMLP)
    with pytest.raises(ArithmeticError, match="more L2"):
        problem[0].optimum(starts[0], torch.zeros_like(starts[0]), tolerance=0.0)


@pytest.mark.parametrize("model", [neox, gpt2, llama], ids=lambda f: f.__name__)
def test_losses_and_gradients_are_those_of_the_model_itself(model):
    net, data = model(), documents(3)
    layers = tracked_layers(net, r"\.1\..*(dense|c_proj|o_proj|up_proj)")
    ours = Network.of(net, layers)
    x = ours.weights()
    assert torch.allclose(ours.losses(x, data), torch.stack([plain_loss(net, s) for s in data]))
    expected = weight_gradients(net, layers, data, plain_loss)
    assert (
        relative(ours.gradients(x, data), torch.cat([expected[n].flatten(1) for n in expected], 1))
        < 1e-10
    )


def test_the_hessian_equals_finite_differences_of_the_gradient():
    """Two tracked layers of a GPT-NeoX; a central difference at 1e-5 errs by about 1e-9 of the
    third derivative."""
    net, data = neox(), documents(3)
    ours = Network.of(net, tracked_layers(net, r"layers\.1\.attention"))
    x = ours.weights()
    H = ours.hessian(x, data)
    for i in (0, 100, 250):
        e = torch.zeros_like(x)
        e[i] = 1e-5
        difference = (ours.gradients(x + e, data) - ours.gradients(x - e, data)).mean(0) / 2e-5
        assert relative(H[i], difference) < 1e-6
    assert relative(H, H.mT) < 1e-10


def test_the_gauss_newton_matrix_equals_the_jacobians_around_the_outputs_own_hessian():
    net, data = neox(), documents(3)
    ours = Network.of(net, tracked_layers(net, r"layers\.1\.attention\.dense"))
    x, expected = ours.weights(), 0
    for s in data:
        z, y = ours.logits(x, [s])
        J = jacrev(lambda x, s=s: ours.logits(x, [s])[0][0])(x)  # (T, V, P)
        for t in (y[0] != NO_LOSS).nonzero()[:, 0]:
            p = z[0, t].softmax(0)
            expected = expected + J[t].mT @ (torch.diag(p) - torch.outer(p, p)) @ J[t]
    assert relative(ours.gauss_newton(x, data), expected / len(data)) < 1e-10


def test_a_linear_softmax_model_has_its_gauss_newton_matrix_for_a_hessian():
    net = Regression(VOCAB)
    ours = Network.of(net, net.layers())
    x, data = ours.weights(), sequences(4, 2)
    assert relative(ours.gauss_newton(x, data), ours.hessian(x, data)) < 1e-10
