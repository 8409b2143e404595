"""The matrix products that fitting and scoring spend their time in, each by the cheapest order for its shape.

a: inputs (n, s, i) of a layer, without the 1 of the bias; g: gradients (n, s, o) at its output; both zero where padded.
With a bias, D = Σ_t g_t [a_t, 1]ᵀ has i + 1 columns. The 1 is never appended to a: a matrix of 1025 columns multiplies a third
slower than one of 1024 or 1032, and the 1's column of D is Σ_t g_t. Index letters as in `msif.core.capture`; q queries.
"""

import torch
import torch.nn.functional as F

TILE = 128  # smaller tiles lose more in efficiency than they save
ALIGNED = 8  # columns
WORKSPACE = (
    2**20
)  # numbers that a chunk of per-sequence products may hold: it stays in a processor's cache


def sequence_gradient(a, g, bias):
    """D = Σ_t g_t [a_t, 1]ᵀ of each sequence: (n, o, i), with a bias (n, o, i + 1)."""
    return transposed_gradient(a, g, bias).mT


def transposed_gradient(a, g, bias):
    """Dᵀ: (n, i, o), with a bias (n, i + 1, o). Written row by row, where the bias's row leaves the others aligned."""
    D = a.new_empty(len(a), a.shape[2] + bias, g.shape[2])
    D[:, : a.shape[2]].baddbmm_(a.mT, g, beta=0)  # beta=0: what is there is not read
    if bias:
        D[:, -1] = g.sum(1)
    return D


def add_gram(total, x):
    """Total += xᵀx in the upper triangle only, by tiles: (d, d), (m, d). `mirrored` completes it.

    A symmetric product needs half of the multiplications; k tiles a side come to (1 + 1/k) / 2 of them."""
    width = max(TILE, -(-x.shape[1] // 8))
    for first in range(0, x.shape[1], width):
        last = first + width
        total[first:last, first:].addmm_(x[:, first:last].mT, x[:, first:])


def mirrored(total):
    """The symmetric matrix whose upper triangle `total` (…, d, d) holds."""
    return total.triu() + total.triu(1).mT


def add_input_gram(total, x, bias):
    """Total += [x, 1]ᵀ[x, 1] in the upper triangle: (i + bias, i + bias), (m, i)."""
    i = x.shape[1]
    add_gram(total[:i, :i], x)
    if bias:
        total[:i, i] += x.sum(0)
        total[i, i] += len(x)


def aligned(basis):
    """A basis (d, d) with columns of zeros appended up to a multiple of `ALIGNED`: for the total of `add_squares`."""
    return F.pad(basis, (0, -basis.shape[1] % ALIGNED))


def add_squares(total, a, g, bias, basis_in, basis_out, rows=None):
    """Total += Σ_n (Q_Bᵀ D_n Q_A)² elementwise: (blocks, r, columns of Q_A), Q_A (i + bias, i + bias or more, see `aligned`).

    Each side is rotated before the product over positions or after it, whichever multiplies less: Q_A costs s·i² before and
    o·i² after, Q_B s·o·r before and i·o·r after. A bias enters a rotated a as Q_A's last row wherever g is not zero."""
    (s, o), i, chunk = g.shape[1:], basis_in.shape[0], max(1, WORKSPACE // total.numel())
    a_first, g_first = s < o, s < i
    if a_first:
        a = (
            torch.addmm(basis_in[-1], a.flatten(0, 1), basis_in[:-1]).unflatten(0, a.shape[:2])
            if bias
            else a @ basis_in
        )
    g = split(g, rows, 2)  # (n, s, blocks, r)
    g = g.transpose(1, 2)
    if g_first:
        g = g @ basis_out if len(basis_out) > 1 else (g[:, 0] @ basis_out[0])[:, None]
    for few_a, few_g in zip(a.split(chunk), g.split(chunk)):
        if not a_first:
            D = few_g.mT @ few_a[:, None]
            D = (torch.cat([D, few_g.sum(2)[..., None]], 3) if bias else D) @ basis_in
        else:
            D = (
                torch.bmm(few_g[:, 0].mT, few_a)[:, None]
                if len(basis_out) == 1
                else few_g.mT @ few_a[:, None]
            )
        D = D if g_first else basis_out.mT @ D
        total += D.square_().sum(0)


def split(x, rows, dim):
    """Output dimension `dim` into (blocks, r); rows (blocks, r), or None for one block."""
    return (
        x.unsqueeze(dim)
        if rows is None
        else x.index_select(dim, rows.flatten().to(x.device)).unflatten(dim, rows.shape)
    )


def flatten(v):
    """{layer: (q, o, i)} as rows (q, P)."""
    return torch.cat([x.flatten(1) for x in v.values()], 1)


def unflatten(x, like):
    """Rows (q, P) as {layer: (q, o, i)}, the layers as in `like`."""
    parts = x.split([y[0].numel() for y in like.values()], 1)
    return {name: part.unflatten(1, y.shape[1:]) for (name, y), part in zip(like.items(), parts)}
