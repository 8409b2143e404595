"""What a model says of a sequence, and whether that depends on anything but the sequence."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from msif.core.data import Sequence, collate
from msif.core.models import logits

# Relative differences that rounding explains: of logits in batches of another shape, of logits in
# batches of one shape, of gradients. Half precision hides faults below these.
TOLERANCES = {
    torch.float64: (1e-6, 1e-8, 1e-6),
    torch.float32: (1e-3, 1e-4, 1e-3),
    torch.bfloat16: (0.1, 0.05, 0.05),
    torch.float16: (0.1, 0.05, 0.05),
}


def tolerances(model: nn.Module) -> tuple[float, float, float]:
    """`TOLERANCES` of the lowest precision of the model's matrices, without embeddings: looking up
    rounds nothing."""
    modules = (x for x in model.modules() if not isinstance(x, nn.Embedding))
    found = {p.dtype for x in modules for p in x.parameters(recurse=False) if p.dim() > 1}
    known = found & TOLERANCES.keys()
    return TOLERANCES[min(known, key=lambda x: x.itemsize, default=torch.float32)]


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
    error, size = (x - y).norm().item(), _spread(y).norm().item()
    return error / size if size else 0.0 if not error else math.inf


def median_difference(x: Tensor, y: Tensor) -> float:
    """‖x − y‖ of the median position over ‖y‖ of a typical one, without what all words share.

    The median: at a near tie, a mixture's router may choose another expert for one position when
    the batch has another shape.
    """
    both = torch.promote_types(x.dtype, torch.float32)
    x, y = (z.to(both).nan_to_num(posinf=0, neginf=0) for z in (x, y))
    errors, sizes = (z.reshape(-1, z.shape[-1]).norm(dim=1) for z in (x - y, _spread(y)))
    typical = sizes.square().mean().sqrt().item()
    return errors.median().item() / typical if typical else float(errors.any())


def _spread(y):
    return y - y.mean(-1, keepdim=True) if y.shape[-1] > 1 else y


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
