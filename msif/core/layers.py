"""The layers of a model that influence is computed over."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from msif.core.heads import head_rows
from msif.core.parts import fused_experts, in_a_block, projections, reads_text
from msif.core.shared import shared_parameters

# {layer name: (n, o, i)}: gradients, or query vectors w, of n sequences.
Vectors = dict[str, Tensor]

# f(eigenvalues of a layer's curvature, their mean), elementwise in the eigenvalues.
Filter = Callable[[Tensor, Tensor], Tensor]

MERGE = (
    "merge them into the weights first: PeftModel.from_pretrained(base, folder)"
    ".merge_and_unload().save_pretrained(…), and load that"
)


@dataclass(frozen=True)
class Layer:
    """One tracked layer y = x Wᵀ (+ b).

    `nn.Linear`, or `Conv1D`, whose weight is stored as Wᵀ (in, out); or one expert of a parameter
    (experts, …) that holds the weights of all.
    """

    name: str  # as in model.named_modules(); of an expert the parameter's, with its number in []
    rows: Tensor | None  # None: one block with all output rows; else (blocks, r) int64, a partition
    bias: bool
    in_features: int  # without the bias; with an expert's: its inputs end in a 1 where it runs
    out_features: int

    @property
    def inputs(self) -> int:
        """Columns i of the layer's gradient: its inputs, and one for the bias if there is one."""
        return self.in_features + self.bias

    @property
    def module(self) -> str:
        """The name of the module that holds the weight."""
        return self.parameter.rpartition(".")[0] if self.expert is not None else self.name

    @property
    def parameter(self) -> str:
        """The name of the weight, as in model.named_parameters()."""
        found = self.name.partition("[")[0]
        return found if self.expert is not None else f"{found}.weight"

    @property
    def expert(self) -> int | None:
        """The number of the expert; None for a layer of its own."""
        return int(self.name[:-1].partition("[")[2]) if self.name.endswith("]") else None


@dataclass(frozen=True, eq=False)
class Tracked:
    """A model with those of its layers that factors, gradients and scores range over.

    The layers stand in the order of the model.
    """

    model: nn.Module
    layers: list[Layer]

    @property
    def names(self) -> list[str]:
        """The layers' names."""
        return [layer.name for layer in self.layers]

    @property
    def weights(self) -> int:
        """How many tracked numbers there are, biases included."""
        return sum(x.out_features * x.inputs for x in self.layers)

    def only(self, layers: Iterable[Layer]) -> "Tracked":
        """The same model with some of the layers."""
        return Tracked(self.model, list(layers))


def tracked(model: nn.Module, pattern: str | None = None, per_head: bool = False) -> Tracked:
    """The model with its layers as `tracked_layers` finds them."""
    return Tracked(model, tracked_layers(model, pattern, per_head))


def tracked_layers(
    model: nn.Module, pattern: str | None = None, per_head: bool = False
) -> list[Layer]:
    """The layers that factors, gradients and scores range over, in module order.

    pattern: a regex searched for in the dotted names of all `nn.Linear` and `Conv1D`, and of the
    experts of mixtures. Default: those inside the repeated blocks (attention, MLP, experts) that
    read text, not embeddings, unembedding or classification head; `coverage.coverage` says how much
    of the model that is. per_head: attention projections in one block per head and per q, k and v
    (see `heads.head_rows`); other layers stay one block. Raises ValueError if nothing matches, if
    parameters are shared with another module (tied weights: their gradient does not come from this
    layer alone), if per_head meets an unknown attention, for weights offloaded to disk or CPU, and,
    unless a pattern chooses among them, for a model with adapters (PEFT) that are not merged.
    """
    if not isinstance(per_head, bool):
        raise ValueError(f"per_head is {per_head!r}: expected True or False")
    _refuse_offloaded(model)
    if pattern is None:
        _refuse_adapters(model)
    modules = dict(model.named_modules())
    linear = {name: x for name, x in modules.items() if isinstance(x, (nn.Linear, Conv1D))}
    experts = {x.name: x for x in _experts(model)}
    there = _in_order(modules, linear, experts)
    if pattern is None:
        wanted = "inside numbered blocks"
        chosen = [x for x in there if in_a_block(model, x) and reads_text(model, x)]
    else:
        wanted = f"matching the pattern {pattern!r}"
        chosen = [name for name in there if re.search(pattern, name)]
    if not chosen:
        kinds = sorted({re.sub(r"(?<=[.[])\d+(?=[].])", "N", name) for name in there})
        raise ValueError(
            f"no layer to track: expected one {wanted}, among {', '.join(kinds) or 'none'}"
        )
    layers = [experts.get(x) or _layer(model, x, linear[x], per_head) for x in chosen]
    _refuse_shared(model, layers)
    return layers


def _in_order(modules, linear, experts):
    """Names of layers and experts in module order."""
    inside = defaultdict(list)
    for x in experts.values():
        inside[x.module].append(x.name)
    return [x for name in modules for x in ([name] if name in linear else inside[name])]


def _experts(model):
    """Each expert of the parameters that hold all experts of a block."""
    for name, module in fused_experts(model).items():
        for what in projections(module):
            weight, bias = getattr(module, what), int(module.has_bias)
            sizes = weight.shape[1:] if module.is_transposed else weight.shape[:0:-1]
            for number in range(len(weight)):
                inputs, outputs = sizes
                yield Layer(f"{name}.{what}[{number}]", None, False, inputs + bias, outputs)


