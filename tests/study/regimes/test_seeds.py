"""A model against its own seed and others: the difference of two LDS, and its error."""

import numpy as np
import pytest
import torch

from msif.study import metrics
from msif.study.beds import retraining
from msif.study.regimes.recipes import Outcomes
from msif.study.regimes.seeds import own_less_other
from msif.study.retraining import datamodels

RNG = np.random.default_rng(0)
LEFT_OUT = retraining.half_subsets(30, 12)
TABLES = [{"x": torch.from_numpy(RNG.normal(size=(6, 30)))} for _ in range(3)]


def predicted(k):
    return np.asarray(datamodels.predicted(TABLES[k], LEFT_OUT)["x"])


def outcomes(own, other):
    """Two own seeds, three others: so much of each model's prediction, and noise."""
    made = [own * predicted(k).T + RNG.normal(size=(12, 6)) for k in range(2)]
    rest = [other * predicted(0).T + RNG.normal(size=(12, 6)) for _ in range(3)]
    return Outcomes(LEFT_OUT, np.stack(made, 1), np.stack(rest, 1))


def test_it_is_the_difference_of_the_two_lds_of_the_same_models():
    found = outcomes(3.0, 0.0)
    lds = lambda k, f: metrics.lds(predicted(k), f[:, None], resamples=2)[0]
    own = [lds(k, found.own[:, k]) for k in range(2)]
    other = [lds(k, found.others[:, j]) for k in range(2) for j in range(3)]
    value, error = own_less_other(TABLES, found, "x", resamples=60)
    assert value == pytest.approx(np.mean(own) - np.mean(other))
    assert value > 2 * error > 0


def test_where_seeds_do_not_matter_it_is_none_within_its_error():
    gaps = [own_less_other(TABLES, outcomes(0.0, 0.0), "x", resamples=40) for _ in range(12)]
    assert sum(abs(value) > 2 * error for value, error in gaps) <= 2
