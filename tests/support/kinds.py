"""Stages of all kinds on models of a few weights, each trained to its optimum by the oracle, and as
the engine has them: with dense second derivatives."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch

from msif.core import capture, influence, preferences
from msif.core.adapters import Adapter
from msif.core.data import NO_LOSS, Sequence
from msif.core.layers import Tracked, tracked_layers
from msif.core.models import tiny_gpt_neox
from msif.core.objectives import loss
from msif.core.pairs import Pair, are_pairs
from msif.core.products import unflatten
from msif.core.stages import Damping, Stage
from msif.curvature.dense import Dense, DenseCross
from msif.curvature.lora import LoRA
from msif.study.exact import kinds
from msif.study.exact.kinds import Phase
from msif.study.exact.oracle import Network
from msif.study.exact.toys import WindowMLP
from support.tiny import Regression, lively

VOCAB = 5
QUERIES = [
    Sequence(0, (1, 2, 3, 4), (NO_LOSS, NO_LOSS, 3, 4)),
    Sequence(1, (4, 0, 2), (NO_LOSS, 0, 2)),
]


def sequences(n, seed):
    """n sequences of 4 or 5 tokens, with a loss on all."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(VOCAB, (4 + i % 2,), generator=g).tolist() for i in range(n)]
    return [Sequence(i, tuple(r), tuple(r)) for i, r in enumerate(rows)]


def pairs(n, seed):
    """n pairs: prompts of 2 or 3 tokens, answers of 1 to 3."""
    g = torch.Generator().manual_seed(seed)

    def tokens(least, most):
        length = int(torch.randint(least, most + 1, (), generator=g))
        return tuple(torch.randint(VOCAB, (length,), generator=g).tolist())

    def row(i, prompt, answer):
        return Sequence(i, prompt + answer, (NO_LOSS,) * len(prompt) + answer)

    prompts = [tokens(2, 3) for _ in range(n)]
    return [
        Pair(i, row(i, x, tokens(1, 3)), row(i, x, tokens(1, 3))) for i, x in enumerate(prompts)
    ]


