"""EK-FAC: the Gauss-Newton matrix of each tracked layer, diagonal in a Kronecker-factored eigenbasis.

For one block of a layer (the whole layer, or one head's q, k or v rows), with D_z = Σ_t g_t a_tᵀ the pseudo-gradient of z:

    A = E_tok[a aᵀ] = Q_A diag(λ_A) Q_Aᵀ,   B = E_tok[g gᵀ] = Q_B diag(λ_B) Q_Bᵀ,
    Λ = E_seq[(Q_Bᵀ D Q_A)²]                                    one sequence is one sample,
    f(G): V ↦ Q_B [f(Λ) ∘ (Q_Bᵀ V Q_A)] Q_Aᵀ.

E_tok runs over every unmasked position, prompt included. Source: George et al. 2018 (arXiv 1806.03884), Grosse et al. 2023
(arXiv 2308.03296), section 3. Index letters as in `msif.core.capture`; blocks of a layer are equally large, r rows each.
"""

from dataclasses import dataclass, replace

import torch

from msif.core.capture import passes
from msif.core.data import digest
from msif.core.models import model_digest
from msif.core.objectives import fisher_losses
from msif.core.products import add_gram, add_input_gram, add_squares, aligned, mirrored, split
from msif.core.resources import require


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
        if self.rows is None:  # as one product of two matrices a side: no basis is copied n times
            return ((v @ self.basis_in).mT @ self.basis_out[0]).mT[:, None]
        return self.basis_out.mT @ split(v, self.rows, 1) @ self.basis_in

    def rotate_back(self, v):
        """Q_B V Q_Aᵀ: (n, blocks, r, i) -> (n, o, i)."""
        if self.rows is None:
            return (v[:, 0].mT @ self.basis_out[0].mT).mT @ self.basis_in.mT
        v = (self.basis_out @ v @ self.basis_in.mT).flatten(1, 2)
        return torch.empty_like(v).index_copy_(1, self.rows.flatten().to(v.device), v)

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


@dataclass(frozen=True)
class EKFAC:
    """The curvature of one model on one data set. `factors`: {layer name: LayerFactors}; `header`: where they come from."""

    factors: dict
    header: dict

    def apply(self, f, v, new=(), f_new=None):
        """f(G) v, layer by layer; v: {layer: (n, o, i)}. Layers in `new` get f_new (no coupling: blocks are independent)."""
        return {
            name: _named(
                name, self.factors[name].to(x.device).apply, f_new if name in new else f, x
            )
            for name, x in v.items()
        }

    @property
    def layers(self):
        return tuple(self.factors)

    def kfac(self):
        """The same eigenbases with K-FAC's eigenvalues λ_B λ_Aᵀ × (positions per sequence)."""
        return replace(
            self,
            factors={
                name: replace(x, eigenvalues=x.positions * x.out_values[..., None] * x.in_values)
                for name, x in self.factors.items()
            },
        )

    def identity(self):
        """The same layers with every eigenvalue 1 in place of Λ: the ablation H := I (apply with damping 0)."""
        return replace(
            self,
            factors={
                name: replace(x, eigenvalues=torch.ones_like(x.eigenvalues))
                for name, x in self.factors.items()
            },
        )


