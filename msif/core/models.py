"""Language models, and the layers of theirs that influence is computed over.

Any Hugging Face causal language model or sequence classifier, from a hub id or a local folder; and a tiny
GPT-NeoX to train from scratch. Weights come from safetensors alone; code that comes with a model never runs.
"""
import hashlib
import math
import re
from collections import defaultdict
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer,
                          GPTNeoXConfig, GPTNeoXForCausalLM)
from transformers.pytorch_utils import Conv1D

from msif.core.layers import head_rows

DTYPES = ("float32", "bfloat16", "float16", "float64")
_HEADS = {"causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
_UNEMBEDDINGS = ("lm_head", "embed_out", "score", "classifier")


@dataclass(frozen=True)
class Layer:
    """One tracked layer y = x Wᵀ (+ b): `nn.Linear`, or `Conv1D`, whose weight is stored as Wᵀ (in, out)."""
    name: str               # as in model.named_modules()
    rows: Tensor | None     # None: one block with all output rows; else (blocks, r) int64, a partition
    bias: bool
    in_features: int        # without the bias
    out_features: int


def tiny_gpt_neox(vocab_size, width=64, layers=2, heads=4, context=64, seed=0, intermediate=None):
    """A GPTNeoXForCausalLM with weights drawn from `seed`: float32, no dropout, untied, in eval mode.

    intermediate: the feed-forward width, 4 × `width` by default. The global random state is left as it was.
    """
    config = GPTNeoXConfig(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=intermediate or 4 * width, max_position_embeddings=context, attention_dropout=0.0,
        hidden_dropout=0.0, classifier_dropout=0.0, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config).float().eval()


def load_model(source, dtype="float32", device="cpu", revision=None, head="causal"):
    """The model at `source` (hub id, or folder with config.json and *.safetensors) in `dtype`, in eval mode.

    head: "causal" (language model) or "classifier" (sequence classifier; a classification head that the
    source lacks is newly drawn from torch's global random state). Raises ValueError for another dtype or
    head, and for weights that lack parameters; OSError, naming the source, if nothing can be loaded from it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    if head not in _HEADS:
        raise ValueError(f"head is {head!r}: expected one of {', '.join(_HEADS)}")
    model, found = _from_pretrained(
        _HEADS[head], source, "config.json and *.safetensors", revision=revision, dtype=getattr(torch, dtype),
        use_safetensors=True, output_loading_info=True)
    body = f"{model.base_model_prefix}."
    missing = sorted(k for k in found["missing_keys"] if head == "causal" or k.startswith(body))
    if missing:
        shown = ", ".join(missing[:5]) + ", …" * (len(missing) > 5)
        raise ValueError(f"the weights of {str(source)!r} lack {len(missing)} parameters of "
                         f"{type(model).__name__}, which would be random: {shown}. Expected a complete "
                         f"checkpoint; check that head={head!r} is the head it was trained with")
    return model.to(device).eval()


def load_tokenizer(source, revision=None):
    """The tokenizer at `source` (hub id, or folder with its files). Raises OSError, naming the source."""
    return _from_pretrained(AutoTokenizer, source, "tokenizer.json or tokenizer_config.json",
                            revision=revision)


def _from_pretrained(auto, source, files, **options):
    try:
        return auto.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise OSError(f"nothing could be loaded from {str(source)!r} with {auto.__name__}: expected a hub id "
                      f"(already downloaded, if offline), or a local folder with {files}. The cause: {error}"
                      ) from error


def tracked_layers(model, pattern=None, per_head=False):
    """The layers that factors, gradients and scores range over, in module order: list[Layer].

    pattern: a regex searched for in the dotted names of all `nn.Linear` and `Conv1D`. Default: those inside
    the repeated blocks (attention and MLP), not embeddings, unembedding or classification head.
    per_head: attention projections in one block per head and per q, k and v (see msif.core.layers); other layers
    stay one block. Raises ValueError if nothing matches, if parameters are shared with another module (tied
    weights: their gradient does not come from this layer alone), or if per_head meets an unknown attention.
    """
    linear = {n: module for n, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    chosen = [n for n in linear if (_in_a_block(model, n) if pattern is None else re.search(pattern, n))]
    if not chosen:
        there = sorted({re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in linear})
        wanted = "inside numbered blocks" if pattern is None else f"matching the pattern {pattern!r}"
        raise ValueError(f"no layer to track: expected one {wanted}, among {', '.join(there) or 'none'}")
    _refuse_shared(model, chosen)
    return [_layer(model, name, linear[name], per_head) for name in chosen]


def _in_a_block(model, name):
    """Is it part of a numbered module of an nn.ModuleList, as "model.layers.3.mlp.up_proj" is?"""
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    return parts[-1] not in _UNEMBEDDINGS and any(
        isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList) for i in numbered)


def _refuse_shared(model, names):
    owners = defaultdict(list)          # by memory: a second Parameter over the same numbers is shared too
    for full, p in model.named_parameters(remove_duplicate=False):
        owners[p.data_ptr() or id(p)].append(full)      # meta tensors have no memory: address 0
    for group in owners.values():
        tracked = [full for full in group if full.rpartition(".")[0] in names]
        if tracked and len(group) > 1:
            others = ", ".join(full for full in group if full != tracked[0])
            raise ValueError(f"{tracked[0]} is one parameter with {others}: shared (tied) weights cannot be "
                             f"tracked; choose a pattern that leaves this layer out, or untie them")


def _layer(model, name, module, per_head):
    shape = module.weight.shape
    n_in, n_out = shape if isinstance(module, Conv1D) else reversed(shape)
    rows = head_rows(name, n_out, model.config) if per_head else None
    return Layer(name, rows, module.bias is not None, n_in, n_out)


def model_digest(model):
    """sha256 (hex) over the names, dtypes, shapes and bytes of the state dict, in the order of the names.

    It does not depend on the device, or on the file or folder that the model came from.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def logits(model, batch):
    """The model's logits for a `data.Batch`: (n, S, V), or (n, C) for a classifier; padding is known by the mask.

    Decoder classifiers of transformers pool at the last id that is not config.pad_token_id, so padding gets that id here;
    ValueError for a sequence that ends in it, as it would be pooled elsewhere.
    """
    ids, pad = batch.input_ids, getattr(getattr(model, "config", None), "pad_token_id", None)
    if hasattr(model, "score") and pad is not None:               # what decoder classifiers call their head
        last = ids.gather(1, batch.attention_mask.sum(1, keepdim=True) - 1)[:, 0]
        if (last == pad).any():
            raise ValueError(f"sequence {batch.index[last == pad][0].item()} ends in token id {pad}, the model's pad_token_id: a "
                             f"classifier would not see its end; give the config a pad_token_id that no text uses")
        ids = ids.masked_fill(batch.attention_mask == 0, pad)
    return model(input_ids=ids, attention_mask=batch.attention_mask).logits


def limits(model):
    """(vocabulary size, longest sequence) that the model can read; infinite where its config does not say."""
    config = getattr(model, "config", None)
    return tuple(getattr(config, name, None) or math.inf for name in ("vocab_size", "max_position_embeddings"))
