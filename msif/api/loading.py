"""A model from a hub id or a folder, or from a folder of adapters (LoRA)."""

from pathlib import Path

import torch

from msif.api.models import Model
from msif.core import adapters
from msif.core.layers import tracked
from msif.core.models import load_model, load_tokenizer
from msif.scale import processes


def load(
    source: str | Path,
    *,
    base: str | Path | Model | None = None,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
    device: torch.device | str | None = None,
    revision: str | None = None,
    pattern: str | None = None,
    per_head: bool = False,
) -> Model:
    """The causal language model at `source`: a hub id, a folder with config.json and *.safetensors
    or pytorch_model.bin, or a folder of adapters (LoRA) with adapter_config.json; code that comes
    with it never runs, nor does a pickle's (`core.weights`).

    base: of adapters, where their base model is, if not where their configuration says; they are
    merged into it in memory. It may be a folder of adapters itself, whose merge is meant, or a
    loaded model, whose dtype and device are then this one's. tokenizer: where to read it from, if
    not from `source` (or `base`). dtype: of the weights, "bfloat16" halves the memory of large
    models. device: by default the GPU of this process, if there is one. pattern and per_head: which
    layers are tracked (`layers.tracked_layers`); by default all linear layers of attention and MLP,
    every other weight counts as fixed.

    Raises OSError, naming the source, if nothing can be loaded from it; ValueError for weights that
    lack parameters or have some that the model does not read, where no layer can be tracked, and
    for adapters that are not plain LoRA.

    >>> base = msif.load("my/base")
    >>> len(base.tracked.layers)
    14
    """
    if not adapters.has_adapters(source):
        if base is not None:
            named = base.source if isinstance(base, Model) else str(base)
            raise ValueError(f"base is {named!r}: {source} has no adapters that could be put on it")
        model = load_model(source, dtype, device or processes.device(), revision)
        words = load_tokenizer(tokenizer or source, None if tokenizer else revision)
        return Model(tracked(model, pattern, per_head), words, str(source))
    merged = adapters.read(source)
    own = tokenizer or (source if (Path(source) / "tokenizer_config.json").exists() else None)
    if not isinstance(base, Model):
        whole, revision = adapters.base_of(source, base, revision)
        if adapters.has_adapters(whole):
            base = load(whole, dtype=dtype, device=device, revision=revision)
    if isinstance(base, Model):
        below, words = base.tracked.model, load_tokenizer(own) if own else base.tokenizer
    else:
        below = load_model(whole, dtype, device or processes.device(), revision)
        words = load_tokenizer(own or whole, None if own else revision)
    net = tracked(adapters.merged(below, merged), pattern, per_head)
    mine = {x: merged[x] for x in net.names if x in merged}
    if not mine:
        raise ValueError(
            f"no tracked layer has an adapter of {source}; they are on "
            f"{', '.join(sorted(merged)[:4])}, …: choose a pattern that these match"
        )
    return Model(net, words, str(source), mine)
