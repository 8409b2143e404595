"""Loading, digests and logits of models, on tiny ones of each family."""

import json

import pytest
import torch
from support.families import FAMILIES, VOCAB, WIDTH, bert, gpt_neox, llama
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from msif.core import models
from msif.core.data import word_tokenizer
from msif.core.layers import tracked_layers
from msif.core.models import load_model, load_tokenizer, model_digest, tiny_gpt_neox


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_sees_one_unit_in_the_last_place_a_dtype_and_a_shape(dtype):
    model = gpt_neox().to(dtype)
    before, bias = model_digest(model), model.gpt_neox.layers[1].attention.dense.bias.data
    bias[3] = torch.nextafter(bias[3], torch.tensor(1, dtype=dtype))
    assert model_digest(model) != before
    assert model_digest(gpt_neox().half()) != model_digest(gpt_neox())
    a, b = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)
    b.weight.data = a.weight.data.view(4, 6)
    assert model_digest(a) != model_digest(b)


def test_a_missing_source_is_named_with_what_was_expected(tmp_path, monkeypatch):
    # the variable is read at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (tmp_path / "nowhere", "somebody/some-model", tmp_path):
        with pytest.raises(OSError, match=rf"{source}.*hub id.*config\.json"):
            load_model(source)
        with pytest.raises(OSError, match=rf"{source}.*tokenizer\.json"):
            load_tokenizer(source)


def test_pickled_weights_are_never_loaded(tmp_path):
    model = gpt_neox()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
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


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt_neox"])
def test_a_tokenizer_is_what_its_file_says_whatever_the_model(model_type, tmp_path):
    """AutoTokenizer reads words beside a qwen2 model as a BPE without merges: no ids at all."""
    made = word_tokenizer(["Where was Ada born ?"])
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "Where was Ada born ?"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == made(text)["input_ids"]
