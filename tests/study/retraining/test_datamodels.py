"""Scores that predict retraining: what is predicted, what is averaged,
and what the pieces are equal to."""

import pytest
import torch

from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked
from msif.curvature import shampoo
from msif.curvature.unrolling import Unrolled
from msif.study.beds.retraining import Recipe
from msif.study.corpora.corpus import generate
from msif.study.retraining import datamodels
from msif.study.retraining.single_stage import single_stage_scores
from msif.study.tracing import methods
from msif.study.tracing.case import trained_case
from msif.study.tracing.curvatures import at_pretrained, with_products, with_shampoo

PEOPLE = generate(0, fine_tuned=2, held_out=2, objects=3, near=1, fillers=10)
RECIPE = Recipe(
    PEOPLE,
    dict(width=8, layers=1, heads=2),
    dict(epochs=3, rate=1e-2, batch_size=16),
    dict(epochs=2, rate=1e-2),
    32,
)
SETTINGS = dict(damping=1e-2, alpha=0.1, single_stage_damping=1e-2, batch_size=64)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A study of its own, with one seed's models and factors."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "dvc.yaml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield trained_case(RECIPE, 0, [2])


def test_a_prediction_is_minus_the_mean_score_of_what_is_left_out():
    scores = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    left_out = torch.tensor([[True, False, True, False], [False] * 4])
    assert datamodels.predicted({"x": scores}, left_out)["x"].tolist() == [[-5 / 4, 0]]


def test_statements_are_the_documents_that_state_the_fact():
    found = datamodels.statements(PEOPLE)
    assert [row.nonzero()[:, 0].tolist() for row in found] == [
        sorted(q["proponents"]) for q in PEOPLE.queries
    ]


def test_the_union_of_the_top_has_each_querys_own():
    scores = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [9, 0, 0, 0]])
    assert datamodels.union_of_top(scores, [0, 1], 1).tolist() == [True, False, False, True]


def test_shrinking_keeps_agreement_and_removes_what_is_within_the_error():
    scores = torch.tensor([[[4.0, 0.3, -4.0]], [[4.0, -0.1, -4.0]]])
    found = datamodels.shrunk(scores)
    assert found[0, 1] == 0 and 0 < found[0, 0] < 4 and found[0, 2] == -found[0, 0]
    # no disagreement: nothing is taken off
    assert torch.equal(datamodels.shrunk(scores[:1].expand(2, -1, -1)), scores[0])


def test_one_refinement_without_products_is_the_multi_stage_score(case):
    found = with_products(case, documents=8, iterations=0, damping=1e-2, alpha=0.1)[
        "multi_stage_refined/raw"
    ]
    expected = methods.scored(case, **SETTINGS)["multi_stage/raw"]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max())


def test_by_shampoo_is_the_score_of_stages_with_its_factors(case):
    base, tuned, _, _ = case.ends
    how = {"labels": "gaussian", "batch_size": 64}
    first = shampoo.fit(base, case.bed.documents, samples=2, seed="7/pretrained/shampoo", **how)
    last = shampoo.fit(tuned, case.bed.finetuning, samples=4, seed="7/finetuned/shampoo", **how)
    stages = [Stage(first, Damping(1e-2)), Stage(last, alpha=Damping(0.1))]
    w = precondition(query_gradients(tuned, case.queries), stages)[0]
    expected = score(base, case.bed.documents, w)
    found = with_shampoo(case, damping=1e-2, alpha=0.1, seed=7)
    for form, x in (("raw", expected.values), ("normalised", expected.normalised())):
        near = {"rtol": 1e-4, "atol": 1e-6 * x.abs().max()}
        assert torch.allclose(found[f"multi_stage_shampoo/{form}"], x, **near)


def test_a_variant_that_exchanges_nothing_is_the_multi_stage_score(case):
    found = datamodels.variants(case, 1e-2, 0.1, [0.1], [1.0], seed=0)
    assert torch.allclose(
        found["proximal α = 0.1/raw"],
        methods.scored(case, **SETTINGS)["multi_stage/raw"],
        rtol=1e-4,
        atol=1e-6 * found["proximal α = 0.1/raw"].abs().max(),
    )


def test_each_damping_of_single_stage_is_the_score_at_that_damping(case):
    found = single_stage_scores(case, [1e-2, 1.0])
    for d, table in zip((1e-2, 1.0), found):
        whole = methods.scored(case, **SETTINGS | {"single_stage_damping": d})
        assert set(table) == {f"single_stage_finetuned/{form}" for form in ("raw", "normalised")}
        for name, values in table.items():
            torch.testing.assert_close(values, whole[name], rtol=1e-4, atol=1e-5)  # float32
    assert not torch.allclose(*(x["single_stage_finetuned/raw"] for x in found))


def test_the_parts_that_are_not_exchanged_are_those_of_the_score(case):
    """Fine-tuning's α, too, where pre-training's filter is another."""
    _, tuned, first, last = case.ends
    q = query_gradients(tuned, case.queries)
    w = Unrolled(first, time=1.0).inverse(Stage(last, alpha=Damping(3.0)).transfer(q))
    expected = at_pretrained(case, {"x": w})["x/raw"]
    found = datamodels.variants(case, 1e-2, 3.0, [], [1.0], seed=0)
    near = {"rtol": 1e-4, "atol": 1e-6 * expected.abs().max()}
    assert torch.allclose(found["unrolled pre-training τ = 1.0/raw"], expected, **near)


def test_source_over_short_segments_is_a_sum_of_gradient_dots_over_checkpoints(case):
    """τ → 0: a document moves the weights by −τ∇ℓ at every checkpoint,
    and nothing is forgotten (TracIn, after fine-tuning's stage)."""
    found = datamodels.all_scores(case, time=1e-4, **SETTINGS)["multi_stage_source/raw"]
    q = query_gradients(Tracked(case.bed.model("finetuned"), case.layers), case.queries)
    vectors = {"last": Stage(case.factors["finetuned"], alpha=Damping(0.1)).transfer(q)}
    parts = [
        methods.score_together(
            Tracked(case.bed.model(name), case.layers),
            case.bed.documents,
            {
                "x": {
                    layer: v * 1e-4 / case.factors[name].factors[layer].eigenvalues.mean()
                    for layer, v in vectors["last"].items()
                }
            },
            64,
        )["x"].values
        for name in case.bed.checkpoints
    ]
    # e^(−τλ) is 1 but where λ is 100 × its mean
    assert torch.allclose(found, sum(parts), rtol=2e-2, atol=2e-2 * found.abs().max())


def test_the_ensembles_score_is_the_mean():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(datamodels.ensemble([{"m": a}, {"m": b}])["m"], (a + b) / 2)
