"""What each label is scored against; pseudo-gradients that sample the Gauss-Newton matrix;
draws that batching cannot change."""

from functools import partial

import numpy as np
import pytest
import torch
from support.tiny import VOCAB, documents, logits_of, neox, plain_loss

from msif.core.data import NO_LOSS, Batch, Sequence, collate
from msif.core.objectives import (
    align,
    fisher_losses,
    gaussian_loss,
    log_probability,
    logit_margin,
    loss,
    sampled_loss,
)

BOTH = pytest.mark.parametrize("draw_loss", [sampled_loss, gaussian_loss], ids=lambda f: f.__name__)


def test_logits_at_a_position_are_scored_against_the_next_token():
    """A model that predicts only the next token, with certainty, has no loss;
    off by one it has 50 nats a token."""
    s = Sequence(0, (3, 1, 4, 1, 5), (3, 1, 4, 1, 5))
    logits = torch.zeros(1, 5, VOCAB)
    for t, token in enumerate(s.input_ids[1:]):
        logits[0, t, token] = 50
    assert loss(logits, collate([s])).item() < 1e-6
    assert loss(logits.roll(1, 1), collate([s])).item() > 50


def test_losses_and_log_probabilities_equal_the_written_out_sum():
    model, sequences = neox(), documents(4)
    for s in sequences:
        assert torch.allclose(loss(*logits_of(model, s))[0], plain_loss(model, s), rtol=1e-12)
        assert torch.equal(log_probability(*logits_of(model, s)), -loss(*logits_of(model, s)))


def test_a_class_is_scored_against_the_sequences_logits():
    batch = collate([Sequence(0, (1, 2), 2), Sequence(1, (1, 2, 3), 0)])
    logits = torch.randn(2, 3)
    assert torch.allclose(loss(logits, batch), -logits.log_softmax(1)[[0, 1], [2, 0]])
    assert torch.allclose(logit_margin(logits, batch)[0], logits[0, 2] - logits[0, :2].max())


@pytest.mark.parametrize("ahead", [0.0, 5.0, 15.0, 30.0, 60.0])
def test_a_sure_answer_keeps_its_loss_and_its_gradient(ahead):
    """The likeliest token is so many nats ahead; 1 − p from a rounded p is off by 30 % at 16, and 0
    from 18 on. float32 against float64: 1e-5, some roundings of numbers of size 60."""
    z = torch.linspace(-1, 1, VOCAB).double().expand(1, 3, VOCAB).clone()
    z[0, 0, 2] += ahead
    batch = collate([Sequence(0, (1, 2, 3), (NO_LOSS, 2, NO_LOSS))])

    def both(x):
        x = x.clone().requires_grad_()
        value = loss(x, batch)
        return value.detach(), *torch.autograd.grad(value.sum(), x)

    p = z[0, 0].softmax(0)
    others = p[torch.arange(VOCAB) != 2].sum()
    value, gradient = both(z.float())
    torch.testing.assert_close(value[0].double(), torch.log1p(others / p[2]), rtol=1e-5, atol=0)
    expected = p.clone()
    expected[2] = -others
    torch.testing.assert_close(gradient[0, 0].double(), expected, rtol=1e-5, atol=0)
    assert not gradient[0, 1:].any()


def test_the_loss_is_cross_entropy_with_all_its_derivatives():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, VOCAB, dtype=torch.float64, generator=draw).requires_grad_()
    labels = torch.tensor([[NO_LOSS, 3, 1, 4], [NO_LOSS, NO_LOSS, 5, NO_LOSS]])
    batch = Batch(torch.arange(2), labels.clamp(min=0), torch.ones_like(labels).bool(), labels)
    flat = torch.nn.functional.cross_entropy(z[:, :-1].mT, labels[:, 1:], reduction="none")
    torch.testing.assert_close(loss(z, batch), flat.sum(1), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(lambda x: loss(x, batch), z)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, batch), z)


@pytest.mark.parametrize("measurement", [log_probability, logit_margin, loss])
def test_measurements_see_the_labelled_tokens_alone(measurement):
    batch = collate([Sequence(0, (1, 2, 3, 4, 5), (NO_LOSS, NO_LOSS, 3, NO_LOSS, 5))])
    logits = torch.randn(1, 5, VOCAB, requires_grad=True)
    measurement(logits, batch).sum().backward()
    assert (logits.grad[0].abs().sum(1) > 0).tolist() == [False, True, False, True, False]


def test_the_logit_margin_is_the_lead_over_the_best_other_token():
    logits = torch.tensor([[[0.0, 5.0, 3.0], [2.0, 7.0, 1.0], [9.0, 9.0, 9.0]]])
    batch = collate([Sequence(0, (0, 1, 0), (NO_LOSS, 1, 0))])
    assert logit_margin(logits, batch).tolist() == [(5 - 3) + (2 - 7)]


