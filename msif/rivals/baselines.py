"""Other ways to say how much a document z matters to a query: approximate inverses, and similarities without an inverse.

q: ∇(−f) of the queries, {layer: (q, o, i)}. G: the Gauss-Newton matrix by its product, d: {layer: number} added to its diagonal.
An inverse makes vectors w from q, and the score is s(z) = ⟨w, ∇ℓ_z⟩, positive = proponent (see `msif.core.influence`):

    conjugate gradients   w = p_k(G + d) q ≈ (G + d)⁻¹ q, p_k the best polynomial of its degree for each query   scipy's cg
    LiSSA                 w = σ h_k, h_j = q + h_{j−1} − σ(G_j + d) h_{j−1}, h_0 = q, G_j on a fresh batch each
    Arnoldi               w = Σ_{j ≤ rank} u_j u_jᵀ q / λ_j, leading eigenpairs of G + d                      scipy's eigsh
    diagonal Fisher       w = q / (E_z[D²] + d), element by element
    gradient dot          w = q; cosine: s(z) / (‖q‖ ‖∇ℓ_z‖)
    CKA of gradients      mean over layers of ‖Xᵀ Y‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖), X = ∇ℓ_z and Y = q centred over outputs; no sign
    TRAK                  φ(query)ᵀ (ΦᵀΦ)⁻¹ φ(z) (1 − p_z), φ = Pᵀ∇m, m the margin, P random        traker's projector

Sources: Koh & Liang 2017 (arXiv 1703.04730) for conjugate gradients and LiSSA; Schioppa et al. 2022 (arXiv 2112.03052);
Kornblith et al. 2019 (arXiv 1905.00414); Park et al. 2023 (arXiv 2303.14186).
"""
import torch

from msif.core.capture import gradients, passes
from msif.core.data import NO_LOSS
from msif.core.extras import need
from msif.curvature.gauss_newton import GaussNewton
from msif.core.objectives import align
from msif.core.products import sequence_gradient


def operator(product, damping, v):
    """G + d on the flattened rows (P,) of vectors like v ({layer: (q, o, i)}), as scipy's LinearOperator.

    product: {layer: (q, o, i)} -> the same, such as `GaussNewton.product`."""
    damped, size = _damped(product, damping, v), _rows(v).shape[1]
    matmat = lambda X: _rows(damped(_vectors(torch.from_numpy(X.T.copy()), v))).numpy().T
    return need("scipy.sparse.linalg").LinearOperator(
        (size, size), matvec=lambda x: matmat(x.reshape(-1, 1))[:, 0], matmat=matmat, dtype=_rows(v).numpy().dtype)


def _damped(product, damping, v):
    """V ↦ G V + d V. Raises ValueError for a damping that is missing or negative."""
    if lacking := [name for name in v if not damping.get(name, -1) >= 0]:
        raise ValueError(f"damping of {lacking} is {[damping.get(name) for name in lacking]}: expected a number ≥ 0 for each layer")
    return lambda V: {name: x + damping[name] * V[name] for name, x in product(V).items()}


def _rows(v):
    """(q, P): all layers, flattened."""
    return torch.cat([x.flatten(1) for x in v.values()], 1)


def _vectors(rows, v):
    """The inverse of `_rows`, for vectors like v."""
    parts = rows.split([x[0].numel() for x in v.values()], 1)
    return {name: part.unflatten(1, x.shape[1:]).to(x) for (name, x), part in zip(v.items(), parts)}


def conjugate_gradients(product, damping, v, iterations):
    """{k: w after k iterations, k products with G for each query}, for each k in `iterations`; each query is its own run."""
    A, found = operator(product, damping, v), {k: [] for k in iterations}
    for b in _rows(v):
        path = [torch.zeros_like(b)]
        need("scipy.sparse.linalg").cg(A, b.numpy(), rtol=0.0, maxiter=max(iterations),
                                       callback=lambda x: path.append(torch.from_numpy(x.copy())))
        [rows.append(path[min(k, len(path) - 1)]) for k, rows in found.items()]
    return {k: _vectors(torch.stack(rows), v) for k, rows in found.items()}


def lissa(product, damping, v, iterations, scale):
    """{k: w after k steps of size σ = `scale`, k products for each query}, for each k in `iterations`; w estimates (G + d)⁻¹ v.

    product: `sampled_product` for LiSSA; the whole G gives the Neumann series. It diverges unless 0 < σ < 2 / the largest
    eigenvalue of G_j + d; then ValueError."""
    damped, h, found = _damped(product, damping, v), v, {}
    for k in range(max(iterations) + 1):
        if k:
            h = {name: v[name] + h[name] - scale * x for name, x in damped(h).items()}
        if k in iterations:
            found[k] = {name: scale * x for name, x in h.items()}
    if not _rows(h).norm() <= 1.01 * (k + 1) * _rows(v).norm():          # what k contractions cannot exceed; NaN neither
        raise ValueError(f"LiSSA diverged within {k} steps of size {scale:.3g}: lower `scale` below 2 / the largest eigenvalue")
    return found


def sampled_product(model, layers, sequences, size, seed=0):
    """A product with G_m on `size` sequences, drawn anew at every call: an unbiased estimate of the product with G."""
    rng = torch.Generator().manual_seed(seed)

    def product(v):
        chosen = torch.randperm(len(sequences), generator=rng)[:size].tolist()
        return GaussNewton(model, layers, [sequences[i] for i in chosen], size).product(v)
    return product


