"""Buffers that the state dict lacks are part of the digest where they are not as made."""

import copy

import pytest
import torch
from support.families import FAMILIES, SIZES, bert, gpt_neox, llama
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from msif.core.buffers import own_buffers
from msif.core.model_digest import model_digest
from msif.core.models import load_model

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])


class OwnModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(2), persistent=False)


@pytest.mark.parametrize(
    "make, name",
    [(llama, "model.rotary_emb.inv_freq"), (bert, "bert.embeddings.position_ids")],
    ids=["inv_freq", "position_ids"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_sees_a_buffer_that_was_changed_by_hand(make, name, dtype):
    """Also where the state dict lacks it, as transformers' frequencies of rotary positions."""
    model = make().eval().to(dtype)
    before, buffer = model_digest(model), model.get_buffer(name)
    kept = buffer.clone()
    assert name not in model.state_dict()
    buffer.copy_(buffer / 8 if buffer.is_floating_point() else buffer.flip(-1))
    changed = model_digest(model)
    buffer.copy_(kept)
    assert model_digest(model) == before != changed


def test_the_digest_sees_a_small_change_of_a_buffer_in_full_precision():
    model = llama()
    before = model_digest(model)
    model.model.rotary_emb.inv_freq[1] *= 1 + 1e-4
    assert model_digest(model) != before


@FAMILIES
def test_buffers_as_the_class_makes_them_are_none_of_a_models_own(make):
    """Whatever precision they were rounded to, and although the model has run."""
    model = make().eval()
    state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float16):
        assert not own_buffers(model.to(dtype))
    model.float()(input_ids=IDS)
    assert not own_buffers(model) and torch.equal(torch.get_rng_state(), state[0])
    copied = make()
    copied.load_state_dict(state[1])
    own_buffers(copied)  # leaves the weights
    assert all(torch.equal(x, state[1][name]) for name, x in copied.state_dict().items())


def test_a_model_is_the_same_loaded_in_a_precision_or_moved_to_it(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    loaded, moved = load_model(tmp_path, "bfloat16"), load_model(tmp_path).to(torch.bfloat16)
    assert loaded.model.rotary_emb.inv_freq.dtype != moved.model.rotary_emb.inv_freq.dtype
    assert model_digest(loaded) == model_digest(moved.train())
    assert model_digest(load_model(tmp_path)) == model_digest(model.double().float())


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_batch_are_the_same_after_any(kind):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    rope |= {"original_max_position_embeddings": 6, **(factors if kind == "longrope" else {})}
    sizes = SIZES | {"max_position_embeddings": 12 if kind == "longrope" else 6}
    model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope)).eval()
    model(input_ids=IDS[:, :3])
    before = model_digest(model)
    model(input_ids=IDS)
    assert not own_buffers(model) and (kind == "dynamic" or model_digest(model) == before)
    model.model.rotary_emb.original_inv_freq /= 8
    assert model_digest(model) != before


def test_all_buffers_count_of_a_module_whose_class_does_not_make_them_anew():
    model, other = gpt_neox(), gpt_neox()
    model.steering, other.steering = OwnModule(), OwnModule()
    assert model_digest(model) == model_digest(other)
    other.steering.table += 1
    assert model_digest(model) != model_digest(other)


# ------------------------------------------------------------------------------------ by one's hand
