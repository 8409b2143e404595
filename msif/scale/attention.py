"""Fused attention on the meta device.

torch's kernels for CPUs and GPUs never hold the scores of all pairs of tokens, S² numbers a head.
Of tensors without numbers torch computes attention in single steps instead, which keep them: what
is then counted for long documents is many times what is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_NAME = "scaled_dot_product_attention"


class _Fused(torch.autograd.Function):
    """softmax(q kᵀ) v as the fused kernels keep it: q, k, v, the result, a sum for each query, and
    the mask, a number for each pair of tokens. q (…, h, s, d); k, v (…, h or a divisor of h, t, d).
    Forward alone: a pass without numbers has no gradient."""

    @staticmethod
    def forward(ctx, q, k, v, masked):
        groups = q.shape[-3] // k.shape[-3]
        wide = [x.repeat_interleave(groups, -3) for x in (k, v)]
        found = (q @ wide[0].mT) @ wide[1]  # as much arithmetic; without gradients nothing is kept
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        mask = q.new_empty(len(q), q.shape[-2], k.shape[-2]) if masked else sums
        ctx.save_for_backward(q, k, v, found, sums, mask)
        return found


@contextmanager
def fused_attention(padded: bool = False) -> Iterator[None]:
    """`scaled_dot_product_attention` of tensors on the meta device keeps what a kernel would,
    where there is one for it: with dropout, or a gradient of the mask, there is none.

    padded: the sequences have different lengths, so that there is a mask; else there is none."""
    kept = functional.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        plain = dropout_p == 0 and not (attn_mask is not None and attn_mask.requires_grad)
        if query.is_meta and query.dim() > 3 and plain:
            groups = query.shape[-3] // key.shape[-3]
            if padded and groups > 1:  # transformers repeats them, where there is a mask
                key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
            return _Fused.apply(query, key, value, padded or attn_mask is not None)
        return kept(query, key, value, attn_mask, dropout_p, is_causal, **options)

    setattr(functional, _NAME, attention)
    try:
        yield
    finally:
        setattr(functional, _NAME, kept)
