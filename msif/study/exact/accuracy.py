"""How near does each approximation of the curvature come to exact influence? On toys whose exact
curvature fits in memory.

Exact: the whole damped Gauss-Newton matrix G + s of a stage, s = c · trace(G)/P one number a stage,
from `msif.study.exact.oracle`. With q the query's gradient ∇(−f) and ∇ℓ_z the document's, both
stages damped by the same c,

    one stage    ⟨(G₁ + s₁)⁻¹ q, ∇ℓ_z⟩                  all at θ₁
    two stages   ⟨(G₁ + s₁)⁻¹ s₂ (G₂ + s₂)⁻¹ q, ∇ℓ_z⟩   q and G₂ at θ₂, the rest at θ₁ (α = s₂)

Positive = proponent. An approximation replaces (G + s)⁻¹ in every stage. Costs are products with G
for each query and stage: a product is about a forward and a backward pass over the curvature set;
what is done once is divided by the number of queries.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice

import torch
from tqdm import tqdm

from msif.core import ekfac, layers
from msif.core.influence import Damping
from msif.core.products import flatten, unflatten
from msif.curvature import dial
from msif.curvature.conjugate import block_cg, cg
from msif.rivals import inverses
from msif.study import metrics, scratch
from msif.study.exact import toys
from msif.study.exact.oracle import Network, solve

CAUSES = {
    "Gauss-Newton for Hessian": ("exact", "exact Hessian"),
    "blocks for the whole": ("exact blocks", "exact"),
    "Kronecker eigenbasis for blocks": ("EK-FAC, exact eigenvalues", "exact blocks"),
    "sampled for exact eigenvalues": ("EK-FAC", "EK-FAC, exact eigenvalues"),
}


@dataclass(frozen=True, eq=False)
class Curvature:
    """One stage, explicit. G, H: (P, P) Gauss-Newton and Hessian (or None). factors:
    {kind of EK-FAC: EKFAC}, from `samples` pseudo-gradients a sequence; u: further ones,
    {layer: (n, o, i)}, `correction` a sequence."""

    G: torch.Tensor
    H: torch.Tensor | None
    factors: dict
    u: dict
    samples: int
    correction: int

    def rows(self, v, call):
        """call, which takes {layer: (q, o, i)}, on rows (q, P)."""
        return flatten(call(unflatten(v, self.u)))

    def product(self, v):
        """G v for each query: {layer: (q, o, i)}."""
        return unflatten(flatten(v) @ self.G, v)

    def shift(self, c):
        """s = c · trace(G)/P."""
        return (c * self.G.trace() / len(self.G)).item()

    def refined(self, c, factors="EK-FAC", share=None, **settings):
        """The dial's stage of this curvature; share: of the pseudo-gradients in its preconditioner,
        None for none."""
        damping = Damping(self.shift(c), relative=False)
        stage = dial.Refined(self.factors[factors], damping, product=self.product, **settings)
        return stage if share is None else replace(stage, correction=_correction(self, c, share))

    def blocks(self):
        """G without what couples layers: (P, P)."""
        return torch.block_diag(*(self.G[i:j, i:j] for i, j in _spans(self.u)))

    def fit_cost(self):
        """EK-FAC's fit in products: two passes of a forward (1/3) and `samples` backwards
        (2/3 each)."""
        return 2 * (1 + 2 * self.samples) / 3

    def correction_cost(self):
        """The correction's draws in products: one forward, `correction` backwards."""
        return (1 + 2 * self.correction) / 3


@lru_cache(maxsize=4)
def _correction(stage, c, share):
    return dial.low_rank(stage.refined(c), stage.u, share)


@dataclass(frozen=True)
class TwoStages:
    """stages: `Curvature` at θ₁ and θ₂. queries: rows (q, P) at each. documents: (n, P) at θ₁."""

    stages: list
    queries: list
    documents: torch.Tensor

    def scores(self, inverse, c):
        """(one-stage, two-stage) scores (q, n) by inverse(stage, rows) -> rows."""
        moved = inverse(self.stages[1], self.queries[1]) * self.stages[1].shift(c)
        return [inverse(self.stages[0], v) @ self.documents.mT for v in (self.queries[0], moved)]


