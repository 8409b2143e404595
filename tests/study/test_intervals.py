"""Intervals over worlds and over questions, and how often chance does as well."""

import math

import numpy as np
import pytest
from scipy import stats

from msif.study import intervals, metrics


def test_of_several_worlds_it_is_students_t_of_their_means():
    groups = [[0.2, 0.6], [0.5, 0.5, 0.5], [0.9]]
    mean, low, high = intervals.interval(groups)
    expected = stats.ttest_1samp([0.4, 0.5, 0.9], 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((0.6, *expected))
    assert intervals.mean_and_error(groups)[1] == pytest.approx(stats.sem([0.4, 0.5, 0.9]))


def test_it_covers_the_mean_of_all_worlds_as_often_as_it_says():
    """Four worlds that differ more than their questions do: of 400 intervals 95 %, within three
    standard deviations; the bootstrap covers less."""
    rng = np.random.default_rng(0)
    drawn = [[rng.normal(rng.normal(), 0.3, size=40) for _ in range(4)] for _ in range(400)]
    covered = sum(low <= 0 <= high for _, low, high in map(intervals.interval, drawn))
    assert abs(covered - 380) <= 3 * np.sqrt(400 * 0.05 * 0.95)
    few = [metrics.bootstrap_interval(groups, resamples=200) for groups in drawn[:200]]
    assert sum(low <= 0 <= high for _, low, high in few) < 180


def test_of_one_world_it_is_over_questions():
    values = [[0.0, 1.0, 1.0, 0.5]]
    assert intervals.interval(values) == metrics.bootstrap_interval(values)
    assert intervals.mean_and_error(values) == pytest.approx(metrics.mean_and_error(values[0]))
    mean, error = intervals.mean_and_error([[0.5]])
    assert mean == 0.5 and math.isnan(error)
    mean, *ends = intervals.interval([[0.5]])
    assert mean == 0.5 and all(map(math.isnan, ends))
    with pytest.raises(ValueError, match="1 worlds; expected two at least"):
        intervals.student([0.5])


def test_by_chance_is_the_share_of_orders_that_do_as_well():
    x = [1.0, 2.0, 3.0, 4.0]
    assert intervals.by_chance(x, [5.0, 6.0, 7.0, 9.0]) == 2 / 24  # its own and the reverse
    assert intervals.by_chance(x, [2.0, 1.0, 4.0, 3.0]) == pytest.approx(
        np.mean(
            [
                abs(stats.spearmanr(x, np.random.default_rng(n).permutation(4)).statistic) > 0.599
                for n in range(4000)
            ]
        ),
        abs=0.03,
    )
    with pytest.raises(ValueError, match="3 to 8"):
        intervals.by_chance([1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize("subsets", [3, 4])
def test_the_error_of_the_noise_ceiling_is_known_for_few_subsets(subsets):
    outcomes = np.random.default_rng(0).normal(size=(subsets, 2, 12))
    outcomes += np.arange(subsets)[:, None, None]
    value, error = intervals.noise_ceiling(outcomes)
    assert 0 < value <= 1 and 0 < error < 1


def test_the_error_of_the_noise_ceiling_is_never_too_small():
    """Against the spread over 30 repetitions (known to 13 %), where subsets and queries have parts
    in common, in signal and noise; the same for fewer seeds than there are."""
    rng, found, of_one = np.random.default_rng(3), [], []
    for _ in range(30):
        both = rng.normal(size=(20, 1, 1)), rng.normal(size=(20, 3, 1))
        own = rng.normal(size=(20, 1, 15)), rng.normal(size=(20, 3, 15))
        outcomes = both[0] + both[1] + own[0] + own[1]
        found.append(intervals.noise_ceiling(outcomes, resamples=40))
        of_one.append(intervals.noise_ceiling(outcomes, 1, resamples=2)[0])
        assert found[-1][0] == metrics.noise_ceiling(metrics.seed_agreement(outcomes), 3)
    values, errors = np.array(found).T
    assert 0.8 < errors.mean() / values.std(ddof=1) < 1.2 * 3**0.5
    # Half of a run is signal; √ of a noisy agreement is low, as is Spearman beside Pearson.
    assert 0.5**0.5 - 0.08 < np.mean(of_one) < 0.5**0.5
