"""What training has left of one model in the next, told by their weights."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from msif.api.models import Model
from msif.core.layers import matrix

FEWER_BITS = (torch.bfloat16, torch.float16)


def same_weights(before: Tensor, after: Tensor) -> bool:
    """Has training left these weights as they were?

    They are then the same numbers, whatever the dtype and device; or, where the model after was
    saved in fewer bits (its numbers are all bfloat16's, say), those before, so rounded. A layer
    that was trained is not: of many small steps, some carry a number over to the next.
    """
    if before.shape != after.shape:
        return False
    before = before.to(after.device)
    wide = torch.promote_types(before.dtype, after.dtype)
    if torch.equal(before.to(wide), after.to(wide)):
        return True
    return any(
        torch.equal(after.to(few).to(wide), after.to(wide))
        and torch.equal(before.to(few), after.to(few))
        for few in FEWER_BITS
    )


def foreign(base: Model, adapted: Model) -> bool:
    """Is this not the model that the adapters were trained on?

    Asked of the weights that adapters move, less what they add: they must differ from the base's by
    no more than 2 % of that (A and B in bfloat16 are closer) and rounding. What the base's own
    adapters alone have moved counts, too; and all other parameters, that no adapter moves.
    """
    moved = {**base.adapters, **adapted.adapters}
    if any(_apart(base, adapted, name) for name in moved):
        return True
    taken = {f"{name}.weight" for name in moved}
    return other_weights(base.tracked.model, adapted.tracked.model, taken)


def other_weights(some: nn.Module, others: nn.Module, but: Collection[str] = ()) -> bool:
    """Have two models other numbers in a parameter that both have, `but` some, by more than
    rounding: one may be saved in bfloat16, or merged in another order?"""
    these, those = (dict(x.named_parameters()) for x in (some, others))
    both = (these.keys() & those.keys()) - set(but)
    return any(_differ(these[name].detach(), those[name].detach()) for name in both)


def _apart(base, adapted, name):
    before, after = (
        matrix(layer, layer.weight.detach()).float().cpu()
        for layer in (m.tracked.model.get_submodule(name) for m in (base, adapted))
    )
    own, added = (
        x.adapters[name].added().cpu() if name in x.adapters else before.new_zeros(())
        for x in (base, adapted)
    )
    sizes = added.norm() if name in adapted.adapters else own.norm()
    return (after - before - added).norm() > 0.02 * sizes + _rounding(before, after)


def _differ(before, after):
    if before.shape != after.shape:
        return True
    before, after = before.float().cpu(), after.float().cpu()
    return bool((after - before).norm() > _rounding(before, after))


def _rounding(before, after):
    """How much of the norm of a difference may be rounding: half of the spacing of the coarsest
    numbers that hold one of them exactly (bfloat16's in float32, say); of float32 1e-5, as sums in
    another order are."""
    return max(map(_spacing, (before, after))) * torch.maximum(before.norm(), after.norm())


def _spacing(weight):
    exact = (x for x in FEWER_BITS if torch.equal(weight.to(x).float(), weight))
    few = next(exact, None)
    return 1e-5 if few is None else torch.finfo(few).eps / 2
