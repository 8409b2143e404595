"""Does the engine see this model's gradients right? Asked of the model itself, on a few short rows.

What cannot be known from a model's code is tried out, once per model, with pieces of its own data:

1. A sequence by itself, and padded beside others up to the longest of the data: the logits are the
   same. Else neighbours change a sequence, and only equally long ones share a batch, or none.
2. The last token changed, of a piece and of the longest sequence: earlier logits stay. Else the
   answer is visible to what predicts it. The last logits change: else they say that very token.
3. The same sequence again, at the end: the same logits, and no random number drawn. Else the model
   remembers, or draws.
4. The gradient of each tracked layer as captured, for each of two sequences of one batch, equals
   the one that autograd puts on the weights, without hooks (`msif.core.reference`). Else the
   layer's rows are not what they are taken for, or its weights act elsewhere too.
5. Some sequences of the largest batch: the logits of each by itself. Else as in 1.
"""

import math
import warnings
import weakref
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from msif.core.backward import frozen, pattern_without
from msif.core.data import Sequence, grouped
from msif.core.layers import Tracked
from msif.core.outputs import (
    beside_others,
    difference,
    random_numbers_watched,
    sequence_logits,
)
from msif.core.reference import gradient_differences, precisions

ROWS = 4  # sequences that are compared
LENGTH = 16  # tokens that they are cut to

# Relative differences that rounding explains: of logits in batches of another shape, of logits in
# batches of one shape, of gradients. Half precision hides faults below these.
TOLERANCES = {
    torch.float64: (1e-7, 1e-8, 1e-8),
    torch.float32: (1e-3, 1e-4, 1e-3),
    torch.bfloat16: (0.1, 0.05, 0.05),
    torch.float16: (0.1, 0.05, 0.05),
}
BATCHES = ("any", "equal", "single")
_TOGETHER = {
    "equal": "batches hold equally long sequences alone",
    "single": "each sequence has a batch of its own",
}


