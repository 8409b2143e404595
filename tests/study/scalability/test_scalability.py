"""The reference of the scalability study, its methods and its counted costs,
on problems small enough to be written out."""

from functools import cache

import numpy as np
import pytest
import torch
from support.tiny import documents, neox, relative

from msif.core.ekfac import fit
from msif.core.influence import Damping, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.curvature.gauss_newton import GaussNewton, exact_attention
from msif.study.scalability import costs
from msif.study.scalability import methods as scalability
from msif.study.scalability.reference import Problem, dampings, doubled, solve, trained

DAMPING = Damping(0.1)
SETTINGS = {
    "samples": 1,
    "correction": 2,
    "dial": [1, 3],
    "cg": [1, 3],
    "lissa": {"batch": 2, "iterations": [2], "steps": [0.1, 1e6]},
    "arnoldi": {"rank": 2, "iterations": [6]},
    "trak": {"features": 5, "models": [1]},
}


@cache
def small():
    """A float64 problem on the MLP of a tiny model's second block; nothing is trained."""
    model = neox()
    layers, data = tracked_layers(model, "layers.1.mlp"), documents(20)
    return Problem(
        model,
        model,
        layers,
        fit(Tracked(model, layers), data[12:], samples=2),
        data,
        documents(3, seed=5),
        data[:12],
        data[12:],
        {"epochs": 2, "rate": 1e-3},
        0,
    )


def rows(v):
    return torch.cat([x.flatten(1) for x in v.values()], 1)


def solved(factors):
    p = small()
    with exact_attention():
        q = query_gradients(p.tracked, p.queries)
        return q, *solve(GaussNewton(p.tracked, p.curvature).product, factors, DAMPING, q, 1e-9)


def test_the_reference_solves_the_dense_system():
    p, (q, w, residual, _) = small(), solved(small().factors)
    product, d = GaussNewton(p.tracked, p.curvature).product, dampings(p.factors, DAMPING)
    units = torch.eye(rows(q).shape[1], dtype=torch.float64)
    sizes = [x[0].numel() for x in q.values()]
    with exact_attention():
        G = rows(
            product(
                {
                    name: x.unflatten(1, q[name].shape[1:])
                    for name, x in zip(q, units.split(sizes, 1))
                }
            )
        )
    A = (
        G
        + torch.cat(
            [torch.full((n,), d[name], dtype=torch.float64) for name, n in zip(q, sizes)]
        ).diag()
    )
    assert relative(rows(w), rows(q) @ A.inverse()) < 1e-7
    assert residual.max() <= 1e-9
    assert relative(A @ rows(w)[0], rows(q)[0]) <= 1e-9


def test_a_reference_that_does_not_converge_says_so():
    p = small()
    q = query_gradients(p.tracked, p.queries)
    with pytest.raises(RuntimeError, match="after 2 products: raise the damping"):
        solve(GaussNewton(p.tracked, p.curvature).product, p.factors, DAMPING, q, 1e-9, limit=2)


def test_exact_attention_makes_the_product_symmetric_in_float64():
    """transformers' eager attention takes its softmax in float32: with it,
    the two sides differ in the seventh digit."""
    p = small()
    layers = tracked_layers(p.model, "layers.0")
    product = GaussNewton(Tracked(p.model, layers), p.curvature).product
    g = torch.Generator().manual_seed(0)
    u, v = (
        {
            x.name: torch.randn(
                1, x.out_features, x.in_features + 1, generator=g, dtype=torch.float64
            )
            for x in layers
        }
        for _ in "uv"
    )
    with exact_attention():
        assert (rows(u) @ rows(product(v)).mT).item() == pytest.approx(
            (rows(v) @ rows(product(u)).mT).item(), rel=1e-12
        )


