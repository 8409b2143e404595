"""Means with their 95 % interval or standard error: over worlds where there are several, else over
the questions of the one.

A world is a corpus with the models that were trained on it: what is drawn anew. Its mean is one
number, so that an interval over K worlds is Student's t with K − 1 degrees of freedom; a bootstrap
of so few covers less than it says. Of one world nothing is known of others: the interval is a
bootstrap over its questions.
"""

import itertools
import math

import numpy as np

from msif.core.extras import need
from msif.study import metrics

LEVEL = 0.95


def interval(groups):
    """(mean, low, high): groups are one array of per-question values for each world. The mean is
    over worlds of the mean over questions; of one question alone the ends are nan."""
    if empty := [n for n, x in enumerate(groups) if not len(x)]:
        raise ValueError(f"world {empty[0]} of {len(groups)} has no questions; leave it out")
    if len(groups) == 1 and len(groups[0]) == 1:
        return float(groups[0][0]), math.nan, math.nan
    if len(groups) == 1:
        return metrics.bootstrap_interval(groups, LEVEL)
    return student([float(np.mean(x)) for x in groups])


def student(means):
    """(mean, low, high) of the means of several worlds, by Student's t.

    Raises ValueError for fewer than two."""
    if len(means) < 2:
        raise ValueError(f"{len(means)} worlds; expected two at least, as one has no spread")
    mean, error = metrics.mean_and_error(means)
    half = need("scipy.stats").t.ppf((1 + LEVEL) / 2, len(means) - 1) * error
    return float(mean), float(mean - half), float(mean + half)


def mean_and_error(groups):
    """(mean, standard error): over worlds where there are several; of one over its questions, nan
    where that is one question."""
    if len(groups) > 1:
        return tuple(map(float, metrics.mean_and_error([np.mean(x) for x in groups])))
    return tuple(map(float, metrics.mean_and_error(groups[0])))


def by_chance(x, y):
    """How often y in a random order has a rank correlation with x as far from 0 as in its own: the
    p-value of Spearman's correlation over all orders of y, of up to eight values; nan where there
    is no correlation, as all of x or of y are equal."""
    if not 2 < len(x) == len(y) < 9:
        raise ValueError(f"{len(x)} and {len(y)} values; expected as many of each, 3 to 8")
    orders = np.array(list(itertools.permutations(y)), dtype=float)
    found = np.abs(metrics.spearman(np.broadcast_to(np.asarray(x, float), orders.shape), orders))
    if np.isnan(found[0]):
        return math.nan
    return float(np.mean(found >= found[0] - 1e-12))  # the first order is y's own


def noise_ceiling(outcomes, seeds=None, resamples=300):
    """(value, standard error) of `metrics.noise_ceiling`, of the mean of so many seeds.

    outcomes: (subsets, seeds, q). seeds: None for as many as they have. The error is of a bootstrap
    over subsets and queries, as for `metrics.lds`: too wide rather than too narrow."""
    outcomes, rng = np.asarray(outcomes), np.random.default_rng(0)

    def ceiling(found):
        return metrics.noise_ceiling(metrics.seed_agreement(found), seeds or found.shape[1])

    def drawn():
        subsets, queries = (rng.integers(n, size=n) for n in (len(outcomes), outcomes.shape[2]))
        return outcomes[subsets][:, :, queries]

    # A draw of one subset alone has no order, and counts for nothing.
    return ceiling(outcomes), float(np.nanstd([ceiling(drawn()) for _ in range(resamples)], ddof=1))
