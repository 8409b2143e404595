"""How near to the exact influence function is each method, and what does a pair cost?

Every method scores the candidates of a `reference.Problem` in float32, positive = proponent; its
scores are compared with those of `reference.reference`, query by query and signed.
`msif.study.scalability.costs` says what each costs for a pair of a query and a candidate.
"""

from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from msif.core.capture import gradients
from msif.core.influence import query_gradients, score
from msif.core.layers import Tracked
from msif.core.objectives import fisher_losses, loss
from msif.core.products import flatten, unflatten
from msif.curvature import dial
from msif.curvature.conjugate import block_cg
from msif.curvature.gauss_newton import GaussNewton
from msif.rivals import inverses, similarities, trak
from msif.study import metrics, scratch
from msif.study.beds.retraining import half_subsets
from msif.study.scalability.reference import dampings, trained

# Bao et al. 2025 (arXiv 2505.05017), table of the toy experiment: absolute correlations, and
# seconds for 10 x 500 pairs.
PUBLISHED = [
    {
        "method": method,
        "budget": budget,
        "pearson": pearson,
        "spearman": spearman,
        "fit_seconds": fit,
        "score_seconds": seconds,
    }
    for method, budget, pearson, spearman, fit, seconds in [
        ("conjugate gradients", 1000, 0.867, 0.770, 0, 4569),
        ("conjugate gradients", 500, 0.840, 0.738, 0, 2285),
        ("conjugate gradients", 50, 0.653, 0.559, 0, 228),
        ("EK-FAC", 0, 0.646, 0.612, 4204, 36),
        ("EK-FAC, MLP", 0, 0.595, 0.523, 4182, 30),
        ("LiSSA", 10000, 0.632, 0.518, 0, 45129),
        ("LiSSA", 2000, 0.518, 0.409, 0, 9062),
        ("LiSSA", 500, 0.383, 0.324, 0, 2295),
        ("gradient dot", 0, 0.238, 0.219, 0, 58),
        ("CKA of gradients", 0, 0.173, 0.184, 0, 69),
        ("Arnoldi", 200, 0.043, 0.071, 12070, 2352),
        ("TRAK", 10, 0.007, 0.002, 67079, 0.5),
    ]
]


@dataclass(frozen=True)
class Column:
    """A method at so many products for each query, and which of its variants: "LiSSA/10/0.3"."""

    method: str
    products: int
    variant: str

    @classmethod
    def of(cls, text):
        """The column of a table of `scores`."""
        method, products, variant = text.split("/")
        return cls(method, int(products), variant)


def corrected(stage, problem, samples):
    """The stage with the dial's correction by pseudo-gradients of the curvature set, `samples` for
    each document."""
    u = dial.pseudo_gradients(problem.tracked, problem.curvature, samples, seed="correction")
    return replace(stage, correction=dial.low_rank(stage, u))


def scores(problem, damping, settings):
    """{"method/products/variant": (q, n)} of every method, computed once and kept in scratch/.
    settings: `scalability.methods` of params.yaml."""

    def compute():
        named = (entry for method in METHODS for entry in method(problem, damping, settings))
        return {name: x.float() for name, x in tqdm(named, desc="scores")}

    key = {"damping": vars(damping), "settings": settings, "training": problem.training}
    return scratch.tensors("methods", problem.key() | key, compute)


def _scored(problem, w):
    return score(problem.tracked, problem.candidates, w).values


def _q(problem):
    return query_gradients(problem.tracked, problem.queries)


def _product(problem):
    return GaussNewton(problem.tracked, problem.curvature, 16).product


def by_similarity(problem, damping, settings):
    """Gradient dot, cosine, CKA of gradients."""
    q, tracked = _q(problem), problem.tracked
    found = score(tracked, problem.candidates, q)
    yield "gradient dot/0/", found.values
    yield "gradient cosine/0/", found.normalised()
    parts = [problem.candidates[i : i + 32] for i in range(0, len(problem.candidates), 32)]
    cka = [similarities.cka(q, gradients(tracked, part, loss)) for part in parts]
    yield "CKA of gradients/0/", torch.cat(cka, 1)


def by_diagonal(problem, damping, settings):
    """Diagonal Fisher."""
    losses = fisher_losses("gaussian", settings["samples"], 0)
    fisher = inverses.diagonal_fisher(problem.tracked, problem.curvature, losses)
    w = inverses.diagonal_inverse(fisher, dampings(problem.factors, damping), _q(problem))
    yield "diagonal Fisher/0/", _scored(problem, w)


def by_ekfac(problem, damping, settings):
    """EK-FAC, on all layers and on those of the MLPs alone."""
    w = dial.Refined(problem.factors, damping).inverse(_q(problem))
    yield "EK-FAC/0/", _scored(problem, w)
    yield "EK-FAC, MLP/0/", _scored(problem, {name: x * (".mlp." in name) for name, x in w.items()})


