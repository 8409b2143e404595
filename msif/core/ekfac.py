"""EK-FAC factors, fitted in two passes over the data.

For one block of a layer (the whole layer, or one head's q, k or v rows), with D_z = Σ_t g_t a_tᵀ
the pseudo-gradient of z:

    A = E_tok[a aᵀ] = Q_A diag(λ_A) Q_Aᵀ,   B = E_tok[g gᵀ] = Q_B diag(λ_B) Q_Bᵀ,    first pass
    Λ = E_seq[(Q_Bᵀ D Q_A)²]                 one sequence is one sample             second pass

E_tok runs over every unmasked position, prompt included. What the factors stand for, and do:
`msif.core.kronecker`. Source: George et al. 2018 (arXiv 1806.03884), Grosse et al. 2023 (arXiv
2308.03296), section 3. Index letters as in `msif.core.capture`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from msif.core import checks
from msif.core.capture import passes
from msif.core.coverage import coverage, say_coverage
from msif.core.data import Batch, Sequence, digest
from msif.core.kronecker import EKFAC, LayerFactors, block_shape, factor_bytes
from msif.core.layers import Layer, Tracked, refuse_without_gradients
from msif.core.model_digest import model_digest
from msif.core.objectives import Objective, fisher_losses
from msif.core.pairs import Items
from msif.core.products import add_squares, aligned, mirrored
from msif.core.resources import require
from msif.core.spent import share_said
from msif.core.sums import add_covariances, covariance_zeros, precision, unpacked
from msif.core.watch import pattern_without

# What `covariances` finds for a layer: rows, A (i, i), B (blocks, r, r), positions per sequence.
Covariances = tuple[Tensor | None, Tensor, Tensor, float]


def fit(
    tracked: Tracked,
    sequences: list[Sequence],
    *,
    labels: str = "gaussian",
    samples: int = 2,
    seed: int | str = 0,
    batch_size: int = 32,
    partitions: int = 1,
    title: str | None = None,
) -> EKFAC:
    """EK-FAC factors of the tracked layers on `sequences`; two passes per partition of the layers.

    labels: "gaussian", "sampled" or "true" (see `objectives.fisher_losses`), `samples` of them per
    sequence. partitions: the layers are fitted in that many groups, one after the other, to bound
    memory; the result does not change. Raises MemoryError when the factors of one partition will
    not fit, FloatingPointError naming a layer that is not finite, ValueError for partitions < 1
    and as `layers.refuse_without_gradients`.
    """
    partitions = checks.whole("partitions", partitions)
    checks.whole("the number of tracked layers", len(tracked.layers))
    refuse_without_gradients(tracked)
    require(
        memory=sum(map(factor_bytes, tracked.layers)) // partitions * 2,
        what=f"EK-FAC factors of {len(tracked.layers)} layers",
    )
    say_coverage(tracked, title)
    objectives = fisher_losses(labels, samples, seed)
    factors: dict[str, LayerFactors] = {}
    size = -(-len(tracked.layers) // partitions)
    with share_said(tracked.model, title, "fit"):
        for first in range(0, len(tracked.layers), size):
            part = tracked.only(tracked.layers[first : first + size])
            run = (part, sequences, objectives, batch_size)
            bases = {name: eigenbases(*found) for name, found in covariances(*run, title).items()}
            factors |= corrected_eigenvalues(*run, bases, title)
    return EKFAC(
        {layer.name: factors[layer.name] for layer in tracked.layers},
        header(tracked, sequences, labels, len(objectives), seed),
    )


def covariances(
    tracked: Tracked,
    sequences: Items,
    objectives: list[Objective],
    batch_size: int,
    title: str | None = None,
) -> dict[str, Covariances]:
    """First pass: {layer: (rows, A (i, i), B (blocks, r, r), positions)}.

    A and B are means over unmasked positions (B also over draws), added in float64; positions is
    how many of them a sequence has on average. Raises as `mean_covariances`.
    """
    model, found = tracked.model, dict[str, Tensor]()
    for layer in tracked.layers:
        found |= covariance_zeros(model, layer)
    passes(
        tracked,
        sequences,
        objectives,
        batch_size,
        lambda *seen: add_covariances(found, *seen),
        title and f"{title}: covariances",
    )
    means: dict[str, Covariances] = {}
    for layer in tracked.layers:
        whole = unpacked(found, [layer], precision(model))
        means |= mean_covariances(whole, [layer], len(sequences), len(objectives))
        for what in ("A", "B"):
            del found[f"{layer.name}.{what}"]
    return means


def mean_covariances(
    sums: dict[str, Tensor], layers: Collection[Layer], sequences: int, draws: int
) -> dict[str, Covariances]:
    """What `covariances` returns, from the sums over that many sequences and draws.

    Raises ValueError for layers that no gradient reached, FloatingPointError naming a layer whose
    mean is not finite.
    """
    _all_seen(layers, sums, "B")

    def means(layer):
        positions = sums[f"{layer.name}.positions"].clamp(min=1)  # no expert need have been chosen
        A = mirrored(sums[f"{layer.name}.A"]) / positions
        B = mirrored(sums[f"{layer.name}.B"]) / (positions * draws)
        per_sequence = positions.item() / sequences
        return layer.rows, _finite(A, layer.name), _finite(B, layer.name), per_sequence

    return {layer.name: means(layer) for layer in layers}


def eigenbases(rows: Tensor | None, A: Tensor, B: Tensor, positions: float) -> LayerFactors:
    """`LayerFactors` of what `covariances` found for a layer, still without eigenvalues.

    A: (i, i). B: (blocks, r, r). Their eigenvalues are those of `eigh`.
    """
    in_values, basis_in = eigh(A)
    out_values, basis_out = eigh(B)
    return LayerFactors(
        rows=rows,
        basis_in=basis_in,
        basis_out=basis_out,
        eigenvalues=torch.empty(0),
        in_values=in_values,
        out_values=out_values,
        positions=torch.tensor(positions, dtype=A.dtype),
    )


def eigh(M: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, n) and eigenvectors (…, n, n) of M (…, n, n), made symmetric.

    Ascending, negative ones as 0. In float64, cast back: float32 alone moves scores by 1e-2.
    """
    M64 = M.double()
    values, vectors = torch.linalg.eigh((M64 + M64.mT) / 2)
    return values.clamp(min=0).to(M.dtype), vectors.to(M.dtype)


