"""A look now and then, while a run goes on: is a sequence in its batch what it is alone?

`selfcheck` tries a model on short pieces, before it runs. What a batch switches as a whole (a layer
that is left out when all of it is easy, a part that one word anywhere in it turns on) may show in
whole batches of the data alone. So of a pass's first batch and its last, and of about one batch in
`EVERY` sequences between, one sequence is read again by itself: its logits must be those that it
had beside the others, at the median of its positions. Which one depends on the batches alone: a run
that goes on where it was killed looks at the same. A batch that has passed is not looked at again.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from msif.core.data import Batch, collate
from msif.core.data import Sequence as Row
from msif.core.layers import Tracked
from msif.core.models import logits
from msif.core.objectives import Objective
from msif.core.selfcheck import tolerances
from msif.core.spent import timed

EVERY = 500  # sequences
LEAST = 16  # sequences of a pass whose first batch is looked at
_asked = [True]
_passed: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()


@contextmanager
def unaudited() -> Iterator[None]:
    """Nothing is read again inside: for a count of what a method costs without its checks."""
    before, _asked[0] = _asked[0], False
    try:
        yield
    finally:
        _asked[0] = before


def looked_at(groups: list[list[int]]) -> dict[int, int]:
    """{number of a batch: the row of it that is read again}, of the batches of a pass."""
    sizes = [len(x) for x in groups]
    if not _asked[0] or sum(sizes) < LEAST:
        return {}
    apart = -(-EVERY // max(sizes))
    chosen = {*range(0, len(groups), apart), len(groups) - 1}
    return {n: sizes[n] - 1 - n // apart % sizes[n] for n in sorted(chosen) if sizes[n] > 1}


def audited(
    tracked: Tracked, rows: list[Row], row: int, objectives: list[Objective]
) -> list[Objective]:
    """The objectives of a batch of these rows; the first raises ValueError where one row's logits
    are not what they are alone. The model must be `frozen`."""
    model, x = tracked.model, rows[row]
    key = hash(tuple(x.input_ids for x in rows))
    if key in (passed := _passed.setdefault(model, set())):
        return objectives
    with timed(model), torch.no_grad():
        due = [logits(model, collate([x]).to(next(model.parameters()).device))[0]]

    def first(z: Tensor, batch: Batch) -> Tensor:
        if due:
            alone = due.pop()
            with timed(model), torch.no_grad():
                found = _difference(z[row][: len(alone)] if z.dim() == 3 else z[row], alone)
            if found > 3 * tolerances(model)[0]:
                raise ValueError(
                    f"sequence {x.index} has other logits in its batch of {len(rows)} than alone "
                    f"(by {found:.1%}): what {type(model).__name__} computes for it depends on "
                    f"those beside it; with batch_size=1 every sequence has a batch of its own"
                )
            passed.add(key)
        return objectives[0](z, batch)

    return [first, *objectives[1:]]


def _difference(x, y):
    """‖x − y‖ of the median position over ‖y‖ of a typical one, without what all words share.

    The median: at a near tie, a mixture's router may choose another expert for one position when
    the batch has another shape.
    """
    both = torch.promote_types(x.dtype, torch.float32)
    x, y = (z.to(both).nan_to_num(posinf=0, neginf=0) for z in (x, y))
    spread = y - y.mean(-1, keepdim=True) if y.shape[-1] > 1 else y
    errors, sizes = (z.reshape(-1, z.shape[-1]).norm(dim=1) for z in (x - y, spread))
    typical = sizes.square().mean().sqrt().item()
    return errors.median().item() / typical if typical else float(errors.any())
