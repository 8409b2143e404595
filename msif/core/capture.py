"""Layer inputs a and output gradients g of tracked layers, without forming a weight gradient.

For a layer with weight W (out, in) and sequence z, the gradient of any scalar is
D_z = Σ_t g_t a_tᵀ (out, in): a_t is the layer's input at position t, to which a 1 is understood to
be appended when the layer has a bias; g_t is the gradient with respect to its output. Index
letters: n sequences, s positions, o outputs, i inputs (bias included in D), q queries.

Gradients are dictionaries {layer name: (n, o, i)}, in at least float32.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor
from tqdm import tqdm

from msif.core import checks
from msif.core.audit import audited, looked_at
from msif.core.backward import backpropagate, frozen
from msif.core.data import Batch, Sequence, buckets, collate, grouped
from msif.core.layers import Layer, Tracked, Vectors
from msif.core.models import classes, limits
from msif.core.objectives import Objective
from msif.core.pairs import Items, are_pairs, beside, check, rows_of
from msif.core.products import sequence_gradient
from msif.core.selfcheck import batching

__all__ = [
    "audits",
    "backpropagate",
    "frozen",
    "gradients",
    "grouped_passes",
    "groups",
    "mean_gradient",
    "one_batch",
    "passes",
]


def groups(tracked: Tracked, sequences: Items, batch_size: int) -> list[list[int]]:
    """Positions in `sequences` of each batch.

    Sequences of similar length, the longest first (`data.buckets`): little is padded, and a batch
    that is too large for the memory is the first. Of equal length, or one by one, where the model
    wants that (`selfcheck.batching`, which is asked here). Raises ValueError, before anything runs,
    for a sequence that the model cannot read (`pairs.check`), pairs for such a model, and as
    `selfcheck.examine`.
    """
    check(sequences, *limits(tracked.model), classes(tracked.model))
    batch_size = checks.whole("batch size", batch_size)
    if are_pairs(sequences):
        return _of_pairs(tracked, sequences, batch_size)
    sequences = cast(list[Sequence], sequences)
    return grouped(sequences, batch_size, batching(tracked, sequences, batch_size))


def _of_pairs(tracked, pairs, batch_size):
    rows = rows_of(pairs)
    if batching(tracked, rows, 2 * batch_size) != "any":
        raise ValueError(
            f"what {type(tracked.model).__name__} computes for a row depends on those beside it: "
            f"the two rows of a pair, which share a batch, would change each other; preferences "
            f"cannot be traced through it"
        )
    sides = zip(rows, rows[len(pairs) :])
    return buckets([max(x, key=lambda row: len(row.input_ids)) for x in sides], batch_size)


def audits(sequences: Items, batches: list[list[int]]) -> dict[int, int]:
    """{number of a batch: the row of it that `one_batch` is to read again} (`audit.looked_at`)."""
    return looked_at([x * 2 for x in batches] if are_pairs(sequences) else batches)


def one_batch(
    tracked: Tracked,
    sequences: Items,
    objectives: list[Objective],
    consume: Callable[[Layer, Tensor, Tensor, int, Batch], object],
    again: int | None = None,
) -> None:
    """`backpropagate` over one batch: consume(layer, a, g, draw, batch). The model is `frozen`.

    again: a row that is also read by itself, and refused where it is another then (`audit`).

    Of n pairs, the model and the objectives read 2n rows (`pairs.rows_of`), and give n numbers; a,
    g and the batch that are consumed are those of n samples with the positions of both rows.

    Raises ValueError for an objective that gives anything but n numbers, as `backpropagate` and
    `audit.audited`.
    """
    each = rows_of(sequences) if are_pairs(sequences) else cast(list[Sequence], sequences)
    rows = collate(each)
    scalars = [_one_each(x, sequences) for x in objectives]
    if not are_pairs(sequences):
        if again is not None:
            scalars = audited(tracked, each, again, scalars)
        backpropagate(tracked, rows, scalars, partial(_with_batch, consume, rows))
        return
    ids, mask, labels = map(beside, (rows.input_ids, rows.attention_mask, rows.labels))
    batch = Batch(rows.index[: len(sequences)], ids, mask, labels)

    def consume_pairs(layer, a, g, draw):
        consume(layer, beside(a), beside(g), draw, batch)

    if again is not None:
        scalars = audited(tracked, each, again, scalars, "pairs cannot be read through it")
    backpropagate(tracked, rows, scalars, consume_pairs)


def _one_each(objective, items):
    """The objective; ValueError where it gives anything but one number for each of the items: by
    their mean, say, scores would depend on the batches."""
    n, what, expected = len(items), "sequences", "one number each, of its own positions alone"
    if are_pairs(items):
        what, expected = "pairs", "one that reads pairs, such as preferences.DPO's"

    def checked(logits, rows):
        found = objective(logits, rows)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != (n,):
            raise ValueError(
                f"the objective (or measurement) gives {shape} for {n} {what}, not a tensor of "
                f"shape ({n},); expected {expected}"
            )
        return found

    return checked


def _with_batch(consume, batch, *found):
    consume(*found, batch)


def grouped_passes(
    tracked: Tracked,
    sequences: Items,
    objectives: list[Objective],
    batch_size: int,
    consume: Callable[[Layer, Tensor, Tensor, int, Batch, list[int]], object],
    title: str | None = None,
) -> None:
    """`passes` with where the batch's sequences stand in `sequences` as one more argument."""
    batches = groups(tracked, sequences, batch_size)
    again = audits(sequences, batches)
    with frozen(tracked.model):
        for number, group in enumerate(tqdm(batches, desc=title, disable=title is None)):
            rows = [sequences[n] for n in group]

            def consume_here(*found):
                consume(*found, group)

            one_batch(tracked, rows, objectives, consume_here, again.get(number))


def passes(
    tracked: Tracked,
    sequences: Items,
    objectives: list[Objective],
    batch_size: int,
    consume: Callable[[Layer, Tensor, Tensor, int, Batch], object],
    title: str | None = None,
) -> None:
    """`one_batch` over all sequences, or pairs, in `groups`: consume(layer, a, g, draw, batch).

    title: of the progress bar (None: silent). Raises as `groups` and `backpropagate`.
    """

    def consume_batch(layer, a, g, draw, batch, group):
        consume(layer, a, g, draw, batch)

    grouped_passes(tracked, sequences, objectives, batch_size, consume_batch, title)


def gradients(
    tracked: Tracked, sequences: Items, objective: Objective, batch_size: int = 32
) -> Vectors:
    """The gradient of each sequence's own scalar, {layer: (n, o, i)}, in the order given."""
    found: Vectors = {}

    def consume(layer, a, g, draw, batch, group):
        D = sequence_gradient(a, g, layer.bias)
        if layer.name not in found:
            found[layer.name] = D.new_empty(len(sequences), *D.shape[1:])
        found[layer.name][group] = D

    grouped_passes(tracked, sequences, [objective], batch_size, consume)
    return {layer.name: found[layer.name] for layer in tracked.layers}


def mean_gradient(
    tracked: Tracked,
    sequences: Items,
    objective: Objective,
    batch_size: int = 32,
    title: str | None = None,
) -> dict[str, Tensor]:
    """The mean over the sequences of their scalars' gradients: {layer: (o, i)}."""
    total: dict[str, Tensor] = {}

    def consume(layer, a, g, draw, batch):
        D = sequence_gradient(a.flatten(0, 1)[None], g.flatten(0, 1)[None], layer.bias)[0]
        total[layer.name] = total[layer.name] + D if layer.name in total else D.clone()

    passes(tracked, sequences, [objective], batch_size, consume, title)
    return {layer.name: total[layer.name] / len(sequences) for layer in tracked.layers}
