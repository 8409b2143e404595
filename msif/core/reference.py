"""Captured gradients beside those that autograd puts on the weights.

Both are of one batch of a few short rows: the forward passes are alike, so nothing but rounding may
differ. The scalar is a fixed combination of all logits, so that no label and no loss hides a
position. Of the sequences, the captured gradients are added with weights 1, 2, 4, … (which round
nothing), and autograd differentiates the same sum of their scalars: one backward pass, in which
none can be taken for another.
"""

import math
from collections import defaultdict
from contextlib import contextmanager

import torch
from torch import Tensor

from msif.core.backward import backpropagate, inputs_copied
from msif.core.data import Batch, Sequence, collate
from msif.core.experts import followed
from msif.core.layers import Tracked, has_bias, matrix, own_parameters
from msif.core.models import logits
from msif.core.products import sequence_gradient


def gradient_differences(tracked: Tracked, sequences: list[Sequence]) -> dict[str, float]:
    """{layer: ‖D − D′‖ / ‖D′‖, D captured, D′ autograd's}, of the batch of these sequences.

    Where a layer's D′ is nearly 0, over a thousandth of the largest of any layer. The model must be
    `frozen`, and its `backward.overwritten` inputs known. No weight gradient is kept: each is
    compared as it comes. Raises as `backpropagate`.
    """
    if not tracked.layers:
        return {}
    seen = {}

    def keep(layer, a, g, draw):
        seen[layer.name] = a, g

    batch = collate(sequences).to(next(tracked.model.parameters()).device)
    backpropagate(tracked, batch, [_probe], keep)
    compared = _Compared(tracked, seen)
    with compared.watching(), inputs_copied(tracked), _as_captured(tracked), torch.enable_grad():
        scalars = _probe(logits(tracked.model, batch), batch)
        if scalars.requires_grad:
            (scalars @ _weights(scalars)).backward()
        compared.finish()
    return compared.differences()


@torch.no_grad()
def precisions(tracked: Tracked, sequences: list[Sequence]) -> dict[str, torch.dtype]:
    """{layer: what it computes in}, the lower of its weight's precision and its output's, as under
    autocast; of experts, their weight's. The model must be `frozen`."""
    number = tracked.model.get_parameter
    found = {x.name: number(x.parameter).dtype for x in tracked.layers}

    def seen(layer):
        def hook(module, args, output):
            found[layer.name] = min(found[layer.name], output.dtype, key=lambda x: x.itemsize)

        return hook

    plain = [x for x in tracked.layers if x.expert is None]
    handles = [
        tracked.model.get_submodule(x.name).register_forward_hook(seen(x), prepend=True)
        for x in plain
    ]
    try:
        logits(tracked.model, collate(sequences).to(next(tracked.model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _as_captured(tracked):
    """In half precision, experts computed one after the other here too: rounding alone can change
    which of them a position chooses."""
    half = next(tracked.model.parameters()).dtype in (torch.bfloat16, torch.float16)
    fused = [x for x in tracked.layers if half and x.expert is not None]
    return followed(tracked.model, fused, lambda layer, a, output, rows: output)


def _probe(z: Tensor, batch: Batch) -> Tensor:
    """(n,): a fixed combination of a sequence's logits, of every word at every position."""
    z = z.to(torch.promote_types(z.dtype, torch.float32)).nan_to_num(posinf=0, neginf=0)
    numbers = [torch.arange(1, size + 1, dtype=torch.float64) for size in z.shape[1:]]
    u = torch.sin(numbers[0][:, None] * numbers[1] if z.dim() == 3 else numbers[0]).to(z)
    if z.dim() == 3:
        z = z * batch.attention_mask.to(z)[..., None]
    return (z * u).flatten(1).sum(1)


def _weights(like):
    return 2.0 ** torch.arange(len(like)).to(like)


class _Compared:
    """Captured gradients beside autograd's, layer by layer as these arrive: none is kept."""

    def __init__(self, tracked, seen):
        self.tracked = tracked
        self.seen = seen
        self.error: dict[str, float] = defaultdict(float)
        self.size: dict[str, float] = defaultdict(float)
        self.met: set[tuple[str, str]] = set()
        self.owned = {}  # {parameter: [(layer, "weight" or "bias")]}
        for layer in tracked.layers:
            for what, name in _parameters(tracked, layer).items():
                self.owned.setdefault(name, []).append((layer, what))

    @contextmanager
    def watching(self):
        """The parameters ask for gradients, which go as soon as they have been compared."""
        parameters = {name: self.tracked.model.get_parameter(name) for name in self.owned}
        before = {name: p.grad for name, p in parameters.items()}
        handles = []
        try:
            for name, p in parameters.items():
                p.grad = None
                p.requires_grad_(True)
                handles.append(p.register_post_accumulate_grad_hook(self._arrived(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, p in parameters.items():
                p.requires_grad_(False)
                p.grad = before[name]

    def _arrived(self, name):
        def arrived(p):
            for layer, what in self.owned[name]:
                self._compare(layer, what, self._of(layer, what, p.grad))
            p.grad = None

        return arrived

    def _of(self, layer, what, gradient):
        """A layer's own part of a parameter's gradient: (o, i), or (o,) of a bias."""
        module = self.tracked.model.get_submodule(layer.module)
        if layer.expert is None:
            return matrix(module, gradient) if what == "weight" else gradient
        mine = gradient[layer.expert]
        return mine.mT if what == "weight" and module.is_transposed else mine

    def _compare(self, layer, what, expected):
        a, g = self.seen[layer.name]
        g = g * _weights(g)[:, None, None]
        a, g = (x.flatten(0, 1)[None] for x in (a, g))
        D = sequence_gradient(a, g, layer.bias)[0]  # (o, i), a bias in its last column
        biased = has_bias(self.tracked.model, layer)
        found = D[:, -1] if what == "bias" else D[:, :-1] if biased else D
        self.met.add((layer.name, what))
        if layer.expert is not None and what == "weight":  # whose inputs may end in a bias's 1
            found = found[:, : self._columns(layer)]
        if expected is not None:
            self.size[layer.name] += expected.square().sum(dtype=torch.float64).item()
            found = found - expected
        self.error[layer.name] += found.square().sum(dtype=torch.float64).item()

    def _columns(self, layer):
        module = self.tracked.model.get_submodule(layer.module)
        return layer.in_features - module.has_bias

    def finish(self):
        """What autograd did not reach has no gradient."""
        for owned in self.owned.values():
            for layer, what in owned:
                if (layer.name, what) not in self.met:
                    self._compare(layer, what, None)

    def differences(self):
        """{layer: ‖D − D′‖ over ‖D′‖}; where a D′ is nearly 0 over the largest of any layer."""
        floor = 1e-6 * max(self.size.values(), default=0.0)
        return {
            name: _root_of_ratio(error, max(self.size[name], floor))
            for name, error in self.error.items()
        }


def _root_of_ratio(error, size):
    return math.sqrt(error / size) if size else 0.0 if not error else math.inf


def _parameters(tracked, layer):
    """{"weight" and "bias": names of the layer's parameters that have a gradient}: packed weights
    have none."""
    number = tracked.model.get_parameter
    names = own_parameters(tracked.model, layer)
    return {what: name for what, name in names.items() if number(name).is_floating_point()}
