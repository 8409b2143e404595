"""The multi-stage score with the exact Gauss-Newton in place of EK-FAC, as far as a few products go
(`msif.curvature.dial`)."""

from msif.core.influence import Damping, precondition, query_gradients
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


def at_pretrained(case, vectors):
    """{method/form: (q, N)} of query vectors {method: w}, candidates at θ₁."""
    found = score_together(case.tracked("pretrained"), case.bed.documents, vectors, 64)
    return {
        f"{name}/{form}": x
        for name, s in found.items()
        for form, x in zip(FORMS, (s.values, s.normalised()))
    }
