"""Parameters that have numbers in common: one under several names, or views of the same memory."""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def shared_parameters(model: nn.Module) -> dict[str, list[str]]:
    """{name of a parameter: names of others that hold a number of it}, in the model's order.

    A slice of another counts, whatever storage either says it has; parts of one storage that have
    no number in common, such as parameters flattened into one buffer, do not. What has no memory
    (of the meta device, or empty) is shared where it is one object.
    """
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found: defaultdict[str, set[str]] = defaultdict(set)
    for x, y in _common(named):
        found[x].add(y)
        found[y].add(x)
    return {x: [y for y in named if y in found[x]] for x in named if x in found}


def _common(named: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Pairs of names with a number in common."""
    ranges: defaultdict[object, list[tuple[int, int, str]]] = defaultdict(list)
    for name, p in named.items():
        start = p.data_ptr()
        if start:
            ranges[p.device].append((start, start + _span(p), name))
        else:
            ranges[id(p)].append((0, 1, name))
    for of_one_memory in ranges.values():
        before: list[tuple[int, int, str]] = []  # that reach to where the next one starts
        for start, end, name in sorted(of_one_memory):
            before = [x for x in before if x[1] > start]
            yield from ((x, name) for _, _, x in before if _overlap(named[x], named[name]))
            before.append((start, end, name))


def _span(p):
    """Bytes from the first number to behind the last one."""
    steps = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride()))
    return (steps + 1) * p.itemsize


def _overlap(x, y):
    """Have two tensors a byte in common, if the bytes from the first to the last of each have?"""
    if all(p.numel() * p.itemsize == _span(p) for p in (x, y)):  # without gaps
        return True
    first = min(x.data_ptr(), y.data_ptr())
    length = max(p.data_ptr() + _span(p) for p in (x, y)) - first
    used = torch.zeros(length, dtype=torch.bool)
    _bytes(used, x, first).fill_(True)
    return bool(_bytes(used, y, first).any())


def _bytes(memory, p, first):
    """The bytes of a tensor, as a view of a map of the memory that begins at the address first."""
    sizes, strides = (*p.shape, p.itemsize), (*(x * p.itemsize for x in p.stride()), 1)
    return memory.as_strided(sizes, strides, p.data_ptr() - first)
