"""Language models: loading, digests and logits.

Any Hugging Face causal language model or sequence classifier, from a hub id or a local folder; and
a tiny GPT-NeoX to train from scratch. Weights come from safetensors alone; code that comes with a
model never runs.
"""

import contextlib
import hashlib
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from msif.core.data import Batch

DTYPES = ("float32", "bfloat16", "float16", "float64")
_HEADS = {"causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}


def tiny_gpt_neox(
    vocab_size: int,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 64,
    seed: int = 0,
    intermediate: int | None = None,
) -> GPTNeoXForCausalLM:
    """A GPTNeoXForCausalLM with weights drawn from `seed`.

    In float32, without dropout, untied, in eval mode. intermediate: the feed-forward width,
    4 × `width` by default. The global random state is left as it was.
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


def load_model(
    source: str | Path,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    revision: str | None = None,
    head: str = "causal",
) -> PreTrainedModel:
    """The model at `source` (hub id, or folder with config.json and *.safetensors), in eval mode.

    dtype: one of `DTYPES`. head: "causal" (language model) or "classifier" (sequence classifier; a
    classification head that the source lacks is newly drawn from torch's global random state).
    Raises ValueError for another dtype or head, and for weights that lack parameters; OSError,
    naming the source, if nothing can be loaded from it.
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


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `source` (hub id, or folder with its files).

    One that says of itself that it is what its tokenizer.json says is read so. Raises OSError,
    naming the source, if none can be loaded from it.
    """
    auto = PreTrainedTokenizerFast if _is_its_file(source, revision) else AutoTokenizer
    files = "tokenizer.json or tokenizer_config.json"
    return _from_pretrained(auto, source, files, revision=revision)


def _is_its_file(source, revision):
    """AutoTokenizer replaces the class by the model type's own for some types, such as qwen2: other
    pre-tokenisation, other ids, in silence."""
    with contextlib.suppress(OSError, ValueError):
        found = get_tokenizer_config(str(source), revision=revision)
        return found.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return False


def _from_pretrained(auto, source, files, **options):
    try:
        return auto.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise OSError(
            f"nothing could be loaded from {str(source)!r} with {auto.__name__}: expected a hub id "
            f"(already downloaded, if offline), or a local folder with {files}. The cause: {error}"
        ) from error


def model_digest(model: nn.Module) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of the state dict, in the names' order.

    It does not depend on the device, or on the file or folder that the model came from.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits for a batch: (n, S, V), or (n, C) for a classifier.

    Padding is known by the mask. Decoder classifiers of transformers pool at the last id that is
    not config.pad_token_id, so padding gets that id here; ValueError for a sequence that ends in
    it, as it would be pooled elsewhere.
    """
    ids = batch.input_ids
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    if hasattr(model, "score") and pad is not None:  # what decoder classifiers call their head
        last = ids.gather(1, batch.attention_mask.sum(1, keepdim=True) - 1)[:, 0]
        if (last == pad).any():
            number = batch.index[last == pad][0].item()
            raise ValueError(
                f"sequence {number} ends in token id {pad}, the model's pad_token_id: a classifier "
                f"would not see its end; give the config a pad_token_id that no text uses"
            )
        ids = ids.masked_fill(batch.attention_mask == 0, pad)
    return model(input_ids=ids, attention_mask=batch.attention_mask).logits


def limits(model: nn.Module) -> tuple[float, float]:
    """(vocabulary size, longest sequence) that the model can read.

    Infinite where its config does not say.
    """
    config = getattr(model, "config", None)

    def limit(name):
        return getattr(config, name, None) or math.inf

    return limit("vocab_size"), limit("max_position_embeddings")
