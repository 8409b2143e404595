"""What each treatment makes of a chain, against the formulas; and on small problems against the
oracle."""

import pytest
import torch
from support.tiny import relative

from msif.core.influence import Damping, Stage, query_gradients
from msif.curvature.dense import Dense
from msif.curvature.lora import LoRA
from msif.study.kinds_of_fine_tuning import exactly, treatments
from msif.study.kinds_of_fine_tuning.treatments import AS_FULL, IDENTITY, OWN, REMAINDER, SINGLE


@pytest.fixture(scope="module")
def problems():
    return {kind: exactly.problem(kind, seed=0) for kind in exactly.STAGES}


def matrices(n, seed):
    """A positive (n, n) matrix, and the layers of a `Dense` of it."""
    A = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return A @ A.mT / n, {"a": (2, n // 2)}


def test_treatments_of_a_plain_chain_are_their_formulas():
    (H1, layers), (H2, _) = matrices(6, 0), matrices(6, 1)
    alpha, d = 0.3, 0.2
    stages = [
        Stage(Dense(H1, layers), Damping(d, relative=False)),
        Stage(Dense(H2, layers), alpha=Damping(alpha, relative=False)),
    ]
    v = torch.randn(3, 6, dtype=torch.float64)
    found = treatments.vectors({"a": v.view(3, 2, 3)}, stages, alpha=0.1)
    assert set(found) == {OWN, IDENTITY}  # as full is its own
    eye = torch.eye(6, dtype=torch.float64)
    T = alpha * torch.linalg.inv(H2 + alpha * eye)
    inverse = torch.linalg.inv(H1 + d * eye)
    assert relative(found[OWN]["a"].flatten(1), v @ T @ inverse) < 1e-10
    assert relative(found[IDENTITY]["a"].flatten(1), v @ inverse) < 1e-10
    alone = treatments.single({"a": v.view(3, 2, 3)}, stages[-1].curvature, damping=0.5)
    mean = H2.trace() / 6
    expected = v @ torch.linalg.inv(H2 + 0.5 * mean * eye)
    assert relative(alone["a"].flatten(1), expected) < 1e-10


def test_a_kind_is_treated_by_its_own_formula(problems):
    kinds = {"full": [Stage], "LoRA": [LoRA], "LoRA, DPO": [LoRA, Stage]}
    for kind, expected in kinds.items():
        found = problems[kind]
        stages = [found.stage(k, False, 1) for k in range(2, len(found.phases) + 1)]
        assert [type(x) for x in stages] == expected
        assert [x.cross is not None for x in stages] == [False, True][: len(stages)]


def test_as_full_forgets_adapters_and_reference(problems):
    found = problems["LoRA, DPO"]
    stages = [found.stage(k, False, 1) for k in (1, 2, 3)]
    q = query_gradients(found.model(3), found.queries)
    plain = [stages[0], *(Stage(x.curvature, alpha=Damping(0.2)) for x in stages[1:])]
    wrong = treatments.vectors(q, stages, alpha=0.2)
    right = treatments.vectors(q, plain, alpha=0.2)
    assert set(wrong) == {OWN, REMAINDER, IDENTITY, AS_FULL} and set(right) == {OWN, IDENTITY}
    for name, x in right[OWN].items():
        assert relative(wrong[AS_FULL][name], x) < 1e-10
    assert not relative(wrong[OWN][next(iter(q))], wrong[AS_FULL][next(iter(q))]) < 0.1


@pytest.mark.parametrize("kind", exactly.STAGES)
def test_with_dense_derivatives_the_own_treatment_is_the_exact_score(problems, kind):
    """To the tolerance of the search for the optimum, 1e-12 in the gradient."""
    exact = problems[kind].exact()
    found = exactly.scores(problems[kind], dense=True, alpha=0.1)
    own = OWN if kind == "full" else REMAINDER
    assert relative(found[own], exact) < 1e-6
    assert all(relative(found[name], exact) > 0.1 for name in (IDENTITY, SINGLE))


def test_the_gauss_newton_of_pairs_is_that_of_their_margins(problems):
    """H of preferences, in EK-FAC's average over its own basis, has the same trace."""
    found = problems["LoRA, DPO"]
    stage = found.stage(3, False, 1)
    G = found.gauss_newton(3).matrix
    trace = sum(x.eigenvalues.sum() for x in stage.curvature.factors.values())
    assert relative(trace, G.trace()) < 1e-8
    assert torch.linalg.eigvalsh(G).min() > -1e-12


def test_facts_that_are_asked_for_in_fine_tuning_are_no_queries():
    documents, rows, pairs, queries = exactly.facts(0)
    taught = {x.input_ids[3] for x in rows}
    assert taught == {0, 1, 2} and {x.input_ids[3] for x in queries} == {3, 4, 5}
    assert {x.input_ids[1] for x in documents} == {0, 1, 2, 3, 4, 5}
    for pair, row in zip(pairs, rows):
        assert pair.chosen == row and pair.rejected.input_ids[:-1] == row.input_ids[:-1]
        thing, other = row.input_ids[-1], pair.rejected.input_ids[-1]
        assert other != thing
        assert (other - exactly.THINGS) // exactly.OBJECTS == (
            thing - exactly.THINGS
        ) // exactly.OBJECTS
