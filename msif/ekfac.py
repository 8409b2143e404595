"""EK-FAC: the Gauss-Newton matrix of each tracked layer, diagonal in a Kronecker-factored eigenbasis.

For one block of a layer (the whole layer, or one head's q, k or v rows), with D_z = Σ_t g_t a_tᵀ the pseudo-gradient of z:

    A = E_tok[a aᵀ] = Q_A diag(λ_A) Q_Aᵀ,   B = E_tok[g gᵀ] = Q_B diag(λ_B) Q_Bᵀ,
    Λ = E_seq[(Q_Bᵀ D Q_A)²]                                    one sequence is one sample,
    f(G): V ↦ Q_B [f(Λ) ∘ (Q_Bᵀ V Q_A)] Q_Aᵀ.

E_tok runs over every unmasked position, prompt included. Source: George et al. 2018 (arXiv 1806.03884), Grosse et al. 2023
(arXiv 2308.03296), section 3. Index letters as in `msif.capture`; blocks of a layer are equally large, r rows each.
"""
from dataclasses import dataclass, replace

import torch

from msif.capture import passes, sequence_gradient
from msif.data import digest
from msif.models import model_digest
from msif.objectives import fisher_losses
from msif.resources import require


@dataclass(frozen=True)
class LayerFactors:
    """Eigenbases and eigenvalues of one layer. All tensors are float32 (float64 for a float64 model).

    rows: (blocks, r) int64 output rows of each block, or None for one block of all rows in order. positions: (), how many
    positions of a sequence the layer sees on average (its tokens, or 1 if it sees a pooled vector).
    basis_in: Q_A (i, i). basis_out: Q_B (blocks, r, r). eigenvalues: Λ (blocks, r, i).
    in_values: λ_A (i,). out_values: λ_B (blocks, r).
    """
    rows: torch.Tensor | None
    basis_in: torch.Tensor
    basis_out: torch.Tensor
    eigenvalues: torch.Tensor
    in_values: torch.Tensor
    out_values: torch.Tensor
    positions: torch.Tensor

    def rotate(self, v):
        """Q_Bᵀ V Q_A: (n, o, i) -> (n, blocks, r, i)."""
        return self.basis_out.mT @ _split(v, self.rows, 1) @ self.basis_in

    def rotate_back(self, v):
        """Q_B V Q_Aᵀ: (n, blocks, r, i) -> (n, o, i)."""
        v = (self.basis_out @ v @ self.basis_in.mT).flatten(1, 2)
        return v if self.rows is None else torch.empty_like(v).index_copy_(1, self.rows.flatten().to(v.device), v)

    def to(self, device):
        """The same factors on a device."""
        return LayerFactors(*(x if x is None else x.to(device) for x in vars(self).values()))

    def apply(self, f, v):
        """f(G) V for f(eigenvalues, their mean over the layer), in float64 where it matters: the filter itself."""
        eigenvalues = self.eigenvalues.double()
        return self.rotate_back(self.rotate(v) * f(eigenvalues, eigenvalues.mean()).to(v.dtype))


def _named(name, call, *arguments):
    """call(*arguments), with the layer's name put before what is wrong with its factors."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _split(x, rows, dim):
    """Output dimension `dim` into (blocks, r)."""
    return x.unsqueeze(dim) if rows is None else x.index_select(dim, rows.flatten().to(x.device)).unflatten(dim, rows.shape)


@dataclass(frozen=True)
class EKFAC:
    """The curvature of one model on one data set. `factors`: {layer name: LayerFactors}; `header`: where they come from."""
    factors: dict
    header: dict

    def apply(self, f, v, new=(), f_new=None):
        """f(G) v, layer by layer; v: {layer: (n, o, i)}. Layers in `new` get f_new (no coupling: blocks are independent)."""
        return {name: _named(name, self.factors[name].to(x.device).apply, f_new if name in new else f, x) for name, x in v.items()}

    @property
    def layers(self):
        return tuple(self.factors)

    def kfac(self):
        """The same eigenbases with K-FAC's eigenvalues λ_B λ_Aᵀ × (positions per sequence)."""
        return replace(self, factors={
            name: replace(x, eigenvalues=x.positions * x.out_values[..., None] * x.in_values)
            for name, x in self.factors.items()})

    def identity(self):
        """The same layers with every eigenvalue 1 in place of Λ: the ablation H := I (apply with damping 0)."""
        return replace(self, factors={
            name: replace(x, eigenvalues=torch.ones_like(x.eigenvalues)) for name, x in self.factors.items()})