def eigenpairs(product, damping, v, rank, iterations, seed=0):
    """The `rank` leading Ritz pairs of G + d after `iterations` steps (products with one vector): (λ (k,), {layer: (k, o, i)}).

    v says what the vectors look like. G is symmetric: Arnoldi's iteration is Lanczos'. tol=1 stops it before a restart."""
    if not 0 < rank < iterations:
        raise ValueError(f"rank is {rank} after {iterations} iterations: expected 0 < rank < iterations")
    A = operator(product, damping, v)
    start = torch.randn(A.shape[0], generator=torch.Generator().manual_seed(seed)).numpy().astype(A.dtype)
    values, vectors = need("scipy.sparse.linalg").eigsh(A, rank, ncv=iterations, v0=start, tol=1.0)
    return torch.from_numpy(values).flip(0), _vectors(torch.from_numpy(vectors.T.copy()).flip(0), v)


def arnoldi(values, vectors, v):
    """w = Σ_j u_j u_jᵀ v / λ_j, of `eigenpairs`: the inverse on their span, nothing elsewhere."""
    U = _rows(vectors)
    return _vectors(_rows(v) @ U.mT / values.to(U) @ U, v)


def diagonal_fisher(model, layers, sequences, objectives, batch_size=32):
    """{layer: (o, i)}: E_z[D²], mean over sequences and pseudo-losses (`objectives.fisher_losses`)."""
    found = {}

    def consume(layer, a, g, draw, batch):
        found[layer.name] = found.get(layer.name, 0) + sequence_gradient(a, g, layer.bias).square().sum(0)

    passes(model, layers, sequences, objectives, batch_size, consume)
    return {layer.name: found[layer.name] / (len(sequences) * len(objectives)) for layer in layers}


def diagonal_inverse(diagonal, damping, v):
    """w = v / (diagonal + d)."""
    return {name: x / (diagonal[name] + damping[name]) for name, x in v.items()}


def dot(w, g):
    """⟨w, ∇ℓ_z⟩: {layer: (q, o, i)}, {layer: (n, o, i)} -> (q, n)."""
    return sum(x.flatten(1) @ g[name].flatten(1).mT for name, x in w.items())


def cosine(w, g):
    """`dot` divided by both norms over all layers: (q, n)."""
    return dot(w, g) / (_rows(w).norm(dim=1)[:, None] * _rows(g).norm(dim=1))


def cka(q, g):
    """Linear CKA of the gradients as (o, i) matrices, mean over layers: (q, n) in [0, 1]; it has no sign.

    ‖Xᵀ Y‖² = ⟨XXᵀ, YYᵀ⟩ by (o, o) Gram matrices."""
    return sum(_gram(q[name]) @ _gram(g[name]).mT for name in q) / len(q)


def _gram(x):
    """(n, o·o): centred X Xᵀ, divided by its norm."""
    x = x - x.mean(1, keepdim=True)
    return torch.nn.functional.normalize((x @ x.mT).flatten(1), eps=1e-300 if x.dtype == torch.float64 else 1e-30)


def margin(logits, batch):
    """TRAK's model output m = Σ_t log(p_t / (1 − p_t)) over the labelled tokens: (n,), nats."""
    z, y = align(logits, batch.labels)
    log_p = z.log_softmax(2).gather(2, y.clamp(min=0)[..., None])[..., 0]
    log_rest = z.scatter(2, y.clamp(min=0)[..., None], -torch.inf).logsumexp(2) - z.logsumexp(2)
    return ((log_p - log_rest) * (y != NO_LOSS)).sum(1)


def error_probability(logits, batch):
    """TRAK's 1 − p, mean over the labelled tokens: (n,). It is −∂ℓ/∂m of one token."""
    z, y = align(logits, batch.labels)
    p, labelled = z.softmax(2).gather(2, y.clamp(min=0)[..., None])[..., 0], y != NO_LOSS
    return ((1 - p) * labelled).sum(1) / labelled.sum(1)


def projector(layers, dimension, seed, dtype=torch.float32):
    """Pᵀ: rows (n, P) -> (n, dimension), random signs, by traker; it holds P · dimension numbers."""
    size = sum(x.out_features * (x.in_features + x.bias) for x in layers)
    found = need("trak.projectors").BasicProjector(size, dimension, seed, "rademacher", "cpu", block_size=dimension, dtype=dtype)
    return lambda rows: found.project(rows, model_id=0)


def trak_features(model, layers, sequences, project, batch_size=64):
    """φ = Pᵀ∇m of each sequence: (n, dimension); `project` maps rows (n, P), in the order of `layers`."""
    return torch.cat([project(_rows(gradients(model, layers, sequences[i:i + batch_size], margin, batch_size)))
                      for i in range(0, len(sequences), batch_size)])


def trak(queries, candidates, weights):
    """TRAK's scores (q, n) from lists over models: φ(query) (q, k), φ(z) (n, k) and 1 − p_z (n,).

    Scores and weights are averaged over models before they are multiplied, as in the source. Raises ValueError for fewer
    candidates than features, whose ΦᵀΦ has no inverse."""
    if (n := len(candidates[0])) < (k := candidates[0].shape[1]):
        raise ValueError(f"{n} candidates for {k} features: ΦᵀΦ is singular; project to fewer than {n} dimensions")
    scores = [q @ torch.linalg.solve(phi.mT @ phi, phi.mT) for q, phi in zip(queries, candidates)]
    return torch.stack(scores).mean(0) * torch.stack(weights).mean(0)
