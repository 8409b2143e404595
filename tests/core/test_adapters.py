"""What a LoRA folder, or a model with adapters, computes is what its merged copy computes; the
model is left as it was, and other adapters are refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import documents, gpt2, llama, neox, relative
from transformers import AutoModelForCausalLM

from msif.core.adapters import (
    Adapter,
    base_of,
    has_adapters,
    merged,
    read,
    refuse_converted,
    taken_from,
)
from msif.core.data import collate

peft = pytest.importorskip("peft")
TARGETS = {
    llama: ["q_proj", "v_proj", "down_proj"],
    gpt2: ["c_attn", "c_fc"],
    neox: ["query_key_value", "dense_4h_to_h"],
}
SCALES = [
    {},
    {"use_rslora": True},
    {"alpha_pattern": {"layers.0.self_attn.q_proj": 3}, "rank_pattern": {"down_proj": 4}},
]


def adapted(make, seed=0, **options):
    """A PeftModel with random adapters."""
    config = {"r": 2, "lora_alpha": 8, "target_modules": TARGETS[make], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(make(), peft.LoraConfig(**config | options)).double().eval()
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=g, dtype=p.dtype) / 4
    return model


def logits(model):
    batch = collate(documents(4))
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.detach()


@pytest.mark.parametrize("make", [llama, gpt2, neox])
def test_a_model_with_adapters_is_its_merged_copy_and_is_left_alone(make):
    model = adapted(make)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    base, adapters = taken_from(model)
    # llama computes its norms in float32, whatever its dtype
    assert relative(logits(merged(base, adapters)), logits(model)) < (
        1e-6 if make is llama else 1e-12
    )
    with model.disable_adapter():
        assert relative(logits(base), logits(model)) < 1e-12
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    shared = {x.data_ptr() for x in model.parameters()}
    own = [x for x in merged(base, adapters).parameters() if x.data_ptr() not in shared]
    assert len(own) == len(adapters)


@pytest.mark.parametrize("options", SCALES, ids=["plain", "rsLoRA", "patterns"])
def test_a_folder_is_what_peft_makes_of_it(options, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = adapted(llama, **options)
    model.save_pretrained(tmp_path / "lora")
    assert has_adapters(tmp_path / "lora") and not has_adapters(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora").double()
    found = read(tmp_path / "lora")
    assert relative(logits(merged(llama(), found)), logits(theirs)) < 1e-6
    _, held = taken_from(theirs)
    assert found.keys() == held.keys()
    assert all(found[x].scale == held[x].scale for x in held)


def test_the_base_is_where_the_folder_says(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(target_modules=["q_proj"])
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "lora")
    assert base_of(tmp_path / "lora") == (str(tmp_path / "base"), None)
    change(tmp_path / "lora", base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base model"):
        base_of(tmp_path / "lora")


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = "),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices = "),
    ],
)
def test_other_adapters_are_refused_by_name(options, said, tmp_path):
    config = {"r": 2, "target_modules": TARGETS[neox]}
    model = peft.get_peft_model(neox().float(), peft.LoraConfig(**config | options))
    with pytest.raises(ValueError, match=said):
        taken_from(model)
    model.save_pretrained(tmp_path)
    change(tmp_path, **options)  # PEFT turns some into others as it saves
    with pytest.raises(ValueError, match=said):
        read(tmp_path)


def test_other_kinds_and_states_are_refused():
    with pytest.raises(ValueError, match="of the kind IA3: LoRA alone"):
        kind = peft.IA3Config(target_modules=TARGETS[neox], feedforward_modules=["dense_4h_to_h"])
        taken_from(peft.get_peft_model(neox(), kind))
    with pytest.raises(ValueError, match="with 0 active adapters; expected a PeftModel"):
        taken_from(neox())
    model = adapted(neox)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged or switched off"):
        taken_from(model)


def test_damaged_and_pickled_folders_are_refused(tmp_path):
    adapted(llama).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(OSError, match="is damaged"):
        read(tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(OSError, match="pickled are not read"):
        read(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(OSError, match="adapter_config.json is damaged"):
        read(tmp_path)


def test_an_embedding_s_adapter_is_refused(tmp_path):
    adapted(llama, target_modules=["embed_tokens"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="which is no adapter of a linear layer's weight"):
        read(tmp_path)


def test_adapters_of_another_model_are_refused():
    x = Adapter(torch.zeros(2, 8), torch.zeros(7, 2), 1.0)
    with pytest.raises(ValueError, match=r"shape \(8, 8\), its adapter is for \(7, 8\)"):
        merged(llama(), {"model.layers.0.self_attn.q_proj": x})
    with pytest.raises(ValueError, match="is a NoneType of the base model; expected a linear"):
        merged(llama(), {"other": x})
    with pytest.raises(ValueError, match=r"expected \(r, i\) and \(o, r\)"):
        Adapter(torch.zeros(2, 8), torch.zeros(7, 3), 1.0)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"alpha_pattern": ["a"]}, "alpha_pattern is"),
        ({"alpha_pattern": {"(": 8}}, "alpha_pattern has '\\(', no pattern"),
        ({"rank_pattern": {"*": 8}}, "rank_pattern has '\\*', no pattern"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path is"),
        (None, "it is a list"),
    ],
)
def test_a_configuration_that_no_scale_can_be_found_by_is_damaged(fields, said, tmp_path):
    adapted(llama).save_pretrained(tmp_path)
    if fields is None:
        (tmp_path / "adapter_config.json").write_text("[]")
    else:
        change(tmp_path, **fields)
    with pytest.raises(OSError, match=f"adapter_config.json is damaged: {said}"):
        read(tmp_path)


@pytest.mark.parametrize("other", ["q_proj", "k_proj"])
def test_several_adapters_in_one_file_are_refused_by_name(other, tmp_path):
    """Of one layer, or each of its own."""
    adapted(llama, target_modules=["q_proj"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    found = load_file(path)
    named = {x.replace(".weight", ".first.weight"): y for x, y in found.items()}
    for name, x in found.items():
        name = name.replace("q_proj", other).replace(".weight", ".second.weight")
        named[name] = 7 * x
    save_file(named, path)
    with pytest.raises(ValueError, match="several adapters, named 'first', 'second'"):
        read(tmp_path)
    save_file({x: y for x, y in named.items() if "first" in x}, path)
    assert len(read(tmp_path)) == 2


def test_a_side_without_rank_is_damaged(tmp_path):
    adapted(llama).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    for shape in ((), (0, 8)):
        save_file({name: torch.zeros(shape) for name in load_file(path)}, path)
        with pytest.raises(OSError, match="is damaged: .* has the shape"):
            read(tmp_path)


def test_an_embedding_s_adapter_is_refused_in_memory_too():
    with pytest.raises(ValueError, match="embed_tokens, an embedding, has an adapter"):
        taken_from(adapted(llama, target_modules=["q_proj", "embed_tokens"]))


@pytest.mark.parametrize(
    "make, begun", [(llama, "pissa"), (gpt2, "pissa"), (llama, "olora"), (neox, "olora")]
)
def test_adapters_that_were_converted_on_saving_are_refused(make, begun, tmp_path):
    """Their folder calls them plain, and of twice the rank; trained ones of any rank are plain."""
    config = {"r": 2, "target_modules": TARGETS[make], "init_lora_weights": begun}
    model = peft.get_peft_model(make().float(), peft.LoraConfig(**config))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "begun")
    model.peft_config["default"].init_lora_weights = begun
    g = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data += torch.randn(p.shape, generator=g) / 20
    start = str(tmp_path / "begun")
    model.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=start)
    found = read(tmp_path / "end")
    assert {len(x.A) for x in found.values()} == {4}
    with pytest.raises(ValueError, match="converted on saving, from PiSSA or OLoRA"):
        refuse_converted(make(), found, tmp_path)
    for rank in (1, 2, 4):
        _, plain = taken_from(adapted(make, r=rank))
        refuse_converted(make(), plain, tmp_path)
