"""Causal ground truth: planted effects come back, nothing causes nothing by more than chance,
and it runs end to end."""

import numpy as np
import pytest
import torch

from msif.study.beds.retraining import Recipe
from msif.study.corpora import matched
from msif.study.fact_tracing import causal
from msif.study.fact_tracing.causal import Effects, correlations, design, effects

QUERIES = [
    dict(candidates=list(range(8 * i, 8 * i + 8)), proponents=[8 * i, 8 * i + 1]) for i in range(40)
]
DOCUMENTS, SEEDS = 330, (5, 6, 7)
# drop of each candidate of each query
PLANTED = np.tile([1.5, 1.0, 0.5, -0.5, 0, 0, 0, 0], (40, 1))


def simulated(left_out, noise, seed=0):
    """f = level of the query + level of the seed − planted drops + noise: (subsets, q)."""
    rng = np.random.default_rng(seed)
    # (subsets, q, candidates)
    without = np.stack([left_out[:, q["candidates"]].numpy() for q in QUERIES], 1)
    level = rng.normal(size=40) + 3 * rng.normal(size=3)[np.arange(len(left_out)) % 3][:, None]
    return level - (without * PLANTED).sum(2) + noise * rng.normal(size=(len(left_out), 40))


def test_each_candidate_is_left_out_of_half_of_the_retrainings_and_nothing_else_ever():
    for subsets in (24, 25):
        left_out = design(QUERIES, DOCUMENTS, subsets, seed=3)
        assert left_out.dtype == torch.bool and left_out.shape == (subsets, DOCUMENTS)
        assert (
            set(left_out[:, :320].sum(0).tolist()) == {subsets // 2} and not left_out[:, 320:].any()
        )


def test_candidates_are_independent_and_seeds_differ():
    left_out = design(QUERIES, DOCUMENTS, 200, seed=0)
    assert torch.equal(left_out, design(QUERIES, DOCUMENTS, 200, seed=0))
    assert not torch.equal(left_out, design(QUERIES, DOCUMENTS, 200, seed=1))
    together = np.corrcoef(left_out[:, :320].T.float())[np.triu_indices(320, 1)]
    assert abs(together.mean()) < 0.002 and together.std() == pytest.approx(200**-0.5, rel=0.05)


def test_two_questions_about_one_fact_share_its_design():
    twice = [QUERIES[0], QUERIES[0], QUERIES[1]]
    assert torch.equal(design(twice, DOCUMENTS, 20), design(QUERIES[:2], DOCUMENTS, 20))


def test_designs_that_cannot_tell_are_refused():
    with pytest.raises(ValueError, match="subsets is 15; expected at least 16"):
        design(QUERIES, DOCUMENTS, 15)
    with pytest.raises(ValueError, match="share some of their candidates"):
        design([dict(candidates=[0, 1]), dict(candidates=[1, 2])], 3, 20)


def test_planted_effects_come_back_exactly_without_noise():
    left_out = design(QUERIES, DOCUMENTS, 30)
    found = effects(simulated(left_out, noise=0), left_out, QUERIES, SEEDS)
    assert np.allclose(found.drop, PLANTED, atol=1e-10) and np.abs(found.error).max() < 1e-10


def test_the_level_of_a_training_seed_is_no_effect():
    left_out = design(QUERIES, DOCUMENTS, 30)
    f = simulated(left_out, noise=1)
    found, shifted = (
        effects(x, left_out, QUERIES, SEEDS) for x in (f, f + np.array([5, 0, -9] * 10)[:, None])
    )
    assert np.allclose(found.drop, shifted.drop) and np.allclose(found.error, shifted.error)


def test_with_noise_drops_are_unbiased_and_errors_right():
    """40 queries x 10 repetitions of each estimate;
    for independent halves the error is 2 σ / √subsets or a little more."""
    runs = []
    for repetition in range(10):
        left_out = design(QUERIES, DOCUMENTS, 60, seed=repetition)
        runs.append(
            effects(simulated(left_out, noise=1, seed=repetition), left_out, QUERIES, SEEDS)
        )
    miss = np.array([run.drop for run in runs]) - PLANTED
    error = np.array([run.error for run in runs])
    assert np.abs(miss.mean((0, 1))).max() < 4 * error.mean() / np.sqrt(400)
    assert np.sqrt((miss**2).mean()) == pytest.approx(np.sqrt((error**2).mean()), rel=0.1)
    assert 2 / 60**0.5 < error.mean() < 1.2 * 2 / 60**0.5


def test_about_one_null_in_forty_is_called_causal():
    """P(t > 2) with 49 degrees of freedom is 2.5 %; of 4,000 nulls."""
    calls = []
    for repetition in range(25):
        left_out = design(QUERIES, DOCUMENTS, 60, seed=repetition)
        found = effects(simulated(left_out, noise=1, seed=repetition), left_out, QUERIES, SEEDS)
        calls += [n % 8 for own in found.causal for n in own]
    counts = np.bincount(calls, minlength=8) / 1000
    assert 0.015 < counts[4:].mean() < 0.035
    assert (
        counts[0] > 0.95
        and counts[0] > counts[1] > counts[2] > counts[4:].max() > 0
        and counts[3] < 0.005
    )


def test_half_of_the_retrainings_finds_what_the_other_half_calls_causal_as_noise_allows():
    """Nearly all of it with little noise (one null in forty is called causal), less with more, by
    chance where nothing has an effect; likewise among some of the candidates."""
    left_out = design(QUERIES, DOCUMENTS, 96).numpy()
    last = [query["candidates"][2:] for query in QUERIES]  # one of six has an effect

    def found(f, among=None):
        first, second = halves = causal.halves(f, left_out, QUERIES, SEEDS)
        values = causal.between(halves, among=among)
        ways = [causal.found_by(first, second, among), causal.found_by(second, first, among)]
        both = np.isfinite(ways).all(0)
        assert values.shape == (40,) and values[both] == pytest.approx(np.mean(ways, 0)[both])
        return np.nanmean(values)

    little, much = (simulated(torch.as_tensor(left_out), noise) for noise in (0.1, 3.0))
    assert found(little) > 0.97 and found(little, last) > 0.9
    assert 0.6 < found(much) < 0.95
    nothing = np.random.default_rng(0).normal(size=(96, 40))
    assert found(nothing) == pytest.approx(0.5, abs=0.12)


def test_scores_find_causal_candidates_by_the_area_under_the_curve():
    effects = Effects(
        [[0, 2, 3], [1, 4]], [np.array([2.0, 0, 1]), np.zeros(2)], [np.ones(3) / 4, np.ones(2)]
    )
    assert effects.causal == [[0, 3], []]
    scores = np.array([[1.0, 9, 2, 3, 9], [0, 1, 0, 0, 0]])
    values = causal.found_by(scores, effects)
    assert values[0] == 0.5 and np.isnan(values[1])
    assert causal.found_by(scores, effects, [[2, 3], [1, 4]])[0] == 1
    assert causal.found_by(effects, effects)[0] == 1


def test_outcomes_that_do_not_fit_are_refused():
    left_out = design(QUERIES, DOCUMENTS, 30)
    with pytest.raises(
        ValueError, match=r"outcomes have shape \(30, 39\); expected \(30 subsets, 40 queries\)"
    ):
        effects(simulated(left_out, 1)[:, 1:], left_out, QUERIES, SEEDS)
    never = left_out.clone()
    never[:, 0] = False
    with pytest.raises(
        ValueError, match="query 0: 30 retrainings do not identify the effects of its 8 candidates"
    ):
        effects(simulated(left_out, 1), never, QUERIES, SEEDS)


def test_causal_sentences_and_correlations_follow_the_drops():
    found = Effects(
        [[0, 1], [2, 3]], [np.array([0.1, 3.0]), np.array([0.1, -3])], [np.ones(2), np.ones(2)]
    )
    assert found.causal == [[1], []]
    assert correlations(np.array([[1.0, 2, 9, 9], [9, 9, 3, 4]]), found).tolist() == [1, -1]
    assert correlations(np.zeros((2, 4)), found).tolist() == [0, 0]


def test_it_runs_end_to_end_on_a_one_layer_model(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()  # a study with its own scratch/
    monkeypatch.chdir(tmp_path)
    corpus = matched.generate(
        0,
        fine_tuned=1,
        held_out=1,
        objects=2,
        statements=1,
        object_first=0,
        subject_first=1,
        fillers=5,
    )
    recipe = Recipe(
        corpus,
        dict(width=8, layers=1, heads=2),
        dict(epochs=1, rate=1e-2, batch_size=16),
        dict(epochs=1, rate=1e-2),
        48,
    )
    left_out = design(corpus.queries, len(corpus.documents), 12)
    f = causal.outcomes(recipe, left_out, (3, 4), processes=1)
    found = effects(f, left_out, corpus.queries, (3, 4))
    assert found.candidates == [query["candidates"] for query in corpus.queries]
    assert (
        [len(drop) for drop in found.drop] == [2] * 5
        and np.isfinite(found.drop).all()
        and (np.array(found.error) > 0).all()
    )
    # subsets take the seeds in turn
    alone = causal.retraining.outcome(recipe, left_out[3], 4)["log_probability"]
    assert np.array_equal(f[3], alone.double().numpy())
