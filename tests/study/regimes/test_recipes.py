"""What differs between recipes is what was asked for; and each number is of the models it says."""

import numpy as np
import pytest
import torch

from msif.core.metasmoothness import document_weights, metasmoothness
from msif.study import metrics
from msif.study.beds import retraining
from msif.study.corpora.corpus import generate
from msif.study.regimes import recipes
from msif.study.retraining import datamodels

CORPUS = generate(0, fine_tuned=2, held_out=2, objects=2, near=0, fillers=5)
MODEL = {"width": 8, "layers": 1, "heads": 2}
FIRST = {"epochs": 3, "rate": 1e-2, "batch_size": 16}
SECOND = {"epochs": 1, "rate": 1e-2}
PLAN = recipes.recipe(CORPUS, MODEL, FIRST, SECOND, {})
N = len(CORPUS.documents)


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)


def weights(net):
    return torch.cat([p.flatten() for p in net.parameters()]).detach()


def test_a_recipe_differs_in_what_was_changed_alone():
    other = recipes.recipe(CORPUS, MODEL, FIRST, SECOND, {"pretraining": {"epsilon": 1e-3}})
    assert other.pretraining == FIRST | {"epsilon": 1e-3} and other.finetuning == SECOND
    assert (PLAN.pretraining, PLAN.finetuning) == (FIRST, SECOND)


def test_left_out_in_all_last_epochs_is_left_out():
    left_out = retraining.subsets(N, 1, 0.25)[0]
    assert left_out.sum() == N // 4
    whole = weights(retraining.retrained(PLAN, left_out, 5))
    last = [weights(retraining.retrained(PLAN, left_out, 5, n)) for n in (1, 3)]
    nothing = weights(retraining.retrained(PLAN, torch.zeros(N, dtype=torch.bool), 5))
    assert torch.equal(last[1], whole)
    assert not torch.equal(last[0], whole) and not torch.equal(last[0], nothing)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"last is {wrong}; expected 1 to 3"):
            retraining.retrained(PLAN, left_out, 5, wrong)


def test_a_share_leaves_out_at_least_one_and_halves_are_as_they_were():
    assert retraining.subsets(10, 3, 0.01).sum(1).tolist() == [1, 1, 1]
    assert torch.equal(retraining.half_subsets(9, 4, 2), retraining.subsets(9, 4, 0.5, 2))


def test_smoothness_is_that_of_three_trainings_of_both_stages():
    nets = [retraining.weighted(PLAN, w, 1) for w in document_weights(N, 1, 0.1)]
    assert recipes.smoothness(PLAN, [1]) == [pytest.approx(metasmoothness(nets))]