def test_logits_of_low_precision_are_scored_in_float32():
    z, _ = align(
        torch.randn(1, 3, VOCAB, dtype=torch.bfloat16), torch.ones(1, 3, dtype=torch.int64)
    )
    assert z.dtype == torch.float32


def pseudo_gradient(draw_loss, logits, batch, draw=0):
    """∂/∂logits: (n, S, V)."""
    logits = logits.detach().requires_grad_()
    draw_loss(logits, batch, seed=0, draw=draw).sum().backward()
    return logits.grad


@BOTH
def test_pseudo_gradients_average_to_the_output_hessian(draw_loss):
    """E[u uᵀ] = diag(p) − p pᵀ. With 10,000 draws an entry (of size ≤ .25) errs by
    ≤ √(.2/10000) = .0045; .02 is 4 of it."""
    z = torch.tensor([1.5, 0.0, -1.0, 0.5])
    n = 10_000
    batch = Batch(
        torch.arange(n),
        torch.zeros(n, 2, dtype=torch.int64),
        torch.ones(n, 2, dtype=torch.int64),
        torch.tensor([[NO_LOSS, 0]]).expand(n, 2),
    )
    u = pseudo_gradient(draw_loss, z.expand(n, 2, 4), batch)[:, 0]
    p = z.softmax(0)
    assert (u.mT @ u / n - (p.diag() - torch.outer(p, p))).abs().max() < 0.02
    assert u.mean(0).abs().max() < 0.02


@BOTH
def test_pseudo_gradients_are_independent_between_positions_sequences_and_draws(draw_loss):
    """The correlation of 4,000 independent pairs is within .05 (three standard errors) of zero."""
    n = 4000
    batch = Batch(
        torch.arange(n),
        torch.zeros(n, 3, dtype=torch.int64),
        torch.ones(n, 3, dtype=torch.int64),
        torch.zeros(n, 3, dtype=torch.int64),
    )
    u, other = (
        pseudo_gradient(draw_loss, torch.zeros(n, 3, 2), batch, draw)[..., 0] for draw in (0, 1)
    )
    for x, y in [(u[:, 0], u[:, 1]), (u[1:, 0], u[:-1, 0]), (u[:, 0], other[:, 0])]:
        assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.05


def test_sampled_labels_come_from_the_logits_that_score_them():
    """Each position is certain of another token: the label drawn there is that token,
    and p − e_ŷ is zero (defect 4)."""
    logits = torch.full((1, 5, VOCAB), -50.0)
    for t in range(5):
        logits[0, t, t + 3] = 50
    u = pseudo_gradient(sampled_loss, logits, collate([Sequence(0, (1,) * 5, (1,) * 5)]))
    assert u.abs().max() < 1e-30


def test_sampled_gradients_are_a_probability_minus_one_hot_label():
    model, (s,) = neox(), documents(1)
    logits, batch = logits_of(model, s)
    u = pseudo_gradient(sampled_loss, logits, batch)[0, :-1]
    at = batch.labels[0, 1:] != NO_LOSS
    one_hot = (logits[0, :-1].softmax(1) - u)[at]
    assert torch.allclose(
        one_hot.sort(1).values[:, :-1], torch.zeros(int(at.sum()), VOCAB - 1).double(), atol=1e-12
    )
    assert (
        torch.allclose(one_hot.amax(1), torch.ones(int(at.sum())).double()) and (u[~at] == 0).all()
    )


@BOTH
def test_words_that_cannot_be_have_no_part_in_pseudo_gradients(draw_loss):
    """A logit of −∞ (a masked vocabulary) gives what one so low gives that p is 0 to the last bit,
    and over the other words what a model without these draws."""
    sequences, logits = documents(4), torch.randn(4, 6, VOCAB)
    batch = collate(sequences)
    masked, low = (
        logits.clone().index_fill_(2, torch.tensor([0, 3, VOCAB - 1]), x)
        for x in (-torch.inf, -1e4)
    )
    u = pseudo_gradient(draw_loss, masked, batch)
    assert torch.equal(u, pseudo_gradient(draw_loss, low, batch)) and u.any()
    assert (u[..., [0, 3, VOCAB - 1]] == 0).all()
    scalars = (draw_loss(x, batch, seed=0, draw=0) for x in (masked, low))
    assert torch.allclose(*scalars, atol=1e-4) and u.sum(2).abs().max() < 1e-5


