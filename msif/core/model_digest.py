"""A model's digest: what it computes with, as a text that tells it from another one in any run."""

import hashlib
import json
import re
from types import BuiltinFunctionType, FunctionType

import torch
from torch import nn

from msif.core.digests import is_of_library, plain_digest
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

    That is names, dtypes, shapes and bytes of the state dict, in the names' order; the
    configuration (positions, norms' epsilons, activations, …), less what logits do not depend on
    (`_SILENT`), or without one the buffers that the state dict lacks; and of each module its class
    and its own numbers, such as an epsilon that was changed by hand. Of a module of one's own also
    its functions, collections and records of numbers, such as a dataclass that configures it, and
    of each module the functions hooked to it. It does not depend on the device, or on the file or
    folder that the model came from. Raises ValueError for a model without numbers.
    """
    refuse_without_numbers(model)
    sha, tensors = hashlib.sha256(), model.state_dict()
    settings = _settings(model)
    if settings is None:
        tensors |= dict(model.named_buffers())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    found = [settings, *({name: _own(x)} for name, x in model.named_modules())]
    sha.update(json.dumps(found, sort_keys=True, default=str).encode())
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


def _own(module):
    """A module's class, and its numbers and functions."""
    found = {"class": type(module).__qualname__}
    own = not is_of_library(type(module))
    for name, x in vars(module).items():
        if name.startswith("_") or name in ("training", "forward") or _SILENT(name):
            continue
        if isinstance(x, bool | int | float | str):
            found[name] = x
        elif own and (digest := plain_digest(x)) is not None:
            found[name] = digest
        elif isinstance(x, FunctionType | BuiltinFunctionType):
            found[name] = x.__qualname__
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if hooked := [x for x in map(plain_digest, hooks) if x]:
        found["hooks"] = hooked
    return found