def curvature(tracked, sequences, *, hessian, samples, correction, seed):
    """A stage's `Curvature`; hessian: whether the Hessian is computed too, by P further backward
    passes."""
    network = Network.of(tracked.model, tracked.layers)
    G = network.gauss_newton(network.weights(), sequences)

    def fit(at, samples):
        return ekfac.fit(at, sequences, samples=samples, seed=seed)

    factors = {
        "EK-FAC": fit(tracked, samples),
        "EK-FAC, exact eigenvalues": exact_eigenvalues(fit(tracked, 8 * samples), G),
    }
    factors["K-FAC"] = factors["EK-FAC"].kfac()
    if any("attention" in x.name for x in tracked.layers):
        factors["EK-FAC per head"] = fit(layers.tracked(tracked.model, per_head=True), samples)
    u = dial.pseudo_gradients(tracked, sequences, correction, seed=f"{seed}/correction")
    H = network.hessian(network.weights(), sequences) if hessian else None
    return Curvature(G, H, factors, u, samples, correction)


def exact_eigenvalues(factors, G):
    """EK-FAC with Λ = diag(Qᵀ G Q) in its own eigenbases."""
    shapes = {
        name: (1, x.basis_out.shape[0] * x.basis_out.shape[1], len(x.basis_in))
        for name, x in factors.factors.items()
    }
    spans = _spans({name: torch.empty(shape) for name, shape in shapes.items()})
    found = {}
    for (name, x), (i, j) in zip(factors.factors.items(), spans):
        Q = x.rotate(torch.eye(j - i, dtype=G.dtype).view(-1, *shapes[name][1:]))
        values = (Q.flatten(1) * (G[i:j, i:j] @ Q.flatten(1))).sum(0).clamp(min=0)
        found[name] = replace(x, eigenvalues=values.view(Q.shape[1:]))
    return replace(factors, factors=found)


def _spans(like):
    """Where each layer begins and ends in the flattened weights."""
    ends = torch.tensor([x[0].numel() for x in like.values()]).cumsum(0).tolist()
    return list(zip([0, *ends], ends))


def case(toy, **settings):
    """The `TwoStages` of a `toys.Toy`; settings as for `curvature`."""
    nets = [Network.of(m, toy.layers) for m in (toy.base, toy.tuned)]
    data = (toy.documents, toy.finetuning)
    stages = [curvature(at, x, **settings) for at, x in zip(toy.tracked, data)]
    queries = [n.gradients(n.weights(), toy.queries) for n in nets]
    return TwoStages(stages, queries, nets[0].gradients(nets[0].weights(), toy.documents))


def direct(case, c):
    """{method: (inverse(stage, rows), set-up in products for all queries together)} of those
    without iterations; None: not counted."""

    def by_factors(name):
        return lambda s, v: s.rows(v, s.refined(c, name).start)

    sampled = ("EK-FAC", "EK-FAC per head", "K-FAC")
    found = {
        name: (by_factors(name), Curvature.fit_cost)
        for name in sampled
        if name in case.stages[0].factors
    }
    found |= {
        "exact": (lambda s, v: solve(s.G, v, s.shift(c)), None),
        "exact blocks": (lambda s, v: solve(s.blocks(), v, s.shift(c)), None),
        "EK-FAC, exact eigenvalues": (by_factors("EK-FAC, exact eigenvalues"), None),
    }
    if case.stages[0].H is not None:
        found["exact Hessian"] = (lambda s, v: solve(s.H, v, s.shift(c)), None)
    found["diagonal"] = (
        lambda s, v: v / (s.G.diagonal() + s.shift(c)),
        lambda s: (1 + 2 * s.samples) / 3,
    )
    return found | {"gradient dot": (lambda s, v: v, _nothing)}


def _nothing(stage):
    """The set-up cost of a method without set-up."""
    return 0.0


def iterative(c, k, share):
    """{method: (inverse, set-up)} at k products; the dial at 0 products is its preconditioner
    alone."""

    def refined(**settings):
        return lambda s, v: s.rows(v, s.refined(c, iterations=k, **settings).inverse)

    def plain(solver):
        def inverse(s, v):
            iterates = solver(lambda x: x @ s.G + s.shift(c) * x, v)
            return next(islice((x for x, _ in iterates), k - 1, None))

        return inverse

    found = {"dial": (refined(share=share), lambda s: s.fit_cost() + s.correction_cost())}
    if not k:
        return found
    return found | {
        "CG": (plain(cg), _nothing),
        "block CG": (plain(block_cg), _nothing),
        "EK-FAC CG": (refined(solver=cg), Curvature.fit_cost),
        "EK-FAC block CG": (refined(), Curvature.fit_cost),
    }


