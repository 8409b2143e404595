"""Fused experts, computed one after the other, so that each one's inputs and outputs can be seen.

The experts of a mixture lie in two parameters (experts, …). Of every position the router chooses a
few of them; what an expert reads are the positions that chose it. transformers computes all
experts in one product, where none can be told from another. Here the same sum is taken expert by
expert, each with its own product, and added in the same order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msif.core.layers import Layer
from msif.core.parts import projections

# ran(layer, a (m, inputs), output (m, outputs), rows (m,)): the output, or what takes its place.
Ran = Callable[[Layer, Tensor, Tensor, Tensor], Tensor]


@contextmanager
def followed(model: nn.Module, layers: Iterable[Layer], ran: Ran) -> Iterator[None]:
    """Inside, ran(layer, a, output, rows) is called for each of the layers, which are experts, when
    the model runs it: rows are the positions, of all that the experts are given, which it reads; a
    ends in a 1 where the expert has a bias. Both may be of no rows."""
    modules: dict[str, dict[tuple[str, int | None], Layer]] = {}
    for layer in layers:
        what = layer.parameter.rpartition(".")[2]
        modules.setdefault(layer.module, {})[what, layer.expert] = layer
    before = {}
    for name, wanted in modules.items():
        experts = model.get_submodule(name)
        before[name] = vars(experts).get("forward")
        experts.forward = partial(_forward, experts, wanted, ran)
    try:
        yield
    finally:
        for name, forward in before.items():
            experts = model.get_submodule(name)
            del experts.forward
            if forward is not None:
                experts.forward = forward


def _forward(experts, wanted: Mapping, ran: Ran, *arguments, **named) -> Tensor:
    """The experts' output (positions, width), as `grouped_mm_experts_forward` of transformers."""
    hidden, chosen, weights = (*arguments, *named.values())
    first, second = projections(experts)
    per_position = chosen.shape[-1]
    chosen, order = chosen.reshape(-1).sort(stable=True)
    counts = chosen.bincount(minlength=experts.num_experts).tolist()
    outputs = []
    for number, rows in enumerate((order // per_position).split(counts)):
        if number >= experts.num_experts:  # of another process, which adds them
            outputs.append(hidden.new_zeros(len(rows), hidden.shape[1]))
            continue
        x = _product(experts, wanted, ran, first, number, hidden[rows], rows)
        x = experts._apply_gate(x) if experts.has_gate else experts.act_fn(x)
        x = _product(experts, wanted, ran, second, number, x, rows)
        outputs.append(experts.post_expert_norm(x) if experts.has_post_expert_norm else x)
    weighted = torch.cat(outputs) * weights.reshape(-1)[order, None]
    unsorted = weighted[order.argsort()].unflatten(0, (-1, per_position))
    return unsorted.sum(1).to(hidden.dtype)


def _product(experts, wanted, ran, what, number, x, rows):
    weight = getattr(experts, what)[number]
    bias = getattr(experts, f"{what}_bias")[number] if experts.has_bias else None
    x = x.to(weight.dtype)
    output = F.linear(x, weight.mT if experts.is_transposed else weight, bias)
    if (layer := wanted.get((what, number))) is None:
        return output
    a = x if bias is None else F.pad(x, (0, 1), value=1)
    return ran(layer, a, output, rows)
