"""One batch forward and backward, watched: inputs a and output gradients g of the tracked layers.

What a layer read is kept as it was when it read it, whatever the model writes into it later; and a
layer that a batch does not run, or that its loss does not reach, is refused by name: nothing is
known of its gradient then. Index letters as in `msif.core.capture`.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from msif.core.data import Batch
from msif.core.layers import Layer, Tracked
from msif.core.models import logits
from msif.core.objectives import Objective
from msif.core.watch import Watch, finite

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

    A model that changes a layer's input in place is run forward twice the first time. One of
    float16 has its gradients scaled on the way, and not where they are consumed.
    """
    batch = batch.to(next(tracked.model.parameters()).device)
    copied = _overwritten.setdefault(tracked.model, set())
    half = any(p.dtype == torch.float16 for p in tracked.model.parameters())
    watch = Watch(tracked, batch, consume, copied)
    with torch.enable_grad(), watch.hooked():
        predicted = logits(tracked.model, batch)
        if changed := watch.changed():
            copied |= changed
            watch.inputs.clear()
            predicted = logits(tracked.model, batch)
        watch.all_of(watch.inputs, "{} did not run")
        watch.forward = False
        for draw, objective in enumerate(objectives):
            top = _at_logits(objective, predicted, batch)
            watch.draw, watch.arrived, watch.scale = draw, set(), None
            if top is not None:
                if half:
                    watch.scale = _to_size_one(top)
                    top = top * watch.scale.view(-1, *[1] * (top.dim() - 1))
                more = draw + 1 < len(objectives)
                predicted.backward(top.to(predicted.dtype), retain_graph=more)
            watch.rest_of_experts()
            watch.all_of(watch.arrived, "no gradient reaches {}")


def _at_logits(objective, predicted, batch):
    """The gradient of the summed objective at the logits, in at least float32; None where nothing
    tracked takes part."""
    wide = torch.promote_types(predicted.dtype, torch.float32)
    z = predicted.detach().to(wide).requires_grad_()
    scalar = objective(z, batch).sum()
    finite(scalar, "the loss", batch)
    if not (scalar.requires_grad and predicted.requires_grad):
        return None
    return torch.autograd.grad(scalar, z)[0]


def _to_size_one(top):
    """The power of two for each row that brings its largest gradient to about 1: (n,).

    float16 holds nothing below 6e-8, and the gradients of sure answers are smaller; rows of a batch
    do not meet in the model, so that what they are multiplied with can be divided out of g."""
    largest = top.flatten(1).abs().amax(1)
    exponent = torch.frexp(largest.where(largest > 0, 1)).exponent
    return torch.ldexp(torch.ones_like(largest), 1 - exponent)


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
