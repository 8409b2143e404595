"""The derivative through both trainings is what really retraining with other weights measures.

In float64. Weights move by ±1e-5. The central difference then errs by about 1e-8 relative from
rounding and by 1e-7 from curvature, which is high where AdamW's first steps meet |g| near ε; 1e-5
is strict and yet far from both.
"""

import pytest
import torch
from support.tiny import Regression, relative
from torch.nn.utils import parameters_to_vector

from msif.core.data import NO_LOSS, Sequence
from msif.study.beds import testbed
from msif.study.beds.retraining import Recipe, measured, retrained
from msif.study.beds.training import train
from msif.study.corpora.corpus import generate
from msif.study.retraining import unrolled

CORPUS = generate(0, fine_tuned=1, held_out=1, objects=2, statements=2, near=1, fillers=4)
RECIPE = Recipe(
    CORPUS,
    dict(width=8, layers=2, heads=2),
    dict(epochs=3, rate=1e-2, batch_size=16),
    dict(epochs=2, rate=1e-2, batch_size=4),
    32,
)
STEP = 1e-5


def start():
    """(model in float64, [documents, fine-tuning rows], queries)"""
    tokenizer, net = testbed.start(CORPUS, RECIPE.model, 0)
    *data, queries = testbed.encode(CORPUS, tokenizer, RECIPE.max_length)
    return net.double(), data, queries


def stages(data):
    return list(zip(data, (RECIPE.pretraining, RECIPE.finetuning)))


def reweighted(stage, z, step, after=0):
    """f of all queries after really training both stages,
    sequence z of a stage weighing 1 + step after some epochs."""
    net, data, queries = start()
    for k, (sequences, settings) in enumerate(stages(data)):
        weights = torch.ones(len(sequences), dtype=torch.float64)

        def change(epoch, _, k=k, weights=weights):
            if (k, epoch) == (stage, after):
                weights[z] += step

        change(0, net)
        train(net, sequences, seed=0, weights=weights, after_epoch=change, **settings)
    return measured(net, queries)["log_probability"]


def measured_change(*place, **when):
    return (reweighted(*place, STEP, **when) - reweighted(*place, -STEP, **when)) / (2 * STEP)


@pytest.fixture(scope="module")
def found():
    net, data, queries = start()
    return unrolled.differentiated(net, stages(data), queries)


@pytest.mark.parametrize("stage, z", [(0, 0), (0, 17), (0, 43), (1, 0), (1, 7)])
def test_the_score_is_the_measured_change_of_f_with_the_weight(found, stage, z):
    assert relative(found[stage][:, z], measured_change(stage, z)) < 1e-5


def test_of_the_last_epochs_it_is_the_change_with_the_weight_there():
    net, data, queries = start()
    late = unrolled.differentiated(net, stages(data), queries, epochs=2)
    assert relative(late[0][:, 17], measured_change(0, 17, after=1)) < 1e-5


def test_all_documents_together_change_nothing(found):
    """AdamW divides the scale of the loss out again,
    up to its ε = 1e-8 beside gradients of about 1e-2."""
    for values in found:
        assert (values.sum(1).abs() < 1e-4 * values.abs().sum(1)).all()


def test_a_query_scores_the_same_in_any_company(found):
    net, data, queries = start()
    alone = unrolled.differentiated(net, stages(data), queries[3:4])
    assert all(relative(a[0], together[3]) < 1e-10 for a, together in zip(alone, found))


def test_a_sequence_without_a_loss_scores_nothing():
    net, (documents, rows), queries = start()
    documents[5] = Sequence(5, documents[5].input_ids, (NO_LOSS,) * len(documents[5].labels))
    values = unrolled.differentiated(net, stages([documents, rows]), queries[:2])[0]
    assert (values[:, 5] == 0).all() and (values[:, :5] != 0).all()


def test_the_recorded_run_is_training_itself():
    nets = [start()[0] for _ in range(2)]
    documents = start()[1][0]
    steps = unrolled.recorded(nets[0], documents, 4, RECIPE.pretraining)
    train(nets[1], documents, seed=4, **RECIPE.pretraining)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))
    assert [step.number for step in steps] == list(range(1, 3 * 3 + 1))


