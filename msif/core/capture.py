"""Layer inputs a and output gradients g of tracked layers, without forming a weight gradient.

For a layer with weight W (out, in) and sequence z, the gradient of any scalar is
D_z = Σ_t g_t a_tᵀ (out, in): a_t is the layer's input at position t, to which a 1 is understood to
be appended when the layer has a bias; g_t is the gradient with respect to its output. Index
letters: n sequences, s positions, o outputs, i inputs (bias included in D), q queries.

Gradients are dictionaries {layer name: (n, o, i)}, in at least float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from msif.core.data import Batch, Sequence, buckets, check, collate
from msif.core.layers import Layer, Tracked, Vectors
from msif.core.models import limits, logits
from msif.core.objectives import Objective
from msif.core.products import sequence_gradient


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """No parameter asks for a gradient inside, and no dropout.

    So the backward pass carries activation gradients alone.
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.requires_grad_(False).eval()
    try:
        yield model
    finally:
        model.train(training)
        for p in wanted:
            p.requires_grad_(True)


def _sequence_form(x, mask):
    """x as (n, s, d) in at least float32, zero where padded.

    A pooled (n, d) input is one position; (n·s, d) is unflattened.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.dim() == 2 and len(x) == mask.numel():
        x = x.unflatten(0, mask.shape)
    if x.dim() == 2:
        return x[:, None]
    return x if mask.all() else x * mask[..., None].to(x)


def _sequences(output, mask, name):
    if output.shape[:-1] not in (mask.shape, mask.shape[:1], (mask.numel(),)):
        raise ValueError(
            f"{name} gives an output of shape {tuple(output.shape)}, which is not one row per "
            f"sequence or position of a batch of {tuple(mask.shape)}; leave it out of the tracked "
            f"layers by a pattern"
        )


def _finite(value, what, batch):
    if not torch.isfinite(value).all():
        raise FloatingPointError(
            f"{what} is NaN or infinite in the batch of sequences {sorted(batch.index.tolist())}: "
            f"check the model's weights, its precision (float16 overflows; try bfloat16 or "
            f"float32) and these sequences"
        )


def backpropagate(
    tracked: Tracked,
    batch: Batch,
    objectives: list[Objective],
    consume: Callable[[Layer, Tensor, Tensor, int], object],
) -> None:
    """Run one batch forward once, and backward once per objective.

    objectives: functions of (logits, batch) giving (n,). consume(layer, a, g, draw) is called for
    each tracked layer as its gradient arrives (last layer first): a (n, s, inputs without the
    bias), g (n, s, o), draw the objective's number. The model must be `frozen`. Raises
    FloatingPointError naming what is not finite, ValueError for a layer that runs twice, or on
    anything but sequences or their positions.
    """
    modules = dict(tracked.model.named_modules())
    batch = batch.to(next(tracked.model.parameters()).device)
    handles = []
    seen = set()
    draw = 0

    def watch(layer):
        def hook(module, args, output):
            if layer.name in seen:
                raise ValueError(
                    f"{layer.name} runs more than once per forward pass: its weights are shared "
                    f"over depth; leave it out of the tracked layers by a pattern"
                )
            seen.add(layer.name)
            _sequences(output, batch.attention_mask, layer.name)
            total = output.detach().sum(dtype=torch.promote_types(output.dtype, torch.float32))
            _finite(total, f"the output of {layer.name}", batch)
            a, mask = args[0].detach(), batch.attention_mask.to(output.device)
            output = output if output.requires_grad else output.requires_grad_()

            def arrived(g):
                g = _sequence_form(g, mask)
                _finite(g.sum(), f"the gradient at {layer.name}", batch)
                consume(layer, _sequence_form(a, mask), g, draw)

            output.register_hook(arrived)

        return modules[layer.name].register_forward_hook(hook)

    try:
        handles = [watch(layer) for layer in tracked.layers]
        with torch.enable_grad():
            predicted = logits(tracked.model, batch)
            for draw, objective in enumerate(objectives):
                scalar = objective(predicted, batch).sum()
                _finite(scalar, "the loss", batch)
                scalar.backward(retain_graph=draw + 1 < len(objectives))
    finally:
        for handle in handles:
            handle.remove()


def passes(
    tracked: Tracked,
    sequences: list[Sequence],
    objectives: list[Objective],
    batch_size: int,
    consume: Callable[[Layer, Tensor, Tensor, int, Batch], object],
    title: str | None = None,
) -> None:
    """`backpropagate` over all sequences: consume(layer, a, g, draw, batch).

    title: of the progress bar (None: silent). Batches hold sequences of similar length, the longest
    first (`data.buckets`), so that little is padded and a batch that is too large for the memory is
    the first. Raises ValueError, before anything runs, for a sequence that the model cannot read
    (`data.check`).
    """
    check(sequences, *limits(tracked.model))
    with frozen(tracked.model):
        for group in tqdm(buckets(sequences, batch_size), desc=title, disable=title is None):
            batch = collate([sequences[n] for n in group])

            def consume_here(layer, a, g, draw):
                consume(layer, a, g, draw, batch)

            backpropagate(tracked, batch, objectives, consume_here)


def gradients(
    tracked: Tracked, sequences: list[Sequence], objective: Objective, batch_size: int = 32
) -> Vectors:
    """The gradient of each sequence's own scalar, {layer: (n, o, i)}, in the order given."""
    found: Vectors = {}
    places = {layer.name: iter(buckets(sequences, batch_size)) for layer in tracked.layers}

    def consume(layer, a, g, draw, batch):
        D = sequence_gradient(a, g, layer.bias)
        if layer.name not in found:
            found[layer.name] = D.new_empty(len(sequences), *D.shape[1:])
        found[layer.name][next(places[layer.name])] = D

    passes(tracked, sequences, [objective], batch_size, consume)
    return {layer.name: found[layer.name] for layer in tracked.layers}
