"""One batch forward and backward, watched: inputs a and output gradients g of the tracked layers.

What a layer read is kept as it was when it read it, whatever the model writes into it later; and a
layer that a batch does not run, or that its loss does not reach, is refused by name: nothing is
known of its gradient then. Index letters as in `msif.core.capture`.
"""

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from msif.core import experts
from msif.core.data import Batch
from msif.core.layers import Layer, Tracked
from msif.core.models import logits
from msif.core.objectives import Objective

# Layers whose input a model changes in place after they have read it, as found so far.
_overwritten: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """No parameter asks for a gradient inside, and no dropout.

    So the backward pass carries activation gradients alone. Each module's own mode (train or eval)
    and each parameter's own wish come back.
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    training = [module for module in model.modules() if module.training]
    model.requires_grad_(False).eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True
        for p in wanted:
            p.requires_grad_(True)


def backpropagate(
    tracked: Tracked,
    batch: Batch,
    objectives: list[Objective],
    consume: Callable[[Layer, Tensor, Tensor, int], object],
) -> None:
    """Run one batch forward once, and backward once per objective.

    objectives: functions of (logits, batch) giving (n,). consume(layer, a, g, draw) is called for
    each tracked layer as its gradient arrives (last layer first), exactly once per objective: a
    (n, s, inputs without the bias), g (n, s, o), draw the objective's number. The model must be
    `frozen`. Raises FloatingPointError naming what is not finite; ValueError for a layer that runs
    twice, or not at all, or that the loss does not depend on, or that runs on anything but
    sequences or their positions, or on other sizes than its own.

    A model that changes a layer's input in place is run forward twice the first time.
    """
    batch = batch.to(next(tracked.model.parameters()).device)
    copied = _overwritten.setdefault(tracked.model, set())
    watch = _Watch(tracked, batch, consume, copied)
    with torch.enable_grad(), watch.hooked():
        predicted = logits(tracked.model, batch)
        if changed := watch.changed():
            copied |= changed
            watch.inputs.clear()
            predicted = logits(tracked.model, batch)
        watch.all_of(watch.inputs, "{} did not run")
        watch.forward = False
        for draw, objective in enumerate(objectives):
            scalar = objective(predicted, batch).sum()
            _finite(scalar, "the loss", batch)
            watch.draw, watch.arrived = draw, set()
            if scalar.requires_grad:
                scalar.backward(retain_graph=draw + 1 < len(objectives))
            watch.rest_of_experts()
            watch.all_of(watch.arrived, "no gradient reaches {}")


@contextmanager
def overwritten(tracked: Tracked) -> Iterator[None]:
    """Find the layers whose input the model changes after they have read it, by any means, in a
    forward pass that runs inside.

    `backpropagate` sees by itself what autograd counts as a change, and copies the inputs of those.
    """
    kept = {}

    def keep(layer, a):
        kept[layer.name] = a, a.clone()

    with _with_inputs(tracked, tracked.layers, keep):
        yield
    changed = {name for name, (a, before) in kept.items() if not torch.equal(a, before)}
    _overwritten.setdefault(tracked.model, set()).update(changed)


@contextmanager
def inputs_copied(tracked: Tracked) -> Iterator[None]:
    """Layers whose input the model changes read a copy, so that autograd keeps what they read."""
    copied = _overwritten.get(tracked.model, set())
    layers = [x for x in tracked.layers if x.name in copied]
    with _with_inputs(tracked, layers, lambda layer, a: a.clone()):
        yield


@contextmanager
def _with_inputs(tracked, layers, take):
    """take(layer, input) as each of the layers is called; what it returns is read instead."""

    def hook(layer):
        def before(module, args, kwargs):
            found = take(layer, args[0] if args else next(iter(kwargs.values())))
            if found is None:
                return None
            return ((found, *args[1:]), kwargs) if args else ((), {next(iter(kwargs)): found})

        return before

    handles = [
        tracked.model.get_submodule(x.name).register_forward_pre_hook(hook(x), with_kwargs=True)
        for x in layers
        if x.expert is None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """The tracked layers during one batch.

    copied: names of layers whose input is copied, as the model will write into it. inputs: {layer:
    (its input, the input's version)}. arrived: layers whose gradient of objective `draw` has come.
    """

    def __init__(self, tracked, batch, consume, copied):
        self.tracked = tracked
        self.batch = batch
        self.consume = consume
        self.copied = copied
        self.inputs: dict[str, tuple[Tensor, int]] = {}
        self.arrived: set[str] = set()
        self.draw = 0
        self.forward = True  # not yet backward

    @contextmanager
    def hooked(self):
        model, modules = self.tracked.model, dict(self.tracked.model.named_modules())
        handles = [
            modules[x.name].register_forward_hook(self._hook(x), prepend=True, with_kwargs=True)
            for x in self.tracked.layers
            if x.expert is None
        ]
        fused = [x for x in self.tracked.layers if x.expert is not None]
        try:
            with experts.followed(model, fused, self._expert_ran):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def changed(self):
        """Names of the layers whose input is no longer what they read."""
        return {name for name, (a, version) in self.inputs.items() if a._version != version}

    def all_of(self, found, what):
        """ValueError unless every tracked layer is among those found."""
        missing = [x.name for x in self.tracked.layers if x.name not in found]
        if missing:
            raise ValueError(
                f"{what.format(_some(missing))} in the batch of sequences "
                f"{_some(sorted(self.batch.index.tolist()))}: weights that are used without "
                f"calling their layer, or for some sequences alone, cannot be tracked, nor those "
                f"that the loss does not depend on; leave them out by a "
                f"pattern{pattern_without(self.tracked, missing)}"
            )

    def rest_of_experts(self):
        """Consume the gradients of experts that nothing in this batch chose: they are zero."""
        for layer in self.tracked.layers:
            a = self.inputs[layer.name][0]
            if layer.expert is not None and not len(a):
                shape, dtype = (
                    (len(self.batch.index), 1),
                    torch.promote_types(a.dtype, torch.float32),
                )
                self.arrived.add(layer.name)
                zeros = (
                    a.new_zeros(*shape, d, dtype=dtype) for d in (a.shape[1], layer.out_features)
                )
                self.consume(layer, *zeros, self.draw)

    def _hook(self, layer):
        def hook(module, args, kwargs, output):
            if not isinstance(output, Tensor):
                kind = layer.name.rpartition(".")[2]
                alike = [x for x in self.tracked.names if x.rpartition(".")[2] == kind]
                raise ValueError(
                    f"{layer.name} gives a {type(output).__name__}, not its product alone: leave "
                    f"it out of the tracked layers by a "
                    f"pattern{pattern_without(self.tracked, alike)}"
                )
            a, mask = _input(layer, args, kwargs), self.batch.attention_mask.to(output.device)
            _sizes(layer, a, output, mask)
            return self._ran(layer, a, output, lambda x: _sequence_form(x, mask))

        return hook

    def _expert_ran(self, layer, a, output, rows):
        mask = self.batch.attention_mask.to(output.device)
        if len(rows) and (rows.max() >= mask.numel() or (rows.diff() <= 0).any()):
            raise ValueError(
                f"{layer.name} reads positions other than those of a batch of {tuple(mask.shape)}, "
                f"each once; leave it out of the tracked layers by a pattern"
            )

        def all_positions(x):
            x = x.new_zeros(mask.numel(), x.shape[1]).index_copy(0, rows, x)
            return _sequence_form(x.unflatten(0, mask.shape), mask)

        return self._ran(layer, a.detach(), output, all_positions)

    def _ran(self, layer, a, output, form):
        """Watch a layer's input and output; form: of both, to (n, s, d). What takes the output's
        place."""
        first = not output.requires_grad
        if not self.forward:  # recomputed by a checkpoint, where nothing may be another than before
            return output.requires_grad_().clone() if first else output
        if layer.name in self.inputs:
            raise ValueError(
                f"{layer.name} runs more than once per forward pass: its weights are shared "
                f"over depth; leave it out of the tracked layers by a pattern"
            )
        total = output.detach().sum(dtype=torch.promote_types(output.dtype, torch.float32))
        _finite(total, f"the output of {layer.name}", self.batch)
        a = a.clone() if layer.name in self.copied else a
        self.inputs[layer.name] = a, a._version
        watched = output.requires_grad_() if first else _unwritten(output)
        watched.register_hook(self._arrived(layer, a, form, output.shape))
        return output.clone() if first else output  # a leaf could not be written to in place

    def _arrived(self, layer, a, form, shape):
        def arrived(g):
            if not len(a):  # see `rest_of_experts`
                return
            if a._version != self.inputs[layer.name][1]:
                raise RuntimeError(f"the input of {layer.name} changed during the backward pass")
            self.arrived.add(layer.name)
            g = form(g.view(shape))
            _finite(g.sum(), f"the gradient at {layer.name}", self.batch)
            self.consume(layer, form(a), g, self.draw)

        return arrived


def _unwritten(output):
    """What a gradient hook on the output belongs on, as the model may write into the output.

    A tensor that is written to keeps its hooks for what it was; a view (a `Linear` with a bias
    gives one) does not, but what it views does.
    """
    base = output._base
    same = base is not None and base.numel() == output.numel()
    return base if same and base.is_contiguous() and output.is_contiguous() else output


def _input(layer, args, kwargs):
    """What a layer was called with, detached, also where it was called by keyword."""
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if len(given) != 1:
        raise ValueError(
            f"{layer.name} is called with {len(given)} tensors: expected its input alone; leave it "
            f"out of the tracked layers by a pattern"
        )
    return given[0].detach()


def _sizes(layer, a, output, mask):
    """ValueError unless a layer runs on one row per sequence or position, and on its own sizes."""
    found, expected = (a.shape[-1], output.shape[-1]), (layer.in_features, layer.out_features)
    if found != expected:
        raise ValueError(
            f"{layer.name} has {found} inputs and outputs; it was tracked with {expected}: the "
            f"model was changed since (resized embeddings or head?); track its layers anew"
        )
    rows = output.shape[:-1]
    single = len(rows) > 2 and [d for d in rows if d > 1] == [d for d in mask.shape if d > 1]
    known = single or rows in (mask.shape, mask.shape[:1], (mask.numel(),))
    if not known or a.shape[:-1] != rows:
        raise ValueError(
            f"{layer.name} gives an output of shape {tuple(output.shape)}, which is not one row "
            f"per sequence or position of a batch of {tuple(mask.shape)}; leave it out of the "
            f"tracked layers by a pattern"
        )


def _sequence_form(x, mask):
    """x as (n, s, d) in at least float32, zero where padded.

    A pooled (n, d) input is one position; (n·s, d) is unflattened; (n, 1, s, d) loses its 1.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x.reshape(*mask.shape, -1) if x.dim() > 3 else x
    if x.dim() == 2 and len(x) == mask.numel():
        x = x.unflatten(0, mask.shape)
    if x.dim() == 2:
        return x[:, None]
    return x if mask.all() else x * mask[..., None].to(x)


def _finite(value, what, batch):
    if not torch.isfinite(value).all():
        raise FloatingPointError(
            f"{what} is NaN or infinite in the batch of sequences {sorted(batch.index.tolist())}: "
            f"check the model's weights, its precision (float16 overflows; try bfloat16 or "
            f"float32) and these sequences"
        )


def _some(things, count=4):
    """The first few of a list, as text."""
    return ", ".join(map(str, things[:count])) + ", …" * (len(things) > count)


def pattern_without(tracked: Tracked, names: list[str]) -> str:
    """The end of a message: a pattern of the other tracked layers; nothing where it would be long,
    or would not leave these out."""
    rest = [x for x in tracked.names if x not in names]
    named = {re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(x)) for x in rest}
    kinds = sorted({re.sub(r"\\\[\d+\\\]$", r"\\[\\d+\\]", x) for x in named})
    pattern = "^(" + "|".join(kinds) + ")$"
    if not rest or len(kinds) > 12 or any(re.search(pattern, x) for x in names):
        return ""
    return f", for instance pattern={pattern!r}"
