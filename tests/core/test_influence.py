"""Scores against dense float64 formulas by plain autograd; the invariances;
the parts that sum to the whole; bad input.

Equality to a formula: 1e-8 relative. The same numbers summed in another order: 1e-10.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.chained import RELATIVE, chained, stages_of
from support.tiny import (
    dense_ekfac,
    documents,
    logits_of,
    matrix_function,
    neox,
    plain_loss,
    pseudo,
    relative,
    weight_gradients,
)

from msif.core.capture import gradients
from msif.core.data import NO_LOSS
from msif.core.ekfac import EKFAC, fit
from msif.core.influence import (
    Damping,
    Scores,
    Stage,
    precondition,
    query_gradients,
    score,
    token_scores,
    trajectory,
)
from msif.core.layers import Tracked, tracked, tracked_layers
from msif.core.objectives import fisher_losses, logit_margin, loss
from msif.core.queries import preconditioned
from msif.curvature.dense import Dense

ABSOLUTE = (Damping(0.01, relative=False), Damping(0.05, relative=False))


@pytest.fixture(scope="module")
def study():
    return chained()


def scores_of(study, stages, stage=0, **options):
    query = query_gradients(study.tracked[len(stages) - 1], study.queries)
    w = precondition(query, stages)[stage]
    return score(study.tracked[stage], study.data[stage], w, **options)


@pytest.mark.parametrize("damping", [RELATIVE, ABSOLUTE], ids=["relative", "absolute"])
@pytest.mark.parametrize("k", [1, 2, 3], ids="{} stages".format)
def test_scores_equal_the_dense_formula_for_documents_of_every_stage(study, k, damping):
    d, alpha = (lambda mean, x=x: x.value * (mean if x.relative else 1) for x in damping)
    blocks = [
        dense_ekfac(m, study.layers, x, [pseudo(o) for o in fisher_losses("gaussian", 1, 0)])[0]
        for m, x in zip(study.models, study.data)
    ]
    # ∇(−f), f = log p
    query = weight_gradients(study.models[k - 1], study.layers, study.queries, plain_loss)
    for j in range(k):
        documents = weight_gradients(study.models[j], study.layers, study.data[j], plain_loss)
        expected = 0
        for x in study.layers:
            v = query[x.name].flatten(1)
            for i in range(k - 1, j, -1):
                v = v @ matrix_function(
                    blocks[i][x.name], lambda e, mean: alpha(mean) / (e + alpha(mean) + d(mean))
                )
            own = alpha if j else lambda mean: 0
            v = v @ matrix_function(
                blocks[j][x.name], lambda e, mean: 1 / (e + own(mean) + d(mean))
            )
            expected = expected + v @ documents[x.name].flatten(1).mT
        assert relative(scores_of(study, stages_of(study, k, damping), j).values, expected) < 1e-8


def test_positive_scores_mean_that_more_weight_on_the_document_raises_f(study):
    """One gradient step on a document under H = I raises its own log-probability:
    its score for itself is positive."""
    model, queries = study.models[0], study.data[0]
    query = query_gradients(study.tracked[0], queries)
    w = precondition(query, [Stage(study.factors[0].identity())])[0]
    values = score(study.tracked[0], queries, w).values
    assert (values.diagonal() > 0).all()
    before = torch.stack([-plain_loss(model, s) for s in queries]).detach()
    stepped, step = neox(0), 1e-6
    for p, g in weight_gradient_of_layers(stepped, study.layers, queries[1]):
        p.data -= step * g
    rise = torch.stack([-plain_loss(stepped, s) for s in queries]).detach() - before
    assert relative(rise / step, values[:, 1]) < 1e-4  # a finite difference of first order


def weight_gradient_of_layers(model, layers, sequence):
    parameters = [p for x in layers for p in model.get_submodule(x.name).parameters()]
    return zip(parameters, torch.autograd.grad(plain_loss(model, sequence), parameters))


def test_scores_do_not_depend_on_candidate_order_batch_size_or_per_layer(study):
    stages = stages_of(study)
    w = precondition(query_gradients(study.tracked[1], study.queries), stages)[0]

    def values(candidates, **options):
        return score(study.tracked[0], candidates, w, **options).values

    once = values(study.data[0])
    for options in (dict(batch_size=1), dict(batch_size=4), dict(per_layer=True)):
        assert relative(values(study.data[0], **options), once) < 1e-10
    assert relative(values(study.data[0][::-1]).flip(1), once) < 1e-10


def test_scores_do_not_depend_on_other_queries_their_order_or_earlier_calls(study):
    """Defect 2: nothing is accumulated from query to query."""
    once, stages = scores_of(study, stages_of(study)).values, stages_of(study)

    def values(queries):
        return scores_of(SimpleNamespace(**{**vars(study), "queries": queries}), stages).values

    for _ in range(2):
        assert torch.equal(values(study.queries), once)
    for order in ([2, 0, 1], [1], [0, 0, 2]):
        asked = [replace(study.queries[i], index=n) for n, i in enumerate(order)]
        assert relative(values(asked), once[order]) < 1e-10


def test_preconditioning_changes_neither_the_query_nor_the_curvature(study):
    query = query_gradients(study.tracked[1], study.queries)
    before = (
        {name: x.clone() for name, x in query.items()},
        [x.eigenvalues.clone() for x in study.factors[1].factors.values()],
    )
    precondition(query, stages_of(study))
    assert all(torch.equal(query[name], x) for name, x in before[0].items())
    assert all(
        torch.equal(x.eigenvalues, y) for x, y in zip(study.factors[1].factors.values(), before[1])
    )


def test_layer_scores_and_token_scores_sum_to_the_score(study):
    w = precondition(query_gradients(study.tracked[1], study.queries), stages_of(study))[0]
    found = score(study.tracked[0], study.data[0], w, per_layer=True, batch_size=4)
    assert list(found.layers) == [x.name for x in study.layers]
    assert relative(sum(found.layers.values()), found.values) < 1e-12
    tokens = token_scores(study.tracked[0], study.data[0], w, batch_size=4)
    assert tokens.shape == (3, 6, 6)
    assert relative(tokens.sum(2), found.values) < 1e-10
    for n, s in enumerate(study.data[0]):
        assert (tokens[:, n, len(s.input_ids) :] == 0).all()


def test_normalised_scores_are_divided_by_the_documents_gradient_norm(study):
    found = scores_of(study, stages_of(study))
    g = weight_gradients(study.models[0], study.layers, study.data[0], plain_loss)
    norms = torch.cat([x.flatten(1) for x in g.values()], 1).norm(dim=1)
    assert relative(found.norms, norms) < 1e-10
    assert relative(found.normalised(), found.values / norms) < 1e-10
    assert torch.equal(Scores(torch.zeros(1, 2), torch.zeros(2)).normalised(), torch.zeros(1, 2))


def test_a_measurement_other_than_the_log_probability_is_differentiated(study):
    def plain_margin(model, s):
        logits, total = logits_of(model, s)[0][0], 0
        for t, y in enumerate(s.labels):
            if t and y != NO_LOSS:
                total = (
                    total
                    + logits[t - 1, y]
                    - torch.cat([logits[t - 1, :y], logits[t - 1, y + 1 :]]).max()
                )
        return -total

    expected = weight_gradients(study.models[0], study.layers, study.queries, plain_margin)
    found = query_gradients(study.tracked[0], study.queries, logit_margin)
    assert all(relative(found[name], expected[name]) < 1e-10 for name in found)


def test_a_very_large_alpha_leaves_the_query_as_it_is(study):
    query = query_gradients(study.tracked[1], study.queries)
    moved = Stage(study.factors[1], alpha=Damping(1e9)).transfer(query)
    assert all(relative(moved[name], query[name]) < 1e-6 for name in query)


@pytest.mark.parametrize("absolute", [False, True])
def test_new_layers_stay_out_of_earlier_stages_and_carry_no_alpha(study, absolute):
    """EK-FAC blocks are independent: the shared layers' vectors are those of a last stage without
    the new one."""
    model, data = study.models[1], study.data[1]
    tracked_model = tracked(model, r"attention|mlp|^embed_out$|^lm_head$", per_head=True)
    (head,) = {x.name for x in tracked_model.layers} - {x.name for x in study.layers}
    d, alpha = ABSOLUTE if absolute else RELATIVE
    last = Stage(fit(tracked_model, data, samples=1), d, alpha, new=(head,))
    first, without = stages_of(study, 2, (d, alpha))
    query = query_gradients(tracked_model, study.queries)
    w = precondition(query, [first, last])
    expected = precondition(
        {name: x for name, x in query.items() if name != head}, [first, without]
    )
    assert list(w[0]) == list(expected[0]) and head in w[1]
    assert all(relative(w[0][name], expected[0][name]) < 1e-8 for name in expected[0])
    assert all(relative(w[1][name], expected[1][name]) < 1e-8 for name in expected[1])
    alone = Stage(EKFAC({head: last.curvature.factors[head]}, {}), d).inverse({head: query[head]})
    assert torch.equal(w[1][head], alone[head])


def test_dense_curvature_ignores_the_order_of_the_layers_and_keeps_its_input():
    M, f = torch.randn(10, 10, dtype=torch.float64), lambda values, mean: 1 / (values + 0.1)
    dense = Dense(M @ M.mT, {"a": (2, 3), "b": (4, 1)})
    v = {
        "b": torch.randn(2, 4, 1, dtype=torch.float64),
        "a": torch.randn(2, 2, 3, dtype=torch.float64),
    }
    before = {name: x.clone() for name, x in v.items()}

    def flat(x):
        return torch.cat([x["a"].flatten(1), x["b"].flatten(1)], 1)

    expected = torch.linalg.solve(
        dense.matrix + 0.1 * torch.eye(10, dtype=torch.float64), flat(v).mT
    ).mT
    for new in ((), ("b",)):
        assert relative(flat(dense.apply(f, v, new, f)), expected) < 1e-8
    assert all(torch.equal(v[name], x) for name, x in before.items())


def test_a_trajectory_weighs_checkpoints_by_their_spread():
    a, b = torch.randn(3, 5), 1000 * torch.randn(3, 5)
    assert torch.allclose(trajectory([a, b]), a / a.std() + b / b.std())
    assert torch.allclose(trajectory([7 * a, b]), trajectory([a, b]))


@pytest.mark.parametrize(
    "bad, says",
    [
        ([], "no scores"),
        ([torch.tensor([[3.0]])], r"checkpoint 0 .*\(1, 1\), are all equal or not finite"),
        ([torch.randn(2, 3), torch.full((2, 3), 0.1)], "checkpoint 1 .*are all equal"),
        ([torch.randn(2, 3), torch.tensor([[0.0, float("nan")]])], "checkpoint 1 .*not finite"),
        ([torch.randn(2, 0)], "checkpoint 0"),
        ([torch.randn(2, 3), torch.randn(1, 3)], r"shape \(1, 3\), those before it \(2, 3\)"),
    ],
)
def test_a_trajectory_without_spread_is_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        trajectory(bad)


@pytest.mark.parametrize("last", [0, 1], ids=["lower before higher", "higher before lower"])
def test_stages_may_differ_in_precision(last):
    """Equal to float64 stages but for the rounding of the float32 stage's gradients and factors."""
    kinds = [torch.float32, torch.float64] if last else [torch.float64, torch.float32]
    exact = [Tracked(m, tracked_layers(m, per_head=True)) for m in (neox(0), neox(1))]
    mixed = [Tracked(neox(k).to(kinds[k]), x.layers) for k, x in enumerate(exact)]
    queries, data = documents(3, 20), [documents(6, seed=10 + k) for k in range(2)]

    def scores(pair):
        fitted = [fit(x, d, samples=1, labels="true") for x, d in zip(pair, data)]
        stages = [Stage(fitted[0], Damping(0.1)), Stage(fitted[1], alpha=Damping(0.1))]
        w = precondition(query_gradients(pair[1], queries), stages)[0]
        again = preconditioned(pair[1], queries, stages)
        assert all(relative(again[name], x) < 1e-5 for name, x in w.items())
        found = score(pair[0], data[0], w)
        split = token_scores(pair[0], data[0], w).sum(2)
        assert relative(split, found.values) < 1e-4
        assert found.values.dtype == torch.float64
        return found.values

    assert relative(scores(mixed), scores(exact)) < 1e-4


