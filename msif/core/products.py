"""The matrix products that fitting and scoring spend their time in.

Each goes by the order that is cheapest for its shape.

a: inputs (n, s, i) of a layer, without the 1 of the bias; g: gradients (n, s, o) at its output;
both zero where padded. With a bias, D = Σ_t g_t [a_t, 1]ᵀ has i + 1 columns. The 1 is never
appended to a: a matrix of 1025 columns multiplies a third slower than one of 1024 or 1032, and the
1's column of D is Σ_t g_t. Index letters as in `msif.core.capture`; q queries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from msif.core.layers import Vectors

TILE = 128  # smaller tiles lose more in efficiency than they save
ALIGNED = 8  # columns

# Numbers that a chunk of per-sequence products may hold: it stays in a processor's cache.
WORKSPACE = 2**20
LARGE = 2**14  # numbers of a matrix that one call of a kernel is worth


def sequence_gradient(a: Tensor, g: Tensor, bias: bool) -> Tensor:
    """D = Σ_t g_t [a_t, 1]ᵀ of each sequence: (n, o, i), with a bias (n, o, i + 1)."""
    return transposed_gradient(a, g, bias).mT


def transposed_gradient(a: Tensor, g: Tensor, bias: bool) -> Tensor:
    """Dᵀ: (n, i, o), with a bias (n, i + 1, o).

    Written row by row, where the bias's row leaves the others aligned.
    """
    D = a.new_empty(len(a), a.shape[2] + bias, g.shape[2])
    D[:, : a.shape[2]].baddbmm_(a.mT, g, beta=0)  # beta=0: what is there is not read
    if bias:
        D[:, -1] = g.sum(1)
    return D


def add_gram(total: Tensor, x: Tensor) -> None:
    """total += xᵀx in the upper triangle only, by tiles: (d, d), (m, d). `mirrored` completes it.

    A symmetric product needs half of the multiplications; k tiles a side come to (1 + 1/k) / 2 of
    them.
    """
    width = max(TILE, -(-x.shape[1] // 8))
    for first in range(0, x.shape[1], width):
        last = first + width
        total[first:last, first:].addmm_(x[:, first:last].mT, x[:, first:])


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle `total` (…, d, d) holds."""
    return total.triu() + total.triu(1).mT


def add_input_gram(total: Tensor, x: Tensor, bias: bool) -> None:
    """total += [x, 1]ᵀ[x, 1] in the upper triangle: (i + bias, i + bias), (m, i)."""
    i = x.shape[1]
    add_gram(total[:i, :i], x)
    if bias:
        total[:i, i] += x.sum(0)
        total[i, i] += len(x)


def aligned(basis: Tensor) -> Tensor:
    """A basis (d, d) with columns of zeros appended up to a multiple of `ALIGNED`.

    For the total of `add_squares`.
    """
    return F.pad(basis, (0, -basis.shape[1] % ALIGNED))


def add_squares(
    total: Tensor,
    a: Tensor,
    g: Tensor,
    bias: bool,
    basis_in: Tensor,
    basis_out: Tensor,
    rows: Tensor | None = None,
) -> None:
    """total += Σ_n (Q_Bᵀ D_n Q_A)² elementwise: (blocks, r, columns of Q_A).

    basis_in: Q_A (i + bias, i + bias or more, see `aligned`). basis_out: Q_B (blocks, r, r).

    Each side is rotated before the product over positions or after it, whichever multiplies less:
    Q_A costs s·i² before and o·i² after, Q_B s·o·r before and i·o·r after. A bias enters a rotated
    a as Q_A's last row wherever g is not zero.
    """
    s, o = g.shape[1:]
    i = basis_in.shape[0]
    chunk = max(1, WORKSPACE // total.numel())
    a_first, g_first = s < o, s < i
    if a_first and bias:
        rotated = torch.addmm(basis_in[-1], a.flatten(0, 1), basis_in[:-1])
        a = rotated.unflatten(0, a.shape[:2])
    elif a_first:
        a = a @ basis_in
    g = split(g, rows, 2)  # (n, s, blocks, r)
    g = g.transpose(1, 2)
    if g_first:
        g = g @ basis_out if len(basis_out) > 1 else (g[:, 0] @ basis_out[0])[:, None]
    both = a_first and g_first and len(basis_out) == 1
    # The same memory for every chunk: fresh pages cost as much as the product.
    space = a.new_empty(min(chunk, len(a)) if both else 0, *total.shape[1:])
    for few_a, few_g in zip(a.split(chunk), g.split(chunk)):
        if both:
            D = torch.bmm(few_g[:, 0].mT, few_a, out=space[: len(few_a)])[:, None]
        else:
            D = few_g.mT @ few_a[:, None]
        if not a_first:
            D = (torch.cat([D, few_g.sum(2)[..., None]], 3) if bias else D) @ basis_in
        _add_square(total, D if g_first else basis_out.mT @ D)


def _add_square(total, D):
    """total += Σ_n D_n². What D holds is lost."""
    if len(D) == 1 or (total.numel() >= LARGE and not total.is_cuda):  # a read of D, and no copy
        for x in D:
            total.addcmul_(x, x)
    else:
        total += D.square_().sum(0)


def split(x: Tensor, rows: Tensor | None, dim: int) -> Tensor:
    """Output dimension `dim` into (blocks, r); rows (blocks, r), or None for one block."""
    if rows is None:
        return x.unsqueeze(dim)
    return x.index_select(dim, rows.flatten().to(x.device)).unflatten(dim, rows.shape)


def flatten(v: Vectors) -> Tensor:
    """{layer: (q, o, i)} as rows (q, P)."""
    return torch.cat([x.flatten(1) for x in v.values()], 1)


def unflatten(x: Tensor, like: Vectors) -> Vectors:
    """Rows (q, P) as {layer: (q, o, i)}, the layers as in `like`."""
    parts = x.split([y[0].numel() for y in like.values()], 1)
    return {name: part.unflatten(1, y.shape[1:]) for (name, y), part in zip(like.items(), parts)}
