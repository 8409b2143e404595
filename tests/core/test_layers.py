"""Tracked layers and the rows of their heads, on tiny models of each family."""

import pytest
import torch
from support.families import (
    FAMILIES,
    HEADS,
    VOCAB,
    WIDTH,
    bert,
    bloom,
    gpt2,
    gpt_neox,
    llama,
    qwen2,
    qwen3,
)
from torch import nn
from transformers import FalconConfig, FalconForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.pytorch_utils import Conv1D

from msif.core.layers import tracked_layers

# family: block prefix, then (name in the block, in, out, bias, number of blocks per head)
MLP = [
    ("mlp.gate_proj", 32, 48, 0, 1),
    ("mlp.up_proj", 32, 48, 0, 1),
    ("mlp.down_proj", 48, 32, 0, 1),
]
EXPECTED = {
    gpt_neox: (
        "gpt_neox.layers",
        [
            ("attention.query_key_value", 32, 96, 1, 12),
            ("attention.dense", 32, 32, 1, 1),
            ("mlp.dense_h_to_4h", 32, 128, 1, 1),
            ("mlp.dense_4h_to_h", 128, 32, 1, 1),
        ],
    ),
    bloom: (
        "transformer.h",
        [
            ("self_attention.query_key_value", 32, 96, 1, 12),
            ("self_attention.dense", 32, 32, 1, 1),
            ("mlp.dense_h_to_4h", 32, 128, 1, 1),
            ("mlp.dense_4h_to_h", 128, 32, 1, 1),
        ],
    ),
    gpt2: (
        "transformer.h",
        [
            ("attn.c_attn", 32, 96, 1, 12),
            ("attn.c_proj", 32, 32, 1, 1),
            ("mlp.c_fc", 32, 128, 1, 1),
            ("mlp.c_proj", 128, 32, 1, 1),
        ],
    ),
    llama: (
        "model.layers",
        [
            ("self_attn.q_proj", 32, 32, 0, 4),
            ("self_attn.k_proj", 32, 16, 0, 2),
            ("self_attn.v_proj", 32, 16, 0, 2),
            ("self_attn.o_proj", 32, 32, 0, 1),
            *MLP,
        ],
    ),
    qwen2: (
        "model.layers",
        [
            ("self_attn.q_proj", 32, 32, 1, 4),
            ("self_attn.k_proj", 32, 16, 1, 2),
            ("self_attn.v_proj", 32, 16, 1, 2),
            ("self_attn.o_proj", 32, 32, 0, 1),
            *MLP,
        ],
    ),
    qwen3: (
        "model.layers",
        [
            ("self_attn.q_proj", 32, 48, 0, 4),
            ("self_attn.k_proj", 32, 24, 0, 2),
            ("self_attn.v_proj", 32, 24, 0, 2),
            ("self_attn.o_proj", 48, 32, 0, 1),
            *MLP,
        ],
    ),
    bert: (
        "bert.encoder.layer",
        [
            ("attention.self.query", 32, 32, 1, 4),
            ("attention.self.key", 32, 32, 1, 4),
            ("attention.self.value", 32, 32, 1, 4),
            ("attention.output.dense", 32, 32, 1, 1),
            ("intermediate.dense", 32, 48, 1, 1),
            ("output.dense", 48, 32, 1, 1),
        ],
    ),
}


@FAMILIES
def test_default_layers_are_the_linears_of_attention_and_mlp_in_module_order(make):
    prefix, block = EXPECTED[make]
    wanted = [
        (f"{prefix}.{k}.{name}", i, o, bool(bias))
        for k in range(2)
        for name, i, o, bias, _ in block
    ]
    layers = tracked_layers(make())
    assert [(x.name, x.in_features, x.out_features, x.bias) for x in layers] == wanted
    assert all(x.rows is None for x in layers)


@FAMILIES
def test_a_layer_maps_inputs_to_outputs_by_its_weight_in_the_stated_shape(make):
    model = make()
    for layer in tracked_layers(model):
        module, shape = model.get_submodule(layer.name), (layer.in_features, layer.out_features)
        assert module(torch.randn(2, 3, layer.in_features)).shape == (2, 3, layer.out_features)
        assert module.weight.shape == (shape if isinstance(module, Conv1D) else shape[::-1])


