"""Queries preconditioned layer by layer, as their gradients arrive: the fast way to `influence.precondition` with EK-FAC.

The last stage's filter acts in its eigenbasis, where a query's gradient is (g Q_B)ᵀ (a Q_A): for sequences shorter than the
layer is wide that costs half of forming D and rotating it, and no unfiltered gradient is kept beside the result.
"""

from msif.core.capture import passes
from msif.core.data import buckets
from msif.core.ekfac import EKFAC
from msif.core.influence import Stage, check
from msif.core.objectives import log_probability
from msif.core.products import sequence_gradient, split


def preconditioned(
    tracked, queries, stages, *, stage=0, measurement=log_probability, batch_size=32, title=None
):
    """W of `influence.score` for documents of stages[stage]: {layer: (q, o, i)}, equal to

        precondition(query_gradients(model, layers, queries, measurement), stages)[stage]

    for plain stages with `ekfac.EKFAC`. model: of the last stage. measurement: (logits, batch) -> (n,). Raises what those raise,
    and TypeError for other kinds of stages or curvature."""
    check(stages)
    for x in stages:
        if type(x) is not Stage or not isinstance(x.curvature, EKFAC):
            raise TypeError(
                f"{type(x).__name__} with {type(x.curvature).__name__}: expected influence.Stage with ekfac.EKFAC; "
                f"others go through influence.query_gradients and precondition"
            )
    found, places = {}, {x.name: iter(buckets(queries, batch_size)) for x in tracked.layers}

    def consume(layer, a, g, draw, batch):
        w = _solve(layer, a, g, stages, stage)
        if w is not None:
            if layer.name not in found:
                found[layer.name] = w.new_empty(
                    len(queries), *w.mT.shape[1:]
                ).mT  # laid out as `influence.score` reads it
            found[layer.name][next(places[layer.name])] = w

    passes(
        tracked,
        queries,
        [lambda logits, batch: -measurement(logits, batch)],
        batch_size,
        consume,
        title,
    )
    return {x.name: found[x.name] for x in tracked.layers if x.name in found}


def _solve(layer, a, g, stages, stage):
    """(H_j + …)⁻¹ T_{j+1} ⋯ T_K D of one layer, j = `stage`; None for a layer that stage j lacks."""
    last, new = len(stages) - 1, any(layer.name in x.new for x in stages[stage + 1 :])
    if new:
        return None
    f = _filter(stages[last], layer.name, inverse=last == stage)
    factors = stages[last].curvature.factors[layer.name].to(g.device)
    eigenvalues, rotated = (
        factors.eigenvalues.double(),
        _rotated_gradient(factors, a, g, layer.bias),
    )
    v = factors.rotate_back(rotated * f(eigenvalues, eigenvalues.mean()).to(rotated))
    for k in range(last - 1, stage - 1, -1):
        v = (
            stages[k]
            .curvature.factors[layer.name]
            .to(g.device)
            .apply(_filter(stages[k], layer.name, inverse=k == stage), v)
        )
    return v


def _rotated_gradient(factors, a, g, bias):
    """Q_Bᵀ D Q_A (n, blocks, r, i): a and g rotated first where that multiplies less. Q_A's last row is the bias's."""
    (s, i), o, r = a.shape[1:], g.shape[2], factors.basis_out.shape[-1]
    if s * (i * i + r * o) > o * i * (i + r):
        return factors.rotate(sequence_gradient(a, g, bias))
    a = (
        a @ factors.basis_in[:-1] + factors.basis_in[-1] if bias else a @ factors.basis_in
    )  # the 1 where padded meets g = 0
    g = (
        split(g, factors.rows, 2).transpose(1, 2) @ factors.basis_out
        if factors.rows is not None
        else (g @ factors.basis_out[0])[:, None]
    )
    return g.mT @ a[:, None]


def _filter(stage, name, inverse):
    """A function (eigenvalues, mean) of one stage: its inverse, or its transfer α times that."""
    solve = stage._inverse_new if name in stage.new else stage._inverse
    return solve if inverse else lambda *at: solve(*at) * stage.alpha.of(at[1])
