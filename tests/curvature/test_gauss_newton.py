"""The matrix-free Gauss-Newton product against the oracle's explicit matrix.

To 1e-6: the attention that it differentiates twice takes its softmax in float32,
in a float64 model too.
"""

import pytest
import torch
from support.tiny import documents, gpt2, llama, neox, relative

from msif.core.layers import tracked
from msif.curvature.gauss_newton import GaussNewton
from msif.study.exact.oracle import Network

PATTERNS = {
    neox: r"layers\.1\.(attention|mlp.dense_4h)",
    gpt2: r"h\.1\.(attn|mlp.c_proj)",
    llama: r"layers\.1\.(self_attn|mlp.up)",
}


def vectors(layers, q=3):
    return {
        x.name: torch.randn(q, x.out_features, x.in_features + x.bias, dtype=torch.float64)
        for x in layers
    }


def flat(v):
    return torch.cat([x.flatten(1) for x in v.values()], 1)


@pytest.mark.parametrize("model", PATTERNS, ids=lambda f: f.__name__)
def test_the_product_equals_the_explicit_matrix_times_the_vectors(model):
    net, data = model(), documents(5)
    tracked_model = tracked(net, PATTERNS[model])
    v, oracle = vectors(tracked_model.layers), Network.of(net, tracked_model.layers)
    G = oracle.gauss_newton(oracle.weights(), data)
    assert relative(flat(GaussNewton(tracked_model, data, 2).product(v)), flat(v) @ G) < 1e-6


@pytest.mark.filterwarnings("ignore:what GPTNeoX:UserWarning")
def test_sequences_that_their_neighbours_change_are_read_apart():
    net, data = neox(), documents(5)
    embedding = net.gpt_neox.embed_in
    embedding.register_forward_hook(lambda module, args, x: x - x[:, :1].mean(0))
    layers = tracked(net, PATTERNS[neox])
    v = vectors(layers.layers)
    found, expected = (GaussNewton(layers, data, size).product(v) for size in (4, 1))
    assert relative(flat(found), flat(expected)) < 1e-10


def test_the_product_is_symmetric_positive_semidefinite_and_linear():
    net = neox()
    tracked_model = tracked(net)
    product, v = GaussNewton(tracked_model, documents(4)).product, vectors(tracked_model.layers)
    Gv = flat(product(v))
    gram = Gv @ flat(v).mT
    assert relative(gram, gram.mT) < 1e-6 and torch.linalg.eigvalsh(gram).min() > 0
    sums = {name: x.sum(0, keepdim=True) for name, x in v.items()}
    assert relative(flat(product(sums))[0], Gv.sum(0)) < 1e-6


def test_the_product_leaves_the_model_as_it_was():
    net = neox().train()
    before = (
        [p.requires_grad for p in net.parameters()],
        net.training,
        net.config._attn_implementation,
    )
    tracked_model = tracked(net)
    GaussNewton(tracked_model, documents(2)).product(vectors(tracked_model.layers, 1))
    assert (
        [p.requires_grad for p in net.parameters()],
        net.training,
        net.config._attn_implementation,
    ) == before


def test_sequences_that_the_model_cannot_read_are_refused_before_any_pass():
    net = neox()
    with pytest.raises(ValueError, match="no sequences"):
        GaussNewton(tracked(net), [])
