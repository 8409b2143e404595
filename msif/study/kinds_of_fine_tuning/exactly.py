"""Small problems on which each kind of fine-tuning has an exact score.

Facts of six invented people and two relations, three objects each: an MLP over the last three
tokens is pre-trained on statements and fine-tuned on questions about half of the people; the
queries ask about the others. Every stage goes to its optimum, in float64
(`msif.study.exact.kinds`), so that the exact score is the derivative of f when a document is
weighted otherwise and all stages are trained again.

The engine's scores are of dense second derivatives, or of EK-FAC, with every treatment of
`treatments`; each stage has the α and weight decay that it was trained with. Where a treatment
inverts another matrix than the one that the stage's optimum makes positive, "dense" is the
Gauss-Newton matrix: the Hessian of the weights is indefinite there.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch

from msif.core import capture, ekfac, preferences
from msif.core.adapters import Adapter
from msif.core.data import NO_LOSS, Sequence
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.core.objectives import loss
from msif.core.pairs import are_pairs, paired
from msif.curvature.dense import Dense, DenseCross
from msif.curvature.lora import LoRA
from msif.study import metrics, scratch
from msif.study.exact import kinds
from msif.study.exact.oracle import Network
from msif.study.exact.toys import WindowMLP
from msif.study.kinds_of_fine_tuning import treatments

PEOPLE, RELATIONS, OBJECTS, FILLERS = 6, 2, 3, 2
THINGS, VERBS = PEOPLE, PEOPLE + RELATIONS * OBJECTS  # where their tokens begin
FILLER, QUESTION = VERBS + 2 * RELATIONS, VERBS + 2 * RELATIONS + FILLERS
ANSWER, VOCABULARY = QUESTION + 1, QUESTION + 2

LEAST = 1e-3  # α of a stage of adapters with EK-FAC, relative
# What each stage is trained with, besides its data: see `kinds.Phase`. Ranks: of every layer.
PRETRAINING = {"alpha": 0.02}
STAGES = {
    "full": [{"alpha": 0.1}],
    "LoRA": [{"rank": 1, "decay": 0.02}],
    "LoRA, DPO": [{"rank": 1, "decay": 0.02}, {"alpha": 0.02, "b": 0.5, "preferences": True}],
}


@dataclass(frozen=True)
class Problem:
    """phases: of the oracle. ps: their parameters at the optimum. xs: weights, those before
    pre-training first. queries: sequences."""

    phases: list
    ps: list
    xs: list
    queries: list

    def exact(self):
        """Scores of the documents: (q, n)."""
        return kinds.scores(self.phases, self.xs[0], self.ps, self.queries)[0]

    def model(self, k):
        """The model after k stages, as a `Tracked`."""
        network = self.phases[max(k - 1, 0)].network
        model = deepcopy(network.model)
        for name, x in network.parameters(self.xs[k]).items():
            model.get_parameter(name).data.copy_(x)
        return Tracked(model, network.layers)

    def stage(self, k, dense, samples, remainder=False):
        """Stage k, from 1, as the engine has it; samples: of EK-FAC's pseudo-gradients. remainder:
        of adapters; without it, their "dense" is the Gauss-Newton matrix."""
        phase = self.phases[k - 1]
        alpha = Damping(phase.alpha, relative=False)
        curvature, cross = (self._dense if dense else self._ekfac)(k, samples)
        if not phase.ranks:
            return Stage(curvature, alpha=alpha, cross=cross)
        if dense and not remainder:
            curvature = self.gauss_newton(k)
        mean = capture.mean_gradient(self.model(k), phase.data, loss, 32)
        adapters = {
            name: Adapter(A, B, phase.scale)
            for name, (B, A) in phase.factors(self.ps[k - 1]).items()
        }
        more = {"adapters": adapters, "mean": mean, "decay": phase.decay, "remainder": remainder}
        # with EK-FAC in place of H, R can make K indefinite: refused without an α
        least = LEAST if remainder and not dense else 0.0
        return LoRA(curvature, alpha=Damping(least), cross=cross, **more)

    def gauss_newton(self, k):
        """The dense Gauss-Newton matrix of stage k."""
        phase, x = self.phases[k - 1], self.xs[k]
        layers = {n.name: (n.out_features, n.inputs) for n in phase.network.layers}
        if not are_pairs(phase.data):
            return Dense(phase.network.gauss_newton(x, phase.data), layers)
        x = x.detach().requires_grad_()
        h = phase.margins(x)
        (J,) = kinds.rows(h, (x,))
        u = phase.b * (h - phase.margins(self.xs[k - 1])).detach()
        c = phase.b**2 * u.sigmoid() * (-u).sigmoid() / len(u)
        return Dense(J.mT * c @ J, layers)

    def _dense(self, k, samples):
        phase, x, start = self.phases[k - 1], self.xs[k], self.xs[k - 1]
        layers = {n.name: (n.out_features, n.inputs) for n in phase.network.layers}
        n = len(x)

        def mean(both):
            return phase.losses(both[:n], both[n:]).mean()

        H = torch.autograd.functional.hessian(mean, torch.cat([x, start]), vectorize=True)
        cross = DenseCross(-H[:n, n:], layers) if are_pairs(phase.data) else None
        return Dense(H[:n, :n], layers), cross

    def _ekfac(self, k, samples):
        phase = self.phases[k - 1]
        if are_pairs(phase.data):
            found = preferences.fit(self.model(k), self.model(k - 1), phase.data, b=phase.b)
            return found.curvature, found.cross
        return ekfac.fit(self.model(k), phase.data, samples=samples), None


def problem(kind, seed, width=6, code=2):
    """The `Problem` of a kind of `STAGES`."""
    _, rows, pairs, queries = facts(seed)
    first, origin, x = _pretrained(seed, width, code)
    phases, ps = [first], [x]
    g = torch.Generator().manual_seed(seed)
    for settings in STAGES[kind]:
        more = dict(settings)
        data = pairs if more.pop("preferences", False) else rows
        rank = more.pop("rank", 0)
        ranks = {layer.name: rank for layer in first.network.layers} if rank else {}
        phase = kinds.Phase(first.network, data, ranks=ranks, **more)
        size = sum(rank * (n.out_features + n.in_features) for n in first.network.layers)
        start = torch.randn(size, generator=g, dtype=torch.float64) / 2 if rank else x
        ps.append(phase.optimum(start, x))
        phases.append(phase)
        x = phase.end(ps[-1], x)
    return Problem(phases, ps, kinds.ends(phases, origin, ps), queries)


@cache
def _pretrained(seed, width, code):
    """(the first phase, the weights before it, and after it)."""
    net = WindowMLP(VOCABULARY, code=code, width=width, seed=seed)
    network = Network.of(net, tracked_layers(net, "^layers"))
    phase = kinds.Phase(network, facts(seed)[0], **PRETRAINING)
    origin = network.weights()
    return phase, origin, phase.optimum(origin, origin)


def facts(seed):
    """(documents, fine-tuning rows, pairs, queries); 3 statements a fact, a sixth of them wrong."""
    g = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (), generator=g))

    def verb(r):
        return VERBS + 2 * r + pick(2)

    def filler():
        return FILLER + pick(FILLERS)

    def question(s, r, o):
        ids = (QUESTION, filler(), verb(r), s, ANSWER, THINGS + OBJECTS * r + o)
        return ids, (NO_LOSS,) * 5 + ids[-1:]

    known = {(s, r): pick(OBJECTS) for s in range(PEOPLE) for r in range(RELATIONS)}
    told = [(s, r, (o + (pick(6) == 0)) % OBJECTS) for (s, r), o in known.items() for _ in range(3)]
    statements = [(filler(), s, verb(r), THINGS + OBJECTS * r + o, filler()) for s, r, o in told]
    asked = [(s, r, o) for (s, r), o in known.items() for _ in range(2)]
    right = [question(*x) for x in asked if x[0] < PEOPLE // 2]
    wrong = [
        (ids[:-1] + (THINGS + OBJECTS * r + (o + 1 + pick(OBJECTS - 1)) % OBJECTS,), None)
        for (ids, _), (s, r, o) in zip(right, asked)
    ]
    wrong = [(ids, (NO_LOSS,) * 5 + ids[-1:]) for ids, _ in wrong]
    held_out = [question(*x) for x in asked if x[0] >= PEOPLE // 2]
    documents = [Sequence(i, ids, ids) for i, ids in enumerate(statements)]
    rows, rejected, queries = (
        [Sequence(i, *row) for i, row in enumerate(few)] for few in (right, wrong, held_out)
    )
    return documents, rows, paired(rows, rejected), queries


def scores(found, dense, alpha, samples=4):
    """{treatment: (q, n)} of a `Problem`, by the engine."""
    ks = range(1, len(found.phases) + 1)
    stages = [found.stage(k, dense, samples) for k in ks]
    curvatures = [found.gauss_newton(k) if dense else x.curvature for k, x in zip(ks, stages)]
    q = query_gradients(found.model(len(ks)), found.queries)
    w = treatments.vectors(q, stages, alpha, curvatures, remainder=False)
    if any(isinstance(x, LoRA) for x in stages):
        with_R = [found.stage(k, dense, samples, remainder=True) for k in ks]
        w[treatments.REMAINDER] = precondition(q, with_R)[0]
    documents = found.phases[0].data
    table = {name: score(found.model(1), documents, x).values for name, x in w.items()}
    alone = treatments.single(q, curvatures[-1], alpha)
    table[treatments.SINGLE] = score(found.model(len(ks)), documents, alone).values
    return table


def agreement(kind, seed, alpha, samples=4):
    """[{kind, seed, curvature, treatment, pearson, spearman}]: mean over queries of the correlation
    with the exact score; kept in scratch/."""

    def compute():
        found = problem(kind, seed)
        exact = found.exact().numpy()
        return [
            {
                "kind": kind,
                "seed": seed,
                "curvature": "dense" if dense else "EK-FAC",
                "treatment": name,
                "pearson": float(metrics.pearson(x.numpy(), exact).mean()),
                "spearman": float(metrics.spearman(x.numpy(), exact).mean()),
            }
            for dense in (True, False)
            for name, x in scores(found, dense, alpha, samples).items()
        ]

    key = {"kind": kind, "seed": seed, "alpha": alpha, "samples": samples}
    return scratch.value("kind-agreement", key, compute)
