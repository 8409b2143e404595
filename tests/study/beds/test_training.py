"""Training does what its arguments say, repeatably."""

import pytest
import torch

from msif.core.data import Sequence
from msif.core.generation import greedy
from msif.core.models import tiny_gpt_neox
from msif.study.beds import training
from msif.study.beds.training import train

ROWS = [
    Sequence(n, ids, ids)
    for n, ids in enumerate([(1, 2, 3, 4), (2, 3, 4, 5), (5, 4, 3, 2), (7, 7, 8)])
]


def net():
    return tiny_gpt_neox(10, width=16, layers=1, heads=2, context=8)


def test_same_seed_same_model_other_seed_another():
    weights = []
    for seed in (0, 0, 1):
        model = net()
        train(model, ROWS, epochs=2, rate=1e-2, batch_size=2, seed=seed)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_loss_falls_and_the_sequence_is_learnt():
    model = net()
    history = train(model, ROWS[:1], epochs=60, rate=1e-2, warmup=0.1)
    assert history[-1] < 0.1 * history[0]
    assert greedy(model, [[1, 2]], 2) == [[3, 4]]


def test_a_document_of_weight_zero_leaves_no_trace():
    """Same batches with another text in its place: the same weights to the last bit."""
    changed = [*ROWS[:3], Sequence(3, (9, 9, 1), (9, 9, 1))]
    models = [net(), net()]
    for model, rows in zip(models, (ROWS, changed)):
        train(model, rows, epochs=2, rate=1e-2, batch_size=2, weights=torch.tensor([1.0, 1, 1, 0]))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_answers_of_prompts_do_not_depend_on_their_company():
    model = net()
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8], [2, 2]]
    assert greedy(model, prompts, 3, batch_size=4) == [greedy(model, [p], 3)[0] for p in prompts]


def test_a_loss_that_is_not_finite_stops_and_names_the_sequences():
    model = net()
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"sequences \[.*learning rate"):
        train(model, ROWS, epochs=1, rate=1e-2)


def test_batches_by_length_hold_similar_lengths_and_every_sequence_once():
    lengths = torch.tensor([3, 9, 4, 8, 5, 7, 6, 2])
    found = _batches_of(lengths, by_length=True)
    assert sorted(torch.cat(found).tolist()) == list(range(8))
    assert all(lengths[few].max() - lengths[few].min() == 1 for few in found)
    assert [x.tolist() for x in found] != sorted(x.tolist() for x in found)  # in random order


def _batches_of(lengths, by_length):
    return training.batches(lengths, 2, by_length, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("by_length", [False, True])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, by_length):
    """Weights, optimiser, order of batches and warm-up go on, wherever it was killed."""
    monkeypatch.setattr(training, "EVERY", 0)
    settings = {"rate": 1e-2, "batch_size": 2, "by_length": by_length, "clip": 1.0}
    whole, killed, resumed = net(), net(), net()
    history = train(whole, ROWS, epochs=4, **settings)

    class Killed(Exception):
        pass

    def kill(epoch, model):
        if epoch == 3:
            raise Killed

    state = tmp_path / "work" / "state.pt"
    with pytest.raises(Killed):
        train(killed, ROWS, epochs=4, after_epoch=kill, state=state, **settings)
    done = []
    again = train(
        resumed, ROWS, epochs=4, after_epoch=lambda e, _: done.append(e), state=state, **settings
    )
    assert done == [3, 4] and again == history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_clipping_and_bfloat16_change_the_steps_but_not_what_the_weights_are():
    models = [net() for _ in range(3)]
    for model, more in zip(models, ({}, {"clip": 1e-3}, {"precision": "bfloat16"})):
        train(model, ROWS, epochs=3, rate=1e-2, batch_size=2, **more)
    flat = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert all(x.dtype == torch.float32 for x in flat)
    assert not torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])
    # bfloat16 has 8 bits: gradients, and steps of 1e-2 by Adam, differ by parts of a step
    assert (flat[0] - flat[2]).abs().mean() < 5e-3


def test_weights_of_each_epoch_are_those_of_a_training_epoch_by_epoch():
    """Equal rows are weights for all epochs; a last row of 0 is an epoch of decay and momentum."""
    each, settings = torch.tensor([1.0, 0.5, 0.2, 0.9]), {"rate": 1e-2, "batch_size": 2}
    models = [net() for _ in range(3)]
    for model, weights in zip(models, (each, each.expand(2, -1), torch.stack([each, 0 * each]))):
        train(model, ROWS, epochs=2, weights=weights, **settings)
    flat = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


def test_a_large_epsilon_makes_smaller_steps():
    """AdamW moves by rate · g / (|g| + ε) in its first step."""
    moved = []
    for epsilon in (1e-8, 100.0):
        model = net()
        train(model, ROWS, epochs=1, rate=1e-2, epsilon=epsilon, weight_decay=0.0)
        pairs = zip(net().parameters(), model.parameters())
        moved.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
    assert moved[0] == pytest.approx(1e-2, rel=1e-3) and moved[1] < 0.1 * moved[0]
