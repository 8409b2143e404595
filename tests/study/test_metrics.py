"""Numbers about rankings, on rankings whose numbers are known."""

from itertools import permutations

import numpy as np
import pytest

from msif.study import metrics

SCORES = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 5.0]])


def test_reciprocal_rank_is_that_of_the_best_proponent():
    assert metrics.reciprocal_ranks(SCORES, [[1, 2], [3]]).tolist() == [1 / 2, 1]


def test_ties_are_worth_their_mean_over_all_orders():
    """By enumeration: every order of the three tied documents, two of which are proponents."""
    orders = list(permutations(range(3)))
    expected = np.mean([1 / (2 + min(order.index(n) for n in (0, 2))) for order in orders])
    assert metrics.reciprocal_ranks(SCORES[1:], [[0, 2]])[0] == pytest.approx(expected)
    inside = np.mean([[2 + order.index(n) <= 3 for n in (0, 2)] for order in orders])
    assert metrics.recalls(SCORES[1:], [[0, 2]], k=3)[0] == pytest.approx(inside)


def test_a_top_tie_of_proponents_alone_is_rank_1():
    assert metrics.reciprocal_ranks([[5.0, 5.0, 1.0]], [[0, 1]]).tolist() == [1.0]


def test_recall_counts_the_proponents_among_the_first_k():
    assert metrics.recalls(SCORES, [[1, 2], [3]], k=2).tolist() == [0.5, 1.0]


def test_scores_that_know_nothing_rank_at_chance():
    scores = np.random.default_rng(0).normal(size=(2000, 50))
    proponents = [[n % 50] for n in range(2000)]
    expected = (1 / np.arange(1, 51)).mean()
    (mean, error) = metrics.mean_and_error(metrics.reciprocal_ranks(scores, proponents))
    assert abs(mean - expected) < 4 * error


def test_wins_count_pairs_with_half_for_a_tie():
    assert metrics.wins(SCORES, [[0], [0]], [[1, 2, 3], [1, 3]]).tolist() == [1.0, 0.25]
    assert np.isnan(metrics.wins(SCORES, [[0], []], [[1], [2]])[1])
    rng = np.random.default_rng(0)
    given = rng.normal(size=(500, 12))
    forward, backward = (
        metrics.wins(given, *([list(range(a, b))] * 500 for a, b in pair))
        for pair in (((0, 4), (4, 12)), ((4, 12), (0, 4)))
    )
    assert (
        np.allclose(forward + backward, 1)
        and abs(forward.mean() - 0.5) < 4 * forward.std() / 500**0.5
    )


