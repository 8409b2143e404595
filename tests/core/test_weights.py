"""Weights as they are published: a pickle of tensors gives the numbers that safetensors give, and
any other pickle is refused unread. What a model's own parts would not read of them is refused."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import VOCAB, WIDTH, bert, gpt2, gpt_neox, llama
from transformers import GPTJConfig, GPTJForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from msif.core import weights
from msif.core.model_digest import model_digest
from msif.core.models import load_model

COMMIT = "0123456789" * 4


class Evil:
    """Unpickled in full, it leaves a file."""

    def __init__(self, at):
        self.at = at

    def __reduce__(self):
        return os.mkdir, (str(self.at),)


def published(model, folder, shards=1, more=None, legacy=False):
    """A model's folder with its state dict pickled, as fine-tunes have it, by the same names."""
    model.save_pretrained(folder / "safe")
    state, names = load_file(folder / "safe" / "model.safetensors") | (more or {}), {}
    shutil.rmtree(folder / "safe")
    model.config.save_pretrained(folder)
    files = ["pytorch_model.bin"]
    if shards > 1:
        files = [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)]
    for n, file in enumerate(files):
        part = dict(list(state.items())[n::shards])
        torch.save(part, folder / file, _use_new_zipfile_serialization=not legacy)
        names |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": names}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("make", [gpt_neox, llama], ids=lambda x: x.__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", [{}, {"shards": 3}, {"legacy": True}], ids=["one", "three", "old"])
def test_pickled_tensors_are_those_of_safetensors_to_the_bit(make, dtype, form, tmp_path, caplog):
    model = make().to(getattr(torch, dtype))
    # as older versions of transformers saved them
    buffers = {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}
    published(model, tmp_path, more=buffers, **form)
    model.save_pretrained(tmp_path / "other")
    expected = load_model(tmp_path / "other", dtype)
    assert not caplog.records
    found = load_model(tmp_path, dtype)
    assert model_digest(found) == model_digest(expected) == model_digest(model)
    for name, x in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], x), name
    said = [x.getMessage() for x in caplog.records if x.name == "msif.core.weights"]
    assert len(said) == 1 and str(tmp_path) in said[0] and "pytorch_model.bin" in said[0]


