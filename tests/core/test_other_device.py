"""Nothing mixes devices: with models on one GPU, and factors and vectors wherever they were left,
numbers are those of the CPU (float64; the device is the CPU under another name, but sums may be
taken in the order that suits a GPU: 1e-12)."""

import pytest
import torch
from support.kinds import pairs
from support.other_device import other_device
from support.tiny import documents, gpt2, llama, neox, relative

from msif.core import capture, ekfac, influence, preferences, store
from msif.core.adapters import Adapter
from msif.core.data import collate
from msif.core.generation import greedy
from msif.core.layers import Tracked, tracked_layers
from msif.core.models import logits
from msif.core.objectives import loss
from msif.core.stages import Damping, Stage
from msif.curvature import shampoo
from msif.curvature.lora import LoRA
from msif.rivals import representations, trackstar, trak
from msif.scale import fitting
from msif.study.beds.training import train

DOCUMENTS, ROWS, QUERIES = documents(7), documents(5, 3), documents(3, 9)
D, ALPHA = Damping(0.1), Damping(0.2)


def at(make, device, seed=0, per_head=False):
    model = make(seed).to(device)
    return Tracked(model, tracked_layers(model, per_head=per_head))


def chained(make, device, folder, per_head=False):
    """Scores of two stages, whose factors went through a folder and so lie on the CPU."""
    base, tuned = (at(make, device, seed, per_head) for seed in (0, 1))
    for name, net, data in (("one", base, DOCUMENTS), ("two", tuned, ROWS)):
        store.save(ekfac.fit(net, data, samples=1, batch_size=3), folder / name)
    first, second = (store.load(folder / x) for x in ("one", "two"))
    stages = [Stage(first, D), Stage(second, alpha=ALPHA)]
    q = influence.query_gradients(tuned, QUERIES)
    w = influence.precondition(q, stages)
    scores = influence.score(base, DOCUMENTS, w[0], batch_size=3)
    tokens = influence.token_scores(base, DOCUMENTS, w[0], batch_size=3)
    own = influence.self_influence(base, DOCUMENTS, stages[0], batch_size=3)
    return [scores.values, scores.normalised(), tokens, own]


def streamed(device, folder):
    net = at(neox, device)
    fitting.fit(folder / "f", net, DOCUMENTS, labels="sampled", samples=2, batch_size=3)
    found = store.load(folder / "f")
    errors = ekfac.errors(net, ROWS, "gaussian", found.factors, batch_size=3)
    return [x.eigenvalues for x in found.factors.values()] + [torch.tensor(errors["Λ"])]


def preferred(device, folder):
    start, end = at(neox, device), at(neox, device, 1)
    items = pairs(5, 3)
    stage = preferences.fit(end, start, items, b=0.7, batch_size=2)
    objective = preferences.against(start.model, items, 0.7)
    q = influence.query_gradients(end, QUERIES)
    inverse, passed = (
        Stage(stage.curvature, ALPHA).inverse(q),
        Stage(stage.curvature, alpha=ALPHA, cross=stage.cross).transfer(q),
    )
    rows = influence.score(end, items, inverse, objective=objective, batch_size=2)
    return [rows.values, influence.score(start, DOCUMENTS, passed).values]


def adapted(device, folder):
    base, tuned = at(neox, device), at(neox, device, 1)
    g = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    few = {
        x.name: Adapter(random(2, x.in_features), random(x.out_features, 2), 0.5)
        for x in tuned.layers[:3]
    }
    mean = capture.mean_gradient(tuned, ROWS, loss, 3)
    factors = ekfac.fit(tuned, ROWS, samples=1)
    stage = LoRA(factors, alpha=ALPHA, adapters=few, mean=mean, remainder=False)
    q = influence.query_gradients(tuned, QUERIES)
    return [influence.score(base, DOCUMENTS, stage.transfer(q)).values]


def shampooed(device, folder):
    net = at(neox, device)
    q = influence.query_gradients(net, QUERIES)
    found = shampoo.fit(net, DOCUMENTS, samples=1, batch_size=3)
    return list(Stage(found, D).inverse(q).values())


def rivals(device, folder):
    net = at(neox, device)
    hidden = representations.cosine(net.model, QUERIES, DOCUMENTS, centred=True)
    star = trackstar.scores(net, QUERIES, DOCUMENTS, ROWS, dimension=3, batch_size=3)
    project = trak.projector(net.layers, 6, 0, torch.float64)
    features = trak.trak_features(net, DOCUMENTS, project, 3)
    return [hidden, star, features]


def trained(device, folder):
    """What training leaves, what the model then writes and thinks of a row."""
    model = neox().to(device)
    losses = train(model, DOCUMENTS, epochs=2, rate=1e-2, batch_size=3, clip=1.0, by_length=True)
    said = greedy(model, [x.input_ids[:2] for x in DOCUMENTS], 2)
    z = logits(model, collate(DOCUMENTS))
    return [torch.tensor(losses), torch.tensor(said).double(), z]


KINDS = {
    "two stages, GPT-NeoX": lambda *x: chained(neox, *x),
    "two stages by head": lambda *x: chained(neox, *x, per_head=True),
    "two stages, GPT-2": lambda *x: chained(gpt2, *x),
    "two stages, Llama": lambda *x: chained(llama, *x),
    "fitted in a folder": streamed,
    "preferences": preferred,
    "adapters": adapted,
    "Shampoo": shampooed,
    "rivals": rivals,
    "trained": trained,
}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_cpu(kind, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    with other_device():
        found = [x.cpu() for x in KINDS[kind]("cuda", there)]
    expected = KINDS[kind]("cpu", here)
    assert len(found) == len(expected)
    for x, y in zip(found, expected):
        assert relative(x, y) < 1e-12, kind


def test_the_device_refuses_what_a_gpu_refuses():
    with other_device():
        here, there = torch.ones(3), torch.ones(3).to("cuda")
        assert there.device.type == "cuda" and there.clone().is_cuda and (there + 1).is_cuda
        assert not here.is_cuda and torch.zeros(2, device="cuda").is_cuda
        for mixed in (lambda: here + there, lambda: torch.outer(there, here)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there.cpu() + here).tolist() == [2, 2, 2]
    assert not there.is_cuda
