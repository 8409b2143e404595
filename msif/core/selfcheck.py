"""Does the engine see this model's gradients right? Asked of the model itself, on a few short rows.

What cannot be known from a model's code is tried out, once per model, with pieces of its own data
(`msif.core.pieces`):

1. A sequence by itself, and padded beside others up to the longest of the data: the logits are the
   same. Else neighbours change a sequence, and only equally long ones share a batch, or none.
2. The last token changed, of a piece and of the longest sequence: earlier logits stay. Else the
   answer is visible to what predicts it. The last logits change: else they say that very token.
3. The same sequence again, at the end: the same logits, and no random number drawn. Else the model
   remembers, or draws.
4. The gradient of each tracked layer as captured, of a few sequences of one batch and of the rarest
   words of the data, equals the one that autograd puts on the weights, without hooks
   (`msif.core.reference`). Else the layer's rows are not what they are taken for, or its weights
   act elsewhere too.
5. One sequence of the largest batch by itself, where that costs little: its logits are the same.
   Else as in 1.

What other whole batches show, `msif.core.audit` looks for while a run goes on.
"""

import math
import warnings
import weakref
from collections import defaultdict
from dataclasses import dataclass, field, replace

from torch import nn

from msif.core.audit import apart, asked
from msif.core.backward import frozen, overwritten
from msif.core.data import Sequence, grouped
from msif.core.layers import Tracked, refuse_without_gradients
from msif.core.outputs import difference, random_numbers_watched, sequence_logits, tolerances
from msif.core.pieces import LENGTH, Pieces, equally_long, lengthened, other_end, pair
from msif.core.reference import gradient_differences
from msif.core.spent import timed
from msif.core.verdict import Report, refuse, refuse_seeing_later, wrong_layers

FEW = 256  # positions of a largest batch that is looked at beforehand, however little data there is
PAID_BY = 128  # else: times as many tokens as it has, so that it costs a thousandth of a fit
BATCHES = ("any", "equal", "single")
_TOGETHER = {
    "equal": "batches hold equally long sequences alone",
    "single": "each sequence has a batch of its own",
}


@dataclass
class _Known:
    """What has been found out about a model."""

    modules: tuple[int, ...]
    layers: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)  # layers looked at with one sequence a batch
    longest: int = 0
    largest: tuple[int, int] = (0, 0)  # sequences of a batch, and its positions
    batches: str = "any"
    changes: float | None = 0.0
    told: bool = False


_known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def examine(tracked: Tracked, sequences: list[Sequence], batch_size: int = 2) -> Report:
    """Check the engine on this model, with pieces of these sequences, which it can read.

    batch_size: 1 for a model that is to read one sequence at a time; any other is as good as 2.

    It takes three forward passes and two with gradients over a few short rows, one forward pass
    over three times the longest sequence, and, of more data, two with gradients over each piece of
    its rare words (`pieces.TOKENS_PER_PIECE`). Raises ValueError, naming what differs, where scores
    would be wrong: a layer whose gradient is not autograd's, a model that sees later tokens, one
    that remembers earlier sequences; and as `layers.refuse_without_gradients`. A model whose
    sequences depend on their neighbours is no error: see `Report.batches`, which `capture.groups`
    follows.
    """
    model = tracked.model
    refuse_without_gradients(tracked)
    pieces = Pieces(model, sequences)
    with timed(model), frozen(model):
        with random_numbers_watched() as drawn:
            found = _function(tracked, pieces, batch_size > 1)
        alone = "single" if batch_size == 1 else found.batches
        differences: dict[str, float] = defaultdict(float)
        for few in (pair(pieces.rows, alone), *([x] for x in pieces.of_words())):
            for name, difference in gradient_differences(tracked, few).items():
                differences[name] = max(differences[name], difference)
        wrong = wrong_layers(tracked, differences, pieces.rows[-1:])
    found = replace(found, gradients=dict(differences), drawn=drawn)
    refuse(tracked, found, wrong)
    return found


def batching(tracked: Tracked, sequences: list[Sequence], batch_size: int) -> str:
    """Which sequences may share a batch ("any", "equal", "single"), by `examine` if not known.

    The model is examined once for its layers, and again for longer sequences. Raises as `examine`,
    and warns where neighbours matter. Without layers, who reads states or logits alone asks: then
    tokens may see later ones.
    """
    model = tracked.model
    refuse_without_gradients(tracked)
    longest = max(len(x.input_ids) for x in sequences)
    refuse_growing_positions(model, longest)
    modules = tuple(map(id, model.modules()))
    known = _known.get(model)
    if known is None or known.modules != modules:
        known = _Known(modules)
    several = batch_size > 1
    new = not (known.layers if several else known.layers | known.alone) >= set(tracked.names)
    if new or (several and longest > known.longest and known.batches == "any"):
        try:
            report = examine(tracked if new else tracked.only([]), sequences, batch_size)
        except FloatingPointError:  # the pass itself will name the sequences
            _refuse_unchecked(model, sequences)
            return known.batches
        if tracked.layers:
            refuse_seeing_later(model, report)
        (known.layers if several else known.alone).update(tracked.names)
        known.longest = max(known.longest, longest * several)
        if BATCHES.index(report.batches) > BATCHES.index(known.batches):
            known.batches, known.changes = report.batches, report.neighbours
        _known[model] = known
    if several and known.batches != "single":
        _look_at_largest(model, known, sequences, batch_size)
    if several and known.batches != "any" and not known.told:
        known.told = True
        warnings.warn(
            f"what {type(model).__name__} computes for a sequence changes by {known.changes:.1%} "
            f"with those beside it: {_TOGETHER[known.batches]}",
            stacklevel=2,
        )
    return known.batches