def convex(**more):
    """Softmax regression, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Regression(VOCAB, **more)


def regression():
    """Softmax regression: 20 weights."""
    model = convex()
    return Network.of(model, model.layers())


def unbiased():
    """Softmax regression on the token before, without a bias: 10 weights are tracked."""
    model = convex(head=2)
    return Network.of(model, model.layers()[1:])


def mlp():
    """Two hidden layers of tanh: 53 weights."""
    model = WindowMLP(VOCAB, code=1, width=4)
    return Network.of(lively(model), tracked_layers(model, "^layers"))


def transformer():
    """A GPT-NeoX of width 4 with one layer: 138 weights are tracked."""
    model = tiny_gpt_neox(VOCAB, width=4, layers=1, heads=1, context=8, intermediate=6)
    return Network.of(lively(model), tracked_layers(model))


NETWORKS = {
    "regression": regression,
    "unbiased": unbiased,
    "mlp": mlp,
    "transformer": transformer,
}
DPO = {"alpha": 0.02, "b": 0.5}
# What each kind of stage says besides its network and data; adapted layers by name.
KINDS = {
    "full": {"alpha": 0.1},
    "lora": {"decay": 0.05, "scale": 0.7},
    "lora without decay": {"alpha": 0.1, "scale": 0.7},
    "lora held": {"pull": 0.05, "scale": 0.7},
    "dpo": DPO,
    "dpo by lora": {"decay": 0.02, "scale": 1.5, "b": 0.5},
}


@dataclass(frozen=True)
class Chain:
    """phases: of the oracle. ps: their parameters at the optimum. xs: weights, those before
    pre-training first."""

    phases: list
    ps: list
    xs: list

    def model(self, k):
        """The model after k stages, as a `Tracked`."""
        network = self.phases[max(k - 1, 0)].network
        model = deepcopy(network.model)
        for name, x in network.parameters(self.xs[k]).items():
            model.get_parameter(name).data.copy_(x)
        return Tracked(model, network.layers)

    def exact(self):
        """[(q, n) for the data of each stage], by the oracle."""
        return kinds.scores(self.phases, self.xs[0], self.ps, QUERIES)

    def measured(self, k, z):
        """df/dw_z of datum z of stage k, by training all stages again: (q,)."""
        return kinds.reweighted(self.phases, self.xs[0], self.ps, QUERIES, k - 1, z)

    def objective(self, k):
        """What the data of stage k, from 1, are scored by."""
        phase = self.phases[k - 1]
        if not are_pairs(phase.data):
            return loss
        return preferences.against(self.model(k - 1).model, phase.data, phase.b)

    def adapters(self, k):
        """{layer: Adapter} of stage k."""
        phase = self.phases[k - 1]
        factors = phase.factors(self.ps[k - 1]).items()
        return {name: Adapter(A, B, phase.scale) for name, (B, A) in factors}

    def stage(self, k, batch_size=4):
        """Stage k with its dense Hessian and cross term."""
        phase, x, start = self.phases[k - 1], self.xs[k], self.xs[k - 1]
        H, X = second_derivatives(phase, x, start)
        layers = {n.name: (n.out_features, n.inputs) for n in phase.network.layers}
        cross = DenseCross(X, layers) if are_pairs(phase.data) else None
        of_weights = Damping(phase.alpha, relative=False)
        if not phase.ranks:
            return Stage(Dense(H, layers), alpha=of_weights, cross=cross)
        mean = capture.mean_gradient(self.model(k), phase.data, self.objective(k), batch_size)
        pulled = unflatten((x - start)[None], {name: y[None] for name, y in mean.items()})
        return LoRA(
            Dense(H, layers),
            of_weights,
            Damping(phase.pull, relative=False),
            cross=cross,
            adapters=self.adapters(k),
            mean={name: y + phase.alpha * pulled[name][0] for name, y in mean.items()},
            decay=phase.decay,
        )

    def scores(self, batch_size=4):
        """[(q, n) for the data of each stage], by the engine."""
        ks = range(1, len(self.phases) + 1)
        query = influence.query_gradients(self.model(len(ks)), QUERIES)
        w = influence.precondition(query, [self.stage(k, batch_size) for k in ks])
        return [
            influence.score(
                self.model(k),
                self.phases[k - 1].data,
                w[k - 1],
                objective=self.objective(k),
                batch_size=batch_size,
            ).values
            for k in ks
        ]


def second_derivatives(phase, x, start):
    """H = ∂²/∂x² and X = −∂²/∂x∂start of the mean loss."""
    n = len(x)

    def mean(both):
        return phase.losses(both[:n], both[n:]).mean()

    both = torch.autograd.functional.hessian(mean, torch.cat([x, start]), vectorize=True)
    return both[:n, :n], -both[:n, n:]


@cache
def chain(network, *names, rank=1):
    """The `Chain` of pre-training and stages of the named kinds."""
    net = NETWORKS[network]()
    x = net.weights() * (0.1 if network == "regression" else 1)
    g = torch.Generator().manual_seed(0)
    alpha = 0.3 if network == "transformer" else 0.05
    phases, starts = [Phase(net, sequences(8, 0), alpha)], [x]
    for k, name in enumerate(names, 1):
        data = pairs(8, k) if "dpo" in name else sequences(12, k)
        ranks = {n.name: rank for n in net.layers} if "lora" in name else {}
        size = sum(rank * (n.out_features + n.in_features) for n in net.layers)
        start = torch.randn(size, generator=g, dtype=torch.float64) / 2 if ranks else x
        phases.append(Phase(net, data, ranks=ranks, anchor=start, **KINDS[name]))
        starts.append(start)
    ps = kinds.trained(phases, x, starts)
    return Chain(phases, ps, kinds.ends(phases, x, ps))
