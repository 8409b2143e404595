"""Greedy continuations are the model's own, whatever else is asked with them."""

from types import SimpleNamespace

import pytest
import torch
from support.tiny import documents, neox
from torch import nn

from msif.core.generation import greedy, log_probabilities
from msif.core.layers import tracked
from msif.core.selfcheck import batching

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8], [2, 2], [9], [3, 1, 2], [5, 4]]


@pytest.fixture
def model():
    return neox()


def test_each_token_is_the_most_probable_one_after_those_before(model):
    for prompt, found in zip(PROMPTS, greedy(model, PROMPTS, 4), strict=True):
        ids = list(prompt)
        for token in found:
            with torch.no_grad():
                assert token == model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
            ids.append(token)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_continuations_do_not_depend_on_the_batch_size(model, batch_size):
    assert greedy(model, PROMPTS, 4, batch_size) == greedy(model, PROMPTS, 4)


def test_continuations_do_not_depend_on_the_order_of_the_prompts(model):
    found = greedy(model, PROMPTS, 4, batch_size=2)
    assert len({tuple(x) for x in found}) > 1
    assert greedy(model, PROMPTS[::-1], 4, batch_size=2) == found[::-1]


def test_a_continuation_has_the_length_asked_for_even_past_an_end_of_text(model):
    (free,) = greedy(model, PROMPTS[:1], 4)
    model.generation_config.eos_token_id = free[0]
    assert [len(x) for x in greedy(model, PROMPTS, 4)] == [4] * len(PROMPTS)


def test_no_prompts_have_no_continuations(model):
    assert greedy(model, [], 4) == []


class OnlyLogits(nn.Module):
    """A model of one's own that cannot generate; neighbours change what it says of a sequence."""

    def __init__(self, model, shift=0.0):
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, input_ids, attention_mask):
        z = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        beside = z[:, :1, :1].mean(0) - z[:, :1, :1]
        return SimpleNamespace(logits=z + self.shift * beside * torch.arange(z.shape[-1]))


def test_a_model_that_has_only_logits_is_continued_too(model):
    found = greedy(OnlyLogits(model), PROMPTS, 4)
    assert found == greedy(model, PROMPTS, 4)
    stopped = greedy(OnlyLogits(model), PROMPTS, 4, stop={found[0][2]})
    assert stopped[0] == found[0][: found[0].index(found[0][2])]


def test_what_a_model_says_of_a_sequence_does_not_depend_on_those_beside_it(model):
    net, sequences = OnlyLogits(model, 3.0), documents(5)
    alone = torch.cat([log_probabilities(net, [x]) for x in sequences])
    assert not torch.allclose(log_probabilities(net, sequences), alone)  # nobody has looked yet
    with pytest.warns(UserWarning, match="a batch of its own"):
        batching(tracked(net), sequences, 8)
    assert torch.equal(log_probabilities(net, sequences), alone)


def test_what_cannot_be_continued_is_refused(model):
    for name, wrong in {
        "new_tokens": dict(new_tokens=0),
        "batch size": dict(batch_size=2.5),
    }.items():
        with pytest.raises(ValueError, match=f"{name} is .*; expected a whole number"):
            greedy(model, PROMPTS, **{"new_tokens": 2, **wrong})
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        greedy(model, [[1], []], 2)
