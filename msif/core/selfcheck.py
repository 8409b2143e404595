"""Does the engine see this model's gradients right? Asked of the model itself, on a few short rows.

What cannot be known from a model's code is tried out, once per model, with pieces of its own data
(`msif.core.pieces`):

1. A sequence by itself, and padded beside others up to the longest of the data: the logits are the
   same. Else neighbours change a sequence, and only equally long ones share a batch, or none.
2. The last token changed: earlier logits stay. Else the answer is visible to what predicts it.
3. The same sequence again, at the end: the same logits. Else the model remembers, or draws.
4. The gradient of each tracked layer as captured, of two sequences of one batch and of the rarest
   words of the data, equals the one that autograd puts on the weights, without hooks
   (`msif.core.reference`). Else the layer's rows are not what they are taken for, or its weights
   act elsewhere too.

What needs whole batches to be seen, `msif.core.audit` looks for while a run goes on.
"""

import math
import warnings
import weakref
from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from msif.core.backward import frozen, overwritten
from msif.core.data import Sequence, collate
from msif.core.layers import Tracked
from msif.core.models import logits
from msif.core.pieces import LENGTH, Pieces, equally_long, lengthened, other_end, pair
from msif.core.reference import gradient_differences
from msif.core.spent import timed
from msif.core.watch import pattern_without

