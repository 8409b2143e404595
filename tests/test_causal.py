"""Causal ground truth: planted effects come back, nothing causes nothing by more than chance, and it runs end to end."""
import numpy as np
import pytest
import torch

from msif import causal, matched, metrics
from msif.causal import Effects, chance, correlations, design, effects, within
from msif.retraining import Recipe, outcome

QUERIES = [dict(candidates=list(range(8 * i, 8 * i + 8)), proponents=[8 * i, 8 * i + 1]) for i in range(40)]
DOCUMENTS = 330
PLANTED = np.tile([1.5, 1.0, 0.5, -0.5, 0, 0, 0, 0], (40, 1))                              # drop of each candidate of each query


def simulated(left_out, seeds, noise, seed=0):
    """f = level of the query + level of the seed − planted drops + noise, of which half is the subset's own: (subsets, seeds, q)."""
    rng = np.random.default_rng(seed)
    without = np.stack([left_out[:, q["candidates"]].numpy() for q in QUERIES], 1)         # (subsets, q, candidates)
    level = -1 + rng.normal(size=40) + 3 * rng.normal(size=(1, seeds, 1))
    spread = rng.normal(size=(len(left_out), 1, 40)) + rng.normal(size=(len(left_out), seeds, 40))
    return level - (without * PLANTED).sum(2)[:, None] + noise * spread / np.sqrt(2)


def test_each_retraining_leaves_out_at_most_one_candidate_of_each_fact_and_nothing_else():
    left_out = design(QUERIES, DOCUMENTS, 25, seed=3)
    assert left_out.dtype == torch.bool and left_out.shape == (25, DOCUMENTS)
    assert not left_out[:, 320:].any()
    assert left_out[:, :320].unflatten(1, (40, 8)).sum(2).max() == 1