def test_where_both_are_there_safetensors_are_read_and_a_damaged_one_is_not_passed_over(tmp_path):
    model, other = gpt_neox(), gpt_neox()
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    model.save_pretrained(tmp_path)
    published(other, tmp_path)
    assert weights.pickled(tmp_path) is None
    assert model_digest(load_model(tmp_path)) == model_digest(model)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(OSError, match="nothing could be loaded"):
        load_model(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_pickle_that_asks_for_more_is_refused_in_one_sentence_and_runs_nothing(
    tmp_path, legacy, shards, monkeypatch
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # which some have set for others
    left = tmp_path / "left"
    folder = tmp_path / "model"
    published(gpt_neox(), folder, more={"last": Evil(left)}, legacy=legacy, shards=shards)
    with pytest.raises(weights.Refused) as refused:
        load_model(folder)
    said = str(refused.value)
    assert str(folder) in said and f"ask for {os.name}.mkdir" in said and "\n" not in said
    assert said.count(". ") == 0 and "weights_only" not in said, "one sentence, no bad advice"
    assert not left.exists()


def test_the_same_of_what_is_no_state_dict(tmp_path):
    model, left = gpt_neox(), tmp_path / "left"
    published(model, tmp_path)
    file = tmp_path / "pytorch_model.bin"
    whole = file.read_bytes()
    torch.save(model, file)
    with pytest.raises(weights.Refused, match=r"ask for transformers.*GPTNeoXForCausalLM"):
        load_model(tmp_path)
    for content in (b"", b"hello" * 100, whole[:-1000], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(OSError, match=rf"{tmp_path}(.|\n)*(damaged|PytorchStreamReader)"):
            load_model(tmp_path)
    file.write_bytes(pickle.dumps(Evil(left)))
    with pytest.raises(weights.Refused, match="damaged, or no state dict"):
        load_model(tmp_path)
    torch.save(list(model.state_dict().values()), file)
    with pytest.raises(OSError, match="nothing could be loaded"):
        load_model(tmp_path)
    assert not left.exists()


def test_a_missing_shard_and_missing_parameters_are_named(tmp_path):
    folder = published(gpt_neox(), tmp_path, shards=2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(OSError, match="pytorch_model-00002-of-00002.bin"):
        load_model(folder)
    one = published(gpt_neox(), tmp_path / "one")
    state = torch.load(one / "pytorch_model.bin", weights_only=True)
    del state["embed_out.weight"]
    torch.save(state, one / "pytorch_model.bin")
    with pytest.raises(ValueError, match="lack 1 parameters.*lm_head.weight"):
        load_model(one)


def test_a_hub_id_is_read_at_its_revision(tmp_path, monkeypatch):
    """From the hub's cache, as after a download; another revision has other weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    at, old, new = tmp_path / "models--some--pair", gpt_neox(), gpt_neox()
    with torch.no_grad():
        new.lm_head.weight.add_(1)
    published(old, at / "snapshots" / COMMIT)
    new.save_pretrained(at / "snapshots" / COMMIT[::-1])
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text(COMMIT[::-1])
    assert weights.pickled("some/pair", COMMIT) == "pytorch_model.bin"
    assert weights.pickled("some/pair") is None
    assert model_digest(load_model("some/pair", revision=COMMIT)) == model_digest(old)
    assert model_digest(load_model("some/pair")) == model_digest(new)


def test_no_service_is_asked_for_a_conversion_and_the_environment_is_left(tmp_path, monkeypatch):
    name = "DISABLE_SAFETENSORS_CONVERSION"
    for before in (None, "0"):
        monkeypatch.delenv(name, raising=False) if before is None else monkeypatch.setenv(name, "0")
        with weights.reading(published(gpt_neox(), tmp_path)) as options:
            assert os.environ[name] == "1"
            assert options == {"use_safetensors": False, "weights_only": True}
        assert os.environ.get(name) == before


def in_safetensors(model, folder, more):
    """A model's folder with more tensors than it has."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(load_file(file) | more, file, {"format": "pt"})
    return folder


def named(*names):
    return {name: torch.ones(2) for name in names}


FORMS = pytest.mark.parametrize(
    "write", [in_safetensors, published], ids=["safetensors", "pickled"]
)


@FORMS
@pytest.mark.parametrize(
    "make, name",
    [
        (llama, "model.layers.1.self_attn.q_proj.bias"),  # attention_bias: false
        (llama, "model.layers.0.self_attn.q_norm.weight"),
        (llama, "model.layers.0.mlp.down_proj.weight_scale"),
        (llama, "model.layers.2.mlp.down_proj.weight"),  # num_hidden_layers: 2
        (llama, "model.embed_tokens.weight_scale"),
        (llama, "model.norm.bias"),
        (llama, "lm_head.bias"),
        (gpt2, "transformer.h.0.mlp.c_fc.weight_scale"),
        (gpt2, "h.1.attn.q_norm.weight"),  # as checkpoints of the body have it
        (gpt_neox, "gpt_neox.layers.0.attention.dense.scales"),
    ],
)
def test_tensors_that_a_part_of_the_model_would_not_read_are_refused(write, make, name, tmp_path):
    write(make(), tmp_path, more=named(name))
    with pytest.raises(ValueError, match=f"have 1 tensors that its .* would not read.*: {name}"):
        load_model(tmp_path)


@FORMS
@pytest.mark.parametrize(
    "make, names",
    [
        (llama, ["vision_tower.blocks.0.weight", "model.visual.norm.weight", "v_head.bias"]),
        (llama, ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.mtp.0.norm.weight"]),
        (gpt2, ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        (gpt2, ["h.1.attn.bias", "h.1.attn.masked_bias"]),
        (gpt_neox, [f"gpt_neox.layers.1.attention.{x}" for x in ("bias", "masked_bias")]),
        (gpt_neox, ["gpt_neox.layers.0.attention.rotary_emb.inv_freq"]),
        ("gpt_neo", [f"transformer.h.0.attn.attention.{x}" for x in ("bias", "masked_bias")]),
        ("gptj", [f"transformer.h.0.attn.{x}" for x in ("bias", "masked_bias")]),
    ],
)
def test_parts_that_the_class_lacks_and_buffers_that_it_makes_itself_are_passed_over(
    write, make, names, tmp_path
):
    model = make() if callable(make) else MADE[make]()
    write(model, tmp_path, more=named(*names))
    assert model_digest(load_model(tmp_path)) == model_digest(model)


GPT_NEO = dict(attention_types=[[["global"], 1]], num_layers=1, hidden_size=WIDTH, num_heads=4)
GPTJ = dict(n_embd=WIDTH, n_layer=1, n_head=4, rotary_dim=4)
MADE = {
    "gpt_neo": lambda: GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCAB, **GPT_NEO)),
    "gptj": lambda: GPTJForCausalLM(GPTJConfig(vocab_size=VOCAB, **GPTJ)),
}


def test_a_classifier_passes_over_the_head_of_another_task(tmp_path):
    in_safetensors(bert(), tmp_path / "bert", named("cls.predictions.bias"))
    assert model_digest(load_model(tmp_path / "bert", head="classifier"))
    in_safetensors(llama(), tmp_path / "llama", {})  # with an lm_head
    assert load_model(tmp_path / "llama", head="classifier").score.in_features == WIDTH


def test_weights_in_eight_bits_beside_scales_are_not_read_as_the_weights(tmp_path):
    """Logits without the scales: another function, by more than its own size."""
    model = llama()
    model.save_pretrained(tmp_path)
    file, more = tmp_path / "model.safetensors", {}
    for name, x in load_file(file).items():
        more[name] = x
        if "proj" in name:
            scale = x.abs().max() / 448
            more |= {name: (x / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale[None]}
    save_file(more, file, {"format": "pt"})
    five = r"(model.layers.0\S+_scale, ){5}…"
    with pytest.raises(ValueError, match=rf"have 14 tensors.*{five}.*in bfloat16 or float32"):
        load_model(tmp_path)


def test_which_of_a_sources_files_are_weights():
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    others = ["config.json", "training_args.bin", "optimizer.bin", "pytorch_model.bin.index.json"]
    assert weights.files_of([*shards, *others]) == shards
    assert weights.files_of(["pytorch_model.bin", "model.safetensors"]) == ["model.safetensors"]
    assert weights.files_of(others) == []
