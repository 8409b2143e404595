"""The score with dense curvature is the measured change of f when a document's weight changes and
all stages are retrained.

Convex softmax regression on next tokens; retraining by Newton's method in float64 to a gradient of
1e-11, with losses written here; the score by msif's own capture, curvature and influence. Each
weight moves by ±1e-4: the central difference errs by about 1e-7 relative, so 1e-5 is strict and yet
far from it.
"""

import pytest
import torch
from support.tiny import Regression, relative
from torch.func import functional_call

from msif.core.data import NO_LOSS, Sequence, collate
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked
from msif.curvature.dense import Dense

VOCAB, L2_HEAD, STEP = 5, 0.3, 1e-4


def sequences(n, seed):
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(VOCAB, (4 + i % 2,), generator=g).tolist() for i in range(n)]
    return [Sequence(i, tuple(r), tuple(r)) for i, r in enumerate(rows)]


def losses(model, vector, data):
    """(N,) summed next-token losses as a function of all parameters."""
    batch = collate(data)
    logits = functional_call(
        model, model.parameters_of(vector), (batch.input_ids, batch.attention_mask)
    ).logits
    log_p = logits.log_softmax(2)[:, :-1].gather(2, batch.labels[:, 1:, None].clamp(min=0))[..., 0]
    return -(log_p * (batch.labels[:, 1:] != NO_LOSS)).sum(1)


class Problem:
    """K stages on softmax regression; alphas[0] is plain L2. With a head, the last stage adds it,
    under L2 of its own."""

    def __init__(self, alphas, head=0):
        self.alphas, self.head = alphas, head
        self.data = [sequences(6, seed) for seed in range(len(alphas))]
        self.shared = Regression(VOCAB).vector().numel()
        self.query = [
            Sequence(0, (1, 2, 3, 4), (NO_LOSS, NO_LOSS, 3, 4)),
            Sequence(1, (4, 0, 2), (NO_LOSS, 0, 2)),
        ]

    def model(self, k):
        return Regression(VOCAB, head=self.head if k == len(self.alphas) - 1 else 0)

    def objective(self, k, vector, start, weights):
        near = (vector[: self.shared] - start[: self.shared]).square().sum() * self.alphas[k] / 2
        own = vector[self.shared :].square().sum() * L2_HEAD / 2
        return weights @ losses(self.model(k), vector, self.data[k]) + near + own

    def train(self, stage=None, z=None, step=0.0):
        """θ_1 … θ_K, every stage trained to convergence;
        document z of a stage weighs 1/N + step."""
        start, found = torch.zeros(self.shared, dtype=torch.float64), []
        for k, data in enumerate(self.data):
            weights = torch.full((len(data),), 1 / len(data), dtype=torch.float64)
            if k == stage:
                weights[z] += step
            size = self.model(k).vector().numel()
            start = torch.cat([start, torch.zeros(size - len(start), dtype=torch.float64)])
            start = newton(lambda x, start=start: self.objective(k, x, start, weights), start)
            found.append(start)
        return found

    def f(self, vector):
        return -losses(self.model(len(self.alphas) - 1), vector, self.query).detach()

    def stages(self, trained):
        """Dense Hessians of each stage's own loss: the head's L2 belongs to it,
        the proximal term does not."""

        def stage(k, vector):
            def own(x):
                return (
                    losses(self.model(k), x, self.data[k]).mean()
                    + x[self.shared :].square().sum() * L2_HEAD / 2
                )

            layers = {
                x.name: (x.out_features, x.in_features + x.bias) for x in self.model(k).layers()
            }
            return Stage(
                Dense(torch.autograd.functional.hessian(own, vector, vectorize=True), layers),
                alpha=Damping(self.alphas[k], relative=False),
                new=("head",) if "head" in layers else (),
            )

        return [stage(k, vector) for k, vector in enumerate(trained)]

    def scores(self, trained):
        """[(q, n) for each stage], by msif."""
        models = [self.model(k).set(x) for k, x in enumerate(trained)]
        query = query_gradients(Tracked(models[-1], models[-1].layers()), self.query)
        return [
            score(Tracked(m, m.layers()), data, w).values
            for m, data, w in zip(models, self.data, precondition(query, self.stages(trained)))
        ]

    def measured(self, stage, z):
        """df/dw_z by retraining every stage: (q,)."""
        up, down = (self.f(self.train(stage, z, step)[-1]) for step in (STEP, -STEP))
        return (up - down) / (2 * STEP)


def newton(objective, x):
    """argmin, by Newton steps, halved until the objective falls while it is far from the
    optimum."""
    for _ in range(50):
        g = torch.func.grad(objective)(x)
        if g.norm() < 1e-11:
            return x
        step = torch.linalg.solve(
            torch.autograd.functional.hessian(objective, x, vectorize=True), g
        )
        while step.norm() > 1e-3 and objective(x - step) > objective(x):
            step = step / 2
        x = x - step
    raise AssertionError(f"not converged: gradient {g.norm():.1e}")


@pytest.mark.parametrize(
    "alphas, head",
    [([0.05], 0), ([0.05, 0.2], 0), ([0.05, 0.2, 0.4], 0), ([0.05, 0.2], 2), ([0.05, 0.2, 0.4], 2)],
    ids=[
        "one stage",
        "two stages",
        "three stages",
        "two stages and a head",
        "three stages and a head",
    ],
)
def test_scores_are_the_measured_change_of_f_under_reweighting_and_retraining_every_stage(
    alphas, head
):
    problem = Problem(alphas, head)
    scores = problem.scores(problem.train())
    for stage, found in enumerate(scores):
        for z in range(2):
            measured = problem.measured(stage, z)
            assert relative(found[:, z], measured) < 1e-5, (stage, z, found[:, z], measured)
