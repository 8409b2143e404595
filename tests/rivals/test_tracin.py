"""TracInCP against its formula: both gradients at each checkpoint, times its learning rate."""

import pytest
import torch
from support.tiny import documents, neox, plain_loss, relative, weight_gradients

from msif.core.capture import gradients
from msif.core.influence import query_gradients, score
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.rivals.tracin import tracincp

RATES = [0.5, 0.1, 0.02]


def test_it_is_the_formula_on_plain_gradients_at_every_checkpoint():
    queries, candidates = documents(3, seed=2), documents(6)
    products, expected = [], 0
    for k, rate in enumerate(RATES):
        net = tracked(neox(seed=k), "layers.1.mlp")
        products.append(score(net, candidates, query_gradients(net, queries)).values)
        q, z = (
            weight_gradients(net.model, net.layers, x, plain_loss) for x in (queries, candidates)
        )
        expected = expected + rate * sum(
            torch.einsum("qoi,noi->qn", q[name], z[name]) for name in z
        )
    assert relative(tracincp(products, RATES), expected) < 1e-10
    assert relative(tracincp(products), sum(products)) < 1e-12


def test_a_small_step_on_a_document_raises_the_log_probability_by_its_score():
    """One step of gradient descent on z from a checkpoint, at rate η: f moves by η⟨∇ℓ_q, ∇ℓ_z⟩."""
    model, rate = neox(), 1e-6
    net = tracked(model, "layers.1.mlp")
    query, z = documents(2, seed=2)
    found = tracincp([score(net, [z], query_gradients(net, [query])).values], [rate])
    before = plain_loss(model, query).item()
    for name, D in gradients(net, [z], loss).items():
        module = model.get_submodule(name)
        module.weight.data -= rate * D[0, :, : module.in_features]
        module.bias.data -= rate * D[0, :, -1]
    assert before - plain_loss(model, query).item() == pytest.approx(found.item(), rel=1e-3)


@pytest.mark.parametrize("rates", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_rates_are_refused_unless_there_is_a_positive_one_a_checkpoint(rates):
    with pytest.raises(ValueError, match="learning rates .* for 2 checkpoints"):
        tracincp([torch.ones(1, 2)] * 2, rates)
    with pytest.raises(ValueError, match="0 checkpoints"):
        tracincp([])
