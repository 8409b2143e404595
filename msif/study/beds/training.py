"""Pre-training and fine-tuning: AdamW on the loss per sequence, averaged over the batch.

A sequence's loss is the sum of its token losses.
"""

import math

import torch
from tqdm import tqdm

from msif.core.data import collate
from msif.core.models import logits
from msif.core.objectives import loss


def train(
    model,
    sequences,
    *,
    epochs,
    rate,
    batch_size=64,
    warmup=0.1,
    weight_decay=0.01,
    seed=0,
    weights=None,
    after_epoch=None,
    title=None,
):
    """Train in place; returns the mean loss of each epoch (nats per sequence).

    rate: learning rate, constant after a linear warm-up over the share `warmup` of all steps.
    weights: (N,) factors on the sequences' losses (0 leaves one out while batches stay the same): a
    sequence of weight 0 is never computed and counts as loss 0. after_epoch(epoch, model) is called
    after each epoch, counted from 1. Raises FloatingPointError when the loss or a gradient (its
    parameter named) is not finite.
    """
    order, history = torch.Generator().manual_seed(seed), []
    weights = torch.ones(len(sequences)) if weights is None else weights
    steps = epochs * math.ceil(len(sequences) / batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    ramp = max(1, round(warmup * steps))

    def warm(step):
        return min(1.0, (step + 1) / ramp)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm)
    model.train()
    for epoch in tqdm(range(1, epochs + 1), desc=title, disable=title is None):
        total = 0.0
        for chosen in torch.randperm(len(sequences), generator=order).split(batch_size):
            kept = chosen[weights[chosen] != 0]
            batch = [sequences[i] for i in kept]
            total += _step(model, batch, weights[kept], len(chosen), optimiser, schedule)
        history.append(total / len(sequences))
        if after_epoch:
            after_epoch(epoch, model)
    model.eval()
    return history


def _step(model, sequences, weights, size, optimiser, schedule):
    """One step on (1/size) Σ weight · ℓ.

    Without sequences the gradient is 0, and momentum and decay go on.
    """
    optimiser.zero_grad(set_to_none=False)
    total = _backward(model, sequences, weights, size, optimiser) if sequences else 0.0
    optimiser.step()
    schedule.step()
    return total


def _backward(model, sequences, weights, size, optimiser):
    batch = collate(sequences).to(model.device)
    losses = loss(logits(model, batch), batch)
    if not torch.isfinite(losses).all():
        raise FloatingPointError(
            f"the training loss is NaN or infinite at sequences {batch.index.tolist()}: lower the "
            f"learning rate {optimiser.param_groups[0]['lr']:.2g}, or check the data"
        )
    ((losses * weights.to(losses.device)).sum() / size).backward()
    _check_gradients(model, batch)
    return losses.sum().item()


def _check_gradients(model, batch):
    for name, p in model.named_parameters():
        if p.grad is not None and not torch.isfinite(p.grad.sum()):
            raise FloatingPointError(
                f"the gradient of {name} is NaN or infinite at sequences {batch.index.tolist()}: "
                f"lower the learning rate, or train in float32"
            )
