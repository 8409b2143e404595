"""What influence costs, counted and not timed: multiplications, in units of one plain forward and
backward pass over one document.

Every matrix product that a method really makes is counted as it runs (`torch.utils.flop_counter`),
and an eigendecomposition of an (n, n) matrix as 9 n³ (Golub & Van Loan, Matrix Computations, §8.3).
Elementwise work, vector updates and random numbers are left out. A pair costs (everything that is
done for Q queries and N candidates) / (Q N).
"""

import time

import numpy as np
from torch import ops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from msif.core.audit import unaudited
from msif.core.capture import gradients
from msif.core.data import batches
from msif.core.ekfac import fit
from msif.core.influence import Damping, query_gradients, score
from msif.core.layers import tracked
from msif.core.models import logits, tiny_gpt_neox
from msif.core.objectives import fisher_losses, loss
from msif.core.selfcheck import batching
from msif.curvature import dial
from msif.curvature.gauss_newton import GaussNewton
from msif.rivals import inverses, similarities, trak
from msif.study.scalability.methods import corrected

# What the counter leaves out: decompositions, products added in place; and fused attention on CPUs,
# which runs as plain products.
UNCOUNTED = {
    ops.aten._linalg_eigh: lambda shape, *rest, **options: 9 * shape[-1] ** 3 * _count(shape[:-2]),
    ops.aten.addmm_: lambda total, a, b, *rest, **options: 2 * a[0] * a[1] * b[1],
    ops.aten.baddbmm_: lambda total, a, b, *rest, **options: 2 * a[0] * a[1] * a[2] * b[2],
}


def counted(call):
    """Floating-point operations in the matrix products and eigendecompositions of call(), without
    the looks that a pass takes at its model."""
    with (
        unaudited(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter,
    ):
        call()
    return counter.get_total_flops()


def _count(shape):
    return shape[0] * _count(shape[1:]) if len(shape) else 1


def plain(model, documents, batch_size=32):
    """One forward and backward pass over each document, weight gradients included, as in
    training."""
    for batch in batches(documents, batch_size):
        loss(logits(model, batch), batch).sum().backward()
    model.zero_grad()


def parts(p, damping, settings):
    """{part of a method: its cost for all queries and candidates, in plain passes over one
    document}; see `pair_cost`."""
    batching(p.tracked, [*p.queries, *p.candidates, *p.curvature], batch_size=2)  # once, uncounted
    unit = counted(lambda: plain(p.model, p.candidates)) / len(p.candidates)
    q = query_gradients(p.tracked, p.queries)
    one = {name: x[:1] for name, x in q.items()}
    mlp = p.tracked.only(layer for layer in p.layers if ".mlp." in layer.name)
    q_mlp = {name: q[name] for name in mlp.names}
    product = GaussNewton(p.tracked, p.curvature, 16).product
    stage = dial.Refined(p.factors, damping, product=product)
    samples, correction = settings["samples"], settings["correction"]
    full, few = corrected(stage, p, correction), p.candidates[:32]
    project = trak.projector(p.layers, settings["trak"]["features"], 0)
    sample = inverses.sampled_product(p.tracked, p.curvature, settings["lissa"]["batch"])
    calls = {
        "queries": lambda: query_gradients(p.tracked, p.queries),
        "scoring": lambda: score(p.tracked, p.candidates, q),
        "scoring, MLP": lambda: score(mlp, p.candidates, q_mlp),
        "diagonal": lambda: inverses.diagonal_fisher(
            p.tracked, p.curvature, fisher_losses("gaussian", samples, 0)
        ),
        "fit": lambda: fit(p.tracked, p.curvature, samples=samples),
        "fit, MLP": lambda: fit(mlp, p.curvature, samples=samples),
        "EK-FAC": lambda: stage.start(q),
        "correction": lambda: corrected(stage, p, correction),
        "dial": lambda: full.start(q),
        "product": lambda: stage.product(q),
        "single product": lambda: stage.product(one),
        "sampled product": lambda: sample(q),
        "features": lambda: [
            trak.trak_features(p.tracked, x, project) for x in (p.queries, p.candidates)
        ],
        "CKA": lambda: similarities.cka(q, gradients(p.tracked, few, loss)),
    }
    found = {name: counted(call) / unit for name, call in calls.items()}
    found["CKA"] = found["CKA"] * len(p.candidates) / len(few)
    return found | {"half training": p.training["epochs"] * len(p.documents) / 2}


def pair_cost(method, products, parts, pairs):
    """Plain passes over one document for each of `pairs` pairs of a query and a candidate, set-up
    included.

    An iteration of the dial applies both halves of its preconditioner; by EK-FAC alone each half
    costs as much as its inverse."""
    c, both = parts, parts["queries"] + parts["scoring"]
    ekfac = both + c["fit"]
    by_dial, by_ekfac = c["product"] + c["dial"], c["product"] + 2 * c["EK-FAC"]  # an iteration
    return {
        "gradient dot": both,
        "gradient cosine": both,
        "CKA of gradients": c["queries"] + c["CKA"],
        "diagonal Fisher": both + c["diagonal"],
        "EK-FAC": ekfac + c["EK-FAC"],
        "EK-FAC, MLP": c["queries"] + c["scoring, MLP"] + c["fit, MLP"] + c["EK-FAC"],
        "the dial": ekfac + c["correction"] + c["dial"] + products * by_dial,
        "the dial, EK-FAC alone": ekfac + c["EK-FAC"] + products * by_ekfac,
        "block CG": both + products * c["product"],
        "conjugate gradients": both + products * c["product"],
        "LiSSA": both + products * c["sampled product"],
        "Arnoldi": both + products * c["single product"],
        "TRAK at the model": c["features"],
        "TRAK": products * (c["features"] + c["half training"]),
    }[method] / pairs


def by_size(widths, documents, vocabulary, samples, queries, measure=counted):
    """[{weights, plain, fit, scoring}] of models of these widths: what `measure` says of a call,
    for each of the documents.

    plain: forward and backward; fit: EK-FAC with its eigendecompositions; scoring: one candidate
    for all `queries` queries, the first of the documents. Raises ValueError for more of them."""
    if queries > len(documents):
        raise ValueError(
            f"{queries} queries of {len(documents)} documents; expected as many documents at least"
        )
    return [_at_width(width, documents, vocabulary, samples, queries, measure) for width in widths]


def _at_width(width, documents, vocabulary, samples, queries, measure):
    net, kept = tracked(tiny_gpt_neox(vocabulary, width=width, heads=2)), []
    batching(net, documents, batch_size=2)  # the check of a new model, once
    found = {
        "plain": measure(lambda: plain(net.model, documents)),
        "fit": measure(lambda: kept.append(fit(net, documents, samples=samples))),
    }
    q = query_gradients(net, documents[:queries])
    w = dial.Refined(kept[0], Damping(0.1)).inverse(q)
    found["scoring"] = measure(lambda: score(net, documents, w))
    per_document = {name: cost / len(documents) for name, cost in found.items()}
    return {"weights": net.weights} | per_document


def seconds(call):
    """Wall-clock seconds of call(): never in a committed file."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def exponent(sizes, costs):
    """(b, its standard error) of the least-squares line log cost = a + b log size."""
    x, y = np.log(sizes), np.log(costs)
    x = x - x.mean()
    b = (x * y).sum() / (x * x).sum()
    rest = y - y.mean() - b * x
    return float(b), float(np.sqrt((rest * rest).sum() / (len(x) - 2) / (x * x).sum()))
