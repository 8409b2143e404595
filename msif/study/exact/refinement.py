"""The dial on a model whose curvature does not fit in memory: how many products until its scores are the exact two-stage scores?

The two stages of a trained test-bed, curvature over fixed sets of documents and fine-tuning rows, on which EK-FAC is fitted too;
damping d (stage 1) and α (stage 2) relative to the mean eigenvalue of each layer. Exact: (G + D) X = V solved until the residual
‖V − (G + D) X‖ / ‖V‖ of every query is at most `tolerance`, in float64; all else in float32. Score, sign and costs as in `msif.study.exact.accuracy`.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from msif.core import ekfac
from msif.core.data import digest
from msif.core.influence import Damping, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.core.models import model_digest
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


@dataclass(frozen=True)
class TwoStageProblem:
    """nets: θ₁ and θ₂. data: what their curvature runs over. settings: damping, samples, correction, share, batch_size."""

    nets: list
    layers: list
    data: list
    queries: list
    candidates: list
    settings: dict

    def key(self):
        return {
            "models": [model_digest(m) for m in self.nets],
            "layers": [str(x) for x in self.layers],
            "settings": self.settings,
            "data": [digest(x) for x in (*self.data, self.queries, self.candidates)],
        }

    def query_vectors(self):
        return query_gradients(Tracked(self.nets[1], self.layers), self.queries)

    def score(self, w):
        """(q, n) float64 of vectors w at θ₁."""
        return score(
            Tracked(self.nets[0], self.layers), self.candidates, w, batch_size=64
        ).values.double()

    def stage(self, k):
        """The dial's stage k, without a correction: EK-FAC on the stage's own data."""
        s = self.settings
        factors = ekfac.fit(
            Tracked(self.nets[k], self.layers), self.data[k], samples=s["samples"], seed=k
        )
        damping = {("damping", "alpha")[k]: Damping(s["damping"])}
        return dial.Refined(
            factors,
            product=GaussNewton(
                Tracked(self.nets[k], self.layers), self.data[k], s["batch_size"]
            ).product,
            **damping,
        )

    def corrected(self, k, stage):
        u = dial.pseudo_gradients(
            Tracked(self.nets[k], self.layers),
            self.data[k],
            self.settings["correction"],
            seed=f"{k}/correction",
        )
        return replace(stage, correction=dial.low_rank(stage, u, self.settings["share"]))


def problem(bed, *, documents, rows, queries, candidates, seed=0, **settings):
    """The `TwoStageProblem` of a `testbed.Testbed`: so many of its documents and rows for curvature, and queries, drawn by `seed`; the
    candidates are the queries' proponents and so many other documents."""
    rng = torch.Generator().manual_seed(seed)
    drawn = lambda items, n: [
        items[i] for i in torch.randperm(len(items), generator=rng)[:n].tolist()
    ]
    data, asked = (
        [drawn(bed.documents, documents), drawn(bed.finetuning, rows)],
        drawn(bed.queries, queries),
    )
    stating = {i for query in asked for i in bed.corpus.queries[query.index]["proponents"]}
    others = drawn([d for d in bed.documents if d.index not in stating], candidates)
    nets = [bed.model("pretrained"), bed.model("finetuned")]
    return TwoStageProblem(
        nets,
        tracked_layers(nets[0]),
        data,
        asked,
        [bed.documents[i] for i in sorted(stating)] + others,
        settings,
    )


def converged(stage, v, tolerance, title, limit=2000):
    """((G + D)⁻¹ v, the largest relative residual of a query, products). ArithmeticError when `limit` products do not reach it."""
    x, r, products = {name: torch.zeros_like(y) for name, y in v.items()}, v, 0
    with tqdm(desc=title) as bar:
        while (residual := _norms(r) / _norms(v)).max() > tolerance:
            for step, left in stage.iterates(r):
                products += bar.update() or 1
                if left.max() < tolerance / 10:
                    break
                if products > limit:
                    raise ArithmeticError(
                        f"{title}: the residual is above {tolerance} after {limit} products; raise the damping"
                    )
            x = {name: y + step[name] for name, y in x.items()}
            r = {
                name: v[name] - y for name, y in stage.damped(x).items()
            }  # the true one, from which the solver starts again
            products += 1
    return x, residual.max().item(), products


