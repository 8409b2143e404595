"""Adapters (LoRA) of a model: read from a folder that PEFT has written, or from a model that has
them, and put into a copy of the model's weights.

Nothing is unpickled, and PEFT itself is not needed. Only plain LoRA on linear layers is read; what
PEFT can do besides is refused by name, as it would be another function of other parameters. So are
adapters that it has converted on saving from PiSSA or OLoRA, by their numbers, as their folder says
nothing of it; from beginnings on data (CorDA, LoRA-GA) they cannot be told from plain ones.
"""

import json
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from msif.core.layers import matrix

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Fields that are read here, or that the trained function does not depend on.
_KNOWN = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "inference_mode", "auto_mapping", "init_lora_weights", "eva_config"),
    *("megatron_core", "qalora_group_size", "runtime_config", "bias"),
}
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")  # that leave the base as it is
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.(\w+))?\.weight")


@dataclass(frozen=True)
class Adapter:
    """What a layer's adapter adds to its weight: scale · B A.

    A: (r, i), without the bias. B: (o, r). scale: s. Raises ValueError for other shapes.
    """

    A: Tensor
    B: Tensor
    scale: float

    def __post_init__(self):
        if self.A.dim() != 2 or self.B.dim() != 2 or len(self.A) != self.B.shape[1]:
            raise ValueError(
                f"an adapter of A {tuple(self.A.shape)} and B {tuple(self.B.shape)}: expected "
                f"(r, i) and (o, r)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i) of the layer."""
        return len(self.B), self.A.shape[1]

    def added(self) -> Tensor:
        """s B A: (o, i), in at least float32."""
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        return self.scale * self.B.to(dtype) @ self.A.to(dtype)


def has_adapters(source: str | Path) -> bool:
    """Is this a folder of adapters?"""
    return (Path(source) / CONFIG).exists()


def refuse_parent(source: str | Path) -> None:
    """ValueError, naming them, where folders of adapters lie in this one, which is none itself: as
    PEFT saves several adapters of a model, and trainers their checkpoints."""
    place = Path(source)
    if (place / CONFIG).exists() or (place / "config.json").exists():
        return
    if inner := sorted(str(x.parent) for x in place.glob(f"*/{CONFIG}")):
        raise ValueError(
            f"{source} is no model and has no {CONFIG} itself, but folders of adapters in it: "
            f"name the one that you mean, {' or '.join(inner)}"
        )


def named_base(folder: str | Path) -> str | None:
    """What a folder of adapters says that they were trained on."""
    return _config(folder).get("base_model_name_or_path")


def base_of(
    folder: str | Path, base: str | Path | None = None, revision: str | None = None
) -> tuple[str | Path, str | None]:
    """Where the base model of a folder of adapters is, and at which revision: as given, or as the
    folder says. ValueError where neither does."""
    config = _config(folder)
    found = base or config.get("base_model_name_or_path")
    if not found:
        raise ValueError(f"{folder}/{CONFIG} names no base model: say where it is (base=…)")
    return found, revision if base else revision or config.get("revision")


def read(folder: str | Path) -> dict[str, Adapter]:
    """The adapters of a folder: {layer name: Adapter}.

    Raises ValueError, naming it, for what is not plain LoRA; OSError for a folder without
    safetensors, or with damaged ones.
    """
    config, path = _config(folder), Path(folder) / WEIGHTS
    _refuse(config, str(folder))
    _refuse_numbers(config, Path(folder) / CONFIG)
    if not path.exists():
        raise OSError(
            f"{folder} has no {WEIGHTS}; expected one: adapters that are pickled are not read "
            f"(save them anew with save_pretrained)"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path} is damaged: {error}") from error
    sides: dict[str, dict[str, Tensor]] = {}
    names = set()
    for key, x in tensors.items():
        if not (found := _KEY.fullmatch(key)):
            raise ValueError(
                f"{folder} has {key}, which is no adapter of a linear layer's weight: LoRA on "
                f"linear layers alone can be traced"
            )
        if x.dim() != 2 or not len(x) or not x.shape[1]:
            raise OSError(f"{path} is damaged: {key} has the shape {tuple(x.shape)}")
        names.add(found[3])
        sides.setdefault(found[1], {})[found[2]] = x
    if len(names) > 1:
        said = ", ".join(sorted(map(repr, names)))
        raise ValueError(
            f"{path} has several adapters, named {said}; expected one: save the one that was "
            f"trained by itself (save_pretrained(…, selected_adapters=[name]))"
        )
    if torn := sorted(name for name, x in sides.items() if len(x) < 2) or not sides:
        raise OSError(f"{path} is damaged: it has one side alone of {torn or 'no adapter'}")
    return {name: Adapter(**x, scale=_scale(config, name, x["A"])) for name, x in sides.items()}


def taken_from(model: nn.Module) -> tuple[nn.Module, dict[str, Adapter]]:
    """The base of a `PeftModel`, a copy with the same parameters, and its one active adapter.

    Raises ValueError for what is not plain LoRA, for several active adapters, and for adapters that
    are merged or switched off.
    """
    outer: Any = model
    active = list(outer.active_adapters) if type(model).__module__.startswith("peft.") else []
    if len(active) != 1:
        raise ValueError(
            f"a {type(model).__name__} with {len(active)} active adapters; expected a PeftModel "
            f"with one (model.set_adapter(name))"
        )
    _refuse(outer.peft_config[active[0]].to_dict(), type(model).__name__)
    inner = outer.base_model
    base = shared_copy(inner.model)
    found = {}
    for name, x in list(base.named_modules()):
        if not hasattr(x, "base_layer"):
            continue
        if getattr(x, "merged", False) or getattr(x, "disable_adapters", False):
            raise ValueError(f"{name}: its adapters are merged or switched off; expected active")
        if active[0] in getattr(x, "lora_embedding_A", ()):
            raise ValueError(
                f"{name}, an embedding, has an adapter, which is none of a linear layer's weight: "
                f"LoRA on linear layers alone can be traced"
            )
        if active[0] in x.lora_A:
            A, B = (side[active[0]].weight.detach() for side in (x.lora_A, x.lora_B))
            found[name] = Adapter(A, B, float(x.scaling[active[0]]))
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, x.base_layer)
    return base, found


