"""Queries preconditioned layer by layer, as their gradients arrive.

It is the fast way to `influence.precondition` with EK-FAC. The last stage's filter acts in its
eigenbasis, where a query's gradient is (g Q_B)ᵀ (a Q_A): for sequences shorter than the layer is
wide that costs half of forming D and rotating it, and no unfiltered gradient is kept beside the
result.
"""

from collections import abc

import torch

from msif.core import checks, data
from msif.core.capture import grouped_passes
from msif.core.data import Sequence
from msif.core.influence import Stage, check
from msif.core.kronecker import EKFAC
from msif.core.layers import Tracked, Vectors
from msif.core.models import limits
from msif.core.objectives import Objective, log_probability
from msif.core.resources import require


def preconditioned(
    tracked: Tracked,
    queries: list[Sequence],
    stages: abc.Sequence[Stage],
    *,
    stage: int = 0,
    measurement: Objective = log_probability,
    batch_size: int = 32,
    title: str | None = None,
) -> Vectors:
    """w of `influence.score` for documents of stages[stage]: {layer: (q, o, i)}, equal to

        precondition(query_gradients(tracked, queries, measurement), stages)[stage]

    for plain stages with `ekfac.EKFAC`. tracked: of the last stage. measurement: f, (logits, batch)
    -> (n,). Raises what those raise, ValueError for a stage that is not there, counted from 0, and
    TypeError for other kinds of stages or curvature.
    """
    check(stages)
    if checks.whole("stage", stage, 0) >= len(stages):
        raise ValueError(f"stage is {stage}; expected 0 to {len(stages) - 1}")
    for x in stages:
        if not is_plain(x):
            raise TypeError(
                f"{type(x).__name__} with {type(x.curvature).__name__}: expected influence.Stage "
                f"with ekfac.EKFAC, without a cross term; others go through "
                f"influence.query_gradients and precondition"
            )
    data.check(queries, *limits(tracked.model))
    largest = max(x.out_features * x.inputs for x in tracked.layers)
    require(
        memory=4 * (len(queries) * tracked.weights + 4 * min(batch_size, len(queries)) * largest),
        what=f"preconditioning {len(queries)} queries (fewer at once take less)",
    )
    found: Vectors = {}

    def consume(layer, a, g, draw, batch, group):
        w = _solve(layer, a, g, stages, stage)
        if w is None:
            return
        if layer.name not in found:  # laid out as `influence.score` reads it
            found[layer.name] = w.new_empty(len(queries), *w.mT.shape[1:]).mT
        found[layer.name][group] = w

    def objective(logits, batch):
        return -measurement(logits, batch)

    grouped_passes(tracked, queries, [objective], batch_size, consume, title)
    return {x.name: found[x.name] for x in tracked.layers if x.name in found}


def _everything(eigenvalues, mean):
    return torch.ones_like(eigenvalues)


def _nothing(eigenvalues, mean):
    return torch.zeros_like(eigenvalues)


def is_plain(stage: Stage) -> bool:
    """Is it a stage that `preconditioned` takes?"""
    plain = type(stage) is Stage and stage.cross is None
    return plain and isinstance(stage.curvature, EKFAC)


def _solve(layer, a, g, stages, stage):
    """(H_j + …)⁻¹ T_{j+1} ⋯ T_K D of one layer, j = `stage`; None where stage j lacks it."""
    if any(layer.name in x.new for x in stages[stage + 1 :]):
        return None

    def at(k):
        """The factors and the filter of stages[k] for this layer."""
        factors = stages[k].curvature.factors[layer.name].to(g.device)
        return factors, _filter(stages[k], layer.name, inverse=k == stage)

    last = len(stages) - 1
    factors, f = at(last)
    eigenvalues = factors.eigenvalues.double()
    rotated = factors.rotated_gradient(a, g, layer.bias)
    v = factors.rotate_back(rotated * f(eigenvalues, eigenvalues.mean()).to(rotated))
    for k in range(last - 1, stage - 1, -1):
        factors, f = at(k)
        v = factors.apply(f, v)
    return v


def _filter(stage, name, inverse):
    """One stage's filter for a layer: its inverse, or its transfer, which no new layer reaches."""
    if name in stage.frozen:
        return _nothing if inverse else _everything
    if not inverse:
        return stage.transfer_filter
    return stage.inverse_filter_of_new if name in stage.new else stage.inverse_filter
