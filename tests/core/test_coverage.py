"""What is tracked of a model, and what is said to be left out."""

import copy

import pytest
import torch
from support.families import (
    bloom,
    gpt2,
    gpt_neox,
    llama,
    multimodal,
    qwen2,
    qwen3,
)
from torch import nn

from msif.core import ekfac
from msif.core.capture import gradients
from msif.core.coverage import Coverage, coverage
from msif.core.data import Sequence
from msif.core.layers import tracked, weight_matrix
from msif.core.objectives import loss


# family: block prefix, then (name in the block, in, out, bias, number of blocks per head)
class Block(nn.Module):
    """A block of one linear layer."""

    def __init__(self, width=4):
        super().__init__()
        self.up = nn.Linear(width, width)

    def forward(self, x):
        return x + self.up(x).tanh()


def in_sequence(head):
    """Blocks in an nn.Sequential between embedding and head."""
    model = nn.Module()
    model.embed = nn.Embedding(9, 4)
    model.blocks = nn.Sequential(Block(), Block())
    model.classifier = head
    return model


@pytest.mark.parametrize(
    "head", [nn.Linear(4, 9), nn.Sequential(Block(), nn.Linear(4, 9))], ids=["one", "several"]
)
def test_blocks_in_a_sequence_are_blocks_and_a_head_in_one_is_not(head):
    net = tracked(in_sequence(head))
    assert net.names == ["blocks.0.up", "blocks.1.up"]
    assert coverage(net) == Coverage(32, 32, {})


def test_of_a_model_that_also_sees_the_text_layers_alone_are_tracked():
    net = tracked(multimodal())
    assert len(net.layers) == 2 * 7
    assert all(x.startswith("model.language_model.layers.") for x in net.names)
    assert coverage(net).share == 1 and not coverage(net).left_out


def test_coverage_names_what_is_left_out_by_size_and_counts_numbers_once():
    net = tracked(llama(), r"\.0\.|\.1\.self_attn")
    found = coverage(net)
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    assert found == Coverage(
        2 * block - 3 * 32 * 48,
        2 * block,
        {
            "model.layers.N.mlp.gate_proj": 32 * 48,
            "model.layers.N.mlp.up_proj": 32 * 48,
            "model.layers.N.mlp.down_proj": 32 * 48,
        },
    )
    assert "tracked: 70 % of the 15,360 numbers" in str(found) and "down_proj (10 %)" in str(found)
    whole = str(coverage(tracked(llama())))
    assert whole == "tracked: 100 % of the 15,360 numbers in the model's blocks"


def test_coverage_never_rounds_up_to_all():
    assert str(Coverage(99_999, 100_000, {"router": 1})).startswith("tracked: 99.9 %")


@pytest.mark.parametrize("make", [gpt_neox, gpt2, bloom, llama, qwen2, qwen3])
def test_the_default_layers_are_all_of_the_blocks_of_dense_models(make):
    assert coverage(tracked(make())).share == 1


def test_a_fit_says_how_much_is_tracked_in_print_or_warning_and_in_its_header(capsys):
    rows = [Sequence(0, (1, 2, 3), (1, 2, 3)), Sequence(1, (3, 2, 1), (3, 2, 1))]
    part = tracked(llama(), "self_attn")
    with pytest.warns(UserWarning, match=r"tracked: .*left out.*mlp.gate_proj"):
        found = ekfac.fit(part, rows)
    assert found.header["coverage"]["left_out"][0] == "model.layers.N.mlp.gate_proj"
    assert found.header["coverage"]["of"] == 15_360
    ekfac.fit(part, rows, title="factors")
    assert "factors: tracked: 40 %" in capsys.readouterr().out


class Packed(nn.Linear):
    """A linear layer that holds two weights of 4 bits in a byte, as bitsandbytes does."""

    def __init__(self, dense):
        n_out, n_in = dense.weight.shape
        super().__init__(n_in, n_out, bias=False)
        four = torch.randint(16, (n_out, n_in), dtype=torch.uint8).flatten()
        packed = (four[::2] * 16 + four[1::2])[:, None]
        self.weight = nn.Parameter(packed, requires_grad=False)

    def unpacked(self):
        found = torch.stack([self.weight // 16, self.weight % 16], 1).flatten()
        return (found.float() / 8 - 1).view(self.out_features, self.in_features)

    def forward(self, x):
        return nn.functional.linear(x, self.unpacked())


def test_packed_weights_have_the_sizes_that_they_stand_for_and_their_gradients():
    model, rows = llama(), [Sequence(0, (1, 2, 3, 4), (1, 2, 3, 4))]
    dense = copy.deepcopy(model)
    for block, twin in zip(model.model.layers, dense.model.layers):
        block.mlp.up_proj = Packed(block.mlp.up_proj)
        twin.mlp.up_proj.weight.data = block.mlp.up_proj.unpacked()
    net, whole = tracked(model), tracked(dense)
    assert [str(x) for x in net.layers] == [str(x) for x in whole.layers]
    assert coverage(net) == coverage(whole)
    found, expected = (gradients(x, rows, loss) for x in (net, whole))
    for name, D in expected.items():
        assert torch.allclose(found[name], D, atol=1e-5), name
    with pytest.raises(ValueError, match="Packed holds packed weights"):
        weight_matrix(model.model.layers[0].mlp.up_proj)


def test_a_weight_of_another_shape_than_the_layer_says_is_refused():
    model = llama()
    model.model.layers[0].mlp.up_proj.in_features = 7
    with pytest.raises(ValueError, match=r"mlp.up_proj has a weight of shape \(48, 32\), but .* 7"):
        tracked(model)
