"""What the layers of a model read and get while one batch goes forward and backward."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from msif.core import experts
from msif.core.data import Batch
from msif.core.layers import Layer, Tracked


class Watch:
    """The tracked layers during one batch.

    copied: names of layers whose input is copied, as the model will write into it. inputs: {layer:
    (its input, the input's version)}. arrived: layers whose gradient of objective `draw` has come.
    """

    def __init__(
        self,
        tracked: Tracked,
        batch: Batch,
        consume: Callable[[Layer, Tensor, Tensor, int], object],
        copied: set[str],
    ):
        self.tracked = tracked
        self.batch = batch
        self.consume = consume
        self.copied = copied
        self.inputs: dict[str, tuple[Tensor, int]] = {}
        self.arrived: set[str] = set()
        self.draw = 0
        self.scale: Tensor | None = None  # (n,), what the rows of g were multiplied with
        self.forward = True  # not yet backward

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The model inside is watched."""
        model, modules = self.tracked.model, dict(self.tracked.model.named_modules())
        handles = [
            modules[x.name].register_forward_hook(self._hook(x), prepend=True, with_kwargs=True)
            for x in self.tracked.layers
            if x.expert is None
        ]
        fused = [x for x in self.tracked.layers if x.expert is not None]
        try:
            with experts.followed(model, fused, self._expert_ran):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def changed(self) -> set[str]:
        """Names of the layers whose input is no longer what they read."""
        return {name for name, (a, version) in self.inputs.items() if a._version != version}

    def all_of(self, found: Collection[str], what: str) -> None:
        """ValueError unless every tracked layer is among those found."""
        missing = [x.name for x in self.tracked.layers if x.name not in found]
        if missing:
            raise ValueError(
                f"{what.format(_some(missing))} in the batch of sequences "
                f"{_some(sorted(self.batch.index.tolist()))}: weights that are used without "
                f"calling their layer, or for some sequences alone, cannot be tracked, nor those "
                f"that the loss does not depend on; leave them out by a "
                f"pattern{pattern_without(self.tracked, missing)}"
            )

    def rest_of_experts(self) -> None:
        """Consume the gradients of experts that nothing in this batch chose: they are zero."""
        for layer in self.tracked.layers:
            a = self.inputs[layer.name][0]
            if layer.expert is not None and not len(a):
                shape, dtype = (
                    (len(self.batch.index), 1),
                    torch.promote_types(a.dtype, torch.float32),
                )
                self.arrived.add(layer.name)
                zero_a = a.new_zeros(*shape, a.shape[1], dtype=dtype)
                zero_g = a.new_zeros(*shape, layer.out_features, dtype=dtype)
                self.consume(layer, zero_a, zero_g, self.draw)

    def _hook(self, layer):
        def hook(module, args, kwargs, output):
            if not isinstance(output, Tensor):
                kind = layer.name.rpartition(".")[2]
                alike = [x for x in self.tracked.names if x.rpartition(".")[2] == kind]
                raise ValueError(
                    f"{layer.name} gives a {type(output).__name__}, not its product alone: leave "
                    f"it out of the tracked layers by a "
                    f"pattern{pattern_without(self.tracked, alike)}"
                )
            a, mask = _input(layer, args, kwargs), self.batch.attention_mask.to(output.device)
            _sizes(layer, a, output, mask)
            return self._ran(layer, a, output, lambda x: _sequence_form(x, mask))

        return hook

    def _expert_ran(self, layer, a, output, rows):
        mask = self.batch.attention_mask.to(output.device)
        if len(rows) and (rows.max() >= mask.numel() or (rows.diff() <= 0).any()):
            raise ValueError(
                f"{layer.name} reads positions other than those of a batch of {tuple(mask.shape)}, "
                f"each once; leave it out of the tracked layers by a pattern"
            )

        def all_positions(x):
            x = x.new_zeros(mask.numel(), x.shape[1]).index_copy(0, rows, x)
            return _sequence_form(x.unflatten(0, mask.shape), mask)

        return self._ran(layer, a.detach(), output, all_positions)

    def _ran(self, layer, a, output, form):
        """Watch a layer's input and output; form: of both, to (n, s, d). What takes the output's
        place."""
        first = not output.requires_grad
        if not self.forward:  # recomputed by a checkpoint, where nothing may be another than before
            return output.requires_grad_().clone() if first else output
        if layer.name in self.inputs:
            raise ValueError(
                f"{layer.name} runs more than once per forward pass: its weights are shared "
                f"over depth; leave it out of the tracked layers by a pattern"
            )
        total = output.detach().sum(dtype=torch.promote_types(output.dtype, torch.float32))
        finite(total, f"the output of {layer.name}", self.batch)
        a = a.clone() if layer.name in self.copied else a
        self.inputs[layer.name] = a, a._version
        watched = output.requires_grad_() if first else _unwritten(output)
        watched.register_hook(self._arrived(layer, a, form, output.shape))
        return output.clone() if first else output  # a leaf could not be written to in place

    def _arrived(self, layer, a, form, shape):
        def arrived(g):
            if not len(a):  # see `rest_of_experts`
                return
            if a._version != self.inputs[layer.name][1]:
                raise RuntimeError(f"the input of {layer.name} changed during the backward pass")
            self.arrived.add(layer.name)
            g = form(g.view(shape))
            if self.scale is not None:
                g = g / self.scale.to(g)[:, None, None]
            finite(g.sum(), f"the gradient at {layer.name}", self.batch)
            self.consume(layer, form(a), g, self.draw)

        return arrived


def _unwritten(output):
    """What a gradient hook on the output belongs on, as the model may write into the output.

    A tensor that is written to keeps its hooks for what it was; a view (a `Linear` with a bias
    gives one) does not, but what it views does.
    """
    base = output._base
    same = base is not None and base.numel() == output.numel()
    return base if same and base.is_contiguous() and output.is_contiguous() else output


def _input(layer, args, kwargs):
    """What a layer was called with, detached, also where it was called by keyword."""
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    if len(given) != 1:
        raise ValueError(
            f"{layer.name} is called with {len(given)} tensors: expected its input alone; leave it "
            f"out of the tracked layers by a pattern"
        )
    return given[0].detach()


def _sizes(layer, a, output, mask):
    """ValueError unless a layer runs on one row per sequence or position, and on its own sizes."""
    found, expected = (a.shape[-1], output.shape[-1]), (layer.in_features, layer.out_features)
    if found != expected:
        raise ValueError(
            f"{layer.name} has {found} inputs and outputs; it was tracked with {expected}: the "
            f"model was changed since (resized embeddings or head?); track its layers anew"
        )
    rows = output.shape[:-1]
    single = len(rows) > 2 and [d for d in rows if d > 1] == [d for d in mask.shape if d > 1]
    known = single or rows in (mask.shape, mask.shape[:1], (mask.numel(),))
    if not known or a.shape[:-1] != rows:
        raise ValueError(
            f"{layer.name} gives an output of shape {tuple(output.shape)}, which is not one row "
            f"per sequence or position of a batch of {tuple(mask.shape)}; leave it out of the "
            f"tracked layers by a pattern"
        )


def _sequence_form(x, mask):
    """x as (n, s, d) in at least float32, zero where padded.

    A pooled (n, d) input is one position; (n·s, d) is unflattened; (n, 1, s, d) loses its 1.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x.reshape(*mask.shape, -1) if x.dim() > 3 else x
    if x.dim() == 2 and len(x) == mask.numel():
        x = x.unflatten(0, mask.shape)
    if x.dim() == 2:
        return x[:, None]
    return x if mask.all() else x * mask[..., None].to(x)


def finite(value: Tensor, what: str, batch: Batch) -> None:
    """FloatingPointError, naming what it is and the batch's sequences, unless a value is finite."""
    if not torch.isfinite(value).all():
        raise FloatingPointError(
            f"{what} is NaN or infinite in the batch of sequences {sorted(batch.index.tolist())}: "
            f"check the model's weights, its precision (float16 overflows; try bfloat16 or "
            f"float32) and these sequences"
        )


def _some(things, count=4):
    """The first few of a list, as text."""
    return ", ".join(map(str, things[:count])) + ", …" * (len(things) > count)


def pattern_without(tracked: Tracked, names: list[str]) -> str:
    """The end of a message: a pattern of the other tracked layers; nothing where it would be long,
    or would not leave these out."""
    rest = [x for x in tracked.names if x not in names]
    named = {re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(x)) for x in rest}
    kinds = sorted({re.sub(r"\\\[\d+\\\]$", r"\\[\\d+\\]", x) for x in named})
    pattern = "^(" + "|".join(kinds) + ")$"
    if not rest or len(kinds) > 12 or any(re.search(pattern, x) for x in names):
        return ""
    return f", for instance pattern={pattern!r}"
