"""How many products until the dial's scores are the exact two-stage scores, on a model whose
curvature does not fit in memory?

The two stages of a trained test-bed, curvature over fixed sets of documents and fine-tuning rows,
on which EK-FAC is fitted too; damping d (stage 1) and α (stage 2) relative to the mean eigenvalue
of each layer. Exact: (G + D) X = V solved until the residual ‖V − (G + D) X‖ / ‖V‖ of every query
is at most `tolerance`, in float64; all else in float32. Score, sign and costs as in
`msif.study.exact.accuracy`.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from msif.core import ekfac
from msif.core.data import digest
from msif.core.influence import Damping, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.core.model_digest import model_digest
from msif.core.objectives import fisher_losses
from msif.core.products import flatten, unflatten
from msif.curvature import dial
from msif.curvature.conjugate import block_cg, cg
from msif.curvature.gauss_newton import GaussNewton, exact_attention
from msif.rivals import inverses
from msif.study import scratch
from msif.study.exact.accuracy import agreement

SOLVERS = {
    "dial": block_cg,
    "EK-FAC block CG": block_cg,
    "EK-FAC CG": cg,
    "block CG": block_cg,
    "CG": cg,
}
PLAIN = ("CG", "block CG")  # without a preconditioner


@dataclass(frozen=True)
class TwoStageProblem:
    """nets: θ₁ and θ₂. data: what their curvature runs over. settings: damping, samples,
    correction, share, batch_size."""

    nets: list
    layers: list
    data: list
    queries: list
    candidates: list
    settings: dict

    @property
    def tracked(self):
        """θ₁ and θ₂ with the tracked layers."""
        return [Tracked(net, self.layers) for net in self.nets]

    def key(self):
        """What every score depends on."""
        return {
            "models": [model_digest(m) for m in self.nets],
            "layers": [str(x) for x in self.layers],
            "settings": self.settings,
            "data": [digest(x) for x in (*self.data, self.queries, self.candidates)],
        }

    def query_vectors(self):
        """∇(−f) of each query at θ₂: {layer: (q, o, i)}."""
        return query_gradients(self.tracked[1], self.queries)

    def score(self, w):
        """(q, n) float64 of vectors w at θ₁."""
        return score(self.tracked[0], self.candidates, w, batch_size=64).values.double()

    def stage(self, k):
        """The dial's stage k, without a correction: EK-FAC on the stage's own data."""
        s, tracked, data = self.settings, self.tracked[k], self.data[k]
        factors = ekfac.fit(tracked, data, samples=s["samples"], seed=k)
        product = GaussNewton(tracked, data, s["batch_size"]).product
        damping = {("damping", "alpha")[k]: Damping(s["damping"])}
        return dial.Refined(factors, product=product, **damping)

    def corrected(self, k, stage):
        """The stage k with the dial's correction, by pseudo-gradients of its own."""
        s, seed = self.settings, f"{k}/correction"
        u = dial.pseudo_gradients(self.tracked[k], self.data[k], s["correction"], seed=seed)
        return replace(stage, correction=dial.low_rank(stage, u, s["share"]))


