"""Representations against one unpadded sequence at a time."""

from types import SimpleNamespace

import pytest
import torch
from support.faulty import Model
from support.tiny import documents, gpt2, llama, neox, relative

from msif.core.data import Sequence, collate
from msif.rivals.representations import cosine, states

MODELS = [neox, gpt2, llama]
SEQUENCES = documents(7)


def alone(model, sequence, layer):
    """(S, d): the hidden states of one sequence, nothing padded."""
    batch = collate([sequence])
    with torch.no_grad():
        found = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        )
    return found.hidden_states[layer][0]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("layer", [-1, 1])
def test_states_are_those_of_each_sequence_alone(make, layer):
    model = make()
    for kind, reduce in {"mean": lambda x: x.mean(0), "last": lambda x: x[-1]}.items():
        expected = torch.stack([reduce(alone(model, s, layer)) for s in SEQUENCES])
        found = states(model, SEQUENCES, kind, layer, batch_size=3)
        assert found.dtype == torch.float32 and relative(found.double(), expected) < 1e-6  # float32


class OfItsNeighbours(Model):
    """What it computes changes with the words that other sequences begin with."""

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        found = super().forward(input_ids, attention_mask)
        x = self.emb(input_ids) - self.emb(input_ids[:, :1]).mean(0)
        return SimpleNamespace(logits=self.out(x) + found.logits, hidden_states=(x,))


def test_sequences_that_depend_on_their_neighbours_are_read_alone():
    model = OfItsNeighbours(12)
    expected = torch.stack([alone(model, s, 0).mean(0) for s in SEQUENCES])
    with pytest.warns(UserWarning, match="each sequence has a batch of its own"):
        found = states(model, SEQUENCES, batch_size=4)
    assert relative(found.double(), expected) < 1e-6


def test_states_do_not_depend_on_batches_or_order():
    model = neox()
    whole = states(model, SEQUENCES, batch_size=64)
    few = states(model, SEQUENCES[::-1], batch_size=1).flip(0)
    assert relative(few, whole) < 1e-6


def test_layer_0_of_a_model_without_positions_is_a_bag_of_tokens():
    x, y = Sequence(0, (1, 2, 3), (1, 2, 3)), Sequence(1, (3, 1, 2), (3, 1, 2))
    bags, read = (states(neox(), [x, y], layer=n) for n in (0, -1))
    assert torch.allclose(bags[0], bags[1]) and not torch.allclose(read[0], read[1], atol=1e-3)


def test_cosine_of_a_sequence_with_itself_is_one_and_the_highest():
    found = cosine(neox(), SEQUENCES[:3], SEQUENCES, kind="last")
    assert found.shape == (3, 7) and torch.allclose(
        found[range(3), range(3)], torch.ones(3), atol=1e-5
    )
    assert (found.max(1).values <= 1 + 1e-5).all() and (found.argmax(1) == torch.arange(3)).all()


def test_centring_takes_away_what_all_queries_share_and_all_documents_share():
    x, y = (states(neox(), s).double() for s in (SEQUENCES[:3], SEQUENCES))
    x, y = x - x.mean(0), y - y.mean(0)
    expected = x @ y.mT / torch.outer(x.norm(dim=1), y.norm(dim=1))
    assert (
        relative(cosine(neox(), SEQUENCES[:3], SEQUENCES, centred=True).double(), expected) < 1e-5
    )
    assert relative(cosine(neox(), SEQUENCES[:3], SEQUENCES).double(), expected) > 0.1


def test_the_model_is_left_as_it_was():
    model = neox().train()
    model.gpt_neox.embed_in.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    states(model, SEQUENCES)
    assert model.training and [p.requires_grad for p in model.parameters()] == wanted


@pytest.mark.parametrize(
    "wrong, says", [({"kind": "first"}, "kind is 'first'"), ({"layer": 7}, "layer is 7")]
)
def test_unknown_kinds_and_layers_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        states(neox(), SEQUENCES, **wrong)


def test_a_token_beyond_the_vocabulary_is_named():
    with pytest.raises(ValueError, match="token id 99"):
        states(neox(), [Sequence(0, (1, 99), (1, 99))])
