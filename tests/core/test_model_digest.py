"""A model's digest sees all that changes its function, and nothing else."""

import copy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.families import gpt_neox, llama
from torch import nn

from msif.core.model_digest import model_digest


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


def named(model, **changed):
    """The same model with other fields of its configuration."""
    for name, value in changed.items():
        setattr(model.config, name, value)
    return model


def same_weights(model, **changed):
    """A model of another configuration with the same weights."""
    config = copy.deepcopy(model.config)
    for name, value in changed.items():
        setattr(config, name, value)
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    "changed",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}},
        {"rms_norm_eps": 1e-2},
        {"hidden_act": "gelu"},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    ],
    ids=lambda x: next(iter(x)),
)
def test_the_digest_sees_what_changes_the_function_of_equal_weights(changed):
    model, ids = llama(), torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    other = same_weights(model, **changed)
    assert not torch.allclose(model(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-7)
    assert model_digest(other) != model_digest(model)


@pytest.mark.parametrize("field", ["output_multiplier", "token_dropout"])
def test_the_digest_sees_fields_that_are_named_like_silent_ones(field):
    assert model_digest(named(llama(), **{field: 2.0})) != model_digest(llama())


def test_the_digest_sees_an_epsilon_or_activation_changed_by_hand():
    model = llama()
    before = model_digest(model)
    model.model.norm.variance_epsilon = 1e-2
    changed = model_digest(model)
    model.model.norm.variance_epsilon = model.config.rms_norm_eps
    model.model.layers[0].mlp.act_fn = nn.GELU()
    assert len({before, changed, model_digest(model)}) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"name_or_path": "somewhere/else"},
        {"transformers_version": "4.0"},
        {"use_cache": False},
        {"output_hidden_states": True},
        {"attention_dropout": 0.5},
        {"initializer_range": 0.7},
        {"eos_token_id": 5, "bos_token_id": 3, "pad_token_id": 4},
        {"architectures": ["Other"]},
        {"id2label": {0: "a", 1: "b", 2: "c"}},
    ],
    ids=lambda x: next(iter(x)),
)
def test_the_digest_does_not_see_what_logits_do_not_depend_on(changed):
    model = llama()
    before, found = model_digest(model), model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert model_digest(named(model, **changed)) == before
    assert torch.equal(model(input_ids=torch.tensor([[1, 2, 3]])).logits, found)


def test_running_training_mode_and_the_attention_used_do_not_change_the_digest():
    model = llama()
    before = model_digest(model)
    model(input_ids=torch.tensor([[1, 2, 3]]))
    model(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    model.set_attn_implementation("eager")
    assert model_digest(model.train()) == before


def test_the_digest_of_a_module_of_ones_own_sees_its_numbers_functions_and_buffers():
    class Own(nn.Module):
        def __init__(self, scale=1.0, act=torch.tanh, table=0.0):
            super().__init__()
            self.linear, self.scale, self.act = nn.Linear(2, 2), scale, act
            nn.init.ones_(self.linear.weight), nn.init.zeros_(self.linear.bias)
            self.register_buffer("table", torch.tensor([table]), persistent=False)

    made = [Own(), Own(scale=2.0), Own(act=torch.relu), Own(table=1.0), Own()]
    found = [model_digest(x) for x in made]
    assert len(set(found)) == 4 and found[0] == found[-1]


@dataclass
class Settings:
    scale: float = 1.0
    windows: tuple = (1, 2)


@pytest.mark.parametrize(
    "one, other",
    [
        (Settings(), Settings(2.0)),
        (Settings(), Settings(windows=(1, 3))),
        (SimpleNamespace(scale=1.0), SimpleNamespace(scale=2.0)),
        ({"scale": 1.0}, {"scale": 2.0}),
        ([1, 2], [1, 3]),
        (np.float32(1), np.float32(2)),
        (partial(torch.mul, other=1), partial(torch.mul, other=2)),
        (lambda x: x, lambda x: 2 * x),
    ],
)
@pytest.mark.parametrize("name", ["config", "how"])
def test_the_digest_of_a_module_of_ones_own_sees_what_configures_it(one, other, name):
    def made(value):
        net = OwnModule()
        setattr(net, name, value)
        return model_digest(net)

    assert made(one) == made(copy.deepcopy(one)) != made(other)


class OwnModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(2), persistent=False)