def fit(model, layers, sequences, *, labels="gaussian", samples=2, seed=0, batch_size=32, partitions=1, title=None):
    """EK-FAC factors of `layers` (from `models.tracked_layers`) on `sequences`; two passes per partition of the layers.

    labels: "gaussian", "sampled" or "true" (see `objectives.fisher_losses`), `samples` of them per sequence. partitions:
    the layers are fitted in that many groups, one after the other, to bound memory; the result does not change.
    Raises MemoryError when the factors of one partition will not fit, FloatingPointError naming a layer that is not finite.
    """
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}; expected at least 1")
    require(memory=sum(map(factor_bytes, layers)) // partitions * 2, what=f"EK-FAC factors of {len(layers)} layers")
    objectives, factors, size = fisher_losses(labels, samples, seed), {}, -(-len(layers) // partitions)
    for first in range(0, len(layers), size):
        run = (model, layers[first:first + size], sequences, objectives, batch_size)
        bases = {name: eigenbases(*found) for name, found in covariances(*run, title).items()}
        factors |= corrected_eigenvalues(*run, bases, title)
    return EKFAC({layer.name: factors[layer.name] for layer in layers},
                 _header(model, sequences, labels, len(objectives), seed))


def covariances(model, layers, sequences, objectives, batch_size, title=None):
    """First pass: {layer: (rows, A (i, i), B (blocks, r, r), positions)}, means over unmasked positions (and draws)."""
    A, B, seen, rows = {}, {}, {}, {layer.name: layer.rows for layer in layers}

    def consume(layer, a, g, draw, batch):
        if draw == 0:
            _add(A, layer.name, a.flatten(0, 1).mT @ a.flatten(0, 1))
            _add(seen, layer.name, len(a) if a.shape[1] == 1 else int(batch.attention_mask.sum()))
        blocks = _split(g, layer.rows, 2).permute(2, 3, 0, 1).flatten(2)               # (blocks, r, n·s)
        _add(B, layer.name, blocks @ blocks.mT)

    passes(model, layers, sequences, objectives, batch_size, consume, title and f"{title}: covariances")
    _all_seen(layers, B)
    return {name: (rows[name], _finite(A[name] / seen[name], name), _finite(B[name] / (seen[name] * len(objectives)), name),
                   seen[name] / len(sequences)) for name in rows}


def corrected_eigenvalues(model, layers, sequences, objectives, batch_size, bases, title=None):
    """Second pass: Λ = E_seq[(Q_Bᵀ D Q_A)²], mean over sequences and draws, put into each layer's factors."""
    squares = {}

    def consume(layer, a, g, draw, batch):
        _add(squares, layer.name, rotated_gradient(bases[layer.name], a, g).square_().sum(0))

    passes(model, layers, sequences, objectives, batch_size, consume, title and f"{title}: eigenvalues")
    count = len(sequences) * len(objectives)
    return {name: replace(bases[name], eigenvalues=_finite(squares[name] / count, name)) for name in bases}


def rotated_gradient(factors, a, g):
    """Q_Bᵀ D Q_A of each sequence (n, blocks, r, i), by the cheaper order: rotate a and g first, or form D and rotate it.

    Multiplications per sequence: s(i² + r·o) against o·i(i + r)."""
    (s, i), o, r = a.shape[1:], g.shape[2], factors.basis_out.shape[-1]
    if s * (i * i + r * o) > o * i * (i + r):
        return factors.rotate(sequence_gradient(a, g))
    g = _split(g, factors.rows, 2).transpose(1, 2) @ factors.basis_out                  # (n, blocks, s, r)
    return g.mT @ (a @ factors.basis_in)[:, None]


def errors(model, layers, sequences, labels, reference, batch_size=32):
    """{"A", "B", "Λ": [relative error in the Frobenius norm for each layer]} of factors estimated on `sequences` with one draw.

    reference: {layer name: LayerFactors}; Λ is compared in its eigenbases."""
    run = (model, layers, sequences, fisher_losses(labels, 1, seed="errors"), batch_size)
    again, squares = covariances(*run), corrected_eigenvalues(*run, reference)
    relative = lambda x, y: ((x - y).norm() / y.norm()).item()
    found = {"A": [], "B": [], "Λ": []}
    for name, ours in reference.items():
        _, A, B, _ = again[name]
        found["A"].append(relative(A, ours.basis_in * ours.in_values @ ours.basis_in.mT))
        found["B"].append(relative(B, ours.basis_out * ours.out_values[:, None] @ ours.basis_out.mT))
        found["Λ"].append(relative(squares[name].eigenvalues, ours.eigenvalues))
    return found


def factor_bytes(layer):
    """Bytes of one layer's factors in float32: Q_A, Q_B and Λ."""
    inputs, (blocks, r) = layer.in_features + layer.bias, layer.rows.shape if layer.rows is not None else (1, layer.out_features)
    return 4 * (inputs ** 2 + blocks * r ** 2 + layer.out_features * inputs)


def eigenbases(rows, A, B, positions):
    """`LayerFactors` of what `covariances` found for a layer, still without eigenvalues."""
    in_values, basis_in = _eigh(A)
    out_values, basis_out = _eigh(B)
    return LayerFactors(rows, basis_in, basis_out, torch.empty(0), in_values, out_values, torch.tensor(positions, dtype=A.dtype))


def _eigh(M):
    """Symmetrised, decomposed in float64, cast back: float32 `eigh` alone moves scores by 1e-2."""
    M64 = M.double()
    values, vectors = torch.linalg.eigh((M64 + M64.mT) / 2)
    return values.clamp(min=0).to(M.dtype), vectors.to(M.dtype)


def _add(sums, name, value):
    sums[name] = sums[name] + value if name in sums else value


def _finite(value, name):
    if not torch.isfinite(value).all():
        raise FloatingPointError(f"a factor of {name} is NaN or infinite: its gradients overflow their square in "
                                 f"{value.dtype}; scale the loss or leave the layer out")
    return value


def _all_seen(layers, found):
    missing = [layer.name for layer in layers if layer.name not in found]
    if missing:
        raise ValueError(f"no gradient reaches {missing}: the loss does not depend on them; leave them out by a pattern")


def _header(model, sequences, labels, samples, seed):
    tokens = sum(len(x.input_ids) for x in sequences)
    return {"labels": labels, "samples": samples, "seed": seed, "sequences": len(sequences), "tokens": tokens,
            "model": model_digest(model), "data": digest(sequences)}
