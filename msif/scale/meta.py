"""What one forward pass over a batch will keep and cost, estimated before it runs.

On the meta device, which computes nothing, and where what autograd keeps is what it will keep. A
model that looks at its numbers (mixtures of experts, many classifiers) does not run there: two
passes over one short sequence are measured in its place, and for a model without numbers the sizes
of its layers give an upper bound. So an estimate never keeps a fit from being tried.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from msif.core.backward import frozen
from msif.core.data import Batch
from msif.core.layers import Layer, Tracked
from msif.core.models import limits, logits, text_config
from msif.core.parts import matrices
from msif.scale.attention import fused_attention

SHORT = 16  # tokens of a measured sequence, at most; the second is half as long
BOUND = 3  # times what layers read and write: norms, gates and activations between them
LOGIT_COPIES = 5  # float32 tensors of the logits' size that a loss holds at once, logits included


@dataclass(frozen=True)
class MetaPass:
    """What one forward pass over a batch keeps for its backward pass, and what it costs.

    kept: {layer: bytes that autograd keeps from its output on}. logits: bytes of the logits and of
    what the loss holds. flops: of the pass. how: "meta", "measured" or "bound". inputs: {layer:
    (which tensor it reads, its bytes, 0 where autograd keeps it)} of the layers of which that is
    known."""

    kept: dict[str, int]
    logits: int
    flops: int
    how: str = "meta"
    inputs: dict[str, tuple[int, int]] = field(default_factory=dict)

    def kept_by(self, layers: Iterable[Layer]) -> int:
        """Bytes that autograd keeps when the backward pass goes down to these layers."""
        return max(self.kept[x.name] for x in layers)

    def waiting(self, layers: Iterable[Layer]) -> int:
        """Bytes of those of these layers' inputs that are known, beside what autograd keeps, each
        tensor once."""
        return sum(dict(self.inputs[x.name] for x in layers if x.name in self.inputs).values())


def one_pass(tracked: Tracked, n: int, s: int, padded: bool = False) -> MetaPass:
    """The `MetaPass` of n sequences of s tokens, by the first way that the model lets itself be
    estimated: `meta_pass`, `measured_pass`, `bound_pass`. padded: some are shorter."""
    for way in (partial(meta_pass, padded=padded), measured_pass):
        try:
            return way(tracked, n, s)
        except Exception:  # noqa: BLE001 - models raise what they like where nothing is computed
            continue
    return bound_pass(tracked, n, s)


def meta_pass(tracked: Tracked, n: int, s: int, padded: bool = False) -> MetaPass:
    """The `MetaPass` of n sequences of s tokens, padded or not, on the meta device."""
    model = on_meta(tracked.model)

    def run():
        return model(input_ids=torch.zeros(n, s, dtype=torch.long, device="meta")).logits

    with fused_attention(padded):
        kept, inputs, logits, flops = watched(model, tracked.layers, run)
    return MetaPass(kept, _logit_bytes(logits), flops, inputs=inputs)


def measured_pass(tracked: Tracked, n: int, s: int) -> MetaPass:
    """The `MetaPass` of n sequences of s tokens, from two passes of the model itself over one
    sequence of up to `SHORT` tokens.

    What grows with the length and with its square is told apart by the two, and both grow with n.
    The arithmetic is without that of fused attention.
    """
    model, long = tracked.model, max(2, min(s, SHORT, int(min(limits(tracked.model)[1], SHORT))))
    if next(model.parameters()).is_meta:
        raise ValueError("a model without numbers cannot be run")
    short = long // 2

    def measured(length):
        with frozen(model):
            return watched(model, tracked.layers, lambda: logits(model, _sequence(model, length)))

    (few, _, _, few_flops), (many, _, shape, many_flops) = measured(short), measured(long)

    def grown(x, y):
        square = max(0.0, (y - x * long / short) / (long * (long - short)))
        return int(n * (max(0.0, y / long - square * long) * s + square * s * s))

    kept = {name: grown(few[name], many[name]) for name in many}
    size = _logit_bytes(shape) * n * (s / long if shape.dim() == 3 else 1)
    return MetaPass(kept, int(size), grown(few_flops, many_flops), "measured")


def _sequence(model, length):
    """A sequence that any classifier reads: it ends in the id that it may look for, not in its
    padding."""
    config = text_config(model)
    pad, end = (getattr(config, x, None) for x in ("pad_token_id", "eos_token_id"))
    known = isinstance(end, int) and end != pad and end < limits(model)[0]
    end = end if known else int(pad == 0)
    row = torch.full((1, length), int(pad == 0), dtype=torch.long)
    row[0, -1] = end
    batch = Batch(torch.zeros(1, dtype=torch.long), row, torch.ones_like(row), row)
    return batch.to(next(model.parameters()).device)


def bound_pass(tracked: Tracked, n: int, s: int) -> MetaPass:
    """The `MetaPass` of n sequences of s tokens by the sizes of the layers alone: for memory an
    upper bound, as if every layer kept `BOUND` times what it reads and writes, and attention its
    scores."""
    config, size = text_config(tracked.model), next(tracked.model.parameters()).element_size()
    heads, depth, width, vocabulary = (
        getattr(config, x, None) or 1
        for x in ("num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size")
    )
    linear = [x for x in tracked.model.modules() if isinstance(x, nn.Linear | Conv1D)]
    sides = sum(sum(x.weight.shape) for x in linear if x.weight.is_floating_point())
    sides += sum(x.in_features + x.out_features for x in tracked.layers if x.expert is not None)
    kept = n * s * (BOUND * size * sides + 2 * max(4, size) * depth * heads * s)
    weights = sum(x for _, x in matrices(tracked.model)) + vocabulary * width
    flops = 2 * n * s * (weights + 2 * depth * width * s)
    logits = n * s * vocabulary * _logit_size(size)
    return MetaPass({x.name: kept for x in tracked.layers}, logits, flops, "bound")


def _logit_bytes(logits):
    return logits.numel() * _logit_size(logits.element_size())


def _logit_size(size):
    """Bytes of one logit; half-precision ones are there beside their copy in float32."""
    return max(4, size) * LOGIT_COPIES + (size if size < 4 else 0)


def watched(
    model: nn.Module, layers: Iterable[Layer], run: Callable[[], Tensor]
) -> tuple[dict[str, int], dict[str, tuple[int, int]], Tensor, int]:
    """({layer: bytes kept from its output on}, `MetaPass.inputs`, logits, FLOP) of run(), one
    forward pass.

    Every activation asks for a gradient here, wherever the first tracked layer is. Else what is
    counted for a layer would depend on the others: a product keeps both of its factors only if both
    ask for one, as the two halves of a gated MLP do. A layer that is not called keeps all.
    """
    layers = list(layers)
    kept, modules, starts = _Kept(), dict(model.named_modules()), {x.name: 0 for x in layers}
    read: dict[str, Tensor] = {}  # held on to, as else another tensor takes its place

    def starting(name):
        def hook(module, args, *_):
            starts[name] = len(kept.saved)
            if args and isinstance(args[0], Tensor):
                read[name] = args[0].detach()

        return hook

    handles = [x.register_forward_hook(_asking) for x in modules.values() if x._parameters]
    for x in layers:
        module = modules[x.module]
        within = x.expert is not None  # what the experts keep among themselves is before their end
        add = module.register_forward_pre_hook if within else module.register_forward_hook
        handles.append(add(starting(x.name)))
    try:
        with kept.watching(model), FlopCounterMode(display=False) as flops, torch.enable_grad():
            logits = run()
    finally:
        for handle in handles:
            handle.remove()
    bytes_from = kept.bytes_from()
    found = {name: bytes_from[start] for name, start in starts.items()}
    return found, _inputs(layers, read, kept), logits.detach(), flops.get_total_flops()


def _inputs(layers, read, kept):
    """`MetaPass.inputs`, without experts."""
    saved, found = {storage for storage, _ in kept.saved}, {}
    for name in {x.name for x in layers if x.expert is None} & set(read):
        storage = read[name].untyped_storage()
        found[name] = storage._cdata, 0 if storage._cdata in saved else read[name].nbytes
    return found


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
