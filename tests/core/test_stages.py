"""Dampings are numbers, and stages that can have no score are refused by name, before long work."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from support.chained import chained, stages_of
from support.tiny import documents

from msif.core import resources
from msif.core.ekfac import EKFAC, fit
from msif.core.influence import Damping, Stage, check, precondition, query_gradients
from msif.core.queries import preconditioned


@pytest.fixture(scope="module")
def study():
    return chained()


def test_a_damping_of_any_kind_of_number_is_a_plain_one():
    for value in (Fraction(1, 4), np.float32(0.25), np.float64(0.25)):
        assert Damping(value) == Damping(0.25) and type(Damping(value).value) in (float, np.float64)
    assert type(Damping(1).value) is int


@pytest.mark.parametrize("value", [True, "0.1", None, 1 + 0j, [0.1], 10**400])
def test_a_damping_is_a_number_and_stages_take_dampings_alone(study, value):
    with pytest.raises(ValueError, match="expected a finite number ≥ 0"):
        Damping(value)
    with pytest.raises(ValueError, match="relative is 'false': expected True or False"):
        Damping(0.1, relative="false")
    for name in ("damping", "alpha"):
        with pytest.raises(ValueError, match=f"{name} is 0.1: expected a Damping, such as"):
            Stage(study.factors[0], **{name: 0.1})
    with pytest.raises(ValueError, match=r"new is 'head': expected names of layers, \('head',\)"):
        Stage(study.factors[0], new="head")


def test_stages_that_do_not_share_their_layers_are_refused_by_name(study):
    first, second = stages_of(study)
    fewer = EKFAC(dict(list(study.factors[0].factors.items())[1:]), {})
    dropped = next(iter(study.factors[0].factors))
    with pytest.raises(
        ValueError,
        match=rf"stages 1 and 2 .*only in stage 2: \['{dropped}'\].*must be named in its `new`",
    ):
        check([Stage(fewer), second])
    with pytest.raises(ValueError, match=rf"only in stage 1: \['{dropped}'\]"):
        check([first, Stage(fewer, alpha=Damping(0.1))])
    with pytest.raises(ValueError, match=rf"only in stage 1: \['{dropped}'\]"):
        check([first, Stage(study.factors[1], alpha=Damping(0.1), new=(dropped,))])


def test_stages_that_cannot_have_a_score_are_refused(study):
    first, second = stages_of(study)
    with pytest.raises(ValueError, match="stage 2 has α = 0: it forgets its start"):
        check([first, Stage(study.factors[1], Damping(0.1))])
    with pytest.raises(ValueError, match="stage 1 has new layers"):
        check([Stage(study.factors[0], new=("head",)), second])
    with pytest.raises(ValueError, match="no stages"):
        check([])
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"of {value}: expected a finite number ≥ 0"):
            Damping(value)


def test_a_singular_block_without_damping_is_refused(study):
    """Two documents cannot fill a layer: most eigenvalues are rounding errors,
    and their reciprocals would be noise."""
    factors = fit(study.tracked[0], documents(2), labels="true")
    query = query_gradients(study.tracked[0], study.queries)
    with pytest.raises(ValueError, match="layers.0.*singular block.*Give the stage a damping > 0"):
        precondition(query, [Stage(factors)])
    assert precondition(query, [Stage(factors, Damping(1e-3))])


def test_broken_eigenvalues_are_said_to_be_broken(study):
    factors = study.factors[0]
    name, x = next(iter(factors.factors.items()))
    broken = {**factors.factors, name: replace(x, eigenvalues=x.eigenvalues * torch.nan)}
    stage = Stage(replace(factors, factors=broken), Damping(0.1))
    query = query_gradients(study.tracked[0], study.queries)
    with pytest.raises(ValueError, match=f"{name}: NaN or infinite eigenvalues: .* fit them again"):
        precondition(query, [stage])


def test_preconditioning_that_will_not_fit_is_refused_before_it_starts(study, monkeypatch):
    query, stages = query_gradients(study.tracked[1], study.queries), stages_of(study)
    monkeypatch.setattr(resources, "available_memory", lambda: 10)
    with pytest.raises(
        MemoryError, match="preconditioning 3 queries for 2 stages .* needs .* free"
    ):
        precondition(query, stages)
    with pytest.raises(MemoryError, match="preconditioning 3 queries"):
        preconditioned(study.tracked[1], study.queries, stages)


def test_what_a_stage_left_as_it_was_passes_whole_and_owes_its_rows_nothing(study):
    """A frozen layer is the limit of an infinite α on it: T = 1, the inverse 0; the other layers
    are as without it. Layer by layer the same (1e-6: a rotation there and back in float32)."""
    first, second = stages_of(study)
    names = list(study.factors[1].factors)
    frozen = replace(second, frozen=tuple(names[:2]))
    firm = replace(second, alpha=Damping(1e12, relative=False))
    model, queries = study.tracked[1], documents(3, seed=5)
    q = query_gradients(model, queries)
    found, plain, limit = (precondition(q, [first, x]) for x in (frozen, second, firm))
    for name in names:
        expected = limit if name in frozen.frozen else plain
        torch.testing.assert_close(found[0][name], expected[0][name], rtol=1e-5, atol=0)
        wanted = torch.zeros_like(q[name]) if name in frozen.frozen else plain[1][name]
        torch.testing.assert_close(found[1][name], wanted, rtol=0, atol=0)
    for k in (0, 1):
        fast = preconditioned(model, queries, [first, frozen], stage=k)
        for name in names:
            size = found[k][name].abs().max().item()
            torch.testing.assert_close(fast[name], found[k][name], rtol=1e-5, atol=1e-6 * size)


def test_frozen_layers_of_a_curvature_that_couples_layers_are_refused(study):
    class Coupled:
        layers = ("a",)

    with pytest.raises(ValueError, match=r"frozen layers \('a',\) and a Coupled: expected EK-FAC"):
        Stage(Coupled(), alpha=Damping(0.1), frozen=("a",))
    with pytest.raises(ValueError, match=r"frozen is 'a': expected names of layers, \('a',\)"):
        Stage(study.factors[0], frozen="a")
