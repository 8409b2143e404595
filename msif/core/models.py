"""Language models: loading, logits and limits.

Any Hugging Face causal language model or sequence classifier, from a hub id or a local folder; and
a tiny GPT-NeoX to train from scratch. Weights come from safetensors, or from a pickle of tensors
alone (`msif.core.weights`); code that comes with a model never runs.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
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

from msif.core import adapters, weights
from msif.core.data import Batch
from msif.core.layers import MERGE
from msif.core.origin import look_for
from msif.core.parts import OTHER_MODALITIES, table

DTYPES = ("float32", "bfloat16", "float16", "float64")
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_target_positions")
_TABLE = re.compile(r"(^|[._])(wpe|positions?_embed\w*|embed_positions?|pos_emb\w*)$").search
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

    A source without safetensors is read from pytorch_model.bin, tensors alone (`core.weights`).

    dtype: one of `DTYPES`. head: "causal" (language model) or "classifier" (sequence classifier; a
    classification head that the source lacks is newly drawn from torch's global random state).
    Raises ValueError for another dtype or head, for weights that lack parameters, and for those
    that have more in the model's own parts than it reads (`weights.unread`); OSError, naming the
    source, if nothing can be loaded from it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    if head not in _HEADS:
        raise ValueError(f"head is {head!r}: expected one of {', '.join(_HEADS)}")
    if adapters.has_adapters(source):
        raise ValueError(f"{str(source)!r} has adapters (PEFT), not a whole model: {MERGE}")
    adapters.refuse_parent(source)
    look_for(source, revision, weights.EXPECTED)
    model, found = _from_pretrained(
        _HEADS[head],
        source,
        weights.EXPECTED,
        weights.reading(source, revision),
        revision=revision,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    body = f"{model.base_model_prefix}."
    missing = sorted(k for k in found["missing_keys"] if head == "causal" or k.startswith(body))
    if missing:
        raise ValueError(
            f"the weights of {str(source)!r} lack {len(missing)} parameters of "
            f"{type(model).__name__}, which would be random: {_first(missing)}. Expected a "
            f"complete checkpoint; check that head={head!r} is the head it was trained with"
        )
    if unread := weights.unread(model, found["unexpected_keys"]):
        raise ValueError(
            f"the weights of {str(source)!r} have {len(unread)} tensors that its "
            f"{type(model).__name__} would not read, so that it would compute something else than "
            f"was published: {_first(unread)}. Where they are scales of packed weights (fp8, int8, "
            f"GPTQ), give a checkpoint in bfloat16 or float32, or a config.json with its "
            f"quantization_config; else the config.json and the class that they were saved with"
        )
    if dtype == "float64" and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product of experts has no float64
    return model.to(device).eval()


def _first(names):
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `source` (hub id, or folder with its files).

    One that says of itself that it is what its tokenizer.json says is read so. Raises OSError,
    naming the source, if none can be loaded from it.
    """
    files = "tokenizer.json or tokenizer_config.json"
    look_for(source, revision, files)
    auto = PreTrainedTokenizerFast if _is_its_file(source, revision) else AutoTokenizer
    return _from_pretrained(auto, source, files, revision=revision)


def _is_its_file(source, revision):
    """AutoTokenizer replaces the class by the model type's own for some types, such as qwen2: other
    pre-tokenisation, other ids, in silence."""
    with contextlib.suppress(OSError, ValueError):
        found = get_tokenizer_config(str(source), revision=revision)
        said = found.get("tokenizer_class") if isinstance(found, dict) else None
        return said in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return False


