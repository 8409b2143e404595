"""A model's digest sees what was changed by hand: hooks, functions and tensors of a module."""

import os
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from support.families import VOCAB, WIDTH, gpt_neox
from torch import nn
from torch.nn.utils import prune

from msif.core.model_digest import model_digest
from msif.core.models import tiny_gpt_neox


class Own(nn.Module):
    """A module of one's own."""


def test_the_digest_sees_a_hook_that_changes_the_function():
    one, other = (tiny_gpt_neox(VOCAB, width=8, layers=1, heads=2) for _ in range(2))
    handle = other.gpt_neox.layers[0].register_forward_hook(lambda module, args, x: 2 * x)
    assert model_digest(one) != model_digest(other)
    handle.remove()
    assert model_digest(one) == model_digest(other)


def steered(v):
    return lambda module, args, x: x + v


def scaled(x, k=3.0):
    return lambda module, args, y: y * k + x(y)


class Steering:
    def __init__(self, v):
        self.v = v

    def add(self, module, args, x):
        return x + self.v

    __call__ = add


def linear(k):
    net = nn.Linear(WIDTH, WIDTH)
    nn.init.constant_(net.weight, k), nn.init.zeros_(net.bias)
    return net


HOOKS = {
    "closure": steered,
    "partial": lambda v: partial(lambda v, module, args, x: x + v, v),
    "method": lambda v: Steering(v).add,
    "object": Steering,
    "collection": lambda v: lambda module, args, x, held={"v": [v]}: x + held["v"][0],
    "array": lambda v: lambda module, args, x, held=v.numpy(): x + held[0],
    "module": lambda v: scaled(linear(v[0].item())),
}


