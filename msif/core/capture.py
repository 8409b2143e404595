"""Layer inputs a and output gradients g of tracked layers, without forming a weight gradient.

For a layer with weight W (out, in) and sequence z, the gradient of any scalar is
D_z = Σ_t g_t a_tᵀ (out, in): a_t is the layer's input at position t, to which a 1 is understood to
be appended when the layer has a bias; g_t is the gradient with respect to its output. Index
letters: n sequences, s positions, o outputs, i inputs (bias included in D), q queries.

Gradients are dictionaries {layer name: (n, o, i)}, in at least float32.
"""

from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from msif.core import checks
from msif.core.audit import audited, looked_at
from msif.core.backward import backpropagate, frozen
from msif.core.data import Batch, Sequence, check, collate, grouped
from msif.core.layers import Layer, Tracked, Vectors
from msif.core.models import classes, limits
from msif.core.objectives import Objective
from msif.core.products import sequence_gradient
from msif.core.selfcheck import batching

__all__ = ["backpropagate", "frozen", "gradients", "grouped_passes", "groups", "passes"]


def groups(tracked: Tracked, sequences: list[Sequence], batch_size: int) -> list[list[int]]:
    """Positions in `sequences` of each batch.

    Sequences of similar length, the longest first (`data.buckets`): little is padded, and a batch
    that is too large for the memory is the first. Of equal length, or one by one, where the model
    wants that (`selfcheck.batching`, which is asked here). Raises ValueError, before anything runs,
    for a sequence that the model cannot read (`data.check`) and as `selfcheck.examine`.
    """
    check(sequences, *limits(tracked.model), classes(tracked.model))
    batch_size = checks.whole("batch size", batch_size)
    return grouped(sequences, batch_size, batching(tracked, sequences, batch_size))


def grouped_passes(
    tracked: Tracked,
    sequences: list[Sequence],
    objectives: list[Objective],
    batch_size: int,
    consume: Callable[[Layer, Tensor, Tensor, int, Batch, list[int]], object],
    title: str | None = None,
) -> None:
    """`passes` with where the batch's sequences stand in `sequences` as one more argument."""
    batches = groups(tracked, sequences, batch_size)
    again = looked_at(batches)
    with frozen(tracked.model):
        for number, group in enumerate(tqdm(batches, desc=title, disable=title is None)):
            rows = [sequences[n] for n in group]
            batch, scalars = collate(rows), objectives
            if number in again:
                scalars = audited(tracked, rows, again[number], objectives)

            def consume_here(layer, a, g, draw):
                consume(layer, a, g, draw, batch, group)

            backpropagate(tracked, batch, scalars, consume_here)


def passes(
    tracked: Tracked,
    sequences: list[Sequence],
    objectives: list[Objective],
    batch_size: int,
    consume: Callable[[Layer, Tensor, Tensor, int, Batch], object],
    title: str | None = None,
) -> None:
    """`backpropagate` over all sequences in `groups`: consume(layer, a, g, draw, batch).

    title: of the progress bar (None: silent). Raises as `groups` and `backpropagate`.
    """

    def consume_batch(layer, a, g, draw, batch, group):
        consume(layer, a, g, draw, batch)

    grouped_passes(tracked, sequences, objectives, batch_size, consume_batch, title)


def gradients(
    tracked: Tracked, sequences: list[Sequence], objective: Objective, batch_size: int = 32
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