@FAMILIES
def test_heads_partition_the_output_rows_exactly(make):
    _, block = EXPECTED[make]
    for layer, (*_, blocks) in zip(tracked_layers(make(), per_head=True), block * 2, strict=True):
        assert (layer.rows is None) == (blocks == 1), layer.name
        if layer.rows is not None:
            assert layer.rows.dtype == torch.int64
            assert layer.rows.shape == (blocks, layer.out_features // blocks)
            assert torch.equal(layer.rows.flatten().sort().values, torch.arange(layer.out_features))


@pytest.fixture
def watched_attention(monkeypatch):
    """Attention that records the q, k, v (batch, heads, positions, d)
    which the model itself hands to it."""
    calls, original = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watch(module, q, k, v, *args, **kwargs):
        calls.append((q.detach(), k.detach(), v.detach()))
        return original(module, q, k, v, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", watch)
    return calls


@pytest.fixture
def watched_bloom(monkeypatch):
    """BLOOM has an attention of its own: record what its `_reshape` makes of the fused rows."""
    calls, original = [], BloomAttention._reshape

    def watch(self, fused):
        calls.append(original(self, fused))
        return calls[-1]

    monkeypatch.setattr(BloomAttention, "_reshape", watch)
    return calls


def changed_heads(model, module, rows, calls):
    """The set of (role, head) of the first block whose q, k, v change
    when `rows` of the weight do."""
    ids = torch.arange(1, 7)[None]

    def qkv():
        calls.clear()
        with torch.no_grad():
            model(input_ids=ids)
        return [t.clone() for t in calls[0]]

    before, weight = qkv(), module.weight.data.clone()
    if isinstance(module, Conv1D):
        module.weight.data[:, rows] += 1
    else:
        module.weight.data[rows] += 1
    after = qkv()
    module.weight.data.copy_(weight)
    return {
        (role, h)
        for role, x, y in zip("qkv", before, after)
        for h in range(x.shape[1])
        if not torch.equal(x[:, h], y[:, h])
    }


@FAMILIES
def test_a_block_holds_the_rows_of_one_head_of_q_or_k_or_v(make, request):
    """Defect 7: perturb the weight rows of one block:
    the model's own q, k, v change in that head alone."""
    calls = request.getfixturevalue("watched_bloom" if make is bloom else "watched_attention")
    model = make().eval()
    tested = [
        x for x in tracked_layers(model, per_head=True) if ".0." in x.name and x.rows is not None
    ]
    for layer in tested:
        roles = "qkv" if len(tested) == 1 else layer.name.split(".")[-1][0]
        per_role = len(layer.rows) // len(roles)
        for b, rows in enumerate(layer.rows):
            changed = changed_heads(model, model.get_submodule(layer.name), rows, calls)
            assert changed == {(roles[b // per_role], b % per_role)}, (layer.name, b)


def test_an_unknown_fused_attention_is_refused_by_name_for_heads_only():
    model = FalconForCausalLM(
        FalconConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS
        )
    )
    assert len(tracked_layers(model)) == 4
    with pytest.raises(
        ValueError, match=r"h\.0\.self_attention\.query_key_value \(falcon.*GPT-NeoX"
    ):
        tracked_layers(model, per_head=True)


def test_a_projection_that_contradicts_its_config_is_refused():
    model = llama()
    # as if a gate were fused in
    model.model.layers[0].self_attn.q_proj = nn.Linear(WIDTH, 2 * WIDTH)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj .*64 output rows"):
        tracked_layers(model, per_head=True)


def test_a_pattern_selects_any_linear():
    names = [x.name for x in tracked_layers(llama(), r"lm_head|\.1\.mlp\.(up|down)")]
    assert names == ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "lm_head"]
    assert [x.name for x in tracked_layers(bert(), "^classifier$", per_head=True)] == ["classifier"]


def test_a_pattern_without_match_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'nothing'.*lm_head, model.layers.N.mlp.down_proj"):
        tracked_layers(llama(), "nothing")


@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_offloaded_weights_are_refused_by_name(where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    if where == "disk":
        model = accelerate.disk_offload(llama(), tmp_path)
    else:
        model = accelerate.cpu_offload(llama(), execution_device="cpu")
    with pytest.raises(ValueError, match=r"'model\.\S+', are offloaded to disk or CPU.*load it"):
        tracked_layers(model)


def test_adapters_that_are_not_merged_are_refused_with_the_way_to_merge_them():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(llama(), config)
    for held in (model, model.base_model.model):  # the second as transformers loads a folder
        with pytest.raises(ValueError, match=r"q_proj'.*merge_and_unload\(\)"):
            tracked_layers(held)
    found = tracked_layers(model, r"lora_[AB]")
    assert [x.in_features for x in found[:2]] == [WIDTH, 2]
    assert [x.name for x in tracked_layers(model.merge_and_unload())] == [
        x.name for x in tracked_layers(llama())
    ]


def test_per_head_is_a_bool():
    with pytest.raises(ValueError, match="per_head is 'false': expected True or False"):
        tracked_layers(llama(), per_head="false")
