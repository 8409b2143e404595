"""Approximate inverses in place of EK-FAC's.

q: ∇(−f) of the queries, {layer: (q, o, i)}. G: the Gauss-Newton matrix by its product, d:
{layer: number} added to its diagonal. An inverse makes vectors w from q, and the score is
s(z) = ⟨w, ∇ℓ_z⟩, positive = proponent (see `msif.core.influence`):

    conjugate gradients   w = p_k(G + d) q ≈ (G + d)⁻¹ q, p_k the best polynomial of its degree for
                          each query (scipy's cg)
    LiSSA                 w = σ h_k, h_j = q + h_{j−1} − σ(G_j + d) h_{j−1}, h_0 = q, G_j on a fresh
                          batch each
    Arnoldi               w = Σ_{j ≤ rank} u_j u_jᵀ q / λ_j, leading eigenpairs of G + d (scipy's
                          eigsh)
    diagonal Fisher       w = q / (E_z[D²] + d), element by element

Sources: Koh & Liang 2017 (arXiv 1703.04730) for conjugate gradients and LiSSA; Schioppa et al. 2022
(arXiv 2112.03052) for Arnoldi.
"""

import torch

from msif.core.capture import passes
from msif.core.extras import need
from msif.core.products import flatten, sequence_gradient, unflatten
from msif.curvature.gauss_newton import GaussNewton


def operator(product, damping, v):
    """G + d on the flattened rows (P,) of vectors like v ({layer: (q, o, i)}), as scipy's
    LinearOperator.

    product: {layer: (q, o, i)} -> the same, such as `GaussNewton.product`. damping:
    {layer: number}. Raises ValueError for a damping that is missing or negative."""
    damped, rows = _damped(product, damping, v), flatten(v)
    size = rows.shape[1]

    def matmat(X):
        V = unflatten(torch.from_numpy(X.T.copy()), v)
        return flatten(damped(V)).numpy().T

    def matvec(x):
        return matmat(x.reshape(-1, 1))[:, 0]

    return need("scipy.sparse.linalg").LinearOperator(
        (size, size), matvec=matvec, matmat=matmat, dtype=rows.numpy().dtype
    )


def _damped(product, damping, v):
    """V ↦ G V + d V. Raises ValueError for a damping that is missing or negative."""
    if lacking := [name for name in v if not damping.get(name, -1) >= 0]:
        raise ValueError(
            f"damping of {lacking} is {[damping.get(name) for name in lacking]}: "
            f"expected a number ≥ 0 for each layer"
        )
    return lambda V: {name: x + damping[name] * V[name] for name, x in product(V).items()}


def conjugate_gradients(product, damping, v, iterations):
    """{k: w after k iterations, k products with G for each query}, for each k in `iterations`.

    Each query is its own run; one that ends earlier keeps its last w. Raises what `operator`
    raises."""
    cg = need("scipy.sparse.linalg").cg
    A, found = operator(product, damping, v), {k: [] for k in iterations}
    for b in flatten(v):
        path = [torch.zeros_like(b)]

        def keep(x):
            path.append(torch.from_numpy(x.copy()))

        cg(A, b.numpy(), rtol=0.0, maxiter=max(iterations), callback=keep)
        for k, rows in found.items():
            rows.append(path[min(k, len(path) - 1)])
    return {k: unflatten(torch.stack(rows), v) for k, rows in found.items()}


def lissa(product, damping, v, iterations, scale):
    """{k: w after k steps of size σ = `scale`, k products for each query}, for each k in
    `iterations`; w estimates (G + d)⁻¹ v.

    product: `sampled_product` for LiSSA; the whole G gives the Neumann series. It diverges unless
    0 < σ < 2 / the largest eigenvalue of G_j + d; then ValueError."""
    damped, h, found = _damped(product, damping, v), v, {}
    for k in range(max(iterations) + 1):
        if k:
            h = {name: v[name] + h[name] - scale * x for name, x in damped(h).items()}
        if k in iterations:
            found[k] = {name: scale * x for name, x in h.items()}
    # What k contractions cannot exceed; NaN is not below it either.
    if not flatten(h).norm() <= 1.01 * (k + 1) * flatten(v).norm():
        raise ValueError(
            f"LiSSA diverged within {k} steps of size {scale:.3g}: "
            f"lower `scale` below 2 / the largest eigenvalue"
        )
    return found


def sampled_product(tracked, sequences, size, seed=0):
    """A product with G_m on `size` sequences, drawn anew at every call: an unbiased estimate of the
    product with G."""
    rng = torch.Generator().manual_seed(seed)

    def product(v):
        chosen = torch.randperm(len(sequences), generator=rng)[:size].tolist()
        return GaussNewton(tracked, [sequences[i] for i in chosen], size).product(v)

    return product


def eigenpairs(product, damping, v, rank, iterations, seed=0):
    """The `rank` leading Ritz pairs of G + d after `iterations` steps (products with one vector):
    (λ (k,), {layer: (k, o, i)}), the largest λ first.

    v says what the vectors look like. G is symmetric: Arnoldi's iteration is Lanczos'. tol=1 stops
    it before a restart. Raises ValueError unless 0 < rank < iterations."""
    if not 0 < rank < iterations:
        raise ValueError(
            f"rank is {rank} after {iterations} iterations: expected 0 < rank < iterations"
        )
    A = operator(product, damping, v)
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(A.shape[0], generator=rng).numpy().astype(A.dtype)
    values, vectors = need("scipy.sparse.linalg").eigsh(A, rank, ncv=iterations, v0=start, tol=1.0)
    rows = torch.from_numpy(vectors.T.copy()).flip(0)  # eigsh has the smallest first
    return torch.from_numpy(values).flip(0), unflatten(rows, v)


def arnoldi(values, vectors, v):
    """w = Σ_j u_j u_jᵀ v / λ_j, of `eigenpairs`: the inverse on their span, nothing elsewhere."""
    U = flatten(vectors)
    return unflatten(flatten(v) @ U.mT / values.to(U) @ U, v)


def diagonal_fisher(tracked, sequences, objectives, batch_size=32):
    """{layer: (o, i)}: E_z[D²], mean over sequences and pseudo-losses
    (`objectives.fisher_losses`)."""
    totals = squared_gradients(tracked, sequences, objectives, batch_size)
    count = len(sequences) * len(objectives)
    return {layer.name: totals[layer.name] / count for layer in tracked.layers}


def squared_gradients(tracked, sequences, objectives, batch_size=32):
    """{layer: (o, i)}: Σ D² over sequences and objectives, layers in the order of their
    gradients."""
    totals = {}

    def consume(layer, a, g, draw, batch):
        D = sequence_gradient(a, g, layer.bias).square()
        totals[layer.name] = totals.get(layer.name, 0) + D.sum(0)

    passes(tracked, sequences, objectives, batch_size, consume)
    return totals


def diagonal_inverse(diagonal, damping, v):
    """w = v / (diagonal + d)."""
    return {name: x / (diagonal[name] + damping[name]) for name, x in v.items()}
