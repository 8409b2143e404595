"""The dial on a test-bed, made small: its exact solve is the dense one,
its numbers of products are kept apart."""

import pytest
import torch
from support.tiny import documents, neox, relative

from msif.core.layers import tracked_layers
from msif.core.products import flatten
from msif.study.exact import refinement
from msif.study.exact.oracle import Network, solve
from msif.study.exact.refinement import TwoStageProblem, converged

SETTINGS = {"damping": 0.1, "samples": 1, "correction": 2, "share": 0.9, "batch_size": 4}


@pytest.fixture(scope="module")
def small():
    nets = [neox(0), neox(1)]
    layers = tracked_layers(nets[0], r"layers\.\d\.attention\.dense|layers\.1\.mlp\.dense_4h_to_h")
    return TwoStageProblem(
        nets,
        layers,
        [documents(8), documents(6, seed=2)],
        documents(3, seed=3),
        documents(7, seed=4),
        SETTINGS,
    )


def test_the_converged_solve_is_the_dense_one(small):
    """To 1e-5: the residual is at most 1e-7,
    and the condition number of the damped matrix is in the hundreds."""
    stage, q = small.corrected(0, small.stage(0)), small.query_vectors()
    oracle = Network.of(small.nets[0], small.layers)
    D = torch.cat([stage.shift(name) * x.new_ones(x[0].numel()) for name, x in q.items()])
    with refinement.exact_attention():
        found, residual, products = converged(stage, q, 1e-7, None)
    exact = solve(
        oracle.gauss_newton(oracle.weights(), small.data[0]) + torch.diag(D), flatten(q), 0.0
    )
    assert residual <= 1e-7 and products > 0 and relative(flatten(found), exact) < 1e-5


def test_a_solve_that_does_not_converge_says_so(small):
    with pytest.raises(ArithmeticError, match="raise the damping"):
        converged(small.stage(0), small.query_vectors(), 1e-7, "a solve", limit=2)


@pytest.mark.parametrize("method", refinement.SOLVERS)
def test_the_solution_after_k_products_does_not_depend_on_the_others_asked_for(small, method):
    stage, q = refinement.prepared(small, 1, method), small.query_vectors()
    bar = type("Bar", (), {"update": lambda self: None})()
    together = refinement.solved(stage, q, method, [0, 1, 3], bar)
    assert set(together) == {0, 1, 3}
    for k in (1, 3):
        assert torch.equal(
            flatten(together[k]), flatten(refinement.solved(stage, q, method, [k], bar)[k])
        )
