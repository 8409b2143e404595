"""Models that compute for a sequence by those beside it: kept apart and right, or refused."""

import pytest
import torch
from support.faulty import Model, rows
from support.tiny import plain_loss, relative, weight_gradients
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from msif.core import selfcheck
from msif.core.capture import gradients
from msif.core.data import Sequence
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.core.selfcheck import batching


class OfTheLongest(Model):
    def read(self, ids):
        return self.emb(ids) * (2.0 if ids.shape[1] > 10 else 1.0)


class OfItsNeighbours(Model):
    def read(self, ids):
        return self.emb(ids) - self.emb(ids[:, :1]).mean(0)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.filterwarnings("ignore:what Of:UserWarning")
@pytest.mark.parametrize("make", [OfTheLongest, OfItsNeighbours])
def test_it_is_right_one_sequence_at_a_time(make, batch_size):
    model = make()
    found = gradients(tracked(model), rows(), loss, batch_size)
    expected = weight_gradients(model, tracked(model).layers, rows(), plain_loss)
    assert max(relative(found[name], x) for name, x in expected.items()) < 1e-12


class SwitchedOnByAWord(Model):
    """The second layer runs for a whole batch where any of its sequences has the last word."""

    def forward(self, input_ids, attention_mask):
        self.on = bool((input_ids == 10).any())
        return super().forward(input_ids, attention_mask)

    def blocks(self, x, mask):
        x = x + self.block(self.layers[0], x, mask)
        return x + self.block(self.layers[1], x, mask) if self.on else x


def test_a_part_that_a_neighbours_word_switches_on_keeps_sequences_apart():
    """The word stands where rows cut to the shortest do not have it."""
    data = [Sequence(n, x, x) for n, x in enumerate([(1, 2, 3, 4), (1, 10, 3), (1, 2), (3, 10)])]
    model = SwitchedOnByAWord()
    first = tracked(model, r"^layers\.0$")
    with pytest.warns(UserWarning, match="with those beside it"):
        assert batching(first, data, 8) == "single"
    expected = weight_gradients(model, first.layers, data, plain_loss)
    assert relative(gradients(first, data, loss, 8)["layers.0"], expected["layers.0"]) < 1e-12


class Capacity(Model):
    """What is beyond the first hundred positions of a batch is dropped."""

    def block(self, layer, x, mask):
        y = layer(x).tanh()
        kept = torch.arange(y.shape[0] * y.shape[1]).view(y.shape[:2]) < 100
        return y * kept[..., None]


@pytest.mark.parametrize("equal", [False, True])
def test_a_batch_that_is_more_than_the_model_holds_is_kept_apart(equal):
    data = rows([10 if equal else 6 + n % 5 for n in range(20)])
    model = Capacity()
    with pytest.warns(UserWarning, match="each sequence has a batch of its own"):
        found = gradients(tracked(model), data, loss, 20)
    expected = weight_gradients(model, tracked(model).layers, data, plain_loss)
    assert max(relative(found[name], x) for name, x in expected.items()) < 1e-12


def test_a_largest_batch_is_looked_at_beforehand_where_the_data_pays_for_it(monkeypatch):
    """Else the run itself looks, and refuses."""
    data = rows([10] * 20)
    monkeypatch.setattr(selfcheck, "FEW", 0)
    with pytest.raises(ValueError, match="other logits in its batch of 20 than alone"):
        gradients(tracked(Capacity()), data, loss, 20)
    monkeypatch.setattr(selfcheck, "PAID_BY", 1)
    with pytest.warns(UserWarning, match="each sequence has a batch of its own"):
        gradients(tracked(Capacity()), data, loss, 20)


@pytest.mark.parametrize("make, together", [(OfTheLongest, "equal"), (OfItsNeighbours, "single")])
def test_neighbours_that_matter_are_kept_apart_with_a_word(make, together):
    model = tracked(make())
    with pytest.warns(UserWarning, match="with those beside it"):
        assert batching(model, rows(), 8) == together


def rope(kind, **more):
    sizes = dict(
        vocab_size=24, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=12,
    )  # fmt: skip
    parameters = {"rope_type": kind, "rope_theta": 100.0, **more}
    if kind == "dynamic":
        config = LlamaConfig(**sizes, max_position_embeddings=8, rope_parameters=parameters)
        model = LlamaForCausalLM(config)
        config.max_position_embeddings = 64
    else:
        config = Phi3Config(
            **sizes, pad_token_id=0, max_position_embeddings=64, rope_parameters=parameters,
            original_max_position_embeddings=8,
        )  # fmt: skip
        model = Phi3ForCausalLM(config)
    torch.manual_seed(0)
    for p in model.double().eval().parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


@pytest.mark.filterwarnings("ignore:what Phi3:UserWarning")
def test_positions_of_two_lengths_are_right_in_any_batch():
    model = rope(
        "longrope", short_factor=[1.0, 1.0], long_factor=[4.0, 8.0],
        original_max_position_embeddings=8, partial_rotary_factor=1.0,
    )  # fmt: skip
    sequences = rows((6, 24, 12, 7, 24), 24)
    found = gradients(tracked(model), sequences, loss, 8)
    expected = weight_gradients(model, tracked(model).layers, sequences, plain_loss)
    assert max(relative(found[name], x) for name, x in expected.items()) < 1e-12


def test_positions_that_grow_with_what_was_read_are_refused():
    model = tracked(rope("dynamic", factor=4.0))
    gradients(model, rows((6, 8)), loss)
    with pytest.raises(ValueError, match="'dynamic', made for 8 tokens.*has 12"):
        gradients(model, rows((6, 12)), loss)
