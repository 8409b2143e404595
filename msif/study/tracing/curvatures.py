"""The multi-stage score with another curvature in place of EK-FAC.

multi_stage_refined   the exact Gauss-Newton, as far as a few products go (`curvature.dial`)
multi_stage_shampoo   eigenvalue-corrected Shampoo (`curvature.shampoo`)
"""

from msif.core.influence import Damping, Stage, precondition, query_gradients
from msif.curvature import shampoo
from msif.curvature.dial import Refined
from msif.curvature.gauss_newton import GaussNewton
from msif.study import scratch
from msif.study.tracing.methods import FORMS, score_together


def with_products(case, documents, iterations, damping, alpha):
    """{"multi_stage_refined/…"}: `iterations` Gauss-Newton products a stage, on the first
    `documents` documents and all rows."""

    def compute():
        base, tuned, first, last = case.ends
        products = [
            GaussNewton(base, case.bed.documents[:documents]).product,
            GaussNewton(tuned, case.bed.finetuning).product,
        ]
        stages = [
            Refined(first, Damping(damping), product=products[0], iterations=iterations),
            Refined(last, alpha=Damping(alpha), product=products[1], iterations=iterations),
        ]
        q = query_gradients(tuned, case.queries)
        return at_pretrained(case, {"multi_stage_refined": precondition(q, stages)[0]})

    settings = {
        "documents": documents,
        "iterations": iterations,
        "damping": damping,
        "alpha": alpha,
    }
    return scratch.tensors("refined", case.key() | settings, compute)


def with_shampoo(case, damping, alpha, *, samples=(2, 4), seed=0, batch_size=64):
    """{"multi_stage_shampoo/…"}: both stages fitted as `trained_case` fits EK-FAC, with as many
    draws; damping and α are relative to each layer's mean eigenvalue, as there."""
    draws = {"labels": "gaussian", "batch_size": batch_size}

    def compute():
        base, tuned, _, _ = case.ends
        first, last = (
            shampoo.fit(net, data, samples=n, seed=f"{seed}/{name}/shampoo", title=name, **draws)
            for net, data, n, name in (
                (base, case.bed.documents, samples[0], "pretrained"),
                (tuned, case.bed.finetuning, samples[1], "finetuned"),
            )
        )
        stages = [Stage(first, Damping(damping)), Stage(last, alpha=Damping(alpha))]
        q = query_gradients(tuned, case.queries)
        return at_pretrained(case, {"multi_stage_shampoo": precondition(q, stages)[0]})

    settings = {"damping": damping, "alpha": alpha, "samples": list(samples), "seed": seed}
    return scratch.tensors("shampoo", case.key() | settings, compute)


def at_pretrained(case, vectors):
    """{method/form: (q, N)} of query vectors {method: w}, candidates at θ₁."""
    found = score_together(case.tracked("pretrained"), case.bed.documents, vectors, 64)
    return {
        f"{name}/{form}": x
        for name, s in found.items()
        for form, x in zip(FORMS, (s.values, s.normalised()))
    }