def exact_scores(problem, tolerance):
    """{"scores" (q, n), "residuals" (2,), "products" (2,)}, the stages in the order solved; computed once, kept in scratch/."""

    def compute():
        double, found = replace(problem, nets=[deepcopy(net).double() for net in problem.nets]), []
        w = double.query_vectors()
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
    """{k: (q, n)} of one of `SOLVERS` at each number of products a stage; 0 is its preconditioner. Once, then from scratch/."""

    def compute():
        stages, q = [_prepared(problem, k, method) for k in (0, 1)], problem.query_vectors()
        found = {}
        with tqdm(desc=f"{method}: products", total=max(products) + sum(products)) as bar:
            for k, w in _solved(stages[1], q, method, products, bar).items():
                found[k] = _solved(stages[0], stages[1].moved(w), method, [k], bar)[k]
        w = {name: torch.cat([x[name] for x in found.values()]) for name in q}
        return {str(k): x for k, x in zip(found, problem.score(w).split(len(problem.queries)))}

    kept = scratch.tensors(
        "refinement", problem.key() | {"method": method, "products": products}, compute
    )
    return {int(k): x for k, x in kept.items()}


def _prepared(problem, k, method):
    stage = replace(problem.stage(k), solver=SOLVERS[method])
    return problem.corrected(k, stage) if method == "dial" else stage


def _solved(stage, v, method, products, bar):
    """{k: solution after k products}."""
    found = {0: v if method in ("CG", "block CG") else stage.start(v)} if 0 in products else {}
    if max(products):
        for k, x in enumerate(_iterates(stage, v, method), 1):
            bar.update()
            found |= {k: x} if k in products else {}
            if k == max(products):
                break
    return found


def _iterates(stage, v, method):
    if method not in ("CG", "block CG"):
        return (x for x, _ in stage.iterates(v))
    plain = SOLVERS[method](lambda x: flatten(stage.damped(unflatten(x, v))), flatten(v))
    return (unflatten(x, v) for x, _ in plain)


def direct_scores(problem):
    """{method: (q, n)} of what needs no product and is no `SOLVERS` method at 0."""
    q, stages = problem.query_vectors(), [problem.stage(k) for k in (0, 1)]
    fisher = [
        inverses.diagonal_fisher(
            Tracked(net, problem.layers),
            data,
            fisher_losses("gaussian", problem.settings["samples"], k),
        )
        for k, (net, data) in enumerate(zip(problem.nets, problem.data))
    ]
    shift = [
        {
            name: problem.settings["damping"] * x.eigenvalues.mean()
            for name, x in s.curvature.factors.items()
        }
        for s in stages
    ]
    kfac = [replace(s, curvature=s.curvature.kfac()) for s in stages]
    diagonal = inverses.diagonal_inverse(
        fisher[0], shift[0], stages[1].moved(inverses.diagonal_inverse(fisher[1], shift[1], q))
    )
    return {
        "gradient dot": problem.score(q),
        "diagonal": problem.score(diagonal),
        "K-FAC": problem.score(kfac[0].start(kfac[1].moved(kfac[1].start(q)))),
    }


def study(problem, name, seed, products, rival_products, tolerance):
    """(records, {"residual", "products"} of the exact solve); rival_products: those of every method but the dial."""
    exact = exact_scores(problem, tolerance)
    s, labels = (
        problem.settings,
        {"problem": name, "seed": seed, "stages": 2, "damping": problem.settings["damping"]},
    )
    fit, draws = (
        2 * (1 + 2 * s["samples"]) / 3,
        (1 + 2 * s["correction"]) / 3,
    )  # in products, see `msif.study.exact.accuracy`
    setup = {
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
    setup["EK-FAC"] = fit
    records = [
        labels
        | {
            "method": method,
            "products": k,
            **agreement(x, exact["scores"]),
            "cost": round(k + setup.get(method, 0.0) / len(problem.queries), 3),
        }
        for (method, k), x in found.items()
    ]
    return records, {
        "residual": exact["residuals"].max().item(),
        "products": exact["products"].tolist(),
    }


def _norms(v):
    """(q,) over all layers."""
    return flatten(v).norm(dim=1)
