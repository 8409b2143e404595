"""The self-check passes sound models and leaves no trace on them; what can be made right is right:
equal to autograd, one sequence at a time."""

from types import SimpleNamespace

import pytest
import torch
from support.faulty import Model, rows
from support.tiny import documents, gpt2, llama, neox, plain_loss, relative, weight_gradients

from msif.core.capture import gradients
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.core.selfcheck import batching, examine

BATCH_SIZES = pytest.mark.parametrize("batch_size", [1, 2, 8])


# ----------------------------------------------------------------------------- what is made right


class OverItsInput(Model):
    def block(self, layer, x, mask):
        y = layer(x).tanh()
        x += y
        return torch.zeros_like(x)

    def read(self, ids):
        return self.emb(ids) * 1.0


class OverItsInputUnseen(OverItsInput):
    """As autograd does not count it."""

    def block(self, layer, x, mask):
        y = layer(x).tanh()
        x.data.add_(y.detach())
        return y - y.detach()


class OverItsOutput(Model):
    def block(self, layer, x, mask):
        y = layer(x)
        y[..., :3].clamp_(-0.3, 0.3)
        return y.mul_(2)


class ByKeyword(Model):
    def block(self, layer, x, mask):
        return layer(input=x).tanh()


class Hooked(Model):
    def __init__(self):
        super().__init__()
        self.layers[0].register_forward_hook(lambda module, args, output: output * 2 + 1)


class Checkpointed(Model):
    def block(self, layer, x, mask):
        run = torch.utils.checkpoint.checkpoint
        return run(lambda y: layer(y).tanh(), x, use_reentrant=False)


@BATCH_SIZES
@pytest.mark.parametrize("make", [OverItsInput, OverItsInputUnseen])
def test_what_a_layer_read_is_kept_though_the_model_writes_over_it(make, batch_size):
    model, twin = make(), Model()
    found = gradients(tracked(model), rows(), loss, batch_size)
    expected = weight_gradients(twin, tracked(twin).layers, rows(), plain_loss)
    assert max(relative(found[name], x) for name, x in expected.items()) < 1e-12


@BATCH_SIZES
@pytest.mark.parametrize("make", [OverItsOutput, ByKeyword, Hooked, Checkpointed])
def test_it_is_right_one_sequence_at_a_time(make, batch_size):
    model = make()
    found = gradients(tracked(model), rows(), loss, batch_size)
    expected = weight_gradients(model, tracked(model).layers, rows(), plain_loss)
    assert max(relative(found[name], x) for name, x in expected.items()) < 1e-12


# -------------------------------------------------------------------------------- the check itself


@pytest.mark.parametrize("make", [neox, gpt2, llama])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sound_model_passes_in_every_precision(make, dtype):
    model = make().to(dtype)
    found = examine(tracked(model), documents(7))
    assert found.batches == "any" and set(found.gradients) == set(tracked(model).names)
    assert max(found.gradients.values()) < {torch.float64: 1e-14, torch.float32: 1e-5}.get(dtype, 1)


class UnderAutocast(Model):
    def forward(self, input_ids, attention_mask):
        with torch.autocast("cpu", torch.bfloat16):
            z = super().forward(input_ids, attention_mask).logits
        return SimpleNamespace(logits=z.float())


class HalfInside(Model):
    """Its second layer computes in bfloat16."""

    def __init__(self):
        super().__init__()
        self.float().layers[1].bfloat16()

    def block(self, layer, x, mask):
        return layer(x.to(layer.weight.dtype)).tanh().to(x)


@pytest.mark.parametrize("make", [lambda: UnderAutocast().float(), HalfInside])
def test_layers_that_compute_in_half_precision_inside_another_are_right_to_it(make):
    model = make()
    found = gradients(tracked(model), rows(), loss, 8)
    expected = weight_gradients(model, tracked(model).layers, rows(), plain_loss)
    assert max(relative(found[name].float(), x.float()) for name, x in expected.items()) < 2e-2


class HalfEmbeddings(Model):
    """Later tokens leak by less than half precision would hide."""

    def read(self, ids):
        return self.emb(ids).float()

    def block(self, layer, x, mask):
        return (layer(x) + 1e-2 * x.mean(1, keepdim=True)).tanh()


def test_embeddings_of_half_precision_do_not_loosen_the_check():
    model = HalfEmbeddings().float()
    model.emb.bfloat16()
    with pytest.raises(ValueError, match="not causal"):
        gradients(tracked(model), rows(), loss, 8)


def test_it_looks_once_and_again_for_longer_sequences_or_other_layers(monkeypatch):
    model, looked = neox(), []
    monkeypatch.setattr(
        "msif.core.selfcheck.examine", lambda *x, real=examine: looked.append(0) or real(*x)
    )
    some = tracked(model, "mlp")
    for layers, sequences, total in [
        (some, documents(3), 1),
        (some, documents(3), 1),
        (tracked(model), documents(3), 2),
        (some, documents(4), 3),
        (some, documents(3), 3),
    ]:
        batching(layers, sequences, 8)
        assert len(looked) == total


def test_it_leaves_no_trace_on_the_model():
    model = neox()
    model.train()
    model.gpt_neox.layers[0].eval()
    kept = torch.ones_like(model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight)
    model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.grad = kept
    before = {name: x.clone() for name, x in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    examine(tracked(model), documents(4))
    assert [module.training for module in model.modules()] == modes and not all(modes)
    grads = [name for name, p in model.named_parameters() if p.grad is not None]
    assert grads == ["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"] and (kept == 1).all()
    assert all(p.requires_grad for p in model.parameters())
    hooks = [x for x in model.modules() if x._forward_hooks or x._forward_pre_hooks]
    assert not hooks
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