def merged(model: nn.Module, adapters: Mapping[str, Adapter]) -> nn.Module:
    """A copy of a model whose adapted weights are W + s BA; it shares all other parameters.

    Raises ValueError for layers that the model lacks, are not linear, or are of other sizes.
    """
    model = shared_copy(model)
    modules = dict(model.named_modules())
    for name, x in adapters.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear | Conv1D):
            raise ValueError(
                f"{name}, which has an adapter, is a {type(module).__name__} of the base model; "
                f"expected a linear layer: is it the model that the adapters were trained on?"
            )
        weight = matrix(module, module.weight)
        if tuple(weight.shape) != x.shape:
            raise ValueError(
                f"{name} has a weight of shape {tuple(weight.shape)}, its adapter is for "
                f"{x.shape}: is it the model that the adapters were trained on?"
            )
        added = x.added().to(weight.device)
        total = (weight.to(torch.promote_types(weight.dtype, added.dtype)) + added).to(weight)
        module.weight = nn.Parameter(matrix(module, total).detach().contiguous())
    return model


def refuse_converted(model: nn.Module, adapters: Mapping[str, Adapter], source: object) -> None:
    """ValueError for adapters that were converted on saving from PiSSA or OLoRA.

    model: their base. What was trained has rank r and lay on another base; the second half of rank
    2r takes back the beginning B₀ A₀, of W's own directions: each row of B₀ᵀ W is along that of A₀.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    layers = ((matrix(modules[name], modules[name].weight), x) for name, x in adapters.items())
    if adapters and all(_takes_back(weight.detach(), x) for weight, x in layers):
        raise ValueError(
            f"{source} has adapters that PEFT converted on saving, from PiSSA or OLoRA: half of "
            f"their rank takes back a beginning that changed the base, and was not trained. Plain "
            f"LoRA alone can be traced: give the merged model (merge_and_unload, saved) as one "
            f"fine-tuned in full, or train with init_lora_weights=True"
        )


def _takes_back(weight, x):
    if len(x.A) % 2:
        return False
    r = len(x.A) // 2
    A, B = x.A[r:].to(weight).float(), x.B[:, r:].to(weight).float()
    return bool(torch.cosine_similarity(B.mT @ weight.float(), A).abs().min() > 0.95)


def shared_copy(model: nn.Module) -> nn.Module:
    """The same modules anew, over the same parameters and buffers."""
    held = {id(x): x for x in (*model.parameters(), *model.buffers())}
    return deepcopy(model, held)


def _config(folder):
    path = Path(folder) / CONFIG
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(path, f"it is a {type(found).__name__}, not an object")
    base = found.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise _damaged(path, f"base_model_name_or_path is {base!r}")
    return found


def _damaged(path, why):
    return OSError(
        f"{path} is damaged: {why}; expected what PEFT's save_pretrained writes: save the adapters "
        f"anew"
    )


def _refuse_numbers(config, path):
    """OSError for what no scale can be found by."""
    if not _number(alpha := config.get("lora_alpha")):
        raise _damaged(path, f"lora_alpha is {alpha!r}, not a number")
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict) or not all(map(_number, patterns.values())):
            raise _damaged(path, f"{name} is {patterns!r}, not numbers by pattern")
        for x in patterns:
            try:
                re.compile(x)
            except re.error as error:
                raise _damaged(path, f"{name} has {x!r}, no pattern ({error})") from error


def _number(x):
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _refuse(config, source):
    """ValueError, naming it, for what makes of adapters another function than W + s BA."""
    kind = str(getattr(config.get("peft_type"), "value", config.get("peft_type"))).upper()
    if kind != "LORA":
        raise ValueError(f"{source} has adapters of the kind {kind}: LoRA alone can be traced")
    others = {name: x for name, x in config.items() if name not in _KNOWN and x}
    if config.get("bias", "none") != "none":
        others["bias"] = config["bias"]
    if (begun := config.get("init_lora_weights")) not in _BEGINNINGS:
        others["init_lora_weights"] = begun
    if others:
        said = ", ".join(f"{name} = {x!r}" for name, x in sorted(others.items()))
        raise ValueError(
            f"{source} has adapters with {said}: plain LoRA alone can be traced, without DoRA, "
            f"biases, modules that are saved whole, or beginnings that change the base model"
        )


def _scale(config, name, A):
    """s, from lora_alpha and the rank, as PEFT finds them."""
    patterns = config.get("alpha_pattern") or {}
    match = next((x for x in patterns if re.match(rf"(.*\.)?({x})$", name)), None)
    alpha = config["lora_alpha"] if match is None else patterns[match]
    return alpha / (math.sqrt(len(A)) if config.get("use_rslora") else len(A))