def test_labels_are_drawn_as_by_a_model_without_the_words_that_cannot_be():
    logits, there = torch.randn(4, 6, VOCAB), [t for t in range(VOCAB) if t not in (0, 3)]
    masked = logits.clone().index_fill_(2, torch.tensor([0, 3]), -torch.inf)
    few, batch = logits[..., there], collate(documents(4))
    found = pseudo_gradient(sampled_loss, masked, batch)[..., there]
    assert torch.allclose(found, pseudo_gradient(sampled_loss, few, batch), atol=1e-6)


@BOTH
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_logit_of_nan_or_infinity_is_no_word_that_cannot_be(draw_loss, value):
    """Nor is a position at which no word can be."""
    logits, batch = torch.randn(4, 6, VOCAB), collate(documents(4))
    logits[0, 0] = -torch.inf
    assert draw_loss(logits, batch, seed=0, draw=0).isnan().tolist() == [True, *[False] * 3]
    logits[0, 0, 1] = value
    assert not draw_loss(logits, batch, seed=0, draw=0)[0].isfinite()


@BOTH
def test_draws_do_not_depend_on_batching_padding_or_order(draw_loss):
    sequences = documents(6)
    logits = torch.randn(6, 6, VOCAB, dtype=torch.float64)
    together = pseudo_gradient(draw_loss, logits, collate(sequences))
    reverse = pseudo_gradient(draw_loss, logits.flip(0), collate(sequences[::-1])).flip(0)
    assert torch.allclose(reverse, together, atol=1e-14)
    for i, s in enumerate(sequences):
        length = len(s.input_ids)
        alone = pseudo_gradient(draw_loss, logits[i : i + 1, :length], collate([s]))
        assert torch.allclose(alone[0], together[i, :length], atol=1e-14)
        assert (together[i, length - 1 :] == 0).all()


def test_draws_leave_the_global_random_state_and_follow_seed_index_and_draw():
    state, batch, logits = torch.get_rng_state(), collate(documents(2)), torch.randn(2, 4, VOCAB)
    found = [
        gaussian_loss(logits, batch, seed=seed, draw=draw)
        for seed, draw in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(found[0], found[1])
    assert (
        not torch.isclose(found[0], found[2]).any() and not torch.isclose(found[0], found[3]).any()
    )
    torch.set_rng_state(state)
    gaussian_loss(logits, batch, seed=0, draw=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_sample_is_a_draw_of_its_own_and_true_labels_are_one():
    assert [f.keywords["draw"] for f in fisher_losses("sampled", 3, seed=0)] == [0, 1, 2]
    assert fisher_losses("true", 3, seed=0) == [loss]


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples is 0; expected a whole number"):
        fisher_losses("gaussian", 0, seed=0)


# ------------------------------------------------------------------------------ what has no loss

EVERY = [loss, log_probability, logit_margin]
EVERY += [partial(f, seed=0, draw=0) for f in (sampled_loss, gaussian_loss)]
every = pytest.mark.parametrize("objective", EVERY)


@every
def test_a_head_of_one_output_is_refused(objective):
    """Its cross-entropy is 0 whatever it says."""
    batch = collate([Sequence(0, (1, 2), 0), Sequence(1, (1, 2), 0)])
    with pytest.raises(ValueError, match="head has one output.*take an objective of its own"):
        objective(torch.randn(2, 1), batch)


@every
@pytest.mark.parametrize("label", [3, 7, -1, NO_LOSS])
def test_a_class_that_the_head_has_not_is_refused(objective, label):
    batch = collate([Sequence(0, (1, 2), 0), Sequence(1, (1, 2), label)])
    with pytest.raises(ValueError, match=f"has the class {label}; expected 0 to 2"):
        objective(torch.randn(2, 3), batch)


@every
def test_labels_of_another_kind_than_the_model_are_refused(objective):
    classes = collate([Sequence(0, (1, 2), 1), Sequence(1, (1, 2), 1)])
    tokens = collate([Sequence(0, (1, 2), (1, 2)), Sequence(1, (1, 2), (1, 2))])
    with pytest.raises(ValueError, match="shape .2, 2, 5. for sequences with a class each"):
        objective(torch.randn(2, 2, 5), classes)
    with pytest.raises(ValueError, match="shape .2, 5. for sequences with labels of tokens"):
        objective(torch.randn(2, 5), tokens)


def test_a_classes_loss_is_that_of_its_number_whatever_the_numbers_type():
    logits = torch.randn(1, 3, dtype=torch.float64)
    for label in (1, np.int64(1), torch.tensor(1), np.array(1)):
        batch = collate([Sequence(0, (1, 2), label)])
        assert loss(logits, batch).item() == pytest.approx(-logits.log_softmax(1)[0, 1].item())
