"""The plan of a stage of adapters: what is solved exactly, and sizes that grow as they should."""

import torch

from msif.core.adapters import Adapter
from msif.core.layers import Layer
from msif.curvature import tangent
from msif.scale import solving
from msif.scale.solving import plan_solve, preferences_bytes


def layer(width, rank):
    x = Layer(f"w{width}r{rank}", None, False, width, width)
    return x, Adapter(torch.zeros(rank, width), torch.zeros(width, rank), 1.0)


def test_the_limit_is_that_of_the_solver():
    assert solving.DENSE == tangent.DENSE


def test_small_systems_are_solved_exactly_and_others_grow_with_the_questions():
    small, large = layer(64, 8), layer(1024, 8)
    layers, adapters = [small[0], large[0]], {x.name: y for x, y in (small, large)}
    one, eight = (plan_solve(layers, adapters, n) for n in (1, 8))
    assert (one.layers, one.exactly) == (2, 1)
    assert one.mean == eight.mean == 4 * (64**2 + 1024**2)
    assert 5 * one.flops < eight.flops < 8 * one.flops and one.peak < eight.peak
    assert "2 layers, 1 of them solved exactly" in str(one)
    assert plan_solve(layers, {}, 8).layers == 0


def test_between_the_models_a_batch_s_inputs_and_gradients_are_held():
    assert preferences_bytes([layer(64, 8)[0]], 4, 10) == 4 * 2 * 4 * 10 * 128