def test_exact_attention_agrees_with_fused_attention_and_leaves_nothing_behind():
    p, ids = small(), torch.tensor([[1, 5, 3, 2], [4, 4, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    fused = p.model(input_ids=ids, attention_mask=mask).logits
    p.model.set_attn_implementation("eager")
    with exact_attention():
        inside = p.model(input_ids=ids, attention_mask=mask).logits
    outside = p.model(input_ids=ids, attention_mask=mask).logits
    p.model.set_attn_implementation("sdpa")
    assert (
        relative(inside[mask == 1], fused[mask == 1])
        < 1e-12
        < relative(outside[mask == 1], fused[mask == 1])
    )


def test_training_leaves_its_start_alone_and_is_done_once(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    start = neox().float()
    before = [p.clone() for p in start.parameters()]
    one, again = (
        trained(start, documents(8), {"epochs": 1, "rate": 1e-3}, 0, title=None) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters()))
    assert not torch.equal(before[0], next(one.parameters()))


@cache
def found():
    skipped = (scalability.by_trak,)  # it trains models; its parts are tested with the baselines
    return dict(
        entry
        for method in scalability.METHODS
        if method not in skipped
        for entry in method(small(), DAMPING, SETTINGS)
    )


def test_every_budget_of_every_method_gives_scores():
    # LiSSA's other step size diverges
    names = {
        "gradient dot/0/",
        "gradient cosine/0/",
        "CKA of gradients/0/",
        "diagonal Fisher/0/",
        "EK-FAC/0/",
        "EK-FAC, MLP/0/",
        *(f"{m}/{k}/" for m in ("the dial", "the dial, EK-FAC alone") for k in (0, 1, 3)),
        *(f"{m}/{k}/" for m in ("block CG", "conjugate gradients") for k in (1, 3)),
        "LiSSA/2/0.1",
        "Arnoldi/6/",
    }
    assert set(found()) == names
    assert all(x.shape == (3, 12) and torch.isfinite(x).all() for x in found().values())


def test_the_dial_at_zero_without_correction_is_ekfac():
    assert relative(found()["the dial, EK-FAC alone/0/"], found()["EK-FAC/0/"]) < 1e-10


def test_one_conjugate_gradient_ranks_as_the_gradient_dot():
    assert np.allclose(
        np.corrcoef(found()["conjugate gradients/1/"][0], found()["gradient dot/0/"][0])[0, 1], 1
    )


def test_the_dial_comes_nearer_to_the_reference():
    p, (_, w, _, _) = small(), solved(small().factors)
    exact = score(p.tracked, p.candidates, w).values
    errors = [relative(found()[f"the dial/{k}/"], exact) for k in (0, 1, 3)]
    assert errors[2] < errors[1] < errors[0]


def test_records_keep_the_best_variant_and_the_sign():
    exact = np.arange(10.0).reshape(2, 5)
    table = {"LiSSA/5/0.1": exact, "LiSSA/5/1.0": -exact, "gradient dot/0/": -exact}
    first, second = scalability.records(table, exact, lambda method, products: products / 3, seed=1)
    assert first == {
        "method": "LiSSA",
        "products": 5,
        "seed": 1,
        "cost": 1.6667,
        "pearson": 1.0,
        "pearson_se": 0.0,
        "spearman": 1.0,
        "spearman_se": 0.0,
    }
    assert second["spearman"] == -1.0


def test_doubled_factors_are_the_same_numbers():
    once = fit(Tracked(neox().float(), small().layers), small().curvature, samples=1)
    for name, x in doubled(once).factors.items():
        assert x.eigenvalues.dtype == torch.float64 and torch.equal(
            x.eigenvalues.float(), once.factors[name].eigenvalues
        )


@cache
def parts():
    return costs.parts(small(), DAMPING, SETTINGS)


def test_scoring_costs_less_than_a_plain_pass_a_candidate_with_few_queries():
    """Only activations ask for gradients; products with three queries are little beside that."""
    assert 0.3 * 12 < parts()["scoring"] < 12


def test_a_product_costs_about_a_plain_pass_a_vector_and_document():
    assert 0.2 * 3 * 8 < parts()["product"] < 2 * 3 * 8  # only the second block is tracked
    assert parts()["single product"] < parts()["product"]


def test_each_product_adds_the_same_cost():
    for method in ("the dial", "conjugate gradients", "LiSSA", "TRAK"):
        a, b, c = (costs.pair_cost(method, k, parts(), 36) for k in (1, 2, 3))
        assert b - a == pytest.approx(c - b) and b > a


def test_matrix_products_and_eigendecompositions_are_counted():
    x = torch.randn(4, 6, 6)
    assert costs.counted(lambda: torch.randn(3, 5) @ torch.randn(5, 7)) == 2 * 3 * 5 * 7
    assert costs.counted(lambda: torch.linalg.eigh(x + x.mT)) == 4 * 9 * 6**3
    total, a, b = torch.zeros(2, 3, 7), torch.randn(2, 3, 5), torch.randn(2, 5, 7)
    assert (
        costs.counted(lambda: total.baddbmm_(a, b))
        == 2 * costs.counted(lambda: total[0].addmm_(a[0], b[0]))
        == 2 * 2 * 3 * 5 * 7
    )
    q = torch.randn(1, 2, 4, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    # q kᵀ, and the weights times v
    assert costs.counted(lambda: attention(q, q, q)) == 2 * 2 * 2 * 4 * 4 * 8


def test_the_exponent_of_a_power_law_is_found_with_no_error():
    sizes = np.array([1e4, 1e5, 1e6, 1e7])
    b, error = costs.exponent(sizes, 3 * sizes**1.5)
    assert b == pytest.approx(1.5) and error == pytest.approx(0, abs=1e-12)


def test_costs_by_size_count_what_was_asked():
    small_one, large_one = costs.by_size([8, 16], documents(4), 12, 1, 2)
    assert small_one["weights"] < large_one["weights"] and all(
        small_one[x] < large_one[x] for x in ("plain", "fit", "scoring")
    )
