"""What a model says of a sequence, and whether that depends on anything but the sequence."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from msif.core.data import Sequence, collate
from msif.core.models import logits

LOOKED_AT = 4  # sequences of a batch


@torch.no_grad()
def sequence_logits(model: nn.Module, rows: list[Sequence]) -> list[Tensor]:
    """Each sequence's logits, read in one batch: (s, V), or (C,) of a classifier.

    In at least float32, without those of padding.
    """
    batch = collate(rows).to(next(model.parameters()).device)
    z = logits(model, batch)
    lengths = [len(x.input_ids) for x in rows]
    own = [x[:s] if z.dim() == 3 else x for x, s in zip(z, lengths)]
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in own]


def difference(x: Tensor, y: Tensor) -> float:
    """‖x − y‖ over ‖y‖, without what all words have in common; masked words (−∞) count as 0."""
    x, y = (z.nan_to_num(posinf=0, neginf=0) for z in (x, y))
    spread = y - y.mean(-1, keepdim=True) if y.shape[-1] > 1 else y
    error, size = (x - y).norm().item(), spread.norm().item()
    return error / size if size else 0.0 if not error else math.inf


def beside_others(model: nn.Module, batch: list[Sequence]) -> float:
    """How far the logits of some of a batch's sequences are from those of each one alone: the
    largest `difference`."""
    step = -(-len(batch) // LOOKED_AT)
    some = sorted({*range(0, len(batch), step), len(batch) - 1})
    together = sequence_logits(model, batch)
    return max(difference(together[n], sequence_logits(model, [batch[n]])[0]) for n in some)


@contextmanager
def random_numbers_watched() -> Iterator[list[str]]:
    """After the block, the list says whose random numbers were drawn in it."""
    drawn: list[str] = []
    before = torch.get_rng_state(), random.getstate()
    yield drawn
    if not torch.equal(before[0], torch.get_rng_state()):
        drawn.append("torch's")
    if before[1] != random.getstate():
        drawn.append("Python's")
