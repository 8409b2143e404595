"""Which rows of an attention projection belong to which head.

Whatever the order of the rows in a projection's weight, the blocks of a per-head layer come out in
one order: all heads' q, all k, all v. So block b of a fused layer with H heads is head b % H of
role "qkv"[b // H]. Each head has d of the output rows.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig

SUPPORTED = (
    "query_key_value of GPT-NeoX and BLOOM, c_attn of GPT-2, and separate q_proj, k_proj, v_proj "
    "(Llama, Qwen, Mistral, …) or query, key, value (BERT)"
)
_QUERY, _KEY_VALUE = ("q_proj", "query"), ("k_proj", "v_proj", "key", "value")
_OUTPUT = ("dense", "o_proj", "out_proj", "c_proj")


def fused_head_by_head(heads: int, d: int) -> Tensor:
    """Rows run [q, k, v] of head 0, then of head 1, …: (3·heads, d) int64.

    `view(..., H, 3, d)` in {GPTNeoX,Bloom}Attention.
    """
    return torch.arange(3 * heads * d).view(heads, 3, d).transpose(0, 1).reshape(3 * heads, d)


def fused_role_by_role(heads: int, d: int) -> Tensor:
    """Rows run [q | k | v], each of them head by head: (3·heads, d) int64.

    `split` before `view(..., H, d)` in GPT2Attention.
    """
    return torch.arange(3 * heads * d).view(3 * heads, d)


def separate(heads: int, d: int) -> Tensor:
    """Rows of q, k or v alone, head by head: (heads, d) int64.

    `view(..., H, d)` in {Llama,Qwen2,BertSelf}Attention.
    """
    return torch.arange(heads * d).view(heads, d)


def _layout(role, config):
    """(blocks, d) rows of a projection called `role`; None if their order is unknown."""
    heads = config.num_attention_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    if role == "query_key_value" and config.model_type in ("gpt_neox", "bloom"):
        return fused_head_by_head(heads, d)
    if role == "c_attn" and config.model_type == "gpt2":
        return fused_role_by_role(heads, d)
    if role in _QUERY:
        return separate(heads, d)
    if role in _KEY_VALUE:  # fewer heads where grouped
        return separate(getattr(config, "num_key_value_heads", None) or heads, d)
    return None


def head_rows(name: str, out_features: int, config: PretrainedConfig) -> Tensor | None:
    """The rows of each head's q, k and v in the layer `name`: (blocks, d) int64.

    None for one block: attention outputs and everything outside attention (no "att" in the dotted
    name) stay whole. Raises ValueError for an attention projection whose row order is unknown, or
    whose size contradicts the config.
    """
    *path, role = name.split(".")
    if not any("att" in part.lower() for part in path) or role in _OUTPUT:
        return None
    rows = _layout(role, config.get_text_config())
    if rows is None or rows.numel() != out_features:
        raise ValueError(
            f"{name} ({config.model_type}, {out_features} output rows) cannot be split by head: "
            f"supported are {SUPPORTED}. Use per_head=False, or a pattern that leaves it out"
        )
    return rows
