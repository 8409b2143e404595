"""A stage of preferences: its scores are exact with dense curvature, its EK-FAC form is explicit
matrices, and neither batches nor the order of pairs change it."""

from dataclasses import replace

import pytest
import torch
from support import faulty
from support.kinds import chain, pairs
from support.tiny import gpt2, logits_of, neox, relative, weight_gradient
from torch.nn.functional import logsigmoid

from msif.core import capture, influence, preferences, selfcheck
from msif.core.data import Sequence
from msif.core.layers import Tracked, tracked, tracked_layers
from msif.core.objectives import log_probability, loss
from msif.core.pairs import Pair, paired
from msif.core.stages import Damping, Stage, check

B = 0.7
PAIRS = pairs(6, 3)
CHAINS = [
    ("regression", "dpo"),
    ("mlp", "dpo"),
    ("mlp", "full", "dpo"),
    ("mlp", "lora", "dpo"),
    ("mlp", "dpo by lora"),
    ("mlp", "lora", "dpo by lora"),
    ("transformer", "dpo by lora"),
]


@pytest.mark.parametrize("names", CHAINS, ids=", ".join)
def test_scores_with_dense_curvature_are_exact(names):
    """The oracle's to 1e-9, and by training all stages again to 1e-5, as finite differences err."""
    found = chain(*names)
    for k, (scores, exact) in enumerate(zip(found.scores(), found.exact()), 1):
        assert relative(scores, exact) < 1e-9, k
        assert relative(scores[:, 0], found.measured(k, 0)) < 1e-5, k


def ends(make=neox, per_head=False):
    """The models before and after a stage, which are any two."""
    layers = tracked_layers(make(), per_head=per_head)
    return [Tracked(make(seed), layers) for seed in (0, 1)]


def plain_margin(model, pair):
    chosen, rejected = (log_probability(*logits_of(model, x)) for x in (pair.chosen, pair.rejected))
    return (chosen - rejected).sum()


def plain_loss(end, start, pair):
    """Written as trl writes it: sums of log-probabilities, policy against reference."""
    before = plain_margin(start, pair).detach()
    return -logsigmoid(B * (plain_margin(end, pair) - before))


def test_a_pair_s_gradient_is_that_of_the_plain_loss():
    start, end = ends()
    objective = preferences.against(start.model, PAIRS, B)
    found = capture.gradients(end, PAIRS, objective, batch_size=4)
    mean = capture.mean_gradient(end, PAIRS, objective, batch_size=4)
    each = [
        weight_gradient(end.model, end.layers, plain_loss(end.model, start.model, x)) for x in PAIRS
    ]
    for name in end.names:
        expected = torch.stack([x[name] for x in each])
        assert relative(found[name], expected) < 1e-10
        assert relative(mean[name], expected.mean(0)) < 1e-10


@pytest.mark.parametrize("make, per_head", [(neox, False), (neox, True), (gpt2, False)])
def test_the_factors_are_explicit_matrices(make, per_head):
    start, end = ends(make, per_head)
    stage = preferences.fit(end, start, PAIRS, b=B, batch_size=4)
    h = {m: [plain_margin(m.model, x) for x in PAIRS] for m in (start, end)}
    u = B * (torch.stack(h[end]) - torch.stack(h[start])).detach()
    c = B**2 * u.sigmoid() * (-u).sigmoid() / len(PAIRS)
    D = {m: [weight_gradient(m.model, m.layers, x) for x in h[m]] for m in (start, end)}
    for name, factors in stage.curvature.factors.items():
        d, d0 = (torch.stack([x[name] for x in D[m]]) for m in (end, start))
        rotated, rotated0 = factors.rotate(d), factors.rotate(d0)
        squares = torch.einsum("n,nbri->bri", c, rotated**2)
        cross = torch.einsum("n,nbri->bri", c, rotated * rotated0)
        assert relative(factors.eigenvalues, squares) < 1e-8
        assert relative(stage.cross.values[name], cross) < 1e-8
        v = torch.randn(2, *d.shape[1:], dtype=torch.float64)
        alpha = 0.1 * squares.mean()
        ratio = (cross + alpha) / (squares + alpha)
        expected = factors.rotate_back(factors.rotate(v) * ratio)
        only = replace(stage.curvature, factors={name: factors})
        found = Stage(only, alpha=Damping(0.1), cross=stage.cross).transfer({name: v})
        assert relative(found[name], expected) < 1e-8


def test_the_bases_are_those_of_inputs_and_gradients_of_both_rows():
    start, end = ends()
    stage = preferences.fit(end, start, PAIRS, b=B)
    objective = preferences.against(start.model, PAIRS, B)
    scale = objective.weights(PAIRS, preferences.margins(end.model, PAIRS))
    rows, sums = 0, {name: torch.zeros(()) for name in end.names}
    for x in PAIRS:
        for row in (x.chosen, x.rejected):
            seen = capture_one(end, row, scale[x.index])
            rows += len(row.input_ids)
            sums = {name: sums[name] + seen[name] for name in sums}
    for name, factors in stage.curvature.factors.items():
        Bs = factors.basis_out[0] * factors.out_values[0] @ factors.basis_out[0].mT
        assert relative(Bs, sums[name] / rows) < 1e-8
        assert factors.positions == rows / len(PAIRS)


