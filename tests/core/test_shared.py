"""Weights with a number in common are refused by both names, whatever memory they lie in."""

import pytest
import torch
from support.families import (
    WIDTH,
    bloom,
    gpt2,
    llama,
)
from torch import nn

from msif.core.layers import tracked_layers

# family: block prefix, then (name in the block, in, out, bias, number of blocks per head)


@pytest.mark.parametrize("make, embedding", [(gpt2, "wte"), (bloom, "word_embeddings")])
def test_a_tied_unembedding_is_refused_by_both_names(make, embedding):
    assert tracked_layers(make())
    with pytest.raises(
        ValueError, match=rf"lm_head.weight is one .* transformer.{embedding}.weight"
    ):
        tracked_layers(make(), "lm_head")


def test_shared_modules_and_shared_memory_are_refused_by_both_names():
    model = llama()
    first, second = (block.mlp for block in model.model.layers)
    second.up_proj = first.up_proj
    with pytest.raises(
        ValueError, match=r"0.mlp.up_proj.weight is one .* model.layers.1.mlp.up_proj.weight"
    ):
        tracked_layers(model)
    second.up_proj = nn.Linear(WIDTH, 48, bias=False)
    second.up_proj.weight = nn.Parameter(first.up_proj.weight.data)
    with pytest.raises(
        ValueError, match=r"1.mlp.up_proj.weight is one .* model.layers.0.mlp.up_proj.weight"
    ):
        tracked_layers(model, "1.mlp.up_proj")


GATE, UP = (f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up"))


def with_weights(gate, up, start=0):
    """Two layers whose weights are views of one memory of numbers, from an offset on."""
    model, memory = llama(), torch.randn(4 * 48 * WIDTH)[start:]
    for name, view in ((GATE, gate), (UP, up)):
        model.get_submodule(name).weight = nn.Parameter(view(memory))
    return model


def rows(first):
    return lambda x: x[first * WIDTH :][: 48 * WIDTH].view(48, WIDTH)


def columns(first):
    return lambda x: x[: 96 * WIDTH].view(48, 2 * WIDTH)[:, first : first + WIDTH]


def every_other(first):
    return lambda x: x[first : first + 96 * WIDTH : 2].view(48, WIDTH)


SHARED = [
    (rows(0), rows(47)),
    (rows(47), rows(0)),
    (rows(3), rows(3)),
    (columns(0), columns(WIDTH - 1)),
    (columns(0), rows(1)),
    (every_other(0), every_other(2)),
    (rows(0), lambda x: torch.from_numpy(x.numpy()[WIDTH:][: 48 * WIDTH]).view(48, WIDTH)),
]


@pytest.mark.parametrize("gate, up", SHARED)
@pytest.mark.parametrize("start", [0, 5])
def test_weights_with_a_number_in_common_are_refused_by_both_names(gate, up, start):
    """Whatever either begins at: one is a slice of the other, or has another stride or storage."""
    model = with_weights(gate, up, start)
    with pytest.raises(ValueError, match=rf"{GATE}.weight is one parameter with {UP}.weight"):
        tracked_layers(model)
    with pytest.raises(ValueError, match=rf"{UP}.weight is one parameter with {GATE}.weight"):
        tracked_layers(model, "up_proj")
    assert len(tracked_layers(model, "down_proj")) == 2


APART = [(rows(0), rows(48)), (rows(48), rows(0)), (columns(0), columns(WIDTH))]


@pytest.mark.parametrize("gate, up", [*APART, (every_other(0), every_other(1))])
def test_weights_that_are_parts_of_one_memory_are_none_of_each_other(gate, up):
    assert tracked_layers(with_weights(gate, up)) == tracked_layers(llama())


def test_all_parameters_flattened_into_one_buffer_are_as_if_each_had_its_own():
    model = llama()
    flat = torch.cat([p.data.flatten() for p in model.parameters()])
    for p, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()])):
        p.data = part.view_as(p)
    assert tracked_layers(model, ".") == tracked_layers(llama(), ".")


def test_layers_of_a_model_without_memory_are_the_same():
    with torch.device("meta"):
        model = llama()
    assert tracked_layers(model) == tracked_layers(llama())