def corrected_eigenvalues(
    tracked: Tracked,
    sequences: Items,
    objectives: list[Objective],
    batch_size: int,
    bases: Mapping[str, LayerFactors],
    title: str | None = None,
) -> dict[str, LayerFactors]:
    """Second pass: Λ = E_seq[(Q_Bᵀ D Q_A)²], mean over sequences and draws, put into `bases`.

    bases: {layer name: LayerFactors}. Raises as `mean_eigenvalues`.
    """
    sums: dict[str, Tensor] = {}
    rotations = {name: (aligned(x.basis_in), x.basis_out) for name, x in bases.items()}
    passes(
        tracked,
        sequences,
        objectives,
        batch_size,
        lambda *found: add_eigenvalues(sums, rotations, *found),
        title and f"{title}: eigenvalues",
    )
    refuse_rounding(tracked, sums)
    return mean_eigenvalues(sums, tracked.layers, bases, len(sequences) * len(objectives))


def add_eigenvalues(
    sums: dict[str, Tensor],
    rotations: Mapping[str, tuple[Tensor, Tensor]],
    layer: Layer,
    a: Tensor,
    g: Tensor,
    draw: int,
    batch: Batch,
) -> None:
    """Add one batch's (Q_Bᵀ D Q_A)² of a layer to `sums`.

    rotations: {layer: (`aligned` Q_A, Q_B)}. a: (n, s, inputs without the bias). g: (n, s, o).
    """
    basis_in, basis_out = rotations[layer.name]
    total = _start(sums, f"{layer.name}.Λ", g, *block_shape(layer), basis_in.shape[1])
    add_squares(total, a, g, layer.bias, basis_in, basis_out, layer.rows)


