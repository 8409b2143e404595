"""A chain's adapters are on the weights of the stage before, or a trace says that they are not."""

import copy
import types
import warnings

import pytest
import torch
from support.own_pair import ASK

import msif
from msif.api.models import Model
from msif.core import influence
from msif.core.adapters import Adapter, merged
from msif.core.layers import tracked

pytestmark = [
    pytest.mark.filterwarnings("ignore:the largest score:UserWarning"),  # tiny data
    pytest.mark.filterwarnings("ignore:.*knows these documents no better than chance"),
    pytest.mark.filterwarnings("ignore:.*gets its own fine-tuning rows wrong"),
]


def drawn(base, size, seed):
    """Adapters of all layers that change each weight by `size` of its norm."""
    rng, found = torch.Generator().manual_seed(seed), {}
    for x in base.tracked.layers:
        weight = base.tracked.model.get_submodule(x.name).weight.detach()
        B, A = (torch.randn(n, generator=rng) for n in ((len(weight), 2), (2, weight.shape[1])))
        found[x.name] = Adapter(A, B, float(size * weight.norm() / (B @ A).norm()))
    return found


@pytest.mark.parametrize(
    "dtype, size, seen",
    [
        ("float32", 1e-4, True),
        ("float32", 0.009, True),
        ("bfloat16", 1e-3, False),  # less than rounding
        ("bfloat16", 0.009, True),
        ("float16", 0.002, True),
    ],
)
def test_two_adapters_on_the_same_base_are_no_chain(folder, dtype, size, seen):
    """However little they change, above rounding; the second on the first's merge are one, in
    whatever dtype it was merged, and held in float32 afterwards, too."""
    base = msif.load(folder / "base", dtype=dtype)
    rows = base.answers(folder / "rows.jsonl")[:2]
    one, two = (drawn(base, size, seed) for seed in (1, 2))

    def model(below, added, name):
        return Model(tracked(merged(below, added).float()), base.tokenizer, name, added)

    net = base.tracked.model
    first = model(net, one, "first")
    first = Model(first.tracked, first.tokenizer, "first")  # saved as a whole model
    below = merged(net, one)
    ends = {
        "rounded": (below, False),
        "whole": (merged(net, one).float(), False),
        "same": (net, seen),
    }
    for name, (on, expected) in ends.items():
        last = model(on, two, name)
        chain = [
            msif.Stage(first, msif.fit(first, rows), damping=0.1),
            msif.Stage(last, msif.fit(last, rows), alpha=0.1),
        ]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            msif.trace(chain, ASK[:1], rows, stage=1)
        told = [str(x.message) for x in said if "are not on the weights of first" in str(x.message)]
        assert bool(told) == expected, (name, told)


def test_layers_that_fine_tuning_left_as_they_were_pass_the_question_whole(folder, pair, given):
    """Of the tuned model, the first block is put back to the base's: there θ₂ = θ₁, T = 1, and no
    row has influence, whatever α; one changed number is enough."""
    base, tuned = pair
    net = copy.deepcopy(tuned.tracked.model)
    first = [x for x in base.tracked.names if ".layers.0." in x]
    for name in first:
        there = net.get_submodule(name).weight
        there.data.copy_(base.tracked.model.get_submodule(name).weight)
    half = Model(tracked(net), tuned.tokenizer, "half frozen")
    documents, rows = given[0], half.answers(folder / "rows.jsonl")
    stages = [
        msif.Stage(base, msif.fit(base, documents), damping=0.1),
        msif.Stage(half, msif.fit(half, rows), alpha=0.1),
    ]
    assert list(stages[1].frozen_since(base)) == first
    q = influence.query_gradients(half.tracked, half.answers(*zip(*ASK)))
    passed = stages[1].core.transfer(q) | {name: q[name] for name in first}
    expected = influence.score(base.tracked, documents, stages[0].core.inverse(passed)).values
    found = msif.trace(stages, half.answers(*zip(*ASK)), documents)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
    own = msif.trace(stages, half.answers(*zip(*ASK)), rows, stage=1)
    assert all(not own.w[name].any() for name in first)
    assert all(own.w[name].any() for name in base.tracked.names if name not in first)
    net.get_submodule(first[0]).weight.data[0, 0] += 1e-3
    changed = Model(tracked(net), tuned.tokenizer, "one number")
    moved = msif.Stage(changed, msif.fit(changed, rows), alpha=0.1)
    assert list(moved.frozen_since(base)) == first[1:]


@pytest.mark.parametrize("few", [torch.bfloat16, torch.float16])
def test_frozen_layers_are_known_though_the_tuned_model_was_saved_in_fewer_bits(pair, few):
    """A base in float32, whose fine-tune was saved in 16 bits: rounding is no training. The other
    way round, a trained float32 model is not taken for the 16 bits that it began with."""
    base, tuned = pair
    net = copy.deepcopy(tuned.tracked.model)
    first = [x for x in base.tracked.names if ".layers.0." in x]
    for name in first:
        net.get_submodule(name).weight.data.copy_(base.tracked.model.get_submodule(name).weight)
    half = Model(tracked(net.to(few).float()), tuned.tokenizer, "half frozen, rounded")
    assert list(lineage_of(base, half)) == first
    coarse = copy.deepcopy(base.tracked.model).to(few).float()
    moved = copy.deepcopy(coarse)
    for name in base.tracked.names:
        moved.get_submodule(name).weight.data.mul_(1 + 1e-5)
    both = [Model(tracked(x), tuned.tokenizer, "small steps") for x in (coarse, moved)]
    assert lineage_of(*both) == () and len(lineage_of(both[0], both[0])) == len(base.tracked.names)


def lineage_of(before, after):
    """The layers that a stage from one model to the other left frozen."""
    return msif.Stage.frozen_since(types.SimpleNamespace(model=after), before)
