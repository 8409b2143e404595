"""Layer inputs a and output gradients g of tracked layers, without ever forming a weight gradient of the model.

For a layer with weight W (out, in) and sequence z, the gradient of any scalar is D_z = Σ_t g_t a_tᵀ (out, in): a_t is the
layer's input at position t, to which a 1 is understood to be appended when the layer has a bias; g_t is the gradient with
respect to its output. Index letters: n sequences, s positions, o outputs, i inputs (bias included in D), q queries.

Gradients are dictionaries {layer name: (n, o, i)}, in at least float32.
"""

from contextlib import contextmanager

import torch
from tqdm import tqdm

from msif.core.data import buckets, check, collate
from msif.core.models import limits, logits
from msif.core.products import sequence_gradient


@contextmanager
def frozen(model):
    """No parameter asks for a gradient inside, so that the backward pass carries activation gradients alone; no dropout."""
    wanted, training = [p for p in model.parameters() if p.requires_grad], model.training
    model.requires_grad_(False).eval()
    try:
        yield model
    finally:
        model.train(training)
        for p in wanted:
            p.requires_grad_(True)


def _sequence_form(x, mask):
    """(n, s, d) in at least float32, zero where padded; a pooled (n, d) input is one position, (n·s, d) is unflattened."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x.unflatten(0, mask.shape) if x.dim() == 2 and len(x) == mask.numel() else x
    return x[:, None] if x.dim() == 2 else x if mask.all() else x * mask[..., None].to(x)


def _sequences(output, mask, name):
    if output.shape[:-1] not in (mask.shape, mask.shape[:1], (mask.numel(),)):
        raise ValueError(
            f"{name} gives an output of shape {tuple(output.shape)}, which is not one row per sequence or position "
            f"of a batch of {tuple(mask.shape)}; leave it out of the tracked layers by a pattern"
        )


def _finite(value, what, batch):
    if not torch.isfinite(value).all():
        raise FloatingPointError(
            f"{what} is NaN or infinite in the batch of sequences {sorted(batch.index.tolist())}: check the model's weights, "
            f"its precision (float16 overflows; try bfloat16 or float32) and these sequences"
        )


def backpropagate(tracked, batch, objectives, consume):
    """Run one batch forward once, and backward once per objective.

    objectives: functions of (logits, batch) giving (n,). consume(layer, a, g, draw) is called for each tracked layer as
    its gradient arrives (last layer first): a (n, s, inputs without the bias), g (n, s, o), draw the objective's number. The model must be
    `frozen`. Raises FloatingPointError naming what is not finite, ValueError for a layer that runs twice,
    or on anything but sequences or their positions.
    """
    modules, batch, draw, handles, seen = (
        dict(tracked.model.named_modules()),
        batch.to(next(tracked.model.parameters()).device),
        0,
        [],
        set(),
    )

    def watch(layer):
        def hook(module, args, output):
            if layer.name in seen:
                raise ValueError(
                    f"{layer.name} runs more than once per forward pass: its weights are shared over depth; "
                    f"leave it out of the tracked layers by a pattern"
                )
            seen.add(layer.name)
            _sequences(output, batch.attention_mask, layer.name)
            _finite(
                output.detach().sum(dtype=torch.promote_types(output.dtype, torch.float32)),
                f"the output of {layer.name}",
                batch,
            )
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


def passes(tracked, sequences, objectives, batch_size, consume, title=None):
    """`backpropagate` over all sequences: consume(layer, a, g, draw, batch). title: of the progress bar (None: silent).

    Batches hold sequences of similar length, the longest first (`data.buckets`), so that little is padded and a batch that
    is too large for the memory is the first. Raises ValueError, before anything runs, for a sequence that the model cannot
    read (`data.check`)."""
    check(sequences, *limits(tracked.model))
    with frozen(tracked.model):
        for group in tqdm(buckets(sequences, batch_size), desc=title, disable=title is None):
            batch = collate([sequences[n] for n in group])
            backpropagate(tracked, batch, objectives, lambda *found: consume(*found, batch))


def gradients(tracked, sequences, objective, batch_size=32):
    """{layer: (n, o, i)}: the gradient of each sequence's own scalar, in the order given."""
    found, places = (
        {},
        {layer.name: iter(buckets(sequences, batch_size)) for layer in tracked.layers},
    )

    def consume(layer, a, g, draw, batch):
        D = sequence_gradient(a, g, layer.bias)
        if layer.name not in found:
            found[layer.name] = D.new_empty(len(sequences), *D.shape[1:])
        found[layer.name][next(places[layer.name])] = D

    passes(tracked, sequences, [objective], batch_size, consume)
    return {layer.name: found[layer.name] for layer in tracked.layers}
