"""What looking after a model costs: the seconds of its checks, beside those of the work."""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import nn

_seconds: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()


@contextmanager
def timed(model: nn.Module) -> Iterator[None]:
    """What runs inside counts as a check of this model."""
    start = _clock(model)
    try:
        yield
    finally:
        _seconds[model] = seconds(model) + _clock(model) - start


def seconds(model: nn.Module) -> float:
    """That the checks of this model have taken so far, in this process."""
    return _seconds.get(model, 0.0)


@contextmanager
def share_said(model: nn.Module, title: str | None, what: str) -> Iterator[None]:
    """Say afterwards what share of the work inside was checks; silent without a title.

    On standard error, as progress is: reports hold no clock.
    """
    start, before = perf_counter(), seconds(model)
    yield
    if title is not None:
        whole, checks = perf_counter() - start, seconds(model) - before
        share = checks / whole if whole else 0.0
        said = f"{title}: self-check {checks:.2f} s, {share:.2%} of this {what}"
        print(said, file=sys.stderr, flush=True)


def _clock(model):
    """Seconds, when all that was asked of the model's device is done."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
