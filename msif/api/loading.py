"""A model from a hub id or a folder, or from a folder of adapters (LoRA)."""

from pathlib import Path

import torch

from msif.api.lineage import other_weights
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
    lack parameters or have some that the model does not read, where no layer can be tracked, for
    adapters that are not plain LoRA, and for a base of other weights than the folder that their
    configuration names, if that is there.

    >>> base = msif.load("my/base")
    >>> len(base.tracked.layers)
    14
    """
    if not adapters.has_adapters(source):
        adapters.refuse_parent(source)
        if base is not None:
            named = base.source if isinstance(base, Model) else str(base)
            raise ValueError(f"base is {named!r}: {source} has no adapters that could be put on it")
        model = load_model(source, dtype, device or processes.device(), revision)
        words = load_tokenizer(tokenizer or source, None if tokenizer else revision)
        return Model(tracked(model, pattern, per_head), words, str(source))
    merged, given = adapters.read(source), base
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
    if given is not None:
        _refuse_other_base(source, given, below)
    net = tracked(adapters.merged(below, merged), pattern, per_head)
    adapters.refuse_converted(below, merged, source)
    mine = {x: merged[x] for x in net.names if x in merged}
    if not mine:
        raise ValueError(
            f"no tracked layer has an adapter of {source}; they are on "
            f"{', '.join(sorted(merged)[:4])}, …: choose a pattern that these match"
        )
    return Model(net, words, str(source), mine)


def _refuse_other_base(source, base, below):
    """ValueError where adapters were trained on other weights than those they would be put on: a
    model in between would be missing from the chain.

    That is known where their configuration names a folder that can be read. One that the base's own
    adapters are on is right, too: PEFT keeps that name where a merge was not saved.
    """
    named = adapters.named_base(source)
    if not named or not any((Path(named) / x).exists() for x in ("config.json", adapters.CONFIG)):
        return
    place = base.source if isinstance(base, Model) else str(base)
    if Path(named).resolve() in _places(place):
        return
    dtype = str(next(below.parameters()).dtype).removeprefix("torch.")
    try:
        theirs = _whole(named, dtype)
    except (OSError, ValueError, ImportError):  # as of packed weights: nothing to compare with
        return
    if other_weights(below, theirs):
        raise ValueError(
            f"the adapters of {source} were trained on {named} (base_model_name_or_path in "
            f"{adapters.CONFIG}), and the base given is {place}, whose weights differ: {named} is "
            f"a model in between, or the base itself. Give it as the base or as a stage of its own "
            f"between both; or the merge of the adapters and {named}, saved, in place of the "
            f"adapters; or correct base_model_name_or_path where it is wrong"
        )


def _places(place):
    """Where a base is, and what its adapters are on, if it is a folder of them."""
    found = [Path(place).resolve()]
    if adapters.has_adapters(place) and (below := adapters.named_base(place)):
        found += _places(below)
    return found


def _whole(source, dtype):
    """The model of a folder, or of a hub id below it, adapters merged."""
    if not adapters.has_adapters(source):
        return load_model(source, dtype)
    found = adapters.read(source)
    return adapters.merged(_whole(adapters.base_of(source)[0], dtype), found)
