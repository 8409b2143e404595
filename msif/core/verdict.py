"""What the self-check measures of a model, and what of it is refused: see `msif.core.selfcheck`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from msif.core.data import Sequence
from msif.core.layers import Tracked
from msif.core.outputs import TOLERANCES, tolerances
from msif.core.reference import precisions
from msif.core.watch import pattern_without


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


def wrong_layers(
    tracked: Tracked, differences: Mapping[str, float], rows: list[Sequence]
) -> list[str]:
    """Names of the layers whose gradients differ by more than the precision that each computes in
    explains."""
    gradient = tolerances(tracked.model)[2]
    wrong = [x.name for x in tracked.layers if differences.get(x.name, 0) > gradient]
    own = precisions(tracked, rows) if wrong else {}
    return [x for x in wrong if differences[x] > TOLERANCES.get(own[x], (gradient,))[-1]]


def refuse(tracked: Tracked, found: Report, wrong: list[str]) -> None:
    """ValueError where scores would be wrong."""
    kind, (_, tight, _) = type(tracked.model).__name__, tolerances(tracked.model)
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
    if tracked.layers and found.last == 0:
        raise ValueError(
            f"the logits of {kind} at a position do not change with the token there: it shifts its "
            f"input by one itself, so that they predict that token, not the next one; let it give "
            f"logits that follow the token, as language models of transformers do"
        )
    if tracked.layers:
        refuse_seeing_later(tracked.model, found)
    if wrong:
        most = max(found.gradients[x] for x in wrong)
        raise ValueError(
            f"the gradient of {', '.join(wrong[:4])}{', …' * (len(wrong) > 4)} is not autograd's: "
            f"it differs by {most:.1%} on two short sequences. Its "
            f"rows are not one per position of each sequence, or its weights act elsewhere than in "
            f"its own call; leave it out of the tracked layers by a "
            f"pattern{pattern_without(tracked, wrong)}"
        )


def refuse_seeing_later(model: nn.Module, found: Report) -> None:
    """ValueError where tokens see later ones."""
    kind, (_, tight, _) = type(model).__name__, tolerances(model)
    if found.later is not None and found.later > tight:
        raise ValueError(
            f"{kind} is not causal: logits change by {found.later:.2%} when a later token does, so "
            f"that it sees the answer that it should predict; load it as a classifier, or as a "
            f"decoder (config.is_decoder = True)"
        )