def capture_one(tracked, row, scale):
    found = {}

    def consume(layer, a, g, draw, batch):
        found[layer.name] = g[0].mT @ g[0]

    objective = lambda *z: scale * log_probability(*z)
    capture.passes(tracked, [row], [objective], 1, consume)
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_neither_batches_nor_order_matter(batch_size):
    start, end = ends()
    first = preferences.fit(end, start, PAIRS, b=B)
    other = preferences.fit(end, start, PAIRS[::-1], b=B, batch_size=batch_size)
    v = {x.name: torch.randn(2, x.out_features, x.inputs, dtype=torch.float64) for x in end.layers}
    found, expected = (
        Stage(x.curvature, alpha=Damping(0.1), cross=x.cross).transfer(v) for x in (other, first)
    )
    assert all(relative(found[name], expected[name]) < 1e-8 for name in v)
    scores = [
        influence.score(end, items, v, objective=first.loss, batch_size=size).values
        for items, size in ((PAIRS, 32), (PAIRS[::-1], batch_size))
    ]
    assert relative(scores[1].flip(1), scores[0]) < 1e-9


def test_where_the_stage_moves_nothing_everything_passes():
    """∇h is the same at both ends: T = 1 for any α."""
    start, _ = ends()
    stage = preferences.fit(start, start, PAIRS, b=B)
    v = {x.name: torch.randn(2, x.out_features, x.inputs).double() for x in start.layers}
    for alpha in (0.01, 10.0):
        found = Stage(stage.curvature, alpha=Damping(alpha), cross=stage.cross).transfer(v)
        assert all(relative(found[name], x) < 1e-9 for name, x in v.items())


def test_a_reference_that_carries_the_start_through_needs_no_alpha():
    start, end = ends()
    found = preferences.fit(end, start, PAIRS, b=B)
    first = Stage(found.curvature, Damping(0.1))
    check([first, Stage(found.curvature, Damping(0.1), cross=found.cross)])
    with pytest.raises(ValueError, match="forgets its start"):
        check([first, Stage(found.curvature, Damping(0.1))])
    with pytest.raises(ValueError, match="new layers .* and a cross term"):
        Stage(found.curvature, new=("head",), cross=found.cross)


class BySize(faulty.Model):
    """One part counts twice in a batch of more than 12 rows, as none of the short pieces is."""

    def read(self, ids):
        self.times = 1 + (len(ids) > 12)
        return self.emb(ids)

    def block(self, layer, x, mask):
        return self.times * super().block(layer, x, mask)


class OfNeighbours(faulty.Model):
    """What a row is depends on those beside it."""

    def read(self, ids):
        x = self.emb(ids)
        return x + x.mean(0)


@pytest.mark.filterwarnings("ignore:what .* computes:UserWarning", "ignore:tracked:UserWarning")
@pytest.mark.parametrize("at", ["end", "start"])
def test_either_model_is_tried_and_both_rows_of_a_pair_are_read_again(at):
    few, plain = pairs(16, 5), tracked(faulty.Model())

    def fit(make, **options):
        odd = tracked(make())
        ends = (odd, plain) if at == "end" else (plain, odd)
        preferences.fit(*ends, few, b=B, **options)

    with pytest.raises(ValueError, match="preferences cannot be traced through it"):
        fit(OfNeighbours)
    with pytest.raises(ValueError, match="through it"):
        fit(BySize)
    fit(BySize, batch_size=6)  # of 12 rows


def test_batches_of_pairs_are_looked_at_while_they_run(monkeypatch):
    few, net = pairs(16, 5), tracked(BySize())
    objective = preferences.DPO(B, {x.index: 0.0 for x in few})
    monkeypatch.setattr(selfcheck, "asked", lambda: False)  # beforehand, of the largest batch
    with pytest.raises(ValueError, match="pairs cannot be read through it"):
        capture.gradients(net, few, objective)


def test_what_is_no_preference_is_refused():
    start, end = ends()
    row = PAIRS[0].chosen
    with pytest.raises(ValueError, match="expected one that reads pairs"):
        capture.gradients(end, PAIRS, loss)
    with pytest.raises(ValueError, match="DPO's b is 0: expected a finite number > 0"):
        preferences.fit(end, start, PAIRS, b=0)
    with pytest.raises(ValueError, match="2 chosen and 1 rejected answers: expected as many"):
        paired([row, row], [row])
    with pytest.raises(ValueError, match="pair 0: rejected is a str; expected a data.Sequence"):
        Pair(0, row, "no")
    with pytest.raises(ValueError, match="share their index"):
        preferences.fit(end, start, [PAIRS[0], PAIRS[0]])
    with pytest.raises(ValueError, match="stands among pairs; expected pairs alone"):
        capture.gradients(end, [PAIRS[0], row], preferences.against(start.model, PAIRS))
    far = Sequence(0, (1, 99), (1, 99))
    with pytest.raises(ValueError, match="token id 99; the model's vocabulary has 12"):
        preferences.fit(end, start, [Pair(0, row, far)])
    with pytest.raises(ValueError, match=r"no margin of the pairs \[\d"):
        capture.gradients(end, PAIRS, preferences.against(start.model, PAIRS[:1]))
