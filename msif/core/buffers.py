"""Buffers that a state dict lacks: are they what the model's class computes from its configuration?

Such are the frequencies of rotary positions and causal masks. A class of transformers can make its
own anew (`_init_weights`), so that one that was changed by hand is known from one that was not, in
whatever precision it is.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Made in one precision and rounded to another, as by model.to(bfloat16), a buffer is the same.
_PRECISIONS = (torch.bfloat16, torch.float16)
_ROUNDING = 1e-5  # relative: what devices differ by


def own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """{name: buffer} of those that the state dict lacks and that are not as the class makes them.

    All of a module whose class cannot make them anew. Not those that are written anew whenever the
    model reads. The model and torch's random state stay as they are.
    """
    kept = dict(_outside_state_dict(model))
    if not kept:
        return {}
    made = _made_anew(model)
    return {name: x for name, x in kept.items() if not _same(x, made.get(name))}


def rewritten(module: nn.Module, name: str) -> bool:
    """Does the module write this tensor of its own anew as it reads? So do rotary positions whose
    frequencies depend on the longest sequence of a batch."""
    prefix, found, rest = name.rpartition("inv_freq")
    if not found or rest or prefix.endswith("original_"):
        return False
    kind = getattr(module, "rope_type", None)
    kind = kind.get(prefix.removesuffix("long_")[:-1]) if isinstance(kind, dict) else kind
    if kind != "dynamic":
        return kind == "longrope"
    reached = getattr(module, "max_seq_len_cached", 0)
    reached = getattr(module, f"{prefix}max_seq_len_cached", reached)
    return bool(reached > getattr(module, "original_max_seq_len", math.inf))


def _outside_state_dict(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, x in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set and not rewritten(module, name):
                yield f"{path}.{name}".lstrip("."), x


@torch.no_grad()
def _made_anew(model):
    """{name: buffer} as the classes make them; where they do not, other than any of the model's."""
    hollow = _hollow(model, {})
    makers = {}  # {a module's path: (the model of transformers that it is of, the module)}
    for path, module in hollow.named_modules():
        around = makers.get(path.rpartition(".")[0], (None,))[0]
        makers[path] = module if isinstance(module, PreTrainedModel) else around, module
    with torch.random.fork_rng(devices=[]):
        for maker, module in reversed(
            makers.values()
        ):  # a part before the whole, which may fill it
            if maker is not None and any(x._non_persistent_buffers_set for x in module.modules()):
                with contextlib.suppress(Exception):  # one that cannot: its buffers count
                    maker._init_weights(module)
    return dict(hollow.named_buffers())


def _hollow(module, seen):
    """A copy with parameters of no memory and buffers of wrong numbers, which `_init_weights` may
    write to."""
    if module not in seen:
        copy = seen[module] = object.__new__(type(module))
        numbers = {k: x.clone() if isinstance(x, Tensor) else x for k, x in vars(module).items()}
        numbers["_parameters"] = {k: _without_memory(x) for k, x in module._parameters.items()}
        numbers["_buffers"] = {k: x if x is None else _wrong(x) for k, x in module._buffers.items()}
        vars(copy).update(numbers)
        inside = {k: x if x is None else _hollow(x, seen) for k, x in module._modules.items()}
        vars(copy)["_modules"] = inside
    return seen[module]


def _without_memory(parameter):
    if parameter is None:
        return None
    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False)


def _wrong(x):
    """A tensor on the CPU like x, each number of it another one."""
    x = x.detach().cpu()
    if x.is_floating_point() or x.is_complex():
        return torch.full_like(x, torch.nan, dtype=torch.promote_types(x.dtype, torch.float32))
    return ~x if x.dtype == torch.bool else x + 1


def _same(x, made):
    """Is x what was made, but for the rounding to its precision, on the way also to a lower one?"""
    x = x.detach().cpu()
    if made is None or x.shape != made.shape:
        return False
    if not made.is_floating_point():
        return torch.equal(x, made)
    room = (_ROUNDING * made.abs()).nan_to_num(posinf=0)
    x = x.to(made.dtype)
    return any(
        bool((((made - room).to(kind) <= x) & (x <= (made + room).to(kind))).all())
        for kind in (made.dtype, *_PRECISIONS)
    )
