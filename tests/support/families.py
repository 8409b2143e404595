"""A tiny model of each of the seven families of transformers that are tested."""

import pytest
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from msif.core.models import tiny_gpt_neox

HEADS, WIDTH, VOCAB = 4, 32, 50
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    max_position_embeddings=64,
)
GROUPED = dict(SIZES, num_key_value_heads=2)


def gpt_neox():
    return tiny_gpt_neox(VOCAB, WIDTH, 2, HEADS)


def bloom():
    return BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=2, n_head=HEADS)
    )


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=HEADS))


def llama():
    return LlamaForCausalLM(LlamaConfig(**GROUPED))


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**GROUPED))


def qwen3():  # its head size is set apart from width / heads
    return Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=12))


def multimodal():
    """Its text is read by two layers of a language model, its pictures by one of a vision tower."""
    text = dict(SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=16)
    vision = dict(SIZES, num_hidden_layers=1, image_size=16, patch_size=8)
    tokens = dict(mm_tokens_per_image=1, image_token_index=20, boi_token_index=21)
    config = Gemma3Config(text_config=text, vision_config=vision, eoi_token_index=22, **tokens)
    return Gemma3ForConditionalGeneration(config).eval()


def bert():
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))


FAMILIES = pytest.mark.parametrize(
    "make", [gpt_neox, bloom, gpt2, llama, qwen2, qwen3, bert], ids=lambda make: make.__name__
)
