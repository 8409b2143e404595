"""Low-rank queries: exact where nothing is truncated,
and with an error near the stated one where something is."""

import pytest
from support.tiny import documents, lively, neox, relative

from msif.core import ekfac
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked, tracked
from msif.core.models import tiny_gpt_neox
from msif.scale import lowrank

DATA, QUERIES = documents(40), documents(5, seed=5, first=40)


def scored(model, per_head=False, damping=0.1):
    tracked_model = tracked(model, per_head=per_head)
    factors = ekfac.fit(tracked_model, DATA, batch_size=8)
    (w,) = precondition(query_gradients(tracked_model, QUERIES), [Stage(factors, Damping(damping))])
    return tracked_model.layers, factors, w, score(tracked_model, DATA, w)


def of_low_rank(found):
    return [x for x in found.layers.values() if isinstance(x, lowrank.LowRank)]


@pytest.mark.parametrize("per_head", [False, True])
def test_with_a_vanishing_error_the_scores_and_norms_are_the_exact_ones(per_head, monkeypatch):
    model = neox()
    layers, factors, w, exact = scored(model, per_head)
    # D would be dear: every layer of low rank
    found = lowrank.compress(w, factors, 1e-12, positions=1e-9)
    assert len(of_low_rank(found)) == len(layers)
    low = lowrank.score(Tracked(model, layers), DATA, found, batch_size=7, norms=True)
    assert low.values.dtype == exact.values.dtype
    assert relative(low.values, exact.values) < 1e-9  # the roots of small eigenvalues, undone
    assert relative(low.norms, exact.norms) < 1e-12
    assert (found.error <= 1e-12).all()


def test_where_ranks_cost_more_than_gradients_the_queries_stay_as_they_are():
    model = neox()
    layers, factors, w, exact = scored(model)
    found = lowrank.compress(w, factors, 1e-6, positions=10**6)
    assert not of_low_rank(found) and (found.error == 0).all() and found.ranks == {}
    low = lowrank.score(Tracked(model, layers), DATA, found)
    assert relative(low.values, exact.values) < 1e-12


@pytest.mark.parametrize("error", [0.03, 0.1, 0.3])
def test_the_measured_error_follows_the_stated_one(error):
    """K-FAC's view of the candidates is an approximation:
    within a factor of 2 over 40 candidates and 5 queries."""
    model = lively(tiny_gpt_neox(12, width=16, layers=2, heads=2, context=8))
    layers, factors, w, exact = scored(model)
    found = lowrank.compress(w, factors, error, positions=1e-9)
    measured = relative(lowrank.score(Tracked(model, layers), DATA, found).values, exact.values)
    assert found.error.max() <= error and measured < 2 * error
    full = sum(min(x.shape[1:]) for x in w.values())
    assert sum(found.ranks.values()) < full


def test_a_higher_error_has_lower_ranks():
    model = neox()
    layers, factors, w, _ = scored(model)
    ranks = [
        sum(lowrank.compress(w, factors, e, positions=1e-9).ranks.values())
        for e in (0.01, 0.1, 0.5)
    ]
    assert ranks[0] > ranks[1] > ranks[2]


@pytest.mark.parametrize("error", [0, 1, -0.1, float("nan")])
def test_an_error_that_is_none_is_refused(error):
    model = neox()
    _, factors, w, _ = scored(model)
    with pytest.raises(ValueError, match="error is .*: expected a relative error between 0 and 1"):
        lowrank.compress(w, factors, error)
