"""The sums of a fit, as several processes can add them up in any order.

A and B are sums over positions, and their eigenvectors follow the last digits: float32 sums in
another order move scores by 1e-5 of their norm, and small ones by far more than that. So each
batch's product is made in the model's precision and added in float64, in memory as in folders. Of a
symmetric matrix only the upper triangle is kept, in strips of `STRIP` rows: that takes hardly more
memory than a whole matrix in float32.

    name.A (packed i,), name.B (blocks, packed r), name.positions ()      float64
    name.Λ (blocks, r, columns of Q_A)                                    the precision of g

All start at zero, so that a process without a batch has its part, too.
"""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from msif.core.data import Batch
from msif.core.kronecker import block_shape
from msif.core.layers import Layer
from msif.core.products import ALIGNED, add_gram, add_input_gram, split

STRIP = 128  # rows


def covariance_zeros(model: nn.Module, layer: Layer) -> dict[str, Tensor]:
    """The sums of one layer's covariance pass before any batch, where its weight lies."""
    blocks, r = block_shape(layer)
    shapes = {"A": (packed(layer.inputs),), "B": (blocks, packed(r)), "positions": ()}
    return _zeros(model, layer, shapes, torch.float64)


def eigenvalue_zeros(model: nn.Module, layer: Layer) -> dict[str, Tensor]:
    """The sums of one layer's eigenvalue pass before any batch, where its weight lies."""
    columns = layer.inputs + -layer.inputs % ALIGNED
    return _zeros(model, layer, {"Λ": (*block_shape(layer), columns)}, precision(model))


def precision(model: nn.Module) -> torch.dtype:
    """That of g and of the factors: the model's, at least float32."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def _zeros(model, layer, shapes, dtype):
    device = model.get_parameter(layer.parameter).device
    return {
        f"{layer.name}.{what}": torch.zeros(shape, dtype=dtype, device=device)
        for what, shape in shapes.items()
    }


def add_covariances(
    sums: dict[str, Tensor], layer: Layer, a: Tensor, g: Tensor, draw: int, batch: Batch
) -> None:
    """Add one batch's a aᵀ and g gᵀ of a layer to `sums`, in float64.

    a: (n, s, inputs without the bias), the same for every draw. g: (n, s, o).
    """
    blocks, r = block_shape(layer)
    if draw == 0:
        whole = a.shape[1] == 1 or batch.attention_mask.all()
        a = a.flatten(0, 1) if whole else a[batch.attention_mask.to(a.device).bool()]
        A = a.new_zeros(layer.inputs, layer.inputs)
        add_input_gram(A, a, layer.bias)
        add_packed(sums[f"{layer.name}.A"], A)
        sums[f"{layer.name}.positions"] += len(a) if layer.expert is None else a.any(1).sum()
    B = g.new_zeros(blocks, r, r)
    for total, x in zip(B, split(g.flatten(0, 1), layer.rows, 1).unbind(1)):
        add_gram(total, x)
    add_packed(sums[f"{layer.name}.B"], B)


def unpacked(
    sums: Mapping[str, Tensor], layers: Collection[Layer], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Covariance sums as `ekfac.mean_covariances` reads them; without the layers that no gradient
    reached, which it names."""
    found = {}
    for layer in layers:
        positions = sums[f"{layer.name}.positions"]
        if positions or layer.expert is not None:
            A, B = (sums[f"{layer.name}.{what}"] for what in "AB")
            found[f"{layer.name}.A"] = upper(A, layer.inputs, dtype)
            found[f"{layer.name}.B"] = upper(B, block_shape(layer)[1], dtype)
            found[f"{layer.name}.positions"] = positions
    return found


def packed(d: int) -> int:
    """How many numbers are kept of a symmetric (d, d) matrix."""
    return sum(rows * columns for _, rows, columns in _strips(d))


def _strips(d: int) -> Iterator[tuple[int, int, int]]:
    """(first row and column, rows, columns) of each strip of the upper triangle."""
    for first in range(0, d, STRIP):
        yield first, min(STRIP, d - first), d - first


def _each_strip(total, d):
    """(first row and column, a view (…, rows, columns) of it) of each strip of packed numbers."""
    at = 0
    for first, rows, columns in _strips(d):
        part = total[..., at : at + rows * columns]
        yield first, part.unflatten(-1, (rows, columns))
        at += rows * columns


def add_packed(total: Tensor, x: Tensor) -> None:
    """total (…, packed d) += the upper triangle of x (…, d, d)."""
    for first, strip in _each_strip(total, x.shape[-1]):
        strip += x[..., first : first + strip.shape[-2], first:]


def upper(total: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """The matrix (…, d, d) whose upper triangle is packed in `total`; zero below its strips."""
    whole = total.new_zeros(*total.shape[:-1], d, d, dtype=dtype)
    for first, strip in _each_strip(total, d):
        whole[..., first : first + strip.shape[-2], first:] = strip
    return whole