def test_within_ranks_the_candidates_alone():
    scores = np.array([[5.0, 1.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    inside = metrics.within(scores, [[1, 2], [0, 1, 2]])
    assert metrics.reciprocal_ranks(inside, [[1], [2]]).tolist() == [1 / 2, 1]
    assert metrics.recalls(inside, [[1], [0]], k=1).tolist() == [0, 0] and scores[0, 0] == 5
    constant = metrics.within(np.zeros((1, 9)), [[0, 3, 4]])  # chance: the mean of 1/1, 1/2, 1/3
    assert metrics.reciprocal_ranks(constant, [[3]])[0] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_bootstrap_interval_covers_what_it_should():
    """95 % intervals of 200 samples of known mean: the number that cover it is binomial,
    3 standard deviations allowed."""
    rng = np.random.default_rng(0)
    found = [
        metrics.bootstrap_interval([rng.normal(size=80)], resamples=400, seed=n) for n in range(200)
    ]
    assert (
        abs(sum(low <= 0 <= high for _, low, high in found) - 190)
        <= 3 * np.sqrt(200 * 0.05 * 0.95) + 2
    )


def test_bootstrap_interval_of_equal_values_has_no_width():
    assert metrics.bootstrap_interval([[2.0, 2.0], [2.0]]) == (2.0, 2.0, 2.0)


def test_equal_seeds_give_an_interval_that_is_at_most_known_too_wide():
    """Four seeds of 50 queries without a seed effect:
    between 1 and √1.75 times the normal interval of 200 queries."""
    rng = np.random.default_rng(1)
    widths = [
        np.subtract(
            *metrics.bootstrap_interval(
                [rng.normal(size=50) for _ in range(4)], resamples=300, seed=n
            )[:0:-1]
        )
        for n in range(60)
    ]
    assert 1 <= np.mean(widths) / (2 * 1.96 / np.sqrt(200)) <= np.sqrt(1.75)


def test_seeds_that_disagree_widen_the_interval():
    one, two = [np.zeros(50)], [np.zeros(50), np.ones(50)]
    width = lambda groups: np.subtract(*metrics.bootstrap_interval(groups)[:0:-1])
    assert width(two) > width(one) == 0


def test_top_share_is_one_when_a_single_document_holds_all():
    assert metrics.top_share([0.0] * 99 + [2.0]) == 1.0
    assert metrics.top_share(np.ones(200)) == pytest.approx(0.01)


def test_metrics_file_nests_by_method_form_and_number():
    records = [{"method": "m", "normalised": False, "mrr": x} for x in (0.2, 0.4)]
    assert metrics.by_method(records, "mrr") == {"m": {"raw": {"mrr": 0.3}}}


def test_agreement_of_rows_is_what_scipy_says():
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 9)), rng.integers(4, size=(3, 9)).astype(float)  # b has ties
    assert metrics.pearson(a, b) == pytest.approx([pearsonr(x, y)[0] for x, y in zip(a, b)])
    assert metrics.spearman(a, b) == pytest.approx([spearmanr(x, y)[0] for x, y in zip(a, b)])


def simulated(subsets=400, seeds=4, queries=30, noise=1.5):
    """Outcomes = a signal that every seed shares + noise of each seed's own:
    (signal (q, subsets), outcomes (subsets, seeds, q))."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(queries, subsets))
    return signal, signal.T[:, None] + noise * rng.normal(size=(subsets, seeds, queries))


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_the_ceiling_is_what_the_true_signal_reaches(seeds):
    """Spearman and Pearson differ by 2 % for normal values;
    the standard error here is below 0.01."""
    signal, outcomes = simulated()
    ceiling = metrics.noise_ceiling(metrics.seed_agreement(outcomes), seeds)
    assert metrics.lds(signal, outcomes[:, :seeds], resamples=2)[0] == pytest.approx(
        ceiling, abs=0.03
    )


def test_of_one_value_no_error_is_known():
    mean, error = metrics.mean_and_error([0.3])
    assert mean == 0.3 and np.isnan(error)


def test_no_agreement_is_a_ceiling_of_0():
    assert metrics.noise_ceiling(-0.01, 5) == 0


def test_the_error_of_lds_is_never_too_small():
    """Against the spread over 40 repetitions (known to 11 %):
    resampling rows and columns counts noise of single cells thrice."""
    rng, values, errors = np.random.default_rng(2), [], []
    for _ in range(40):
        signal = rng.normal(size=(20, 25))
        value, error = metrics.lds(
            signal, signal.T[:, None] + rng.normal(size=(25, 1, 20)), resamples=50
        )
        values.append(value)
        errors.append(error)
    assert 0.9 < np.mean(errors) / np.std(values) < 1.2 * 3**0.5


def test_predictions_without_an_order_count_as_none_and_diverged_ones_are_refused():
    signal, outcomes = simulated(subsets=40, queries=2)
    flat = np.stack([signal[0], np.zeros(40)])
    whole = metrics.spearman(signal, outcomes.mean(1).T)
    assert metrics.lds(flat, outcomes, 2)[0] == pytest.approx(whole[0] / 2)
    for wrong, where in ((signal * np.nan, outcomes), (signal, outcomes * np.nan)):
        with pytest.raises(ValueError, match="not finite"):
            metrics.lds(wrong, where, 2)


def test_a_difference_of_lds_is_the_difference_and_knows_what_the_two_share():
    signal, outcomes = simulated(subsets=40)
    value, error = metrics.lds_difference(signal, signal + 0.1, outcomes, resamples=20)
    assert (value, error) == (0, 0)  # the same ranks
    other = np.random.default_rng(3).normal(size=signal.shape)
    value, error = metrics.lds_difference(signal, other, outcomes, resamples=20)
    assert (
        value
        == pytest.approx(metrics.lds(signal, outcomes, 2)[0] - metrics.lds(other, outcomes, 2)[0])
        and error > 0
    )
