"""A model's digest: what it computes with, as a text that tells it from another one in any run."""

import dis
import hashlib
import inspect
import json
import re
import warnings
from functools import cache, cached_property
from types import BuiltinFunctionType, FunctionType, MethodType

import numpy as np
import torch
from torch import Tensor, nn

from msif.core.buffers import own_buffers, rewritten
from msif.core.digests import digest_of_any, is_of_library, is_of_user, plain_digest
from msif.core.layers import refuse_without_numbers
from msif.core.models import position_tables, text_config

# Fields that logits do not depend on in eval mode: names, precision, ways to compute the same.
_SILENT = re.compile(
    r"^_|name_or_path|transformers_version|architectures|^auto_map|dtype|id2label|label2id"
    r"|problem_type|^task_specific|finetuning_task|tokenizer_class|^use_cache|cached"
    r"|^output_(attentions|hidden_states|(auxiliary_|router_)?logits|scores|past)|return_dict"
    r"|implementation|(?<!^token_)drop(?!p)|init(ializer)?_|initializer|gradient_checkpointing"
    r"|^(bos|eos|sep|cls|mask|pad)_token_id|padding_idx|chunk_size_feed_forward|pretraining_tp"
    r"|router_aux"
).search


def model_digest(model: nn.Module) -> str:
    """sha256 (hex) of what a model computes with.

    That is names, dtypes, shapes and bytes of the state dict, in the names' order, and of buffers
    that it lacks where they are not as the model's class makes them (`buffers.own_buffers`); the
    configuration (positions, norms' epsilons, activations, …), less what logits do not depend on
    (`_SILENT`); and of each module its class and its own numbers, such as an epsilon that was
    changed by hand, its tensors that are neither parameters nor buffers, functions that stand in
    for its methods, and the hooks on it. Of a module of one's own also its functions, collections
    and records of numbers, such as a dataclass that configures it. It does not depend on the
    device, or on the file or folder that the model came from.

    Warns where a hook or function holds what cannot be told from one run to the next, such as an
    open file: the digest is then another one in any other process. Raises ValueError for a model
    without numbers.
    """
    refuse_without_numbers(model)
    sha, tensors = hashlib.sha256(), model.state_dict()
    settings = _settings(model)
    tensors |= dict(model.named_buffers()) if settings is None else own_buffers(model)
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    held = _Held(model)
    found = [settings, *({name: _own(x, held)} for name, x in model.named_modules())]
    sha.update(json.dumps(found, sort_keys=True, default=str).encode())
    _warn(held.unknown)
    return sha.hexdigest()


def _settings(model):
    """What the configuration says of the function; None without one."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return None
    found, text = _speaking(config.to_dict()), text_config(model)
    if hasattr(model, "score") or any(x.padding_idx is not None for x in position_tables(model)):
        found["pad"] = getattr(text, "pad_token_id", None)  # where classifiers pool, tables begin
    if getattr(config, "is_encoder_decoder", False):
        found["eos"] = getattr(text, "eos_token_id", None)
    return found


def _speaking(x):
    if not isinstance(x, dict):
        return [_speaking(y) for y in x] if isinstance(x, list | tuple) else x
    return {str(k): _speaking(y) for k, y in x.items() if y is not None and not _SILENT(str(k))}


class _Held:
    """Digests of functions that may hold anything, the model's own modules too, which count by
    their names. unknown: kinds of what cannot be told from one run to the next."""

    def __init__(self, model):
        self.model = model
        self.unknown: list[str] = []

    def __call__(self, x):
        if (plain := plain_digest(x)) is not None:
            return plain
        digest, unknown = digest_of_any(x, self._known)
        self.unknown += unknown
        return digest

    @cached_property
    def _known(self):
        """The modules by their names, and their configurations, which do not say it all alike."""
        found = []
        for name, module in self.model.named_modules():
            found.append((module, f"the module {name}"))
            config = getattr(module, "config", None)
            if hasattr(config, "to_dict"):
                said = json.dumps(_speaking(config.to_dict()), sort_keys=True, default=str)
                found.append((config, f"a configuration {said}"))
        return found


def _warn(unknown):
    if unknown:
        warnings.warn(
            f"a hook or function of the model holds a {unknown[0]}, which cannot be told from "
            f"another one in a later run: what is kept for this model, such as its factors, is "
            f"found again in this process alone; let it hold numbers, texts, tensors, models and "
            f"functions alone",
            stacklevel=3,
        )


def _own(module, held):
    """A module's class, its numbers, tensors and functions, and what is hooked to it."""
    found = {"class": type(module).__qualname__}
    own = not is_of_library(type(module))
    for name, x in vars(module).items():
        if _patched(module, name, x):
            found[name] = held(x)
            continue
        if name.startswith("_") or name in ("training", "forward") or _SILENT(name):
            continue
        if _made_anew(module, name, x):
            continue
        if isinstance(x, bool | int | float | str):
            found[name] = x
        elif own and (digest := plain_digest(x)) is not None:
            found[name] = digest
        elif is_of_user(x) and not isinstance(x, MethodType):
            found[name] = held(x)
        elif isinstance(x, FunctionType | BuiltinFunctionType):
            found[name] = x.__qualname__
        elif _holds_tensors(x):
            found[name] = held(x)
    if (forward := _forward(module)) is not None:
        found["forward"] = held(forward)
    for what, kinds in _HOOKS.items():
        hooks = [x for kind in kinds for x in vars(module).get(kind, {}).values()]
        if hooked := [held(x) for x in hooks if not _listens(x)]:
            found[what] = hooked
    return found


_HOOKS = {
    "hooks": ("_forward_pre_hooks", "_forward_hooks"),
    "backward hooks": ("_backward_pre_hooks", "_backward_hooks"),
}


def _patched(module, name, x):
    """Is it a function of the user's in place of a method of the module's class, but `forward`?"""
    return name != "forward" and is_of_user(x) and hasattr(type(module), name)


def _forward(module):
    """The function that stands in for the class's `forward`; None where there is none.

    What accelerate puts in its place, to move tensors between devices, and `torch.compile` do not
    count, but what they call does.
    """
    own = vars(module)
    found = own.get("_old_forward", own.get("forward"))
    found = getattr(found, "_torchdynamo_orig_callable", found)
    if isinstance(found, MethodType) and found.__self__ is module:
        return None if found.__func__ is type(module).forward else found
    return found


def _holds_tensors(x):
    held = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else [x]
    return any(isinstance(y, Tensor | np.ndarray) for y in held)


def _made_anew(module, name, x):
    """Are these tensors made anew in each forward pass: of parameters, as by pruning and weight
    norm, or by the module's `forward`, as a state?"""
    if not _holds_tensors(x):
        return False
    of_parameters = any(p.startswith(f"{name}_") for p in module._parameters)
    return of_parameters or rewritten(module, name) or name in _written(type(module))


@cache
def _written(kind):
    """Names of what a class's `forward` writes to itself."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    steps = dis.get_instructions(code) if code else ()
    return {x.argval for x in steps if x.opname == "STORE_ATTR"}


def _listens(hook):
    """Is it a hook of transformers that hands out hidden states, and changes nothing?"""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"
