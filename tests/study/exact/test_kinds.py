"""The oracle's scores through adapters and preferences are what training every stage again, with
one datum at another weight, does to f.

Each weight moves by ±2e-5: central differences err by about 1e-7, more where a stage is hardly
curved; 1e-5 is the claim.
"""

import pytest
from support.kinds import chain, pairs, regression
from support.tiny import relative

from msif.study.exact.kinds import Phase

CHAINS = [
    ("regression", "lora"),
    ("regression", "lora without decay"),
    ("regression", "lora held"),
    ("regression", "dpo"),
    ("regression", "lora", "dpo by lora"),
    ("mlp", "lora"),
    ("mlp", "dpo"),
    ("mlp", "full", "dpo"),
    ("mlp", "lora", "dpo by lora"),
    ("transformer", "lora without decay"),
    ("transformer", "dpo"),
    ("transformer", "lora", "dpo by lora"),
]


@pytest.mark.parametrize("names", CHAINS, ids=", ".join)
def test_the_score_is_the_derivative_of_f_when_a_datum_is_reweighted(names):
    found = chain(*names)
    for k, exact in enumerate(found.exact(), 1):
        for z in range(2):
            assert relative(exact[:, z], found.measured(k, z)) < 1e-5, (k, z)


def test_adapters_of_full_rank_under_an_ordinary_stage_s_pull_are_that_stage():
    adapted, full = (chain("unbiased", kind, rank=2) for kind in ("lora without decay", "full"))
    assert relative(adapted.xs[-1], full.xs[-1]) < 1e-9
    for found, expected in zip(adapted.exact(), full.exact()):
        assert relative(found, expected) < 1e-8


def test_a_stage_without_an_optimum_in_reach_says_so():
    net = regression()
    with pytest.raises(ArithmeticError, match="more α or β"):
        Phase(net, pairs(8, 1), 0.1).optimum(net.weights(), net.weights(), tolerance=0.0)