def test_vectors_and_layers_that_do_not_match_are_refused_by_name(study):
    query = query_gradients(Tracked(study.models[0], study.layers[1:]), study.queries)
    with pytest.raises(ValueError, match=f"do not have the same layers.*{study.layers[0].name}"):
        precondition(query, stages_of(study, 1))
    for function in (score, token_scores):
        with pytest.raises(
            ValueError, match=f"do not have the same layers.*{study.layers[0].name}"
        ):
            function(study.tracked[0], study.data[0], query)


def test_candidates_that_share_an_index_are_refused(study):
    w = query_gradients(study.tracked[0], study.queries)
    with pytest.raises(ValueError, match="1 sequences share their index"):
        score(study.tracked[0], [*study.data[0], study.data[0][0]], w)


def test_gradients_of_the_loss_come_in_the_given_order(study):
    expected = weight_gradients(study.models[0], study.layers, study.data[0][::-1], plain_loss)
    found = gradients(study.tracked[0], study.data[0][::-1], loss, batch_size=4)
    assert all(relative(found[name], expected[name]) < 1e-10 for name in expected)


def test_a_norm_too_small_to_be_squared_is_refused_where_it_would_divide():
    """Not one that is 0 with a score of 0, and not in float64, which squares it."""
    values = torch.tensor([[1.0, 0.0, 2e-20], [3.0, 0.0, 0.0]])
    norms = torch.tensor([1.0, 0.0, 1e-20])
    with pytest.raises(FloatingPointError, match="candidate 2 has a gradient of norm 1e-20"):
        Scores(values, norms).normalised()
    found = Scores(values.double(), norms.double()).normalised()
    torch.testing.assert_close(found[0].tolist(), [1.0, 0.0, 2.0])
    assert Scores(values[:, :2], norms[:2]).normalised().tolist() == [[1.0, 0.0], [3.0, 0.0]]