def test_a_recorded_step_is_the_step_of_the_formula():
    net, (documents, _), _ = start()
    steps = unrolled.recorded(net, documents, 0, RECIPE.pretraining)
    thetas = [step.theta for step in steps] + [parameters_to_vector(net.parameters()).detach()]
    for step, after in zip(steps, thetas[1:]):
        c1, c2 = (1 - beta**step.number for beta in step.betas)
        expected = (1 - step.rate * step.decay) * step.theta - step.rate / c1 * step.m / (
            (step.v / c2).sqrt() + step.eps
        )
        assert torch.allclose(after, expected, rtol=1e-12, atol=1e-14)


def test_the_model_ends_as_it_was_trained(found):
    """Walking back through the steps leaves θ₂ in the model, as `retraining.retrained` gives it,
    up to float32."""
    net, data, queries = start()
    unrolled.differentiated(net, stages(data), queries[:1])
    expected = retrained(RECIPE, torch.zeros(len(data[0]), dtype=torch.bool), 0)
    a, b = (parameters_to_vector(x.parameters()).detach().double() for x in (net, expected))
    assert relative(a, b) < 1e-3


def test_scores_are_kept_and_not_computed_again(tmp_path, monkeypatch, found):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    first = unrolled.scores(RECIPE, 0, [2, 0], at_once=1)
    assert relative(first.double(), found[0][[2, 0]]) < 1e-2  # float32, where tiny |g| are noise
    monkeypatch.setattr(unrolled, "differentiated", None)
    assert torch.equal(unrolled.scores(RECIPE, 0, [2, 0], at_once=1), first)
    assert torch.equal(unrolled.scores(RECIPE, 0, [0]), first[1:])


def linear_network():
    """(softmax regression: its logits are linear in its parameters, its sequences and queries)"""
    torch.manual_seed(0)
    net = Regression()
    net.device = torch.device("cpu")  # what training asks a model for
    g = torch.Generator().manual_seed(0)
    rows = [
        Sequence(n, ids, ids)
        for n, ids in enumerate(map(tuple, torch.randint(5, (12, 4), generator=g).tolist()))
    ]
    return net, rows[:10], rows[10:]


def test_both_curvatures_are_one_where_logits_are_linear():
    """Then ∇²L is JᵀH_out J, up to rounding."""
    found = []
    for curvature in ("hessian", "gauss_newton"):
        net, rows, queries = linear_network()
        settings = {"epochs": 3, "rate": 1e-2, "batch_size": 4}
        found.append(
            unrolled.differentiated(
                net, [(rows, settings), (rows[:6], settings)], queries, curvature=curvature
            )
        )
    assert all(relative(b, a) < 1e-10 for a, b in zip(*found))


def test_at_a_small_rate_curvature_does_not_matter():
    """A step moves θ by about its rate, here 1e-6, and g by the curvature times that."""
    found = []
    for curvature in ("hessian", "gauss_newton"):
        net, data, queries = start()
        slow = [(sequences, settings | {"rate": 1e-6}) for sequences, settings in stages(data)]
        found.append(unrolled.differentiated(net, slow, queries[:2], curvature=curvature)[0])
    assert 0 < relative(*found) < 1e-2


def test_what_cannot_be_computed_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(unrolled, "recorded", None)
    with pytest.raises(ValueError, match="query 5: expected numbers from 0 to 4"):
        unrolled.scores(RECIPE, 0, [0, len(CORPUS.queries)])
    net, data, queries = start()
    with pytest.raises(
        ValueError, match="curvature='fisher': expected one of hessian, gauss_newton"
    ):
        unrolled.differentiated(net, stages(data), queries, curvature="fisher")
    with pytest.raises(ValueError, match="epochs=4: expected 1 to 3"):
        unrolled.differentiated(net, stages(data), queries, epochs=4)
    with pytest.raises(ValueError, match="weights in the settings"):
        unrolled.differentiated(
            net, [(data[0], RECIPE.pretraining | {"weights": torch.ones(44)})], queries
        )
    monkeypatch.setattr("msif.core.resources.available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="keeping 15 steps"):
        unrolled.differentiated(net, stages(data), queries)