def _refuse_offloaded(model):
    away = [
        name
        for name, x in model.named_modules()
        if getattr(getattr(x, "_hf_hook", None), "offload", False)
    ]
    if away:
        raise ValueError(
            f"the weights of {len(away)} modules, such as {away[0]!r}, are offloaded to disk or "
            f"CPU (device_map, accelerate): gradients need all of a model on its devices; load it "
            f"without offloading, in bfloat16 where memory is short"
        )


def _refuse_adapters(model):
    inside = [x for x in model.named_modules() if type(x[1]).__module__.startswith("peft.")]
    if inside:
        name, module = inside[-1]
        raise ValueError(
            f"the model has adapters that are not merged, such as {name!r} "
            f"({type(module).__name__} of peft): it does not share its layers with the model that "
            f"it was fine-tuned from; {MERGE}"
        )


def _refuse_shared(model, layers):
    mine = {x.parameter for x in layers} | {f"{x.name}.bias" for x in layers}
    for full, others in shared_parameters(model).items():
        if full in mine:
            raise ValueError(
                f"{full} is one parameter with {', '.join(others)}: shared (tied) weights cannot "
                f"be tracked; choose a pattern that leaves this layer out, or untie them"
            )


def _layer(model, name, module, per_head):
    n_in, n_out = _sizes(name, module)
    rows = head_rows(name, n_out, model.config) if per_head else None
    return Layer(name, rows, module.bias is not None, n_in, n_out)


def _sizes(name, module):
    """(inputs, outputs) of a layer. Weights of whole numbers are packed ones, of any shape."""
    if isinstance(module, Conv1D):
        return module.weight.shape
    sizes = module.in_features, module.out_features
    if module.weight.is_floating_point() and module.weight.shape != sizes[::-1]:
        raise ValueError(
            f"{name} has a weight of shape {tuple(module.weight.shape)}, but says that it has "
            f"{sizes[0]} inputs and {sizes[1]} outputs: expected a weight (outputs, inputs); leave "
            f"it out by a pattern"
        )
    return sizes


def refuse_without_gradients(tracked: Tracked) -> None:
    """ValueError, naming what it is of and what to do, where autograd could not give the gradients
    of the tracked layers: for tensors without numbers (`refuse_without_numbers`), in or from
    `torch.inference_mode`, and for weights that are computed from others."""
    refuse_without_numbers(tracked.model)
    if not tracked.layers:
        return
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "gradients are asked for inside torch.inference_mode(), which has none: leave it "
            "(torch.no_grad() may stay)"
        )
    for name, x in _tensors(tracked.model):
        if x.is_inference():
            raise ValueError(
                f"{name} was made inside torch.inference_mode(), and can have no gradient: load "
                f"the model outside of it"
            )
    there = {name for name, _ in tracked.model.named_parameters()}
    for layer in tracked.layers:
        for name in own_parameters(tracked.model, layer).values():
            if name not in there:
                raise ValueError(
                    f"{name} is not a parameter of the model but computed from others (pruned or "
                    f"parametrized): make it one (torch.nn.utils.prune.remove, or "
                    f"torch.nn.utils.parametrize.remove_parametrizations), or leave {layer.name} "
                    f"out of the tracked layers by a pattern"
                )


def refuse_without_numbers(model: nn.Module) -> None:
    """ValueError, naming it, for a parameter or buffer on the meta device."""
    for name, x in _tensors(model):
        if x.is_meta:
            raise ValueError(
                f"{name} is on the meta device, without numbers: expected a model whose weights "
                f"are all loaded; load it anew, and do not move parts of it to 'meta'"
            )


def _tensors(model):
    yield from model.named_parameters()
    yield from model.named_buffers()


def own_parameters(model: nn.Module, layer: Layer) -> dict[str, str]:
    """{"weight" and "bias": names of the layer's parameters}; of an expert those of all experts."""
    bias = f"{layer.module}.bias" if layer.expert is None else f"{layer.parameter}_bias"
    return {"weight": layer.parameter} | ({"bias": bias} if has_bias(model, layer) else {})


def has_bias(model: nn.Module, layer: Layer) -> bool:
    """Has the layer a bias? Also of an expert, whose inputs end in a 1 then."""
    return layer.bias or getattr(model.get_submodule(layer.module), "has_bias", False)


def own_module(model: nn.Module, layer: Layer) -> nn.Module:
    """The module whose weight is the layer's alone. ValueError for an expert, which has none."""
    if layer.expert is not None:
        raise ValueError(
            f"{layer.name} is one of several experts in a parameter, which this cannot take: leave "
            f"the experts out by a pattern such as r'layers.*attn'"
        )
    return model.get_submodule(layer.name)


def matrix(module: nn.Module, tensor: Tensor) -> Tensor:
    """A weight of the module, or a gradient like it, as (…, out, in). Its own inverse.

    `Conv1D` keeps it transposed.
    """
    return tensor.mT if isinstance(module, Conv1D) else tensor


def weight_matrix(module: nn.Linear | Conv1D) -> Tensor:
    """Weight of the module, and bias if it has one, as a layer's gradient is laid out.

    (o, i), the bias last; without a gradient. Raises ValueError for packed weights.
    """
    if not module.weight.is_floating_point():
        raise ValueError(
            f"{type(module).__name__} holds packed weights ({module.weight.dtype}), which cannot "
            f"be read as numbers; load the model without quantization"
        )
    weight = matrix(module, module.weight)
    if module.bias is not None:
        weight = torch.cat([weight, module.bias[:, None]], 1)
    return weight.detach()
