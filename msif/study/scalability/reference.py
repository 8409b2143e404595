"""One stage of influence on a trained model, and its converged answer, to judge approximations by.

J = Σ_z ℓ_z / N at the trained θ, curvature over a fixed set C of training documents, d on the
diagonal of each layer:

    s(z) = ⟨w, ∇ℓ_z⟩,   (G + d) w = ∇(−f),   G = E_{z in C}[Jᵀ H_out J],

G over all tracked layers together, f: the log-probability of a sentence that was not trained on
(nats); positive = proponent. Solved in float64 by block conjugate gradients for all queries
together until ‖(G + d) w − q‖ ≤ tolerance ‖q‖ for each, q = ∇(−f), in the coordinates
y = (Λ + d)^(1/2) ∘ Q_Bᵀ w Q_A of EK-FAC, where G + d is better conditioned; the solution does not
depend on them. Source of the recurrence: Dubrulle 2001 (BCGrQ).
"""

import copy
from dataclasses import dataclass

import torch
from tqdm import tqdm

from msif.core.data import digest
from msif.core.influence import query_gradients, score
from msif.core.kronecker import EKFAC, LayerFactors
from msif.core.layers import Tracked, tracked
from msif.core.model_digest import model_digest
from msif.core.models import load_model
from msif.curvature.conjugate import blocks
from msif.curvature.gauss_newton import GaussNewton, exact_attention
from msif.study import scratch
from msif.study.beds.fitted import fitted
from msif.study.beds.training import train
from msif.study.scalability import texts


@dataclass(frozen=True)
class Problem:
    """documents: what the model was trained on; candidates and curvature (the set C) are among
    them, queries are not.

    start: the model before training. factors: EK-FAC on the curvature set."""

    model: object
    start: object
    layers: list
    factors: EKFAC
    documents: list
    queries: list
    candidates: list
    curvature: list
    training: dict
    seed: int

    @property
    def tracked(self):
        """The trained model with the tracked layers."""
        return Tracked(self.model, self.layers)

    def key(self):
        """What every score depends on."""
        return {
            "model": model_digest(self.model),
            "factors": self.factors.header,
            "queries": digest(self.queries),
            "candidates": digest(self.candidates),
            "layers": [str(x) for x in self.layers],
            "seed": self.seed,
        }


def problem(seed, corpus, model, training, queries, candidates, curvature, samples):
    """The `Problem` of one seed: `queries` sentences are kept from training; then so many
    candidates and curvature documents.

    corpus, model: as for `texts.begun`; training: the arguments of `training.train`. Raises
    ValueError for more documents than there are."""
    documents, net = texts.begun(seed, corpus, model)
    documents, asked = documents[:-queries], documents[-queries:]
    if len(documents) < candidates + curvature:
        raise ValueError(
            f"{candidates} candidates and {curvature} curvature documents of {len(documents)}: ask "
            "for fewer, or more people"
        )
    after = tracked(trained(net, documents, training, seed))
    chosen = documents[candidates : candidates + curvature]
    settings = {"labels": "gaussian", "samples": samples, "batch_size": 32, "seed": seed}
    factors, _ = fitted(after, chosen, **settings)
    return Problem(
        model=after.model,
        start=net,
        layers=after.layers,
        factors=factors,
        documents=documents,
        queries=asked,
        candidates=documents[:candidates],
        curvature=chosen,
        training=training,
        seed=seed,
    )


def trained(net, documents, training, seed, left_out=None, title="training"):
    """The model after training from `net` without the documents `left_out` ((N,) bool), trained
    once and kept in scratch/."""
    key = {
        "start": model_digest(net),
        "data": digest(documents),
        "seed": seed,
        **training,
        "left_out": None if left_out is None else left_out.nonzero()[:, 0].tolist(),
    }

    def make(folder):
        copied, weights = copy.deepcopy(net), None if left_out is None else (~left_out).float()
        train(copied, documents, seed=seed, weights=weights, title=title, **training)
        copied.save_pretrained(folder / "model")

    return load_model(scratch.built("toy", key, make) / "model")


def reference(problem, damping, tolerance=1e-6, most=None):
    """{"scores" (q, n), "residual" (q,), "products" ()}, float64, computed once and kept in
    scratch/. damping: `influence.Damping`. most: products after which it stops where it has not
    converged, its residual above the tolerance; None: an error then."""

    def compute():
        double = Tracked(copy.deepcopy(problem.model).double(), problem.layers)
        product = GaussNewton(double, problem.curvature, 16).product
        q = query_gradients(double, problem.queries)
        with exact_attention():
            limit = {} if most is None else {"limit": most, "stop": True}
            factors = doubled(problem.factors)
            w, residual, products = solve(product, factors, damping, q, tolerance, **limit)
        return {
            "scores": score(double, problem.candidates, w).values,
            "residual": residual,
            "products": torch.tensor(products),
        }

    key = problem.key() | {"damping": vars(damping), "tolerance": tolerance, "most": most}
    return scratch.tensors("reference", key, compute)


def dampings(factors, damping):
    """{layer: d}: what an `influence.Damping` means for each layer of an EKFAC."""
    return {
        name: float(damping.of(x.eigenvalues.double().mean()))
        for name, x in factors.factors.items()
    }


def doubled(factors):
    """The same factors in float64."""

    def double(x):
        return x.double() if torch.is_tensor(x) and x.is_floating_point() else x

    found = {
        name: LayerFactors(*map(double, vars(x).values())) for name, x in factors.factors.items()
    }
    return EKFAC(found, factors.header)


def solve(product, factors, damping, q, tolerance=1e-6, limit=4000, stop=False):
    """(w {layer: (q, o, i)}, relative residual of each query (q,), products made).

    product: {layer: (q, o, i)} -> G times it. After `limit` products without ‖(G + D) w − q‖ ≤
    tolerance ‖q‖ it raises RuntimeError; stop: or gives what it has, with its residual."""
    layers, d = factors.factors, dampings(factors, damping)
    scale = [(x.eigenvalues + d[name]).sqrt().flatten() for name, x in layers.items()]
    scale = torch.cat(scale)  # (P,)

    def rotate(v):
        return torch.cat([x.rotate(v[name]).flatten(1) for name, x in layers.items()], 1)

    def back(y):
        parts = y.split([x.eigenvalues.numel() for x in layers.values()], 1)
        return {
            name: x.rotate_back(part.unflatten(1, x.eigenvalues.shape))
            for (name, x), part in zip(layers.items(), parts)
        }

    def damped(v):
        return {name: x + d[name] * v[name] for name, x in product(v).items()}

    norms, goal = rotate(q).norm(dim=1), tolerance
    steps = blocks(lambda y: rotate(damped(back(y / scale))) / scale, rotate(q) / scale)
    for products, (y, Q, C) in enumerate(tqdm(steps, desc="reference: products", total=limit), 1):
        last = stop and products == limit
        if last or ((C.mT @ Q.mT * scale).norm(dim=1) / norms).max() <= goal:
            w = back(y / scale)
            missed = {name: x - q[name] for name, x in damped(w).items()}
            residual = rotate(missed).norm(dim=1) / norms
            if last or residual.max() <= tolerance:
                return w, residual, products
            goal /= 3  # the recurrence drifts from the true residual
        if products == limit:
            raise RuntimeError(
                f"the residual is above {tolerance} after {limit} products: raise the damping, "
                f"which is {vars(damping)}"
            )
