"""Gradients from captured activations equal the weights' own .grad,
and capturing leaves no trace on the model."""

import re

import pytest
import torch
from support.tiny import documents, gpt2, llama, neox, plain_loss, relative, weight_gradients

from msif.core.capture import backpropagate, frozen, gradients, passes
from msif.core.data import Sequence, collate
from msif.core.influence import query_gradients
from msif.core.layers import Tracked, tracked, tracked_layers
from msif.core.objectives import loss

MODELS = pytest.mark.parametrize("make", [neox, gpt2, llama], ids=lambda make: make.__name__)


@MODELS
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_gradients_equal_the_grad_of_weight_and_bias_of_each_sequence_alone(make, batch_size):
    """Batch sizes above 1 pad the shorter sequences; the reference runs each one unpadded."""
    model = make()
    tracked_model = tracked(model)
    found = gradients(tracked_model, documents(7), loss, batch_size)
    expected = weight_gradients(model, tracked_model.layers, documents(7), plain_loss)
    assert list(found) == [x.name for x in tracked_model.layers]
    for x in tracked_model.layers:
        assert found[x.name].shape == (7, x.out_features, x.in_features + x.bias)
        assert relative(found[x.name], expected[x.name]) < 1e-10, x.name


@MODELS
def test_padded_positions_have_neither_inputs_nor_gradients(make):
    model = make()
    layers, batch, seen = tracked_layers(model), collate(documents(4)), []

    def consume(layer, a, g, draw):
        padded = batch.attention_mask == 0
        seen.append(layer.name)
        assert padded.any() and (a[padded] == 0).all() and (g[padded] == 0).all()
        assert a.shape[2] == layer.in_features

    with frozen(model):
        backpropagate(Tracked(model, layers), batch, [loss], consume)
    assert sorted(seen) == sorted(x.name for x in layers)


def test_each_objective_has_a_backward_pass_of_its_own():
    model, found = neox(), {}
    layers, first = tracked_layers(model), lambda logits, batch: 2 * loss(logits, batch)

    def consume(layer, a, g, draw, batch):
        found[draw, layer.name] = g

    passes(Tracked(model, layers), documents(3), [loss, first, loss], 3, consume)
    for x in layers:
        assert torch.allclose(found[1, x.name], 2 * found[0, x.name]) and torch.equal(
            found[0, x.name], found[2, x.name]
        )


def test_no_weight_gradient_is_formed_and_nothing_stays_on_the_model():
    model = neox()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.gpt_neox.embed_in.weight.requires_grad_(False)

    def consume(layer, a, g, draw, batch):
        assert not any(p.requires_grad for p in model.parameters())

    passes(tracked(model), documents(3), [loss], 2, consume)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "gpt_neox.embed_in.weight"
    ]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_gradient_flags_and_hooks_are_restored_after_an_exception():
    model = neox()

    def consume(*found):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        passes(tracked(model), documents(3), [loss], 2, consume)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_are_the_same_inside_no_grad():
    model = neox()
    expected = gradients(tracked(model), documents(2), loss)
    with torch.no_grad():
        found = gradients(tracked(model), documents(2), loss)
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_low_precision_activations_give_float32_gradients():
    model = neox().bfloat16()
    assert {x.dtype for x in gradients(tracked(model), documents(2), loss).values()} == {
        torch.float32
    }


@MODELS
def test_gradients_in_float16_are_those_of_a_sure_answer_too(make):
    """An objective of 1e-9 of the loss has gradients below float16's smallest number, 6e-8: they
    are those of the loss times that. The rows of a batch have sizes of their own."""
    model = tracked(make().half())
    size = torch.tensor([1.0, 1e-5, 1e-9])

    def smaller(logits, batch):
        return loss(logits, batch) * size[batch.index]

    found = gradients(model, documents(3), smaller, 3)
    expected = gradients(model, documents(3), loss, 3)
    for name, x in expected.items():
        assert x.dtype == torch.float32
        for row, full, scale in zip(found[name], x, size):
            assert relative(row / scale, full) < 0.02, name  # 11 bits, by way of two layers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_layer_and_the_sequences(value):
    model = neox()
    model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.data[0, 0] = value
    with pytest.raises(
        FloatingPointError,
        match=r"layers.1.mlp.dense_4h_to_h is NaN or infinite .*sequences \[0, 1, 2\]",
    ):
        gradients(tracked(model), documents(3), loss)


def test_a_gradient_that_is_not_finite_is_named_with_its_layer():
    model = neox()
    with pytest.raises(FloatingPointError, match="the gradient at gpt_neox.layers.1.* is NaN"):
        gradients(
            tracked(model),
            documents(2),
            lambda logits, batch: (0 * loss(logits, batch)).sqrt(),
        )


def test_a_loss_that_is_not_finite_is_said_to_be():
    model = neox()
    with pytest.raises(FloatingPointError, match="the loss is NaN or infinite"):
        gradients(
            tracked(model),
            documents(2),
            lambda logits, batch: loss(logits, batch) / 0,
        )


@pytest.mark.parametrize(
    "of_losses, given, batch_size",
    [
        (torch.mean, "()", 2),
        (torch.mean, "()", 1),
        (lambda x: x[:1], "(1,)", 2),
        (lambda x: x[:, None], "(2, 1)", 2),
        (lambda x: x.sum().item(), "float", 2),
    ],
)
def test_an_objective_gives_one_number_for_each_sequence(of_losses, given, batch_size):
    """By a mean, which training code has, a score would depend on the size of its batch."""
    net, n = tracked(neox()), batch_size
    message = f"gives {given} for {n} sequences, not a tensor of shape ({n},); expected one number"
    for run in (gradients, query_gradients):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(net, documents(4), lambda z, batch: of_losses(loss(z, batch)), batch_size)


def test_a_layer_that_gets_all_positions_in_one_row_as_in_opt_has_the_same_gradients():
    model, flat = neox(), neox()
    mlp = flat.gpt_neox.layers[1].mlp
    mlp.forward = lambda x, original=mlp.forward: original(x.flatten(0, 1)).view_as(x)
    expected, found = (gradients(tracked(m), documents(5), loss, 3) for m in (model, flat))
    assert all(relative(found[name], x) < 1e-10 for name, x in expected.items())


def test_a_layer_that_runs_on_some_of_the_positions_is_refused_by_name():
    """As experts do: nothing says which sequences its rows belong to."""
    model = neox()
    mlp = model.gpt_neox.layers[1].mlp
    mlp.forward = lambda x, original=mlp.forward: x + original(x.flatten(0, 1)[:7]).sum()
    with pytest.raises(
        ValueError,
        match=r"layers.1.mlp.dense_h_to_4h gives an output of shape \(7, 12\).*batch of \(3, 5\)",
    ):
        gradients(tracked(model), documents(3), loss)


def test_a_layer_that_runs_twice_is_refused_by_name():
    model = neox()
    model.gpt_neox.layers[1].mlp = model.gpt_neox.layers[0].mlp
    twice = [x for x in tracked_layers(neox()) if "0.mlp" in x.name]
    with pytest.raises(ValueError, match="layers.0.mlp.* runs more than once"):
        gradients(Tracked(model, twice), documents(2), loss)


def test_token_ids_beyond_the_vocabulary_are_refused_before_anything_runs():
    model = neox()
    with pytest.raises(ValueError, match=r"sequence 3 has token id 99.*vocabulary has 12"):
        gradients(
            tracked(model),
            [*documents(2), Sequence(3, (1, 99, 2), (1, 99, 2))],
            loss,
        )