def mean_eigenvalues(
    sums: dict[str, Tensor],
    layers: Collection[Layer],
    bases: Mapping[str, LayerFactors],
    count: int,
) -> dict[str, LayerFactors]:
    """`bases` with the eigenvalues in them, from the sums over `count` sequences and draws.

    Raises ValueError for layers that no gradient reached, FloatingPointError naming a layer whose
    eigenvalues are not finite.
    """
    _all_seen(layers, sums, "Λ")

    def mean(layer):  # without the columns that `aligned` appended
        return _finite(sums[f"{layer.name}.Λ"][..., : layer.inputs] / count, layer.name)

    return {x.name: replace(bases[x.name], eigenvalues=mean(x)) for x in layers}


def refuse_rounding(tracked: Tracked, sums: Mapping[str, Tensor]) -> None:
    """ValueError, naming the layers, where all that reaches a layer is rounding error.

    sums: of `add_eigenvalues`. Damping relative to such eigenvalues makes as much of a layer as of
    any other. Found by their size beside the largest layer's: in the layers of a network that are
    reached, even untrained, gradients were over a thousand times the bound. Not in half precision,
    where rounding is as large as that, nor for experts, which are as small as they are rare.
    """
    sizes = {x.name: sums[f"{x.name}.Λ"].double().mean().sqrt().item() for x in tracked.layers}
    largest, number = max(sizes.values()), tracked.model.get_parameter
    epsilons = {
        x.name: torch.finfo(number(x.parameter).dtype).eps
        for x in tracked.layers
        if x.expert is None and number(x.parameter).dtype in (torch.float32, torch.float64)
    }
    reached = [x for x, eps in epsilons.items() if 0 < sizes[x] < 4 * eps * largest]
    if reached:
        raise ValueError(
            f"nothing but rounding error reaches {', '.join(reached[:4])}"
            f"{', …' * (len(reached) > 4)}: its gradients are {sizes[reached[0]] / largest:.0e} of "
            f"the largest layer's; the loss of these sequences does not depend on it, as it does "
            f"not on queries and keys where a first token attends to itself: leave it out by a "
            f"pattern{pattern_without(tracked, reached)}, or give sequences whose loss does"
        )


def errors(
    tracked: Tracked,
    sequences: list[Sequence],
    labels: str,
    reference: Mapping[str, LayerFactors],
    batch_size: int = 32,
) -> dict[str, list[float]]:
    """Relative errors, in the Frobenius norm, of factors estimated on `sequences` with one draw.

    {"A", "B", "Λ": [one for each layer]}. reference: {layer name: LayerFactors}; Λ is compared in
    its eigenbases.
    """

    def relative(x, y):
        return ((x - y).norm() / y.norm()).item()

    run = (tracked, sequences, fisher_losses(labels, 1, seed="errors"), batch_size)
    device = next(tracked.model.parameters()).device
    reference = {name: x.to(device) for name, x in reference.items()}
    again, squares = covariances(*run), corrected_eigenvalues(*run, reference)
    found: dict[str, list[float]] = {"A": [], "B": [], "Λ": []}
    for name, ours in reference.items():
        _, A, B, _ = again[name]
        reference_A = ours.basis_in * ours.in_values @ ours.basis_in.mT
        reference_B = ours.basis_out * ours.out_values[:, None] @ ours.basis_out.mT
        found["A"].append(relative(A, reference_A))
        found["B"].append(relative(B, reference_B))
        found["Λ"].append(relative(squares[name].eigenvalues, ours.eigenvalues))
    return found


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
            f"no gradient reaches {missing}: the loss does not depend on them; leave them out by a "
            f"pattern"
        )


def header(
    tracked: Tracked, sequences: list[Sequence], labels: str, samples: int, seed: int | str
) -> dict[str, Any]:
    """Where factors come from: how they were fitted, how much of the model they cover, and digests
    of the model and the data."""
    return {
        "labels": labels,
        "samples": samples,
        "seed": checks.seed(seed),
        "sequences": len(sequences),
        "tokens": sum(len(x.input_ids) for x in sequences),
        "coverage": coverage(tracked).header(),
        "model": model_digest(tracked.model),
        "data": digest(sequences),
    }
