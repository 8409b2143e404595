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

from msif.core.backward import frozen
from msif.core.data import Batch, collate
from msif.core.data import Sequence as Row
from msif.core.layers import Tracked
from msif.core.models import logits
from msif.core.objectives import Objective
from msif.core.outputs import median_difference, sequence_logits, tolerances
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


def asked() -> bool:
    """Are batches looked at now?"""
    return _asked[0]


def apart(model: nn.Module, rows: list[Row]) -> float | None:
    """How far the logits of a batch's last row are from what they are alone; None if they are the
    same, and the batch is not looked at again."""
    with timed(model), frozen(model):
        beside, (alone,) = sequence_logits(model, rows)[-1], sequence_logits(model, rows[-1:])
        if (found := median_difference(beside, alone)) > _most(model):
            return found
    _passed.setdefault(model, set()).add(_key(rows))
    return None


def looked_at(groups: list[list[int]]) -> dict[int, int]:
    """{number of a batch: the row of it that is read again}, of the batches of a pass."""
    sizes = [len(x) for x in groups]
    if not _asked[0] or sum(sizes) < LEAST:
        return {}
    apart = -(-EVERY // max(sizes))
    chosen = {*range(0, len(groups), apart), len(groups) - 1}
    return {n: sizes[n] - 1 - n // apart % sizes[n] for n in sorted(chosen) if sizes[n] > 1}


def audited(
    tracked: Tracked,
    rows: list[Row],
    row: int,
    objectives: list[Objective],
    advice: str = "with batch_size=1 every sequence has a batch of its own",
) -> list[Objective]:
    """The objectives of a batch of these rows; the first raises ValueError, with some advice, where
    one row's logits are not what they are alone. The model must be `frozen`."""
    model, x = tracked.model, rows[row]
    key = _key(rows)
    if key in (passed := _passed.setdefault(model, set())):
        return objectives
    with timed(model), torch.no_grad():
        due = [logits(model, collate([x]).to(next(model.parameters()).device))[0]]

    def first(z: Tensor, batch: Batch) -> Tensor:
        if due:
            alone = due.pop()
            with timed(model), torch.no_grad():
                found = median_difference(z[row][: len(alone)] if z.dim() == 3 else z[row], alone)
            if found > _most(model):
                raise ValueError(
                    f"sequence {x.index} has other logits in its batch of {len(rows)} than alone "
                    f"(by {found:.1%}): what {type(model).__name__} computes for it depends on "
                    f"those beside it; {advice}"
                )
            passed.add(key)
        return objectives[0](z, batch)

    return [first, *objectives[1:]]


def _key(rows):
    return hash(tuple(x.input_ids for x in rows))


def _most(model):
    """The difference that rounding explains."""
    return 3 * tolerances(model)[0]
