"""Language models: loading, digests and logits.

Any Hugging Face causal language model or sequence classifier, from a hub id or a local folder; and a tiny
GPT-NeoX to train from scratch. Weights come from safetensors alone; code that comes with a model never runs.
"""

import hashlib
import math

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

DTYPES = ("float32", "bfloat16", "float16", "float64")
_HEADS = {"causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}


def tiny_gpt_neox(vocab_size, width=64, layers=2, heads=4, context=64, seed=0, intermediate=None):
    """A GPTNeoXForCausalLM with weights drawn from `seed`: float32, no dropout, untied, in eval mode.

    intermediate: the feed-forward width, 4 × `width` by default. The global random state is left as it was.
    """
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate or 4 * width,
        max_position_embeddings=context,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        classifier_dropout=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
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
        _HEADS[head],
        source,
        "config.json and *.safetensors",
        revision=revision,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
    )
    body = f"{model.base_model_prefix}."
    missing = sorted(k for k in found["missing_keys"] if head == "causal" or k.startswith(body))
    if missing:
        shown = ", ".join(missing[:5]) + ", …" * (len(missing) > 5)
        raise ValueError(
            f"the weights of {str(source)!r} lack {len(missing)} parameters of "
            f"{type(model).__name__}, which would be random: {shown}. Expected a complete "
            f"checkpoint; check that head={head!r} is the head it was trained with"
        )
    return model.to(device).eval()


def load_tokenizer(source, revision=None):
    """The tokenizer at `source` (hub id, or folder with its files). Raises OSError, naming the source."""
    return _from_pretrained(
        AutoTokenizer, source, "tokenizer.json or tokenizer_config.json", revision=revision
    )


def _from_pretrained(auto, source, files, **options):
    try:
        return auto.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise OSError(
            f"nothing could be loaded from {str(source)!r} with {auto.__name__}: expected a hub id "
            f"(already downloaded, if offline), or a local folder with {files}. The cause: {error}"
        ) from error


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
    if hasattr(model, "score") and pad is not None:  # what decoder classifiers call their head
        last = ids.gather(1, batch.attention_mask.sum(1, keepdim=True) - 1)[:, 0]
        if (last == pad).any():
            raise ValueError(
                f"sequence {batch.index[last == pad][0].item()} ends in token id {pad}, the model's pad_token_id: a "
                f"classifier would not see its end; give the config a pad_token_id that no text uses"
            )
        ids = ids.masked_fill(batch.attention_mask == 0, pad)
    return model(input_ids=ids, attention_mask=batch.attention_mask).logits


def limits(model):
    """(vocabulary size, longest sequence) that the model can read; infinite where its config does not say."""
    config = getattr(model, "config", None)
    return tuple(
        getattr(config, name, None) or math.inf
        for name in ("vocab_size", "max_position_embeddings")
    )