def by_dial(problem, damping, settings):
    """The dial, at each number of products; with and without its correction, and without any
    preconditioner."""
    kept, q = settings["dial"], _q(problem)
    steps = range(1, max(kept) + 1)
    alone = dial.Refined(problem.factors, damping, product=_product(problem))
    plain = block_cg(lambda x: flatten(alone.damped(unflatten(x, q))), flatten(q))
    for k, (x, _) in zip(steps, plain):
        if k in kept:
            yield f"block CG/{k}/", _scored(problem, unflatten(x, q))
    full = corrected(alone, problem, settings["correction"])
    for name, stage in (("the dial", full), ("the dial, EK-FAC alone", alone)):
        yield f"{name}/0/", _scored(problem, stage.start(q))
        for k, (w, _) in zip(steps, stage.iterates(q)):
            if k in kept:
                yield f"{name}/{k}/", _scored(problem, w)


def by_conjugate_gradients(problem, damping, settings):
    """Conjugate gradients without a preconditioner, at each number of products."""
    d, q = dampings(problem.factors, damping), _q(problem)
    found = inverses.conjugate_gradients(_product(problem), d, q, settings["cg"])
    yield from ((f"conjugate gradients/{k}/", _scored(problem, w)) for k, w in found.items())


def by_lissa(problem, damping, settings):
    """LiSSA with each step size, in units of 1 / the largest eigenvalue; one that diverges is left
    out."""
    d, q, tracked = dampings(problem.factors, damping), _q(problem), problem.tracked
    one = {name: x[:1] for name, x in q.items()}
    largest, _ = inverses.eigenpairs(_product(problem), d, one, 1, 10)
    batch, iterations = settings["lissa"]["batch"], settings["lissa"]["iterations"]
    for step in settings["lissa"]["steps"]:
        sampled = inverses.sampled_product(tracked, problem.curvature, batch, problem.seed)
        try:
            found = inverses.lissa(sampled, d, q, iterations, step / float(largest[0]))
        except ValueError:
            continue
        yield from ((f"LiSSA/{k}/{step}", _scored(problem, w)) for k, w in found.items())


def by_arnoldi(problem, damping, settings):
    """Arnoldi's leading eigenvectors alone, at each number of iterations."""
    d, q, rank = dampings(problem.factors, damping), _q(problem), settings["arnoldi"]["rank"]
    for k in settings["arnoldi"]["iterations"]:
        pairs = inverses.eigenpairs(_product(problem), d, q, rank, k, problem.seed)
        yield f"Arnoldi/{k}/", _scored(problem, inverses.arnoldi(*pairs, q))


def by_trak(problem, damping, settings):
    """TRAK with features at models trained on random halves of the documents, and at the model
    itself."""
    project = trak.projector(problem.layers, settings["trak"]["features"], problem.seed)
    counts = settings["trak"]["models"]
    recipe = problem.start, problem.documents, problem.training, problem.seed
    halves = half_subsets(len(problem.documents), max(counts), problem.seed)
    nets = [trained(*recipe, left_out, f"half {i}") for i, left_out in enumerate(halves)]
    at_model, *found = [_trak_parts(problem, net, project) for net in [problem.model, *nets]]
    yield "TRAK at the model/0/", trak.trak(*zip(at_model))
    yield from ((f"TRAK/{k}/", trak.trak(*zip(*found[:k]))) for k in counts)


def _trak_parts(problem, net, project):
    """(φ of the queries, φ of the candidates, 1 − p of the candidates) at one model."""
    tracked = Tracked(net, problem.layers)
    of_queries = trak.trak_features(tracked, problem.queries, project)
    of_candidates = trak.trak_features(tracked, problem.candidates, project)
    return of_queries, of_candidates, trak.errors(net, problem.candidates)


METHODS = (
    by_similarity,
    by_diagonal,
    by_ekfac,
    by_dial,
    by_conjugate_gradients,
    by_lissa,
    by_arnoldi,
    by_trak,
)


def records(found, exact, costs, **labels):
    """[{method, products, pearson, pearson_se, spearman, spearman_se, cost}] of scores `found`
    against `exact` (q, n), mean over queries.

    costs: (method, products) -> plain passes for each pair. Of a method's variants at the same
    number of products the one nearest to the reference is kept: more than its user could know."""
    best = {}
    for name, values in found.items():
        column = Column.of(name)
        method, products = column.method, column.products
        numbers = {
            "pearson": metrics.pearson(values, exact),
            "spearman": metrics.spearman(values, exact),
        }
        record = {
            "method": method,
            "products": products,
            **labels,
            "cost": round(costs(method, products), 4),
        }
        for metric, x in numbers.items():
            mean, error = metrics.mean_and_error(x)
            record |= {metric: round(float(mean), 4), f"{metric}_se": round(float(error), 4)}
        if record["spearman"] >= best.get((method, products), record)["spearman"]:
            best[method, products] = record
    return list(best.values())
