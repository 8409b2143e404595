"""Conjugate gradients on A X = b for several right-hand sides, each by itself or all as one block.

Both are generators of (X, relative residuals) after each product, without end. b: rows (q, P);
product: rows (q, P) -> A times each, A symmetric and positive definite.
"""

import torch


def block_cg(product, b):
    """Iterates of block conjugate gradients: (X (q, P), relative residuals (q,))."""
    norms = b.norm(dim=1).clamp(min=torch.finfo(b.dtype).tiny)
    for X, _, C in blocks(product, b):
        yield X, C.norm(dim=0) / norms


def blocks(product, b):
    """After each product: X (q, P), and Q (P, q), C (q, q) of the residual b − A X = (Q C)ᵀ.

    Q is orthonormal. Dubrulle's BCGrQ (2001): as the block of residuals is kept orthonormal,
    queries that have converged do no harm.
    """
    Q, C = torch.linalg.qr(b.mT)
    X, S = torch.zeros_like(Q), Q
    while True:
        AS = product(S.mT).mT
        step = torch.linalg.pinv(S.mT @ AS, hermitian=True)
        X = X + S @ (step @ C)
        Q, zeta = torch.linalg.qr(Q - AS @ step)
        C, S = zeta @ C, Q + S @ zeta.mT
        yield X.mT, Q, C


def cg(product, b):
    """Iterates of conjugate gradients, each query by itself: as `block_cg`."""
    tiny = torch.finfo(b.dtype).tiny
    norms = b.norm(dim=1, keepdim=True).clamp(min=tiny)
    x, r, p = torch.zeros_like(b), b, b
    while True:
        Ap, square = product(p), r.square().sum(1, keepdim=True)
        step = square / (p * Ap).sum(1, keepdim=True).clamp(min=tiny)
        x, r = x + step * p, r - step * Ap
        p = r + r.square().sum(1, keepdim=True) / square.clamp(min=tiny) * p
        yield x, (r.norm(dim=1, keepdim=True) / norms)[:, 0]