def _from_pretrained(auto, source, files, reading=None, **options):
    try:
        with reading or contextlib.nullcontext({}) as more:
            return auto.from_pretrained(source, trust_remote_code=False, **options, **more)
    except (weights.Refused, ImportError, MemoryError):
        raise
    except Exception as error:  # of a damaged file any: tokenizers raises bare ones
        raise OSError(
            f"nothing could be loaded from {str(source)!r} with {auto.__name__}: expected a hub id "
            f"(already downloaded, if offline), or a local folder with {files}. The cause: {error}"
        ) from error


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits for a batch: (n, S, V), or (n, C) for a classifier.

    Padding is known by the mask. Decoder classifiers of transformers pool at the last id that is
    not config.pad_token_id, so padding gets that id here; ValueError for a sequence that ends in
    it, as it would be pooled elsewhere, for several of a classifier that has none, and for a model
    of another kind of output. The batch may lie on another device than the model.
    """
    batch = batch.to(next(model.parameters()).device)
    ids = batch.input_ids
    pad = getattr(text_config(model), "pad_token_id", None)
    if hasattr(model, "score") and pad is not None:  # what decoder classifiers call their head
        last = ids.gather(1, batch.attention_mask.sum(1, keepdim=True) - 1)[:, 0]
        if (last == pad).any():
            number = batch.index[last == pad][0].item()
            raise ValueError(
                f"sequence {number} ends in token id {pad}, the model's pad_token_id: a classifier "
                f"would not see its end; give the config a pad_token_id that no text uses"
            )
        ids = ids.masked_fill(batch.attention_mask == 0, pad)
    if hasattr(model, "score") and hasattr(model, "config") and pad is None and len(ids) > 1:
        raise ValueError(
            f"{type(model).__name__} has no config.pad_token_id, by which a classifier knows where "
            f"each sequence of a batch ends: set it to an id that no text uses, or batch_size=1"
        )
    kind = type(model).__name__
    try:
        output = model(input_ids=ids, attention_mask=batch.attention_mask)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(
            f"{kind} cannot be called with input_ids and attention_mask ({error}): expected a "
            f"model whose `forward` takes both, as those of transformers do"
        ) from error
    found: Any = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"{kind} gives a {type(output).__name__} without logits: expected an output whose "
            f"attribute `logits` is a tensor, (n, S, V) or of a classifier (n, C)"
        )
    if found.shape[: 2 if found.dim() > 2 else 1] != ids.shape[: 2 if found.dim() > 2 else 1]:
        raise ValueError(
            f"{kind} gives logits of shape {tuple(found.shape)} for a batch of {tuple(ids.shape)}: "
            f"expected one row a sequence, and of a language model one a position; cut off those "
            f"of prefixes and soft prompts"
        )
    return found


def text_config(model: nn.Module) -> Any:
    """The part of a model's configuration that says how it reads text; None without one."""
    config: Any = getattr(model, "config", None)
    try:
        return config.get_text_config() if hasattr(config, "get_text_config") else config
    except ValueError:  # several, as where encoder and decoder read text
        return config


def limits(model: nn.Module) -> tuple[float, float]:
    """(vocabulary size, longest sequence) that the model can read.

    By its tables (embedding, unembedding, learned positions), else by its configuration, that of
    the text where they are nested. Infinite where neither says.
    """
    config = text_config(model)
    tables = [_rows(model, "get_input_embeddings"), _rows(model, "get_output_embeddings")]
    vocabulary = [x for x in tables if x] or [_positive(config, "vocab_size")]
    context = [_positive(config, name) for name in _CONTEXTS]
    return min(vocabulary), min([*context, *_positions(model)])


def classes(model: nn.Module) -> float:
    """How many classes a classifier has, by its head; infinite where there is none."""
    heads = (getattr(model, name, None) for name in ("score", "classifier"))
    return min((x.out_features for x in heads if isinstance(x, nn.Linear)), default=math.inf)


def _positive(config, name):
    """A size of the configuration; some write -1 for none."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else math.inf


def _rows(model, getter):
    """Rows of the embedding or unembedding; None where there is none."""
    found = table(model, getter)
    return len(found.weight) if isinstance(found, nn.Embedding | nn.Linear) else None


def _positions(model):
    """Positions that each learned table of them has: without the first ones where it counts from a
    padding index, as RoBERTa's does, or from an offset, as OPT's."""
    for x in position_tables(model):
        first = 0 if x.padding_idx is None else x.padding_idx + 1
        yield len(x.weight) - max(first, getattr(x, "offset", 0))


def position_tables(model: nn.Module) -> Iterator[nn.Embedding]:
    """The learned tables of positions of the part that reads text."""
    for name, x in model.named_modules():
        if isinstance(x, nn.Embedding) and _TABLE(name) and not OTHER_MODALITIES(name):
            yield x
