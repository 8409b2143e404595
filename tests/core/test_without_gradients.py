"""Weights that autograd gives no gradients of are refused by name, whichever pass comes first."""

import pytest
import torch
from support.families import gpt_neox, llama
from torch import nn
from torch.nn.utils import prune

from msif.core import capture, ekfac, selfcheck
from msif.core.data import Sequence
from msif.core.layers import tracked
from msif.core.objectives import loss
from msif.curvature import shampoo
from msif.scale import fitting

ROWS = [Sequence(n, (1, 2, 3, n), (1, 2, 3, n)) for n in range(3)]
UP = "model.layers.0.mlp.up_proj"


def pruned():
    model = llama()
    prune.l1_unstructured(model.get_submodule(UP), "weight", 0.5)
    return model


def pruned_in_its_bias():
    model = gpt_neox()
    prune.l1_unstructured(model.gpt_neox.layers[0].mlp.dense_h_to_4h, "bias", 0.5)
    return model


def normed():
    model = llama()
    nn.utils.parametrizations.weight_norm(model.get_submodule(UP))
    return model


def without_numbers():
    model = llama()
    model.model.layers[1].to("meta")
    return model


def without_a_buffer():
    model = llama()
    model.model.rotary_emb.to("meta")
    return model


def of_inference_mode():
    with torch.inference_mode():
        return llama()


COMPUTED = r"is not a parameter.*torch.nn.utils.prune.remove, .*remove_parametrizations"
UNUSABLE = {
    pruned: rf"{UP}.weight {COMPUTED}",
    pruned_in_its_bias: rf"gpt_neox.layers.0.mlp.dense_h_to_4h.bias {COMPUTED}",
    normed: rf"{UP}.weight {COMPUTED}",
    without_numbers: r"model.layers.1.\S+weight is on the meta device, without numbers.*load",
    without_a_buffer: r"model.rotary_emb.inv_freq is on the meta device",
    of_inference_mode: r"\S+ was made inside torch.inference_mode\(\).*load the model outside",
}


@pytest.mark.filterwarnings("ignore:tracked:UserWarning")
@pytest.mark.parametrize("make", UNUSABLE, ids=lambda make: make.__name__)
def test_a_model_that_autograd_gives_no_gradients_of_is_refused_by_name(make, tmp_path):
    """Whichever pass comes first, before it, and the model stays as it is."""
    model = make()
    net = tracked(model)
    wishes = [p.requires_grad for p in model.parameters()]
    for run in (
        lambda: ekfac.fit(net, ROWS),
        lambda: fitting.fit(tmp_path / "factors", net, ROWS),
        lambda: shampoo.fit(net, ROWS),
        lambda: capture.gradients(net, ROWS, loss),
        lambda: selfcheck.examine(net, ROWS),
    ):
        with pytest.raises(ValueError, match=UNUSABLE[make]):
            run()
    assert wishes == [p.requires_grad for p in model.parameters()] and not list(tmp_path.iterdir())


def test_gradients_are_not_asked_for_inside_inference_mode():
    net, said = tracked(llama()), r"inside torch.inference_mode\(\).*leave it"
    with torch.inference_mode(), pytest.raises(ValueError, match=said):
        ekfac.fit(net, ROWS)
    with torch.no_grad():
        assert ekfac.fit(net, ROWS).layers


@pytest.mark.parametrize("make", [pruned, normed])
def test_weights_that_are_computed_may_stay_beside_the_tracked_layers_or_be_made_parameters(make):
    model = make()
    with pytest.warns(UserWarning, match="left out, and fixed"):
        assert ekfac.fit(tracked(model, r"layers.*(?<!up_proj)$"), ROWS).layers
    module = model.get_submodule(UP)
    if make is pruned:
        prune.remove(module, "weight")
    else:
        nn.utils.parametrize.remove_parametrizations(module, "weight")
    assert UP in ekfac.fit(tracked(model), ROWS).layers