@pytest.mark.parametrize("subsets, blanks", [(25, 3), (22, 3), (11, 3), (9, 1), (40, 2)])
def test_candidates_are_left_out_equally_often(subsets, blanks):
    left_out = design(QUERIES, DOCUMENTS, subsets, seed=1, blanks=blanks)
    times, rest = left_out[:, :320].sum(0), subsets % (8 + blanks)
    assert set(times.tolist()) <= {subsets // (8 + blanks), -(-subsets // (8 + blanks))}
    nothing = subsets - times.view(40, 8).sum(1)
    assert (nothing >= subsets // (8 + blanks) * blanks).all() and (nothing <= subsets // (8 + blanks) * blanks + min(rest, blanks)).all()


def test_facts_are_independent_and_seeds_differ():
    left_out = design(QUERIES, DOCUMENTS, 220, seed=0)
    assert torch.equal(left_out, design(QUERIES, DOCUMENTS, 220, seed=0))
    assert not torch.equal(left_out, design(QUERIES, DOCUMENTS, 220, seed=1))
    together = np.corrcoef(left_out[:, :320].T.float())[np.triu_indices(40, 1)[0] * 8, np.triu_indices(40, 1)[1] * 8]
    assert abs(together.mean()) < 0.02                                                     # one by one, they are ± 0.07


def test_two_questions_about_one_fact_share_its_design():
    twice = [QUERIES[0], QUERIES[0], QUERIES[1]]
    assert torch.equal(design(twice, DOCUMENTS, 20), design(QUERIES[:2], DOCUMENTS, 20))


def test_designs_that_cannot_tell_are_refused():
    with pytest.raises(ValueError, match="subsets is 10 and blanks 3; expected at least 11"):
        design(QUERIES, DOCUMENTS, 10)
    with pytest.raises(ValueError, match="blanks 0; expected .* 1 blank"):
        design(QUERIES, DOCUMENTS, 10, blanks=0)
    with pytest.raises(ValueError, match="share some of their candidates"):
        design([dict(candidates=[0, 1]), dict(candidates=[1, 2])], 3, 20)


def test_planted_effects_come_back_exactly_without_noise():
    left_out = design(QUERIES, DOCUMENTS, 30)
    found = effects(simulated(left_out, 2, noise=0), left_out, QUERIES)
    assert np.allclose(found.drop, PLANTED, atol=1e-12) and np.abs(found.error).max() < 1e-12


def test_the_level_of_a_seed_is_no_effect():
    left_out = design(QUERIES, DOCUMENTS, 30)
    f = simulated(left_out, 3, noise=1)
    found, shifted = effects(f, left_out, QUERIES), effects(f + np.array([5, 0, -9])[:, None], left_out, QUERIES)
    assert np.allclose(found.drop, shifted.drop) and np.allclose(found.error, shifted.error)


def test_what_a_retraining_does_to_all_queries_alike_is_no_noise():
    left_out = design(QUERIES, DOCUMENTS, 30)
    f = simulated(left_out, 3, noise=1)
    level = 4 * np.random.default_rng(5).normal(size=(30, 3, 1))
    found, shifted = effects(f, left_out, QUERIES), effects(f + level, left_out, QUERIES)
    assert np.allclose(found.drop, shifted.drop) and np.allclose(found.error, shifted.error)


def test_with_noise_drops_are_unbiased_and_errors_right():
    """440 retrainings in all: 40 queries x 10 repetitions of each estimate."""
    runs = []
    for repetition in range(10):
        left_out = design(QUERIES, DOCUMENTS, 44, seed=repetition)
        runs.append(effects(simulated(left_out, 3, noise=1, seed=repetition), left_out, QUERIES))
    miss = np.array([run.drop for run in runs]) - PLANTED
    error = np.array([run.error for run in runs])
    assert np.abs(miss.mean((0, 1))).max() < 4 * error.mean() / np.sqrt(400)
    assert np.sqrt((miss ** 2).mean()) == pytest.approx(np.sqrt((error ** 2).mean()), rel=0.1)


def test_about_one_null_in_forty_is_called_causal():
    """P(t > 2) with 33 degrees of freedom is 2.7 %; of 4,000 nulls, whose noise within a query has a part in common."""
    calls = []
    for repetition in range(25):
        left_out = design(QUERIES, DOCUMENTS, 44, seed=repetition)
        found = effects(simulated(left_out, 3, noise=1, seed=repetition), left_out, QUERIES)
        calls += [n % 8 for own in found.causal for n in own]
    counts = np.bincount(calls, minlength=8) / 1000
    assert 0.015 < counts[4:].mean() < 0.04
    assert counts[0] > 0.8 > counts[2] > counts[4:].max() > 0 and counts[3] < 0.005         # 1.5 is 3 errors; −0.5 no cause


def test_outcomes_of_another_design_are_refused():
    left_out = design(QUERIES, DOCUMENTS, 30)
    with pytest.raises(ValueError, match=r"outcomes have shape \(30, 2, 39\); expected \(30 subsets, seeds, 40 queries\)"):
        effects(simulated(left_out, 2, 1)[..., 1:], left_out, QUERIES)
    everywhere = left_out | left_out.roll(1, dims=1)
    with pytest.raises(ValueError, match="query 0: expected subsets that leave out one of 8 candidates or none"):
        effects(simulated(left_out, 2, 1), everywhere, QUERIES)


def test_ranks_within_candidates_know_no_other_document():
    scores = np.array([[9.0, 1, 2, 3, 8], [0, 0, 5, 0, 0]])
    candidates, proponents = [[1, 2, 3], [0, 1, 3]], [[2], [0, 3]]
    assert metrics.reciprocal_ranks(within(scores, candidates), proponents) == pytest.approx([1 / 2, 1 * 2 / 3 + 1 / 2 * 1 / 3])
    assert chance(candidates, proponents) == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, 1 * 2 / 3 + 1 / 2 * 1 / 3])


def test_causal_ranks_are_of_queries_with_a_causal_sentence():
    found = Effects([[0, 1], [2, 3]], [np.array([0.1, 3.0]), np.array([0.1, -3])], [np.ones(2), np.ones(2)])
    assert found.causal == [[1], []]
    assert causal.causal_ranks(np.array([[5.0, 4, 9, 9], [1, 2, 3, 4]]), found).tolist() == [1 / 2]
    assert correlations(np.array([[1.0, 2, 9, 9], [9, 9, 3, 4]]), found).tolist() == [1, -1]
    assert correlations(np.zeros((2, 4)), found).tolist() == [0, 0]


def test_it_runs_end_to_end_on_a_one_layer_model(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()                                                        # a study with its own scratch/
    monkeypatch.chdir(tmp_path)
    corpus = matched.generate(0, fine_tuned=1, held_out=1, objects=2, statements=2, object_first=0, subject_first=1, fillers=5)
    recipe = Recipe(corpus, dict(width=8, layers=1, heads=2), dict(epochs=2, rate=1e-2, batch_size=16), dict(epochs=1, rate=1e-2), 48)
    left_out = design(corpus.queries, len(corpus.documents), 6, blanks=1)
    f = torch.stack([torch.stack([outcome(recipe, row, seed)["log_probability"] for seed in (0, 1)]) for row in left_out])
    found = effects(f, left_out, corpus.queries)
    assert found.candidates == [query["candidates"] for query in corpus.queries]
    assert [len(drop) for drop in found.drop] == [3] * 5 and np.isfinite(found.drop).all() and (np.array(found.error) > 0).all()