def fit(
    tracked,
    sequences,
    *,
    labels="gaussian",
    samples=2,
    seed=0,
    batch_size=32,
    partitions=1,
    title=None,
):
    """EK-FAC factors of the tracked layers (`layers.Tracked`) on `sequences`; two passes per partition of the layers.

    labels: "gaussian", "sampled" or "true" (see `objectives.fisher_losses`), `samples` of them per sequence. partitions:
    the layers are fitted in that many groups, one after the other, to bound memory; the result does not change.
    Raises MemoryError when the factors of one partition will not fit, FloatingPointError naming a layer that is not finite.
    """
    if partitions < 1:
        raise ValueError(f"partitions is {partitions}; expected at least 1")
    require(
        memory=sum(map(factor_bytes, tracked.layers)) // partitions * 2,
        what=f"EK-FAC factors of {len(tracked.layers)} layers",
    )
    objectives, factors, size = (
        fisher_losses(labels, samples, seed),
        {},
        -(-len(tracked.layers) // partitions),
    )
    for first in range(0, len(tracked.layers), size):
        run = (
            tracked.only(tracked.layers[first : first + size]),
            sequences,
            objectives,
            batch_size,
        )
        bases = {name: eigenbases(*found) for name, found in covariances(*run, title).items()}
        factors |= corrected_eigenvalues(*run, bases, title)
    return EKFAC(
        {layer.name: factors[layer.name] for layer in tracked.layers},
        header(tracked.model, sequences, labels, len(objectives), seed),
    )


def covariances(tracked, sequences, objectives, batch_size, title=None):
    """First pass: {layer: (rows, A (i, i), B (blocks, r, r), positions)}, means over unmasked positions (and draws)."""
    sums = {}
    passes(
        tracked,
        sequences,
        objectives,
        batch_size,
        lambda *found: add_covariances(sums, *found),
        title and f"{title}: covariances",
    )
    return mean_covariances(sums, tracked.layers, len(sequences), len(objectives))


def add_covariances(sums, layer, a, g, draw, batch):
    """Add one batch's a aᵀ and g gᵀ of a layer to `sums`, a dictionary of tensors; `mean_covariances` reads it."""
    i, (blocks, r) = layer.in_features + layer.bias, block_shape(layer)
    A, B, positions = (
        _start(sums, f"{layer.name}.{what}", g, *shape)
        for what, shape in (("A", (i, i)), ("B", (blocks, r, r)), ("positions", ()))
    )
    if draw == 0:
        a = (
            a.flatten(0, 1)
            if a.shape[1] == 1 or batch.attention_mask.all()
            else a[batch.attention_mask.to(a.device).bool()]
        )
        add_input_gram(A, a, layer.bias)
        positions += len(a)
    for total, x in zip(B, split(g.flatten(0, 1), layer.rows, 1).unbind(1)):
        add_gram(total, x)


def mean_covariances(sums, layers, sequences, draws):
    """What `covariances` returns, from the sums over that many sequences and draws."""
    _all_seen(layers, sums, "B")

    def mean(layer, what, draws):
        return _finite(
            mirrored(sums[f"{layer.name}.{what}"]) / (sums[f"{layer.name}.positions"] * draws),
            layer.name,
        )

    return {
        x.name: (
            x.rows,
            mean(x, "A", 1),
            mean(x, "B", draws),
            sums[f"{x.name}.positions"].item() / sequences,
        )
        for x in layers
    }


def corrected_eigenvalues(tracked, sequences, objectives, batch_size, bases, title=None):
    """Second pass: Λ = E_seq[(Q_Bᵀ D Q_A)²], mean over sequences and draws, put into each layer's factors."""
    sums, rotations = {}, {name: (aligned(x.basis_in), x.basis_out) for name, x in bases.items()}
    passes(
        tracked,
        sequences,
        objectives,
        batch_size,
        lambda *found: add_eigenvalues(sums, rotations, *found),
        title and f"{title}: eigenvalues",
    )
    return mean_eigenvalues(sums, tracked.layers, bases, len(sequences) * len(objectives))


def add_eigenvalues(sums, rotations, layer, a, g, draw, batch):
    """Add one batch's (Q_Bᵀ D Q_A)² of a layer to `sums`; rotations: {layer: (`aligned` Q_A, Q_B)}."""
    basis_in, basis_out = rotations[layer.name]
    total = _start(sums, f"{layer.name}.Λ", g, *block_shape(layer), basis_in.shape[1])
    add_squares(total, a, g, layer.bias, basis_in, basis_out, layer.rows)


def mean_eigenvalues(sums, layers, bases, count):
    """`bases` with the eigenvalues in them, from the sums over `count` sequences and draws."""
    _all_seen(layers, sums, "Λ")

    def mean(layer):
        return _finite(
            sums[f"{layer.name}.Λ"][..., : layer.in_features + layer.bias] / count, layer.name
        )

    return {x.name: replace(bases[x.name], eigenvalues=mean(x)) for x in layers}


def errors(tracked, sequences, labels, reference, batch_size=32):
    """{"A", "B", "Λ": [relative error in the Frobenius norm for each layer]} of factors estimated on `sequences` with one draw.

    reference: {layer name: LayerFactors}; Λ is compared in its eigenbases."""
    run = (tracked, sequences, fisher_losses(labels, 1, seed="errors"), batch_size)
    again, squares = covariances(*run), corrected_eigenvalues(*run, reference)
    relative = lambda x, y: ((x - y).norm() / y.norm()).item()
    found = {"A": [], "B": [], "Λ": []}
    for name, ours in reference.items():
        _, A, B, _ = again[name]
        found["A"].append(relative(A, ours.basis_in * ours.in_values @ ours.basis_in.mT))
        found["B"].append(
            relative(B, ours.basis_out * ours.out_values[:, None] @ ours.basis_out.mT)
        )
        found["Λ"].append(relative(squares[name].eigenvalues, ours.eigenvalues))
    return found


def block_shape(layer):
    """(blocks, r) of a layer's output rows."""
    return (1, layer.out_features) if layer.rows is None else tuple(layer.rows.shape)


def factor_bytes(layer):
    """Bytes of one layer's factors in float32: Q_A, Q_B and Λ."""
    inputs, (blocks, r) = layer.in_features + layer.bias, block_shape(layer)
    return 4 * (inputs**2 + blocks * r**2 + layer.out_features * inputs)


def eigenbases(rows, A, B, positions):
    """`LayerFactors` of what `covariances` found for a layer, still without eigenvalues."""
    in_values, basis_in = _eigh(A)
    out_values, basis_out = _eigh(B)
    return LayerFactors(
        rows,
        basis_in,
        basis_out,
        torch.empty(0),
        in_values,
        out_values,
        torch.tensor(positions, dtype=A.dtype),
    )


def _eigh(M):
    """Symmetrised, decomposed in float64, cast back: float32 `eigh` alone moves scores by 1e-2."""
    M64 = M.double()
    values, vectors = torch.linalg.eigh((M64 + M64.mT) / 2)
    return values.clamp(min=0).to(M.dtype), vectors.to(M.dtype)


def _start(sums, name, like, *shape):
    return sums[name] if name in sums else sums.setdefault(name, like.new_zeros(shape))


def _finite(value, name):
    if not torch.isfinite(value).all():
        raise FloatingPointError(
            f"a factor of {name} is NaN or infinite: its gradients overflow their square in "
            f"{value.dtype}; scale the loss or leave the layer out"
        )
    return value


def _all_seen(layers, sums, what):
    missing = [layer.name for layer in layers if f"{layer.name}.{what}" not in sums]
    if missing:
        raise ValueError(
            f"no gradient reaches {missing}: the loss does not depend on them; leave them out by a pattern"
        )


def header(model, sequences, labels, samples, seed):
    """Where factors come from: how they were fitted, and digests of the model and the data."""
    tokens = sum(len(x.input_ids) for x in sequences)
    return {
        "labels": labels,
        "samples": samples,
        "seed": seed,
        "sequences": len(sequences),
        "tokens": tokens,
        "model": model_digest(model),
        "data": digest(sequences),
    }
