"""How near does each approximation of the curvature come to exact influence? On toys whose exact curvature fits in memory.

Exact: the whole damped Gauss-Newton matrix G + s of a stage, s = c · trace(G)/P one number a stage, from `msif.study.exact.oracle`. With q the
query's gradient ∇(−f) and ∇ℓ_z the document's, both stages damped by the same c,

    one stage    ⟨(G₁ + s₁)⁻¹ q, ∇ℓ_z⟩                  all at θ₁
    two stages   ⟨(G₁ + s₁)⁻¹ s₂ (G₂ + s₂)⁻¹ q, ∇ℓ_z⟩   q and G₂ at θ₂, the rest at θ₁ (α = s₂)

Positive = proponent. An approximation replaces (G + s)⁻¹ in every stage. Costs are products with G for each query and stage: a
product is about a forward and a backward pass over the curvature set; what is done once is divided by the number of queries.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import torch
from tqdm import tqdm

from msif.core import ekfac
from msif.core.influence import Damping
from msif.core.layers import Tracked, tracked_layers
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
    """One stage, explicit. G, H: (P, P) Gauss-Newton and Hessian (or None). factors: {kind of EK-FAC: EKFAC}, from `samples`
    pseudo-gradients a sequence; u: further ones, {layer: (n, o, i)}, `correction` a sequence."""

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
        return unflatten(flatten(v) @ self.G, v)

    def shift(self, c):
        """S = c · trace(G)/P."""
        return (c * self.G.trace() / len(self.G)).item()

    def refined(self, c, factors="EK-FAC", share=None, **settings):
        """The dial's stage of this curvature; share: of the pseudo-gradients in its preconditioner, None for none."""
        stage = dial.Refined(
            self.factors[factors],
            Damping(self.shift(c), relative=False),
            product=self.product,
            **settings,
        )
        return stage if share is None else replace(stage, correction=_correction(self, c, share))

    def blocks(self):
        """G without what couples layers: (P, P)."""
        return torch.block_diag(*(self.G[i:j, i:j] for i, j in _spans(self.u)))

    def fit_cost(self):
        """EK-FAC's fit in products: two passes of a forward (1/3) and `samples` backwards (2/3 each)."""
        return 2 * (1 + 2 * self.samples) / 3

    def correction_cost(self):
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
    """A stage's `Curvature`; hessian: whether the Hessian is computed too, by P further backward passes."""
    network = Network.of(tracked.model, tracked.layers)
    G = network.gauss_newton(network.weights(), sequences)
    fit = lambda at, samples: ekfac.fit(at, sequences, samples=samples, seed=seed)
    factors = {
        "EK-FAC": fit(tracked, samples),
        "EK-FAC, exact eigenvalues": exact_eigenvalues(fit(tracked, 8 * samples), G),
    }
    factors["K-FAC"] = factors["EK-FAC"].kfac()
    if any("attention" in x.name for x in tracked.layers):
        factors["EK-FAC per head"] = fit(
            Tracked(tracked.model, tracked_layers(tracked.model, per_head=True)), samples
        )
    u = dial.pseudo_gradients(tracked, sequences, correction, seed=f"{seed}/correction")
    H = network.hessian(network.weights(), sequences) if hessian else None
    return Curvature(G, H, factors, u, samples, correction)


def exact_eigenvalues(factors, G):
    """EK-FAC with Λ = diag(Qᵀ G Q) in its own eigenbases."""
    shapes = {
        name: (1, x.basis_out.shape[0] * x.basis_out.shape[1], len(x.basis_in))
        for name, x in factors.factors.items()
    }
    found = {}
    for (name, x), (i, j) in zip(
        factors.factors.items(), _spans({n: torch.empty(shape) for n, shape in shapes.items()})
    ):
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
    stages = [
        curvature(Tracked(m, toy.layers), data, **settings)
        for m, data in ((toy.base, toy.documents), (toy.tuned, toy.finetuning))
    ]
    return TwoStages(
        stages,
        [n.gradients(n.weights(), toy.queries) for n in nets],
        nets[0].gradients(nets[0].weights(), toy.documents),
    )


def direct(case, c):
    """{method: (inverse(stage, rows), set-up in products for all queries together)} of those without iterations; None: not counted."""
    sampled = [
        name for name in ("EK-FAC", "EK-FAC per head", "K-FAC") if name in case.stages[0].factors
    ]
    by_factors = lambda name: lambda s, v: s.rows(v, s.refined(c, name).start)
    dense = {
        "exact": lambda s, v: solve(s.G, v, s.shift(c)),
        "exact blocks": lambda s, v: solve(s.blocks(), v, s.shift(c)),
        "EK-FAC, exact eigenvalues": by_factors("EK-FAC, exact eigenvalues"),
    }
    dense |= (
        {"exact Hessian": lambda s, v: solve(s.H, v, s.shift(c))}
        if case.stages[0].H is not None
        else {}
    )
    return (
        {name: (by_factors(name), Curvature.fit_cost) for name in sampled}
        | {name: (f, None) for name, f in dense.items()}
        | {
            "diagonal": (
                lambda s, v: v / (s.G.diagonal() + s.shift(c)),
                lambda s: (1 + 2 * s.samples) / 3,
            ),
            "gradient dot": (lambda s, v: v, lambda s: 0.0),
        }
    )


