"""The comparison on toys: its exact scores are the chained stages,
its exact eigenvalues and its agreement are what they say."""

import pytest
import torch
from support.tiny import relative

from msif.core.influence import Damping, Stage, precondition
from msif.core.layers import tracked_layers
from msif.core.products import flatten, unflatten
from msif.curvature.dense import Dense
from msif.study.exact import accuracy, toys

SETTINGS = {"hessian": False, "samples": 1, "correction": 2, "seed": 0}
COMPARISON = {
    "focus": 1.0,
    "products_elsewhere": [3],
    "share": 0.9,
    "lissa": [5],
    "arnoldi": {"rank": 4, "iterations": 8},
}


@pytest.fixture(scope="module")
def case():
    """An MLP of 288 weights with few documents."""
    base, tuned = (
        toys.WindowMLP(toys.VOCABULARY, code=2, width=4, seed=seed).double() for seed in (0, 1)
    )
    documents, rows, queries = toys.corpus()
    layers = tracked_layers(base, r"^layers\.")
    return accuracy.case(
        toys.Toy(base, tuned, layers, documents[::12], rows[::6], queries[::6]), **SETTINGS
    )


def test_exact_two_stage_scores_are_those_of_dense_stages_chained(case):
    inverse, _ = accuracy.direct(case, 0.1)["exact"]
    layers = {name: tuple(x.shape[1:]) for name, x in case.stages[0].u.items()}
    first, second = (Dense(s.G, layers) for s in case.stages)
    stages = [Stage(first, Damping(0.1)), Stage(second, alpha=Damping(0.1))]
    w = precondition(unflatten(case.queries[1], case.stages[0].u), stages)[0]
    assert relative(case.scores(inverse, 0.1)[1], flatten(w) @ case.documents.mT) < 1e-9


def test_exact_eigenvalues_keep_the_trace_of_each_layer(case):
    """A rotation keeps the trace; for a float64 model to rounding error."""
    stage = case.stages[0]
    values = [
        x.eigenvalues.sum() for x in stage.factors["EK-FAC, exact eigenvalues"].factors.values()
    ]
    parts = stage.G.diagonal().split([x[0].numel() for x in stage.u.values()])
    assert torch.allclose(torch.stack(values), torch.stack([part.sum() for part in parts]))


def test_every_method_is_compared_and_the_dial_becomes_exact(case):
    records, causes = accuracy.compared(case, [0.5, 1.0], [0, 25], **COMPARISON)
    at = {
        (r["method"], r["products"]): r for r in records if r["stages"] == 2 and r["damping"] == 1.0
    }
    assert at["dial", 25]["spearman"] > 0.999 and at["block CG", 25]["pearson"] > 0.999
    assert {m for m, _ in at} >= {
        "EK-FAC",
        "K-FAC",
        "exact blocks",
        "diagonal",
        "gradient dot",
        "CG",
        "EK-FAC CG",
        "LiSSA",
        "Arnoldi",
    }
    assert {(r["method"], r["products"]) for r in records if r["damping"] == 0.5} >= {
        ("dial", 3),
        ("EK-FAC", 0),
    }
    assert {c["cause"] for c in causes} == set(accuracy.CAUSES) - {"Gauss-Newton for Hessian"}


def test_costs_are_products_and_the_shared_part_of_the_setup(case):
    """8 queries; EK-FAC from 1 draw: two passes of a forward and a backward;
    2 further draws: a forward and two backwards."""
    records, _ = accuracy.compared(case, [1.0], [0, 4], **COMPARISON)
    cost = {(r["method"], r["products"]): r["cost"] for r in records}
    assert cost["EK-FAC", 0] == 0.25 and cost["CG", 4] == 4
    assert (
        cost["dial", 4] == pytest.approx(4 + (2 + 5 / 3) / 8, abs=1e-3)
        and cost["exact blocks", 0] is None
    )
