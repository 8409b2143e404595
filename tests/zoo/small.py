"""Every causal and classifier family of transformers as a model of a few thousand numbers.

One recipe makes them all: of the fields that a configuration has, those in `SIZES` are small.
`OWN` holds what a family needs besides.
"""

import dataclasses

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

VOCAB = 24
LARGEST = 120_000  # numbers; a family that stays larger is not small
NAMES = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "classifier": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}

WIDTHS = {
    8: "hidden_size d_model n_embd embedding_size word_embed_proj_dim moe_intermediate_size "
    "shared_expert_intermediate_size lru_width attention_window_size input_embedding_size "
    "hidden_size_per_layer_input vision_hidden_size moe_shared_expert_intermediate_size",
    12: "intermediate_size ffn_dim n_inner d_inner dff d_ff encoder_ffn_dim decoder_ffn_dim "
    "intermediate_size_mlp ffn_hidden_size",
    4: "head_dim d_kv rotary_dim kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim "
    "v_head_dim state_size num_experts num_local_experts n_routed_experts moe_num_experts "
    "mamba_d_state linear_key_head_dim linear_value_head_dim attention_chunk_size",
    3: "sliding_window num_labels",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers num_attention_heads attention_heads n_head n_heads "
    "num_heads num_attn_heads encoder_attention_heads decoder_attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads num_experts_per_tok "
    "type_vocab_size expand time_step_rank mamba_dt_rank eos_token_id "
    "linear_num_value_heads linear_num_key_heads",
    1: "num_key_value_heads num_kv_heads n_group topk_group bos_token_id first_k_dense_replace "
    "n_shared_experts",
    32: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length",
    0: "pad_token_id",
    VOCAB: "vocab_size vocab_size_per_layer_input",
}
SIZES = {name: size for size, names in WIDTHS.items() for name in names.split()}
PAIRS = {"num_key_value_heads": 2}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
VISION = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
SIGLIP = {"vision_config": {"model_type": "siglip_vision_model", **VISION}}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4}

# Fields of a family's own.
OWN: dict[str, dict] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32"), PAIRS),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu", "mistral4"), PAIRS),
    **dict.fromkeys(("longcat_flash", "dots3_note", "dots3_note_text", "esmc"), PAIRS),
    **dict.fromkeys(("bailing_hybrid", "lfm3", "qwen3_next", "qwen4_exp_text"), HYBRID),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), HYBRID),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen4_exp"), {"text_config": HYBRID}),
    "falcon_h1": MAMBA | {"mamba_d_ssm": 16},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"]},
    "codegen": {"n_embd": 16, "n_head": 4},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "distilbert": {"hidden_dim": 12},
    "diffllama": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2},
    "gemma3": SIGLIP | {"mm_tokens_per_image": 1, "image_token_index": 20},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 2,
    },
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 24},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "mamba2": {"num_heads": 4, "n_groups": 2, "chunk_size": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_embds_dim": [4, 4],
        "axial_pos_shape": [4, 8],
        "feed_forward_size": 12,
        "local_attn_chunk_length": 8,
    },
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8}
    | {"pronunciation_embed_dim": 4, "shape_embed_dim": 4},
    "t5": {"decoder_start_token_id": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
# What can be tracked of families whose default layers are refused without an example.
PATTERNS = dict.fromkeys(
    ("axk2", "deepseek_v32", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"),
    r"layers\.\d+\.(?!.*indexer)",
)
PATTERNS["gemma3n_text"] = r"layers\.\d+\.(self_attn|mlp|laurel)"
# Decoders whose language modelling needs to be told that they are none of encoders.
DECODERS = ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie")
DECODERS += ("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer")
DECODERS += ("xlm-roberta", "xlm-roberta-xl", "xmod")


def _small(kind, own):
    fields = {x.name for x in dataclasses.fields(kind)}
    aliases = dict(kind.attribute_map)
    found = {name: size for name, size in SIZES.items() if name in fields and name not in aliases}
    for name, size in SIZES.items():
        if name in aliases and aliases[name] in fields:
            found.setdefault(aliases[name], size)
    subs = {name: x for name, x in kind.sub_configs.items() if dataclasses.is_dataclass(x)}
    found |= {name: _small(x, {}) for name, x in subs.items()}
    for name, value in own.items():
        is_part = name in subs and isinstance(value, dict)
        found[name] = _small(subs[name], value) if is_part else value
    return kind(**{name: value for name, value in found.items() if value is not ...})


def build(head, model_type, seed=0):
    """The family's model in float64, its weights lively. ValueError where it is not small."""
    made = getattr(transformers, NAMES[head][model_type])
    own = dict(OWN.get(model_type, {}))
    if head == "causal" and model_type in DECODERS:
        own["is_decoder"] = True
    if head == "classifier":
        own["num_labels"] = 3
    wanted = made.config_class or CONFIG_MAPPING[model_type]
    if not wanted.sub_configs:  # the text alone
        own |= own.pop("text_config", {})
    kind = _small(wanted, own)
    with torch.device("meta"):
        numbers = sum(p.numel() for p in made(kind).parameters())
    if numbers > LARGEST:
        raise ValueError(f"{numbers:,} numbers in the smallest configuration")
    for part in (kind, *(getattr(kind, name, None) for name in kind.sub_configs)):
        if part is not None:
            part._experts_implementation = "eager"  # grouped products have no float64
    torch.manual_seed(seed)
    model = made(kind).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point():
                p += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model