def test_outcomes_are_told_apart_by_seed_and_the_ceiling_is_of_the_others():
    found = recipes.outcomes(PLAN, 0.5, 3, [0], [7, 8], processes=1)
    assert found.own.shape[:2] == (3, 1) and found.others.shape[:2] == (3, 2)
    left_out = retraining.subsets(N, 3, 0.5)
    assert torch.equal(found.left_out, left_out)
    expected = retraining.outcome(PLAN, left_out[1], 8)["log_probability"].numpy()
    assert np.array_equal(found.others[1, 1], expected)
    agreement = metrics.seed_agreement(found.others)
    assert found.ceiling == metrics.noise_ceiling(agreement, 2)
    assert found.allowed(1) == metrics.noise_ceiling(agreement, 1)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"seeds": [7]}, "two at least"),
        ({"shares": [0.5, 1.0]}, "share 1.0"),
        ({"windows": [0]}, "window 0: expected 1 to 3"),
        ({"windows": [4]}, "window 4: expected 1 to 3"),
        ({"recipes": {"a": {"pretraining": {"epochs": 1}}}}, "the first must change nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_training(wrong, said):
    given = {"recipes": {"a": {}}, "shares": [0.5], "windows": [3], "seeds": [7, 8]}
    recipes.check(FIRST, **given)
    with pytest.raises(ValueError, match=said):
        recipes.check(FIRST, **given | wrong)


def test_fewer_own_seeds_than_models_are_the_first_ones():
    tables = [{"ours": torch.randn(4, N)} for _ in range(3)]
    left_out = retraining.subsets(N, 8, 0.5)
    f = np.random.default_rng(0).normal(size=(8, 3, 4))
    found = recipes.lds(tables, recipes.Outcomes(left_out, f[:, :1], f), resamples=3)["ours"]
    alone = recipes.lds(tables[:1], recipes.Outcomes(left_out, f[:, :1], f), resamples=3)["ours"]
    assert found["own"] == alone["own"]


def test_lds_is_one_for_the_effects_themselves():
    """With f = −(1/N) Σ of the left-out scores a model's own table predicts it without error; two
    models whose mean it is predict the mean, and each is behind it."""
    rng = torch.Generator().manual_seed(0)
    tables = [{"ours": torch.randn(6, N, generator=rng)} for _ in range(2)]
    left_out = retraining.subsets(N, 12, 0.5)

    def effect(table):
        return datamodels.predicted(table, left_out)["ours"].T[:, None]

    own = np.concatenate([effect(t) for t in tables], axis=1)
    mean = effect(datamodels.ensemble(tables))
    found = recipes.lds(tables, recipes.Outcomes(left_out, own, mean), resamples=3)["ours"]
    assert found["own"][0] == pytest.approx(1) and found["ensemble"][0] == pytest.approx(1)
    assert 0 < found["others"][0] < 1
    both = [t | {"nothing": torch.zeros(6, N)} for t in tables]
    gain, _ = recipes.gain(both, recipes.Outcomes(left_out, own, mean), "ours", "nothing")
    assert gain == pytest.approx(1)
    few = [{"ours": t["ours"][[1, 4]]} for t in tables]
    some = recipes.lds(few, recipes.Outcomes(left_out, own, mean), [1, 4], resamples=3)["ours"]
    assert some["own"][0] == pytest.approx(1)


def test_scores_are_of_each_seed_s_models():
    how = {"damping": 1e-2, "alpha": 0.1, "single_stage_damping": 1e-2, "batch_size": 16}
    how |= {"refined": {"documents": 8, "iterations": 1}, "trak": {"dimension": 8, "ridge": 1.0}}
    how |= {"trackstar": {"documents": "finetuned", "dimension": 4, "damping": 0.1}}
    found = recipes.scores(PLAN, [0, 1], **how)
    assert len(found.right) == len(found.tables) == 2
    others = {recipes.REFINED, recipes.SHAMPOO, recipes.TRACKSTAR, recipes.TRAK}
    assert set(found.tables[0]) == {*recipes.SHOWN, *others, recipes.COUNT}
    assert not torch.equal(*(t["multi_stage/normalised"] for t in found.tables))
    (alone,) = recipes.scores(PLAN, [1], **how).tables
    assert all(torch.equal(alone[name], x) for name, x in found.tables[1].items())
    assert not any(torch.equal(*(t[name] for t in found.tables)) for name in others)


def test_the_derivative_is_in_the_unit_of_the_scores():
    """A document weighs 1 in training and 1 / N in a score: the predictions are the same nats."""
    found = recipes.derivative(PLAN, 0, [0, 2])[recipes.EXACT]
    assert found.shape == (2, N)
    left_out = torch.eye(N, dtype=torch.bool)[[3]]
    predicted = datamodels.predicted({"d": found}, left_out)["d"][:, 0]
    h = 1e-3

    def f(weight):
        w = torch.ones(N)
        w[3] = weight
        net = retraining.weighted(PLAN, w, 0)
        _, _, queries = recipes.testbed.encode(CORPUS, _tokenizer(), PLAN.max_length)
        return retraining.measured(net, queries)["log_probability"][[0, 2]]

    slope = ((f(1 + h) - f(1 - h)) / (2 * h)).numpy()
    assert predicted == pytest.approx(-slope, rel=0.1, abs=2e-3)  # float32 differences


def _tokenizer():
    return recipes.testbed.start(CORPUS, MODEL, 0)[0]


def test_errors_over_corpora_are_those_of_a_mean():
    assert recipes.pooled([(0.2, 0.03), (0.4, 0.04)]) == pytest.approx((0.3, 0.025))