@dataclass(frozen=True)
class Report:
    """What `examine` measured: relative differences, about 1e-6 where all is right in float32.

    neighbours: of a sequence's logits, padded beside others; None where none may stand beside it.
    equal: beside equally long ones; None where that need not be known. later: of logits when a
    later token changes, last: of the last logits then; None for a classifier. again: when a
    sequence comes again. drawn: whose random numbers were. gradients: {layer: of its gradient, from
    autograd's}. batches: which sequences may share one: "any", "equal" (equally long ones), or
    "single".
    """

    neighbours: float | None
    equal: float | None
    later: float | None
    last: float | None
    again: float
    drawn: list[str]
    gradients: dict[str, float] = field(repr=False)
    batches: str


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

    It takes about 15 passes over `LENGTH` tokens, and three forward passes over the longest
    sequence. Raises ValueError, naming what differs, where scores would be wrong: a layer whose
    gradient is not autograd's, a model that sees later tokens, one that remembers earlier
    sequences. A model whose sequences depend on their neighbours is no error: see
    `Report.batches`, which `capture.groups` follows.
    """
    model = tracked.model
    rows, longest = _rows(sequences), max(sequences, key=lambda x: len(x.input_ids))
    with frozen(model):
        with random_numbers_watched() as drawn:
            found = _function(model, rows, longest, batch_size > 1)
        alone = "single" if batch_size == 1 else found.batches
        differences = gradient_differences(tracked, _pair(rows, alone))
        wrong = _wrong(tracked, differences, rows[-1:])
    found = replace(found, gradients=differences, drawn=drawn)
    _refuse(tracked, found, wrong)
    return found


def batching(tracked: Tracked, sequences: list[Sequence], batch_size: int) -> str:
    """Which sequences may share a batch ("any", "equal", "single"), by `examine` if not known.

    The model is examined once for its layers, and again for longer sequences. Raises as `examine`,
    and warns where neighbours matter.
    """
    model = tracked.model
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
        pieces = [x for row in _rows(sequences) for x in sequence_logits(model, [row])]
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
    if largest[0] < 2 or all(x <= y for x, y in zip(largest, known.largest)):
        return
    known.largest = largest
    batch = [sequences[n] for n in groups[sizes.index(largest)]]
    with frozen(model):
        changes = beside_others(model, batch)
    if changes > TOLERANCES[_dtype(model)][0]:
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


# ------------------------------------------------------------------------------------ the sequences


def _rows(sequences):
    """`ROWS` sequences from all over the data, the shortest first, cut to different lengths."""
    order = sorted(sequences, key=lambda x: len(x.input_ids))
    most, last = min(LENGTH, len(order[-1].input_ids)), len(order) - 1
    lengths = [most - k * max(1, most // (ROWS + 1)) for k in reversed(range(ROWS))]
    return [_cut(order[round(k * last / (ROWS - 1))], max(1, lengths[k])) for k in range(ROWS)]


def _cut(x, length):
    """A sequence of at most so many tokens that ends as it did, with a label on every token."""
    ids = x.input_ids
    if len(ids) > length:
        ids = (*ids[: length - 1], ids[-1])
    return replace(x, input_ids=ids, labels=x.labels if isinstance(x.labels, int) else ids)


def _equally_long(rows):
    shortest = min(len(x.input_ids) for x in rows)
    return [_cut(x, shortest) for x in rows]


def _lengthened(rows):
    """As long as the longest, by repeating what they have: no token that matters is cut off."""
    longest = max(len(x.input_ids) for x in rows)

    def longer(x):
        repeated = x.input_ids * longest
        ids = (*repeated[: longest - 1], x.input_ids[-1])
        return replace(x, input_ids=ids, labels=x.labels if isinstance(x.labels, int) else ids)

    return [x if len(x.input_ids) == longest else longer(x) for x in rows]


def _pair(rows, batches):
    """Two sequences that may share a batch, the first again at the end: no order of theirs is that
    of a model that sorts them. Never as many as they have tokens."""
    if batches == "single":
        return rows[-1:]
    rows = rows if batches == "any" else _equally_long(rows)
    pair = [rows[0], rows[-1], rows[0]]
    return pair if len(rows[-1].input_ids) != 3 else [*pair, rows[-1]]


# ----------------------------------------------------------------------------------- the function


def _function(model, rows, longest, several):
    """What the logits say: a `Report` without gradients."""
    alone = [x for row in rows for x in sequence_logits(model, [row])]
    if any(x.isnan().any() for x in alone):
        raise FloatingPointError(f"logits are NaN for {rows}")
    neighbours, equal, together = None, None, "any"
    if several:
        neighbours = _beside(model, rows, alone)
        if len(longest.input_ids) > LENGTH:
            beside = sequence_logits(model, [rows[0], longest])
            neighbours = max(neighbours, difference(beside[0], alone[0]))
    if neighbours is not None and neighbours > (loose := TOLERANCES[_dtype(model)][0]):
        equal = max(
            _beside(model, few, [x for row in few for x in sequence_logits(model, [row])])
            for few in (_equally_long(rows), _lengthened(rows))
        )
        together = "equal" if equal <= loose else "single"
    later = last = None
    if not isinstance(rows[-1].labels, int) and len(rows[-1].input_ids) > 1:
        changed = sequence_logits(model, [_other_end(rows[-1])])[0]
        later, last = (difference(changed[x], alone[-1][x]) for x in (slice(-1), slice(-1, None)))
        if len(longest.input_ids) > LENGTH:
            whole, changed = (
                sequence_logits(model, [x])[0][:-1] for x in (longest, _other_end(longest))
            )
            later = max(later, difference(changed, whole))
    again = max(difference(sequence_logits(model, [rows[k]])[0], alone[k]) for k in (0, -1))
    return Report(neighbours, equal, later, last, again, [], {}, together)


def _beside(model, rows, alone):
    return max(map(difference, sequence_logits(model, rows), alone))


def _other_end(x):
    """The sequence with another last token, one that it has, or one that is near."""
    *start, last = x.input_ids
    others = [token for token in start if token != last]
    return replace(x, input_ids=(*start, others[0] if others else last - 1 if last else 1))


def _dtype(model):
    """The lowest precision of its matrices, without embeddings: looking up rounds nothing."""
    modules = (x for x in model.modules() if not isinstance(x, nn.Embedding))
    found = {p.dtype for x in modules for p in x.parameters(recurse=False) if p.dim() > 1}
    return min(found & TOLERANCES.keys(), key=lambda x: x.itemsize, default=torch.float32)


# ------------------------------------------------------------------------------------ the verdict


def _wrong(tracked, differences, rows):
    """Names of the layers whose gradients differ by more than the precision that each computes in
    explains."""
    gradient = TOLERANCES[_dtype(tracked.model)][2]
    wrong = [x.name for x in tracked.layers if differences.get(x.name, 0) > gradient]
    own = precisions(tracked, rows) if wrong else {}
    return [x for x in wrong if differences[x] > TOLERANCES.get(own[x], (gradient,))[-1]]


def _refuse(tracked, found, wrong):
    """ValueError where scores would be wrong."""
    kind, (_, tight, _) = type(tracked.model).__name__, TOLERANCES[_dtype(tracked.model)]
    if found.again > tight:
        raise ValueError(
            f"{kind} gives other logits when it reads the same sequence again (by "
            f"{found.again:.2%}): it keeps something of what it has read, or draws at random; "
            f"scores would depend on the order of the data"
        )
    if found.drawn:
        raise ValueError(
            f"{kind} draws of {' and '.join(found.drawn)} random numbers as it reads, in eval mode "
            f"too: scores would depend on chance; take it out (dropout, layer drop, noise)"
        )
    if found.last == 0:
        raise ValueError(
            f"the logits of {kind} at a position do not change with the token there: it shifts its "
            f"input by one itself, so that they predict that token, not the next one; let it give "
            f"logits that follow the token, as language models of transformers do"
        )
    if found.later is not None and found.later > tight:
        raise ValueError(
            f"{kind} is not causal: logits change by {found.later:.2%} when a later token does, so "
            f"that it sees the answer that it should predict; load it as a classifier, or as a "
            f"decoder (config.is_decoder = True)"
        )
    if wrong:
        most = max(found.gradients[x] for x in wrong)
        raise ValueError(
            f"the gradient of {', '.join(wrong[:4])}{', …' * (len(wrong) > 4)} is not autograd's: "
            f"it differs by {most:.1%} on two short sequences. Its "
            f"rows are not one per position of each sequence, or its weights act elsewhere than in "
            f"its own call; leave it out of the tracked layers by a "
            f"pattern{pattern_without(tracked, wrong)}"
        )