@pytest.mark.parametrize("make", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("register", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_the_digest_sees_what_a_hook_holds(make, register):
    def hooked(hook):
        model = gpt_neox()
        getattr(model.gpt_neox.layers[0], f"register_{register}")(hook)
        return model_digest(model)

    one, again, other = (hooked(make(torch.full((WIDTH,), x))) for x in (1.0, 1.0, 2.0))
    assert model_digest(gpt_neox()) != one == again != other


def test_the_digest_sees_a_vector_of_a_hook_that_is_changed_in_place():
    model, v = gpt_neox(), torch.zeros(WIDTH)
    model.gpt_neox.layers[0].register_forward_hook(steered(v))
    before = model_digest(model)
    v[0] = 1
    assert model_digest(model) != before


def test_a_hook_that_holds_parts_of_the_model_is_known_by_which_they_are():
    """The model's own weights count once; another's, by what they are."""
    found = []
    for number, scale in ((0, 1.0), (0, 1.0), (1, 1.0), (0, 2.0)):
        model = gpt_neox()
        model.gpt_neox.embed_in.weight.data *= scale
        body = model.gpt_neox
        body.layers[1].register_forward_hook(scaled(body.layers[number].mlp))
        found.append(model_digest(model))
    assert found[0] == found[1] and len(set(found)) == 3


def patched(change, model=None):
    model = model or gpt_neox()
    mlp = model.gpt_neox.layers[0].mlp
    mlp.forward = change(mlp.forward)
    return model


def times(k):
    return lambda forward: lambda x: k * forward(x)


def test_the_digest_sees_a_forward_of_an_instances_own():
    before, one, again, other = (
        model_digest(x)
        for x in (gpt_neox(), patched(times(2)), patched(times(2)), patched(times(3)))
    )
    assert before != one == again != other != before
    twice = patched(times(2), patched(times(2)))
    assert model_digest(twice) not in (before, one, other)
    assert model_digest(patched(lambda forward: forward)) == before
    model = patched(times(2))
    del model.gpt_neox.layers[0].mlp.forward
    assert model_digest(model) == before


@pytest.mark.parametrize("name", ["_attn_of_mine", "_init_weights", "get_input_embeddings"])
def test_the_digest_sees_a_method_of_an_instances_own_where_the_class_has_one(name):
    model = gpt_neox()
    before = model_digest(model)
    setattr(model, name, lambda *args: 2)
    assert (model_digest(model) != before) == hasattr(gpt_neox(), name)


def test_functions_of_ones_own_on_a_module_of_a_library_are_more_than_their_names():
    found = []
    for k in (1, 1, 2):
        model = gpt_neox()
        model.gpt_neox.layers[0].act = times(k)
        found.append(model_digest(model))
    assert found[0] == found[1] != found[2]


def test_what_moves_tensors_between_devices_is_no_part_of_the_digest():
    accelerate = pytest.importorskip("accelerate")

    def dispatched(model):
        accelerate.hooks.add_hook_to_module(
            model.gpt_neox.layers[0].mlp, accelerate.hooks.AlignDevicesHook(io_same_device=True)
        )
        return model_digest(model)

    assert dispatched(gpt_neox()) == model_digest(gpt_neox())
    assert dispatched(patched(times(2))) == model_digest(patched(times(2)))


def test_a_compiled_forward_is_no_part_of_the_digest():
    assert model_digest(patched(torch.compile)) == model_digest(gpt_neox())


@pytest.mark.parametrize(
    "hold", [lambda x: x, lambda x: [x], lambda x: {"a": x}, torch.Tensor.numpy]
)
@pytest.mark.parametrize("own", [True, False])
def test_the_digest_sees_plain_tensors_of_a_module(hold, own):
    def made(k):
        model = Own() if own else gpt_neox()
        module = model if own else model.gpt_neox.layers[0]
        module.steering = hold(torch.full((3,), k))
        return model_digest(model)

    assert made(1.0) == made(1.0) != made(2.0)


def test_the_digest_sees_a_weight_that_is_no_parameter():
    found = []
    for k in (1.0, 1.0, 2.0):
        net = linear(1.0)
        del net.weight
        net.weight = torch.full((WIDTH, WIDTH), k)
        found.append(model_digest(net))
    assert found[0] == found[1] != found[2]


def test_tensors_that_are_made_anew_in_each_forward_pass_are_no_part_of_the_digest():
    class Remembering(nn.Module):
        def forward(self, x):
            self.seen = x
            return x

    net = nn.Sequential(linear(1.0), Remembering())
    prune.l1_unstructured(net[0], "weight", 0.5)
    before = model_digest(net)
    net(torch.ones(2, WIDTH))
    net[0].weight = net[0].weight.detach().double()
    assert model_digest(net) == before
    net[0].weight_mask.fill_(1)
    assert model_digest(net) != before


# ------------------------------------------------------------------------------- in other processes


def hooked_with(held):
    model = gpt_neox()
    model.gpt_neox.layers[0].register_forward_hook(lambda module, args, x: held and x)
    return model


@pytest.mark.parametrize("made", [threading.Lock, lambda: (x for x in "ab")])
def test_a_hook_that_holds_what_no_later_run_can_know_is_another_one_each_time(made):
    one, other = hooked_with(made()), hooked_with(made())
    with pytest.warns(UserWarning, match="hook or function of the model holds a .*this process al"):
        digest = model_digest(one)
    with pytest.warns(UserWarning):
        assert model_digest(one) == digest != model_digest(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model_digest(gpt_neox()) not in (digest, model_digest(hooked_with(1)))


def digests():
    """Of a model as it is, one changed by hand in each way, and one that cannot be known."""
    model = patched(times(2))
    model.gpt_neox.rotary_emb.inv_freq /= 8
    model.gpt_neox.layers[1].steering = {"v": torch.ones(2)}
    for make in HOOKS.values():
        model.gpt_neox.layers[0].register_forward_hook(make(torch.ones(WIDTH)))
    model.gpt_neox.layers[0].register_forward_hook(scaled(model.gpt_neox.final_layer_norm))
    return [model_digest(x) for x in (gpt_neox(), model, hooked_with(threading.Lock()))]


def test_digests_are_the_same_in_every_process_but_those_that_cannot_be():
    here = Path(__file__).parent
    path = [str(here), str(here.parent), *sys.path]
    code = f"import sys; sys.path[:] = {path}; import test_digest_by_hand as t; print(*t.digests())"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout.split()
        for seed in "12"
    ]
    assert found[0][:2] == found[1][:2] and found[0][2] != found[1][2] and len(set(found[0])) == 3
