"""The Gauss-Newton matrix over all tracked layers together, as a product and nothing else.

    G v = E_z[Jᵀ H_out J v],   H_out = diag(p) − ppᵀ at every label position,

J: the derivative of a sequence's logits with respect to the tracked weights. Exact over the
softmax: no blocks, no sampling. For cross-entropy G is the Fisher matrix. Source: Martens 2020
(arXiv 1412.1193). Jv comes from differentiating u ↦ Jᵀu, which is linear, so that plain
reverse-mode differentiation suffices: one product costs about one forward and backward a vector.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from msif.core.capture import frozen
from msif.core.data import NO_LOSS, batches, check, collate, grouped
from msif.core.layers import Tracked, matrix, own_module
from msif.core.models import limits, logits
from msif.core.objectives import align
from msif.core.selfcheck import batching


@dataclass(frozen=True)
class GaussNewton:
    """G of a model's tracked layers.

    sequences: what the mean E_z runs over, each counting 1/N. Raises ValueError for one that the
    model cannot read (`data.check`).
    """

    tracked: Tracked
    sequences: list
    batch_size: int = 64

    def __post_init__(self):
        check(self.sequences, *limits(self.tracked.model))

    def product(self, v):
        """G v of {layer: (q, o, i)}, for all q vectors in one pass over the sequences.

        A bias is the last input.
        """
        model, layers = self.tracked.model, self.tracked.layers
        found = {name: torch.zeros_like(x) for name, x in v.items()}
        with _differentiable(self.tracked) as parameters:
            vectors = [part for layer in layers for part in _parts(model, layer, v[layer.name])]
            for batch in self._batches():
                products = iter(_product(model, parameters, batch, vectors))
                for layer in layers:
                    found[layer.name] += _joined(model, layer, products)
        return {name: x / len(self.sequences) for name, x in found.items()}

    def _batches(self):
        """In the given order, unless neighbours change what the model says of a sequence."""
        together = batching(self.tracked, self.sequences, self.batch_size)
        if together == "any":
            found = batches(self.sequences, self.batch_size)
        else:
            groups = grouped(self.sequences, self.batch_size, together)
            found = (collate([self.sequences[n] for n in group]) for group in groups)
        device = next(self.tracked.model.parameters()).device
        return (batch.to(device) for batch in found)


def _product(model, parameters, batch, vectors):
    """Σ_z Jᵀ H_out J v over one batch: a list of tensors like `vectors`."""
    z, y = align(logits(model, batch), batch.labels)
    u = torch.zeros_like(z, requires_grad=True)
    linear = torch.autograd.grad(z, parameters, u, create_graph=True)  # Jᵀu
    (Jv,) = torch.autograd.grad(linear, u, vectors, retain_graph=True, is_grads_batched=True)
    p, labelled = z.detach().softmax(2), (y != NO_LOSS)[..., None]  # Jv: (q, n, T, V)
    H_Jv = p * (Jv - (p * Jv).sum(3, keepdim=True)) * labelled
    return torch.autograd.grad(z, parameters, H_Jv, is_grads_batched=True)


@contextmanager
def _differentiable(tracked):
    """The parameters of the tracked layers, which alone ask for gradients inside.

    Inside, attention can be differentiated twice.
    """
    model = tracked.model
    modules = [own_module(model, layer) for layer in tracked.layers]
    weights = [p for m in modules for p in (m.weight, m.bias) if p is not None]
    kind = _attention(model)
    with frozen(model):
        _set_attention(model, "eager")
        try:
            with torch.enable_grad():
                yield [p.requires_grad_() for p in weights]
        finally:
            _set_attention(model, kind)
            model.requires_grad_(False)


def _attention(model):
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def _set_attention(model, kind):
    if _attention(model) is not None:
        model.set_attn_implementation(kind)


def _parts(model, layer, v):
    """(q, o, i) as the layer's own parameters, in their precision: weight, bias if there is one."""
    module = own_module(model, layer)
    v = v.to(module.weight.dtype)
    weight = matrix(module, v[..., : layer.in_features])
    return [weight, v[..., -1]] if layer.bias else [weight]


def _joined(model, layer, products):
    """The inverse of `_parts`: takes the layer's tensors from the iterator."""
    weight = matrix(own_module(model, layer), next(products))
    return torch.cat([weight, next(products)[..., None]], 2) if layer.bias else weight


@contextmanager
def exact_attention():
    """Eager attention in the model's own precision inside.

    Transformers' own takes its softmax in float32, so that a product with G in float64 would be
    symmetric to seven digits alone.
    """
    ALL_ATTENTION_FUNCTIONS["eager"] = _softmax_in_own_precision
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["eager"]


def _softmax_in_own_precision(module, query, key, value, mask, scaling, dropout=0.0, **unused):
    """softmax(Q Kᵀ · scaling + mask) V, heads after positions; and the weights."""
    weights = query @ key.mT * scaling
    weights = (weights if mask is None else weights + mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights
