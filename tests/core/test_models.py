"""Loading, logits and limits of models, on tiny ones of each family."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.families import FAMILIES, VOCAB, WIDTH, bert, gpt_neox, llama, multimodal
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetLMHeadModel,
)

import msif
from msif.core import models
from msif.core.data import Sequence, collate, word_tokenizer
from msif.core.layers import tracked_layers
from msif.core.model_digest import model_digest
from msif.core.models import classes, load_model, load_tokenizer, logits, tiny_gpt_neox


def test_the_tiny_model_follows_its_seed_and_leaves_the_random_state():
    state = torch.get_rng_state()
    digests = [model_digest(tiny_gpt_neox(VOCAB, seed=seed)) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(state, torch.get_rng_state())
    assert (
        tiny_gpt_neox(VOCAB, width=8, layers=1, heads=2, intermediate=12).config.intermediate_size
        == 12
    )


@FAMILIES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_saved_model_comes_back_with_the_same_digest(make, dtype, tmp_path):
    model = make().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype, head="classifier" if make is bert else "causal")
    assert model_digest(loaded) == model_digest(model)
    assert loaded.dtype == getattr(torch, dtype)
    assert not loaded.training and all(p.requires_grad for p in loaded.parameters())


def test_a_missing_source_is_named_with_what_was_expected(tmp_path, monkeypatch):
    # the variable is read at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (tmp_path / "nowhere", "somebody/some-model", tmp_path):
        with pytest.raises(OSError, match=rf"{source}.*hub id.*config\.json"):
            load_model(source)
        with pytest.raises(OSError, match=rf"{source}.*tokenizer\.json"):
            load_tokenizer(source)


def test_a_folder_of_adapters_is_refused_with_the_way_to_merge_them(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has adapters.*merge_and_unload\(\)"):
        load_model(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    gpt_neox().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=str(tmp_path)):
        load_model(tmp_path)


def test_weights_that_lack_parameters_are_refused_but_a_new_classifier_head_is_not(tmp_path):
    bert().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="lack .* parameters"):
        load_model(tmp_path / "bert", head="causal")
    llama().save_pretrained(tmp_path / "llama")
    assert (
        tracked_layers(load_model(tmp_path / "llama", head="classifier"), "score")[0].in_features
        == WIDTH
    )


def test_an_unknown_dtype_or_head_is_refused_by_value():
    with pytest.raises(ValueError, match="'int8'.*float32"):
        load_model("any", dtype="int8")
    with pytest.raises(ValueError, match="'token'.*causal"):
        load_model("any", head="token")


def test_decoder_classifier_pools_where_the_mask_ends():
    """Whatever its pad_token_id, a padded sequence has the logits that it has alone;
    one ending in that id is refused."""
    from msif.core.data import Sequence, collate

    config = LlamaConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=7,
        num_labels=3,
    )
    model = LlamaForSequenceClassification(config).eval()
    rows = [Sequence(0, (3, 5), 0), Sequence(1, (1, 2, 3, 0), 1)]
    together = models.logits(model, collate(rows))
    for n, row in enumerate(rows):
        assert torch.allclose(together[n], models.logits(model, collate([row]))[0], atol=1e-6)
    with pytest.raises(ValueError, match="sequence 4 ends in token id 7"):
        models.logits(model, collate([Sequence(4, (1, 7), 0)]))


def test_mixtures_are_read_in_float64_too(tmp_path):
    sizes = dict(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, num_local_experts=3)
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path)
    model = load_model(tmp_path, "float64")
    assert model(torch.tensor([[1, 2, 3]])).logits.dtype == torch.float64
    gpt_neox().save_pretrained(tmp_path / "plain")
    assert load_model(tmp_path / "plain", "float64").dtype == torch.float64


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt_neox"])
def test_a_tokenizer_is_what_its_file_says_whatever_the_model(model_type, tmp_path):
    """AutoTokenizer reads words beside a qwen2 model as a BPE without merges: no ids at all."""
    made = word_tokenizer(["Where was Ada born ?"])
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "Where was Ada born ?"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == made(text)["input_ids"]


ROBERTA = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
ROBERTA |= {"intermediate_size": 12, "vocab_size": VOCAB}


@pytest.mark.parametrize(
    "forward, message",
    [
        (lambda input_ids, attention_mask: torch.zeros(2, 3, 5), "a Tensor without logits"),
        (lambda input_ids, attention_mask: {"logits": None}, "a dict without logits"),
        (lambda input_ids: None, "cannot be called with input_ids and attention_mask"),
        (lambda input_ids, attention_mask: SimpleNamespace(logits=torch.zeros(2, 4, 5)), "2, 4, 5"),
        (lambda input_ids, attention_mask: SimpleNamespace(logits=torch.zeros(1, 5)), "1, 5"),
    ],
)
def test_an_output_of_another_kind_is_refused_by_its_name(forward, message):
    net = nn.Linear(2, 2)
    net.forward = forward
    batch = collate([Sequence(n, (1, 2, 3), (1, 2, 3)) for n in range(2)])
    with pytest.raises(ValueError, match=message):
        models.logits(net, batch)


def test_the_context_of_roberta_begins_after_its_padding_index():
    """A table of 14 with padding index 1 has positions for 12 tokens."""
    config = RobertaConfig(**ROBERTA, max_position_embeddings=14, pad_token_id=1, num_labels=3)
    model = RobertaForSequenceClassification(config).eval()
    assert models.limits(model) == (VOCAB, 12)
    model(input_ids=torch.full((1, 12), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 13), 5))


def test_an_offset_in_a_table_of_positions_is_not_context():
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=12,
        max_position_embeddings=9,
        word_embed_proj_dim=8,
    )
    assert models.limits(OPTForCausalLM(config)) == (VOCAB, 9)


def test_a_size_of_minus_one_is_no_limit():
    config = XLNetConfig(vocab_size=VOCAB, d_model=8, n_layer=1, n_head=2, d_inner=12)
    assert models.limits(XLNetLMHeadModel(config)) == (VOCAB, float("inf"))


def test_the_limits_of_a_model_that_also_sees_are_those_of_its_text(tmp_path):
    assert models.limits(multimodal()) == (VOCAB, 16)


def test_a_grown_embedding_is_read_as_it_is():
    model = llama()
    model.resize_token_embeddings(VOCAB + 3)
    assert models.limits(model)[0] == VOCAB + 3
    model.config.vocab_size = VOCAB
    assert models.limits(model)[0] == VOCAB + 3


def test_a_classifier_without_a_padding_id_reads_one_sequence_at_a_time():
    model = gpt_classifier()
    batch = collate([Sequence(n, (1, 2), 0) for n in range(2)])
    with pytest.raises(ValueError, match="has no config.pad_token_id.*or batch_size=1"):
        logits(model, batch)
    assert logits(model, collate([Sequence(0, (1, 2), 0)])).shape == (1, 3)
    assert classes(model) == 3


def gpt_classifier():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = dict(vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=8, num_labels=3)
    return GPT2ForSequenceClassification(GPT2Config(**sizes)).eval()


@pytest.mark.parametrize(
    "file, text, load",
    [
        ("tokenizer.json", "{}", load_tokenizer),
        ("tokenizer.json", '{"model": {"type": "Foo"}}', load_tokenizer),
        ("tokenizer_config.json", "[]", load_tokenizer),
        ("tokenizer_config.json", "{", load_tokenizer),
        ("config.json", "[]", load_model),
        ("config.json", '{"model_type": "llama", "hidden_size": "32"}', load_model),
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}', load_model),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", load_model),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_source(file, text, load, tmp_path):
    """Whatever the library raises."""
    llama().save_pretrained(tmp_path)
    word_tokenizer(["Where was Ada born ?"]).save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(OSError, match=f"{tmp_path}.* The cause: "):
        load(tmp_path)


def test_a_folder_of_folders_of_adapters_names_them(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    for load in (load_model, msif.load, lambda x: msif.load(x, base="other")):
        with pytest.raises(ValueError, match=f"{tmp_path}/first or {tmp_path}/second"):
            load(tmp_path)
    llama().save_pretrained(tmp_path)  # a model beside whose files its trainer left adapters
    load_model(tmp_path)
