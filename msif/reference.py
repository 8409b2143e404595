"""The converged influence of a single stage, to judge others by: block conjugate gradients in float64, until the residual says so.

    (G + D) w = q for all queries together,   ‖(G + D) w − q‖ ≤ tolerance ‖q‖ for each,   s(z) = ⟨w, ∇ℓ_z⟩ (see `msif.influence`),

in the coordinates y = (Λ + d)^(1/2) ∘ Q_Bᵀ w Q_A of EK-FAC, where (G + D) is better conditioned; the solution does not depend on
them. Source of the recurrence: Dubrulle 2001 (BCGrQ, the residuals as Q C with orthonormal Q).
"""
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from msif import scratch
from msif.data import digest
from msif.ekfac import EKFAC, LayerFactors
from msif.gauss_newton import GaussNewton
from msif.influence import query_gradients, score
from msif.models import model_digest


def reference(model, layers, factors, queries, candidates, curvature, damping, tolerance=1e-6):
    """{"scores" (q, n), "residual" (q,), "products" ()}, float64, computed once and kept in scratch/.

    factors: EK-FAC, for the coordinates and for what `damping` (`influence.Damping`) is relative to. G is the mean over `curvature`."""
    def make(folder):
        net = type(model)(model.config).eval()
        net.load_state_dict(model.state_dict())
        net, exact = net.double(), doubled(factors)
        w, residual, products = solve(GaussNewton(net, layers, curvature, 16).product, exact, damping,
                                      query_gradients(net, layers, queries), tolerance)
        save_file({"scores": score(net, layers, candidates, w).values, "residual": residual, "products": torch.tensor(products)},
                  folder / "reference.safetensors")

    key = {"model": model_digest(model), "factors": factors.header, "layers": [str(x) for x in layers], "queries": digest(queries),
           "candidates": digest(candidates), "curvature": digest(curvature), "damping": vars(damping), "tolerance": tolerance}
    return load_file(scratch.built("reference", key, make) / "reference.safetensors")


def doubled(factors):
    """The same factors in float64."""
    double = lambda x: x.double() if torch.is_tensor(x) and x.is_floating_point() else x
    return EKFAC({name: LayerFactors(*map(double, vars(layer).values())) for name, layer in factors.factors.items()}, factors.header)


def solve(product, factors, damping, q, tolerance=1e-6, limit=1000):
    """(w {layer: (q, o, i)}, relative residual of each query (q,), products made).

    product: {layer: (q, o, i)} -> G times it. Raises RuntimeError after `limit` products without ‖(G + D) w − q‖ ≤ tolerance ‖q‖."""
    layers, d = factors.factors, {name: float(damping.of(x.eigenvalues.double().mean())) for name, x in factors.factors.items()}
    scale = torch.cat([(x.eigenvalues + d[name]).sqrt().flatten() for name, x in layers.items()])               # (P,)

    def rotate(v):
        return torch.cat([x.rotate(v[name]).flatten(1) for name, x in layers.items()], 1)

    def back(y):
        parts = y.split([x.eigenvalues.numel() for x in layers.values()], 1)
        return {name: x.rotate_back(part.unflatten(1, x.eigenvalues.shape)) for (name, x), part in zip(layers.items(), parts)}

    def damped(v):
        return {name: x + d[name] * v[name] for name, x in product(v).items()}

    norms, goal = rotate(q).norm(dim=1), tolerance
    steps = _block_cg(lambda y: rotate(damped(back(y / scale))) / scale, rotate(q) / scale)
    for products, (y, Q, C) in enumerate(tqdm(steps, desc="reference: products", total=limit), 1):
        if ((C.mT @ Q.mT * scale).norm(dim=1) / norms).max() <= goal:
            w = back(y() / scale)
            residual = rotate({name: x - q[name] for name, x in damped(w).items()}).norm(dim=1) / norms
            if residual.max() <= tolerance:
                return w, residual, products
            goal /= 3                                             # the recurrence drifts from the true residual
        if products == limit:
            raise RuntimeError(f"the residual is above {tolerance} after {limit} products: raise the damping, which is {vars(damping)}")


def _block_cg(product, b):
    """After each product: (how to get the solution (q, P), Q (P, q), C (q, q)); the residual is (Q C)ᵀ."""
    Q, C = torch.linalg.qr(b.mT)
    X, S = torch.zeros_like(Q), Q
    while True:
        AS = product(S.mT).mT
        step = torch.linalg.pinv(S.mT @ AS, hermitian=True)
        X = X + S @ (step @ C)
        Q, zeta = torch.linalg.qr(Q - AS @ step)
        C, S = zeta @ C, Q + S @ zeta.mT
        yield lambda X=X: X.mT, Q, C
