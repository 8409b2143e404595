"""What a language model is made of: its blocks, its experts, and which of it reads text.

The default layers lie in repeated blocks, numbered children of an `nn.ModuleList` or, where they
have parts of their own, of an `nn.Sequential`. Of a model that also sees or hears, only what reads
text: its configuration has a part of its own for that, and so have its modules.
"""

import re
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

HEADS = ("lm_head", "embed_out", "score", "classifier")
PACKED = (torch.uint8, torch.int8, torch.int32)
OTHER_MODALITIES = re.compile(
    r"(^|[._])(vision|visual|vit|image|audio|speech|video|mm|multi_modal)([._]|$)"
).search


def in_a_block(model: nn.Module, name: str) -> bool:
    """Is the layer part of a repeated block, as "model.layers.3.mlp.up_proj" is?"""
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbered or parts[-1] in HEADS or {*parts[: numbered[0]]} & {*HEADS}:
        return False

    def is_block(i):
        holder = model.get_submodule(".".join(parts[:i]))
        inside = i + 1 < len(parts)
        return isinstance(holder, nn.ModuleList) or (isinstance(holder, nn.Sequential) and inside)

    return any(map(is_block, numbered))


def reads_text(model: nn.Module, name: str) -> bool:
    """Is the layer for text, by its name and by the configuration of the module that it is in?

    Yes for all of a model whose configuration has one part alone.
    """
    if OTHER_MODALITIES(name):
        return False
    config = getattr(model, "config", None)
    subs = {key: getattr(config, key, None) for key in getattr(config, "sub_configs", ())}
    others = [x for key, x in subs.items() if OTHER_MODALITIES(key) and x is not None]
    if not others:
        return True
    while name:
        name = name.rpartition(".")[0]
        here = getattr(model.get_submodule(name), "config", None)
        if here is not None:
            texts = [x for key, x in subs.items() if not OTHER_MODALITIES(key)]
            if here is config:  # as that of the text, where no part is
                return not texts
            return any(here is x for x in texts) or here not in others
    return True


def fused_experts(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of experts whose weights lie in one parameter (experts, …) and whose products
    `msif.core.experts` can follow: those that transformers computes in several ways
    (`use_experts_implementation`)."""
    return {
        name: x
        for name, x in model.named_modules()
        if all(hasattr(x, k) for k in ("is_transposed", "has_gate", "has_bias", "_apply_gate"))
        and isinstance(getattr(x, "down_proj", None), nn.Parameter)
        and x.down_proj.dim() == 3
    }


def projections(experts: nn.Module) -> tuple[str, str]:
    """The names of the two parameters of fused experts."""
    return ("gate_up_proj" if experts.has_gate else "up_proj"), "down_proj"


def matrices(model: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, numbers) of every matrix that reads text between embeddings and head, packed ones by
    what they stand for. A layer's weight goes by the layer's name."""
    modules = dict(model.named_modules())
    head = table(model, "get_output_embeddings")
    biases = {
        f"{x}.{what}_bias" for x, y in fused_experts(model).items() for what in projections(y)
    }
    for full, x in [*model.named_parameters(), *_packed(model)]:
        name, _, what = full.rpartition(".")
        owner = modules[name]
        heads = owner is head or {*name.split(".")} & {*HEADS} and not in_a_block(model, name)
        vectors = x.dim() < 2 or full in biases or isinstance(owner, nn.Embedding)
        if vectors or heads or not reads_text(model, full):
            continue
        if isinstance(owner, nn.Linear) and what == "weight":
            yield name, owner.in_features * owner.out_features
        else:
            yield (name if isinstance(owner, Conv1D) else full), x.numel()


def _packed(model) -> list[tuple[str, Tensor]]:
    """Buffers that hold packed weights, as those of GPTQ and AWQ do."""
    return [(name, x) for name, x in model.named_buffers() if x.dtype in PACKED and x.dim() > 1]


def table(model: nn.Module, getter: str) -> nn.Module | None:
    """What the model's get_input_embeddings or get_output_embeddings gives; None without one, which
    transformers says by either error."""
    with suppress(AttributeError, NotImplementedError):
        return getattr(model, getter)()
    return None