def rivals(c, lissa, arnoldi):
    """{(method, products): (inverse, set-up)} of LiSSA on the whole curvature set, in steps of
    1 / the largest eigenvalue, and of Arnoldi."""

    rank, iterations = arnoldi["rank"], arnoldi["iterations"]

    def neumann(s, v, k):
        scale = 1 / (torch.linalg.matrix_norm(s.G, 2).item() + s.shift(c))
        d = dict.fromkeys(s.u, s.shift(c))
        return s.rows(v, lambda x: inverses.lissa(s.product, d, x, [k], scale)[k])

    def leading(s, v):
        d = dict.fromkeys(s.u, s.shift(c))
        pairs = inverses.eigenpairs(s.product, d, s.u, rank, iterations)
        return s.rows(v, lambda x: inverses.arnoldi(*pairs, x))

    found = {("LiSSA", k): (partial(neumann, k=k), _nothing) for k in lissa}
    return found | {("Arnoldi", 0): (leading, lambda s: iterations)}


def compared(
    case, dampings, products, products_elsewhere, focus, share, lissa, arnoldi, title=None
):
    """(records, causes): Pearson and Spearman with the exact scores of every method at every
    damping, means over queries.

    products: what the iterative methods may use at the damping `focus`; products_elsewhere: at the
    others. causes: of each of `CAUSES` alone, the correlation of the scores with and without that
    approximation."""
    records, causes = [], []
    for c in tqdm(dampings, desc=title, disable=title is None):
        methods = {(name, 0): pair for name, pair in direct(case, c).items()}
        if c == focus:
            methods |= rivals(c, lissa, arnoldi)
        for k in products if c == focus else products_elsewhere:
            methods |= {(name, k): pair for name, pair in iterative(c, k, share).items()}
        scores = {key: case.scores(inverse, c) for key, (inverse, _) in methods.items()}
        for stages in (0, 1):
            at = {"stages": stages + 1, "damping": c}
            named = {key: pair[stages] for key, pair in scores.items()}
            records += [
                {
                    "method": name,
                    **at,
                    "products": k,
                    **agreement(found, named["exact", 0]),
                    "cost": cost(case, k, methods[name, k][1]),
                }
                for (name, k), found in named.items()
                if name != "exact"
            ]
            causes += [
                {"cause": cause, **at, **agreement(named[new, 0], named[old, 0])}
                for cause, (new, old) in CAUSES.items()
                if (old, 0) in named
            ]
    return records, causes


def agreement(found, exact):
    """{pearson, spearman}, means over queries, and {…_se}, standard errors over queries."""
    record = {}
    for name, correlation in (("pearson", metrics.pearson), ("spearman", metrics.spearman)):
        mean, se = metrics.mean_and_error(correlation(found.numpy(), exact.numpy()))
        record |= {name: round(float(mean), 4), f"{name}_se": round(float(se), 4)}
    return record


def cost(case, products, setup):
    """Products for each query in a stage, k + set-up / queries, in the dearer stage; None if not
    counted."""
    if setup is None:
        return None
    return round(products + max(setup(s) for s in case.stages) / len(case.queries[0]), 3)


def toy_study(problem, seed, toy, curvature, **comparison):
    """({"records": …, "causes": …}) of one seed of a toy, each with the problem's name and seed;
    computed once, kept in scratch/.

    toy, curvature: arguments of `toys.toy` and of `curvature`; comparison: of `compared`."""

    def compute():
        found = case(toys.toy(seed=seed, **toy), seed=seed, **curvature)
        records, causes = compared(found, title=f"{problem}, seed {seed}", **comparison)
        return {"records": [labels | r for r in records], "causes": [labels | r for r in causes]}

    labels = {"problem": problem, "seed": seed}
    key = labels | {"toy": toy, "curvature": curvature, "comparison": comparison}
    return scratch.value("accuracy", key, compute)