def problem(bed, *, documents, rows, queries, candidates, seed=0, **settings):
    """The `TwoStageProblem` of a `testbed.Testbed`: so many of its documents and rows for
    curvature, and queries, drawn by `seed`; the candidates are the queries' proponents and so many
    other documents."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(items, n):
        return [items[i] for i in torch.randperm(len(items), generator=rng)[:n].tolist()]

    data = [drawn(bed.documents, documents), drawn(bed.finetuning, rows)]
    asked = drawn(bed.queries, queries)
    stating = {i for query in asked for i in bed.corpus.queries[query.index]["proponents"]}
    others = drawn([d for d in bed.documents if d.index not in stating], candidates)
    chosen = [bed.documents[i] for i in sorted(stating)] + others
    nets = [bed.model("pretrained"), bed.model("finetuned")]
    return TwoStageProblem(nets, tracked_layers(nets[0]), data, asked, chosen, settings)


def converged(stage, v, tolerance, title, limit=2000):
    """((G + D)⁻¹ v, the largest relative residual of a query, products). ArithmeticError when
    `limit` products do not reach it."""
    x, r, products = {name: torch.zeros_like(y) for name, y in v.items()}, v, 0
    with tqdm(desc=title) as bar:
        while (residual := _norms(r) / _norms(v)).max() > tolerance:
            for iterate in stage.iterates(r):
                step, left = iterate
                products += bar.update() or 1
                if left.max() < tolerance / 10:
                    break
                if products > limit:
                    raise ArithmeticError(
                        f"{title}: the residual is above {tolerance} after {limit} products; raise "
                        "the damping"
                    )
            x = {name: y + step[name] for name, y in x.items()}
            # the true residual, from which the solver starts again
            r = {name: v[name] - y for name, y in stage.damped(x).items()}
            products += 1
    return x, residual.max().item(), products


def exact_scores(problem, tolerance):
    """{"scores" (q, n), "residuals" (2,), "products" (2,)}, the stages in the order solved;
    computed once, kept in scratch/."""

    def compute():
        double = replace(problem, nets=[deepcopy(net).double() for net in problem.nets])
        w, found = double.query_vectors(), []
        for k in (1, 0):
            stage = double.corrected(k, double.stage(k))
            with exact_attention():
                w, *numbers = converged(stage, w, tolerance, f"exact solve of stage {k + 1}")
            found.append(numbers)
            w = stage.moved(w) if k else w
        residuals, products = map(torch.tensor, zip(*found))
        return {"scores": double.score(w), "residuals": residuals, "products": products}

    return scratch.tensors("refinement-exact", problem.key() | {"tolerance": tolerance}, compute)


def refined_scores(problem, method, products):
    """{k: (q, n)} of one of `SOLVERS` at each number of products a stage; 0 is its preconditioner.
    Once, then from scratch/."""

    def compute():
        stages = [prepared(problem, k, method) for k in (0, 1)]
        q, found = problem.query_vectors(), {}
        with tqdm(desc=f"{method}: products", total=max(products) + sum(products)) as bar:
            for k, w in solved(stages[1], q, method, products, bar).items():
                found[k] = solved(stages[0], stages[1].moved(w), method, [k], bar)[k]
        w = {name: torch.cat([x[name] for x in found.values()]) for name in q}
        return {str(k): x for k, x in zip(found, problem.score(w).split(len(problem.queries)))}

    key = problem.key() | {"method": method, "products": products}
    kept = scratch.tensors("refinement", key, compute)
    return {int(k): x for k, x in kept.items()}


def prepared(problem, k, method):
    """Stage k of the problem with the solver of a method, and the dial's correction if it is the
    dial."""
    stage = replace(problem.stage(k), solver=SOLVERS[method])
    return problem.corrected(k, stage) if method == "dial" else stage


def solved(stage, v, method, products, bar):
    """{k: solution after k products}."""
    found = {}
    if 0 in products:
        found[0] = v if method in PLAIN else stage.start(v)
    if max(products):
        for k, x in enumerate(_iterates(stage, v, method), 1):
            bar.update()
            if k in products:
                found[k] = x
            if k == max(products):
                break
    return found


def _iterates(stage, v, method):
    if method not in PLAIN:
        return (x for x, _ in stage.iterates(v))
    plain = SOLVERS[method](lambda x: flatten(stage.damped(unflatten(x, v))), flatten(v))
    return (unflatten(x, v) for x, _ in plain)


def direct_scores(problem):
    """{method: (q, n)} of what needs no product and is no `SOLVERS` method at 0."""
    q, stages, s = problem.query_vectors(), [problem.stage(k) for k in (0, 1)], problem.settings
    kfac = [replace(stage, curvature=stage.curvature.kfac()) for stage in stages]

    def diagonal(k, v):
        """Stage k's damped diagonal Fisher inverse of v."""
        losses = fisher_losses("gaussian", s["samples"], k)
        fisher = inverses.diagonal_fisher(problem.tracked[k], problem.data[k], losses)
        factors = stages[k].curvature.factors
        shift = {name: s["damping"] * x.eigenvalues.mean() for name, x in factors.items()}
        return inverses.diagonal_inverse(fisher, shift, v)

    return {
        "gradient dot": problem.score(q),
        "diagonal": problem.score(diagonal(0, stages[1].moved(diagonal(1, q)))),
        "K-FAC": problem.score(kfac[0].start(kfac[1].moved(kfac[1].start(q)))),
    }


def study(problem, name, seed, products, rival_products, tolerance):
    """(records, {"residual", "products"} of the exact solve); rival_products: those of every method
    but the dial."""
    exact = exact_scores(problem, tolerance)
    s = problem.settings
    labels = {"problem": name, "seed": seed, "stages": 2, "damping": s["damping"]}
    # In products, see `msif.study.exact.accuracy`.
    fit, draws = 2 * (1 + 2 * s["samples"]) / 3, (1 + 2 * s["correction"]) / 3
    setup = {
        "EK-FAC": fit,
        "dial": fit + draws,
        "EK-FAC CG": fit,
        "EK-FAC block CG": fit,
        "K-FAC": fit,
        "diagonal": (1 + 2 * s["samples"]) / 3,
    }
    found = {(method, 0): x for method, x in direct_scores(problem).items()}
    for method in SOLVERS:
        scores = refined_scores(problem, method, products if method == "dial" else rival_products)
        found |= {
            ("EK-FAC" if (method, k) == ("EK-FAC block CG", 0) else method, k): x
            for k, x in scores.items()
            if k or method in ("dial", "EK-FAC block CG")
        }
    records = [
        {
            **labels,
            "method": method,
            "products": k,
            **agreement(x, exact["scores"]),
            "cost": round(k + setup.get(method, 0.0) / len(problem.queries), 3),
        }
        for (method, k), x in found.items()
    ]
    residual, counts = exact["residuals"].max().item(), exact["products"].tolist()
    return records, {"residual": residual, "products": counts}


def _norms(v):
    """(q,) over all layers."""
    return flatten(v).norm(dim=1)
