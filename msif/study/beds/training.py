"""Pre-training and fine-tuning: AdamW on the loss per sequence, averaged over the batch.

A sequence's loss is the sum of its token losses.
"""

import math
import os
from contextlib import nullcontext
from pathlib import Path
from time import monotonic

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from msif.core.data import NO_LOSS, collate
from msif.core.models import logits
from msif.core.objectives import align

EVERY = 60  # seconds that a kill may cost


def train(
    model,
    sequences,
    *,
    epochs,
    rate,
    batch_size=64,
    warmup=0.1,
    weight_decay=0.01,
    epsilon=1e-8,
    seed=0,
    by_length=False,
    clip=None,
    precision="float32",
    device=None,
    weights=None,
    after_epoch=None,
    state=None,
    title=None,
):
    """Train in place; returns the mean loss of each epoch (nats per sequence).

    rate: learning rate, constant after a linear warm-up over the share `warmup` of all steps.
    epsilon: AdamW's ε, beside the root. by_length: batches of sequences of similar length,
    which saves padding, in random order. clip: the most of the gradient's norm. precision:
    "bfloat16" multiplies matrices in it; weights, loss and optimiser stay float32. device:
    where it trains; by default where the model is. state: a file for model and optimiser,
    written after an epoch where the last writing is `EVERY` seconds ago; a training that finds
    it goes on after that epoch, to the same bits. weights: (N,) factors on the sequences'
    losses (0 leaves one out while batches stay the same), or (epochs, N): a sequence of weight
    0 is never computed and counts as loss 0. after_epoch(epoch, model) is called after each
    epoch, counted from 1. Raises FloatingPointError when the loss or a gradient (its parameter
    named) is not finite.
    """
    order, history = torch.Generator().manual_seed(seed), []
    home = model.device
    model.to(device or home)
    weights = torch.ones(len(sequences)) if weights is None else weights
    weights = weights.expand(epochs, len(sequences))
    steps = epochs * math.ceil(len(sequences) / batch_size)
    decay = {"weight_decay": weight_decay, "eps": epsilon}
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, **decay)
    ramp = max(1, round(warmup * steps))

    def warm(step):
        return min(1.0, (step + 1) / ramp)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    if state and Path(state).exists():
        history = _resumed(state, parts, order)
    model.train()
    written = monotonic()
    lengths = torch.tensor([len(s.input_ids) for s in sequences])
    for epoch in tqdm(range(len(history) + 1, epochs + 1), desc=title, disable=title is None):
        total = 0.0
        now = weights[epoch - 1]
        for chosen in batches(lengths, batch_size, by_length, order):
            kept = chosen[now[chosen] != 0]
            batch = [sequences[i] for i in kept]
            settings = now[kept], len(chosen), optimiser, schedule, clip, precision
            total += _step(model, batch, *settings)
        history.append(total / len(sequences))
        if after_epoch:
            after_epoch(epoch, model)
        if state and monotonic() - written >= EVERY:
            keep_state(state, parts, order, history)
            written = monotonic()
    model.eval().to(home)
    return history


def batches(lengths, size, by_length, order):
    """Numbers of the sequences of each batch of an epoch."""
    drawn = torch.randperm(len(lengths), generator=order)
    if not by_length:
        return drawn.split(size)
    found = drawn[lengths[drawn].argsort(stable=True)].split(size)
    return [found[i] for i in torch.randperm(len(found), generator=order)]


def keep_state(file, parts, order, history):
    """Write the state of a training after an epoch, whole or not at all."""
    found = {name: part.state_dict() for name, part in parts.items()}
    partial = Path(f"{file}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found | {"order": order.get_state(), "history": history}, partial)
    os.replace(partial, file)


def _resumed(file, parts, order):
    """Put each part where `keep_state` left it; the history until then."""
    found = torch.load(file, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(found[name])
    order.set_state(found["order"])
    return found["history"]


def _step(model, sequences, weights, size, optimiser, schedule, clip, precision):
    """One step on (1/size) Σ weight · ℓ.

    Without sequences the gradient is 0, and momentum and decay go on.
    """
    optimiser.zero_grad(set_to_none=False)
    total = _backward(model, sequences, weights, size, optimiser, precision) if sequences else 0.0
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    schedule.step()
    return total


def _backward(model, sequences, weights, size, optimiser, precision):
    batch, low = collate(sequences).to(model.device), getattr(torch, precision)
    with nullcontext() if low is torch.float32 else torch.autocast(model.device.type, low):
        losses = _losses(logits(model, batch), batch)
    if not torch.isfinite(losses).all():
        raise FloatingPointError(
            f"the training loss is NaN or infinite at sequences {batch.index.tolist()}: lower the "
            f"learning rate {optimiser.param_groups[0]['lr']:.2g}, or check the data"
        )
    ((losses * weights.to(losses.device)).sum() / size).backward()
    _check_gradients(model, batch)
    return losses.sum().item()


def _losses(logits, batch):
    """ℓ of each sequence (n,), by torch's own cross-entropy, as others train; `objectives.loss` has
    more digits where a model is sure."""
    z, y = align(logits, batch.labels)
    each = cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none", ignore_index=NO_LOSS)
    return each.view_as(y).sum(1)


def _check_gradients(model, batch):
    for name, p in model.named_parameters():
        if p.grad is not None and not torch.isfinite(p.grad.sum()):
            raise FloatingPointError(
                f"the gradient of {name} is NaN or infinite at sequences {batch.index.tolist()}: "
                f"lower the learning rate, or train in float32"
            )