def iterative(c, k, share):
    """{method: (inverse, set-up)} at k products; the dial at 0 products is its preconditioner alone."""
    fit, both = Curvature.fit_cost, lambda s: s.fit_cost() + s.correction_cost()
    refined = lambda **settings: (
        lambda s, v: s.rows(v, s.refined(c, iterations=k, **settings).inverse)
    )
    dial_alone = {"dial": (refined(share=share), both)}
    plain = lambda solver: (
        lambda s, v: next(
            islice((x for x, _ in solver(lambda x: x @ s.G + s.shift(c) * x, v)), k - 1, None)
        )
    )
    return (
        dial_alone
        if not k
        else dial_alone
        | {
            "CG": (plain(cg), lambda s: 0.0),
            "block CG": (plain(block_cg), lambda s: 0.0),
            "EK-FAC CG": (refined(solver=cg), fit),
            "EK-FAC block CG": (refined(), fit),
        }
    )


def rivals(c, lissa, arnoldi):
    """{(method, products): (inverse, set-up)} of LiSSA on the whole curvature set, in steps of 1 / the largest eigenvalue, and of Arnoldi."""

    def neumann(s, v, k):
        scale = 1 / (torch.linalg.matrix_norm(s.G, 2).item() + s.shift(c))
        return s.rows(
            v, lambda x: inverses.lissa(s.product, dict.fromkeys(x, s.shift(c)), x, [k], scale)[k]
        )

    def leading(s, v):
        pairs = inverses.eigenpairs(
            s.product, dict.fromkeys(s.u, s.shift(c)), s.u, arnoldi["rank"], arnoldi["iterations"]
        )
        return s.rows(v, lambda x: inverses.arnoldi(*pairs, x))

    found = {("LiSSA", k): (lambda s, v, k=k: neumann(s, v, k), lambda s: 0.0) for k in lissa}
    return found | {("Arnoldi", 0): (leading, lambda s: arnoldi["iterations"])}


def compared(
    case, dampings, products, products_elsewhere, focus, share, lissa, arnoldi, title=None
):
    """(records, causes): Pearson and Spearman with the exact scores of every method at every damping, means over queries.

    products: what the iterative methods may use at the damping `focus`; products_elsewhere: at the others. causes: of each of
    `CAUSES` alone, the correlation of the scores with and without that approximation."""
    records, causes = [], []
    for c in tqdm(dampings, desc=title, disable=title is None):
        methods = {(name, 0): pair for name, pair in direct(case, c).items()} | (
            rivals(c, lissa, arnoldi) if c == focus else {}
        )
        for k in products if c == focus else products_elsewhere:
            methods |= {(name, k): pair for name, pair in iterative(c, k, share).items()}
        scores = {key: case.scores(inverse, c) for key, (inverse, _) in methods.items()}
        for stages in (0, 1):
            at, named = (
                {"stages": stages + 1, "damping": c},
                {key: pair[stages] for key, pair in scores.items()},
            )
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
    both = {
        name: metrics.mean_and_error(f(found.numpy(), exact.numpy()))
        for name, f in (("pearson", metrics.pearson), ("spearman", metrics.spearman))
    }
    return {
        key: round(float(x), 4)
        for name, (mean, se) in both.items()
        for key, x in ((name, mean), (f"{name}_se", se))
    }


def cost(case, products, setup):
    """Products for each query in a stage, k + set-up / queries, in the dearer stage; None if not counted."""
    return (
        None
        if setup is None
        else round(products + max(setup(s) for s in case.stages) / len(case.queries[0]), 3)
    )


def toy_study(problem, seed, toy, curvature, **comparison):
    """({"records": …, "causes": …}) of one seed of a toy, each with the problem's name and seed; computed once, kept in scratch/.

    toy, curvature: arguments of `toys.toy` and of `curvature`; comparison: of `compared`."""

    def compute():
        found = case(toys.toy(seed=seed, **toy), seed=seed, **curvature)
        records, causes = compared(found, title=f"{problem}, seed {seed}", **comparison)
        labels = {"problem": problem, "seed": seed}
        return {"records": [labels | r for r in records], "causes": [labels | r for r in causes]}

    key = {
        "problem": problem,
        "seed": seed,
        "toy": toy,
        "curvature": curvature,
        "comparison": comparison,
    }
    return scratch.value("accuracy", key, compute)
