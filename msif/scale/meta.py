"""One forward pass on the meta device, which computes nothing: what autograd keeps there is what it
will keep."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msif.core.layers import Layer, Tracked

LOGIT_COPIES = 4  # float32 tensors of the logits' size that a loss holds at once, beside the logits


@dataclass(frozen=True)
class MetaPass:
    """What one forward pass over a batch keeps for its backward pass, and what it costs.

    kept: {layer: bytes that autograd keeps from its output on}. logits: bytes of the logits and of
    what the loss holds. flops: of the pass."""

    kept: dict[str, int]
    logits: int
    flops: int

    def kept_by(self, layers: Iterable[Layer]) -> int:
        """Bytes that autograd keeps when the backward pass goes down to these layers."""
        return max(self.kept[x.name] for x in layers)


def meta_pass(tracked: Tracked, n: int, s: int) -> MetaPass:
    """The `MetaPass` of n sequences of s tokens.

    Every activation asks for a gradient here, wherever the first tracked layer is. Else what is
    counted for a layer would depend on the others: a product keeps both of its factors only if both
    ask for one, as the two halves of a gated MLP do."""
    model, kept = on_meta(tracked.model), _Kept()
    modules, starts = dict(model.named_modules()), {}

    def starting(name):
        def hook(*_):
            starts[name] = len(kept.saved)

        return hook

    handles = [x.register_forward_hook(_asking) for x in modules.values() if x._parameters] + [
        modules[x.name].register_forward_hook(starting(x.name)) for x in tracked.layers
    ]
    try:
        with kept.watching(model), FlopCounterMode(display=False) as flops, torch.enable_grad():
            logits = model(input_ids=torch.zeros(n, s, dtype=torch.long, device="meta")).logits
    finally:
        for handle in handles:
            handle.remove()
    size = logits.numel() * (2 * logits.element_size() + 4 * LOGIT_COPIES)
    bytes_from = kept.bytes_from()
    return MetaPass(
        {name: bytes_from[start] for name, start in starts.items()}, size, flops.get_total_flops()
    )


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model without its numbers, no parameter asking for a gradient."""
    memo: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        for p in model.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    copied = copy.deepcopy(model, memo).eval()
    # Else transformers looks into the positions for packed sequences: there are none to see.
    config = getattr(copied, "config", None)
    if config is not None:
        config.use_cache = True
    return copied


def _asking(module, args, output):
    """A forward hook: the output asks for a gradient. Of a leaf a clone, which may be written to in
    place."""
    if isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad:
        return output.requires_grad_().clone()
    return output


class _Kept:
    """Which tensors autograd saves, in order; parameters and buffers, which are there anyway, not
    at all."""

    def __init__(self):
        self.saved: list[tuple[int, int]] = []  # (storage, bytes), again each time it is saved
        self.own: set[int] = set()

    @contextmanager
    def watching(self, model) -> Iterator[None]:
        self.own = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x):
            yield

    def _pack(self, x):
        storage = x.untyped_storage()
        if storage._cdata not in self.own:
            self.saved.append((storage._cdata, storage.nbytes()))
        return x

    def bytes_from(self) -> list[int]:
        """Bytes of what is saved from each place of the order on, each storage once: also one that
        was saved before, as the angles of rotary positions are for every layer."""
        found, seen = [0], set()
        for storage, size in reversed(self.saved):
            found.append(found[-1] + (0 if storage in seen else size))
            seen.add(storage)
        return found[::-1]