# Relative differences that rounding explains: of logits in batches of another shape, of logits in
# batches of one shape, of gradients. Half precision hides faults below these.
TOLERANCES = {
    torch.float64: (1e-6, 1e-8, 1e-6),
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
    later token changes; None for a classifier. again: when a sequence comes again. gradients:
    {layer: of its gradient, from autograd's}. batches: which sequences may share one: "any",
    "equal" (equally long ones), or "single".
    """

    neighbours: float | None
    equal: float | None
    later: float | None
    again: float
    gradients: dict[str, float] = field(repr=False)
    batches: str


@dataclass
class _Known:
    """What has been found out about a model."""

    modules: tuple[int, ...]
    layers: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)  # layers looked at with one sequence a batch
    longest: int = 0
    batches: str = "any"
    changes: float | None = 0.0
    told: bool = False


_known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def examine(tracked: Tracked, sequences: list[Sequence], batch_size: int = 2) -> Report:
    """Check the engine on this model, with pieces of these sequences, which it can read.

    batch_size: 1 for a model that is to read one sequence at a time; any other is as good as 2.

    It takes three forward passes and two with gradients over a few short rows, one forward pass
    over twice the longest sequence, and, of more data, two with gradients over each piece of its
    rare words (`pieces.TOKENS_PER_PIECE`). Raises ValueError, naming what differs, where scores
    would be wrong: a layer whose gradient is not autograd's, a model that sees later tokens, one
    that remembers earlier sequences. A model whose sequences depend on their neighbours is no
    error: see `Report.batches`, which `capture.groups` follows.
    """
    model = tracked.model
    pieces = Pieces(model, sequences)
    with timed(model), frozen(model):
        found = _function(tracked, pieces, batch_size > 1)
        alone = "single" if batch_size == 1 else found.batches
        differences: dict[str, float] = defaultdict(float)
        for few in (pair(pieces.rows, alone), *([x] for x in pieces.of_words())):
            for name, difference in gradient_differences(tracked, few).items():
                differences[name] = max(differences[name], difference)
    _refuse(tracked, found, differences)
    return replace(found, gradients=dict(differences))


def batching(tracked: Tracked, sequences: list[Sequence], batch_size: int) -> str:
    """Which sequences may share a batch ("any", "equal", "single"), by `examine` if not known.

    The model is examined once for its layers, and again for longer sequences. Raises as `examine`,
    and warns where neighbours matter. Without layers, who reads states or logits alone asks: then
    tokens may see later ones.
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
            return known.batches
        (known.layers if several else known.alone).update(tracked.names)
        known.longest = max(known.longest, longest * several)
        if BATCHES.index(report.batches) > BATCHES.index(known.batches):
            known.batches, known.changes = report.batches, report.neighbours
        _known[model] = known
    if several and known.batches != "any" and not known.told:
        known.told = True
        warnings.warn(
            f"what {type(model).__name__} computes for a sequence changes by {known.changes:.1%} "
            f"with those beside it: {_TOGETHER[known.batches]}",
            stacklevel=2,
        )
    return known.batches


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
        (alone,) = _logits(model, [first])
    if alone.isnan().any():
        raise FloatingPointError(f"logits are NaN for {first}")
    causal = not isinstance(last.labels, int) and len(last.input_ids) > 1
    neighbours, equal, later, together = None, None, None, "any"
    if several:
        found = [_logits(model, rows) for rows in _companies(pieces, causal)]
        neighbours = max(_difference(x[0], alone) for x in found)
        if causal:
            later = _difference(
                found[0][len(pieces.rows)][:-1], found[0][len(pieces.rows) - 1][:-1]
            )
        if neighbours > loose:
            equal = max(_beside(model, f(pieces.rows)) for f in (equally_long, lengthened))
            together = "equal" if equal <= loose else "single"
    if causal and (later is None or later > tight):
        one, other = (_logits(model, [x])[0][:-1] for x in (last, other_end(last)))
        later = _difference(other, one)
    again = _difference(_logits(model, [first])[0], alone)
    return Report(neighbours, equal, later, again, {}, together)


def _companies(pieces, causal):
    """Batches whose first sequence is the first piece: all pieces, the last one with another end,
    and the longest sequence of the data, which has a batch of its own if it is long."""
    together = [*pieces.rows, *[other_end(pieces.rows[-1])] * causal]
    if len(pieces.longest.input_ids) <= LENGTH:
        return [together]
    return [together, [pieces.rows[0], pieces.longest]]


def _beside(model, rows):
    """How much sequences differ in a batch from what each is alone."""
    alone = [x for row in rows for x in _logits(model, [row])]
    return max(map(_difference, _logits(model, rows), alone))


@torch.no_grad()
def _logits(model, rows):
    """Each sequence's logits: (s, V), or (C,) of a classifier."""
    batch = collate(rows).to(next(model.parameters()).device)
    z = logits(model, batch)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    lengths = [len(x.input_ids) for x in rows]
    return [x[:s] if z.dim() == 3 else x for x, s in zip(z, lengths)]


def _difference(x, y):
    """‖x − y‖ over ‖y‖, without what all words have in common; masked words (−∞) count as 0."""
    x, y = (z.nan_to_num(posinf=0, neginf=0) for z in (x, y))
    spread = y - y.mean(-1, keepdim=True) if y.shape[-1] > 1 else y
    return _over((x - y).norm().item(), spread.norm().item())


def _over(error, size):
    return error / size if size else 0.0 if not error else math.inf


def tolerances(model: nn.Module) -> tuple[float, float, float]:
    """`TOLERANCES` of the model's precision."""
    return TOLERANCES.get(next(model.parameters()).dtype, TOLERANCES[torch.float32])


# ------------------------------------------------------------------------------------ the verdict


def _refuse(tracked, found, differences):
    """ValueError where scores would be wrong."""
    kind, (_, tight, gradient) = type(tracked.model).__name__, tolerances(tracked.model)
    if found.again > tight:
        raise ValueError(
            f"{kind} gives other logits when it reads the same sequence again (by "
            f"{found.again:.2%}): it keeps something of what it has read, or draws at random; "
            f"scores would depend on the order of the data"
        )
    if tracked.layers and found.later is not None and found.later > tight:
        raise ValueError(
            f"{kind} is not causal: logits change by {found.later:.2%} when a later token does, so "
            f"that it sees the answer that it should predict; load it as a classifier, or as a "
            f"decoder (config.is_decoder = True)"
        )
    wrong = [x.name for x in tracked.layers if differences.get(x.name, 0) > gradient]
    if wrong:
        raise ValueError(
            f"the gradient of {', '.join(wrong[:4])}{', …' * (len(wrong) > 4)} is not autograd's: "
            f"it differs by {max(differences[x] for x in wrong):.1%} on two short sequences. Its "
            f"rows are not one per position of each sequence, or its weights act elsewhere than in "
            f"its own call; leave it out of the tracked layers by a "
            f"pattern{pattern_without(tracked, wrong)}"
        )