def known_batching(model: nn.Module) -> str:
    """What `batching` has found out about a model; "any" where nobody has asked."""
    return _known[model].batches if model in _known else "any"


def _refuse_unchecked(model, sequences):
    """ValueError, if only the short pieces of these sequences give NaN."""
    order = sorted(sequences, key=lambda x: len(x.input_ids))
    with frozen(model):
        rows = Pieces(model, sequences).rows
        pieces = [x for row in rows for x in sequence_logits(model, [row])]
        whole = [x for row in (order[0], order[-1]) for x in sequence_logits(model, [row])]
    if any(x.isnan().any() for x in pieces) and not any(x.isnan().any() for x in whole):
        raise ValueError(
            f"the logits of {type(model).__name__} are NaN for pieces of {LENGTH} tokens, on which "
            f"its gradients are checked, though not for whole sequences: expected a model that "
            f"reads short ones, too"
        )


def _look_at_largest(model, known, sequences, batch_size):
    """Keep sequences apart, if the largest batch of these is another thing than short pieces."""
    groups = grouped(sequences, batch_size, known.batches)
    sizes = [(len(x), len(x) * len(sequences[x[0]].input_ids)) for x in groups]
    largest = max(sizes, key=lambda x: x[1])
    if largest[0] < 2 or all(x <= y for x, y in zip(largest, known.largest)) or not asked():
        return
    tokens = sum(len(x.input_ids) for x in sequences)
    if FEW < largest[1] and tokens < PAID_BY * largest[1]:
        return  # to the run itself, which refuses what it finds
    known.largest = largest
    changes = apart(model, [sequences[n] for n in groups[sizes.index(largest)]])
    if changes is not None:
        known.batches, known.changes, known.told = "single", changes, False


def refuse_growing_positions(model: nn.Module, longest: int) -> None:
    """ValueError for rotary positions that depend on the longest sequence ever read.

    So do those of type "dynamic", beyond the length that they were made for.
    """
    for name, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if not any("dynamic" in str(kind) for kind in kinds):
            continue
        made = getattr(module, "original_max_seq_len", math.inf)
        read = max(longest, int(getattr(module, "max_seq_len_cached", 0)))
        if longest >= made and read > made:
            raise ValueError(
                f"{name} has rotary positions of type 'dynamic', made for {made} tokens; the "
                f"longest sequence has {longest}: beyond {made} they depend on the longest "
                f"sequence read so far; cut the sequences below {made} tokens"
            )


# ----------------------------------------------------------------------------------- the function


def _function(tracked, pieces, several):
    """What the logits say: a `Report` without gradients."""
    model, (first, *_, last) = tracked.model, pieces.rows
    loose, tight, _ = tolerances(model)
    with overwritten(tracked):
        (alone,) = sequence_logits(model, [first])
    if alone.isnan().any():
        raise FloatingPointError(f"logits are NaN for {first}")
    changed = []  # (sequence, itself with another end)
    if not isinstance(last.labels, int) and len(last.input_ids) > 1:
        changed = [(x, other_end(x)) for x in (last, *pieces.long)]
    neighbours, equal, together = None, None, "any"
    found = []
    if several:
        found = [sequence_logits(model, rows) for rows in _companies(pieces, changed)]
        neighbours = max(difference(x[0], alone) for x in found)
        if neighbours > loose:
            equal = max(_beside(model, f(pieces.rows)) for f in (equally_long, lengthened))
            together = "equal" if equal <= loose else "single"
    later = end = None
    if changed:
        later, end = _of_another_end([x[-2:] for x in found])
        if later > tight or end <= tight:  # the others matter, or there were none, or it is a fault
            alone_too = [[sequence_logits(model, [x])[0] for x in two] for two in changed]
            later, end = _of_another_end(alone_too)
    again = difference(sequence_logits(model, [first])[0], alone)
    return Report(neighbours, equal, later, end, again, [], {}, together)


def _companies(pieces, changed):
    """Batches whose first sequence is the first piece: all pieces, and the longest sequence of the
    data, which has a batch of its own if it is long; in each, at the end, with another last
    token."""
    found = [list(pieces.rows), *([pieces.rows[0], x] for x in pieces.long)]
    for rows, (_, other) in zip(found, changed):
        rows.append(other)
    return found


def _of_another_end(pairs):
    """How much logits before the end differ in these pairs, and those at the end."""
    if not pairs:
        return math.inf, 0.0
    before, at_end = (
        [difference(y[k], x[k]) for x, y in pairs] for k in (slice(-1), slice(-1, None))
    )
    return max(before), max(at_end)


def _beside(model, rows):
    """How much sequences differ in a batch from what each is alone."""
    alone = [x for row in rows for x in sequence_logits(model, [row])]
    return max(map(difference, sequence_logits(model, rows), alone))
