"""The oracle for other kinds of stages than plain fine-tuning: adapters (LoRA) and preferences
(DPO), in chains of any length, in float64, by plain differentiation.

A stage has parameters p and ends in the weights x = X(p; x₀), x₀ being the weights that it starts
from: x = p where all weights are trained, x = x₀ + s·BA, layer by layer, with p = (B, A, …), where
adapters are. It is trained to

    p = argmin J(p; x₀),   J = Σ_z w_z m_z(x; x₀) + α/2 ‖x − x₀‖² + β/2 ‖p‖² + γ/2 ‖p − p₀‖²,

β and γ where adapters are; m_z the loss −log p of a row, or of a pair −log σ(b[h(x) − h(x₀)]), h =
log π(chosen) − log π(rejected): the reference of DPO is the stage's start. The optimality condition
∂_p J = 0, differentiated, gives with M = ∂X/∂p

    dx/dx₀ = ∂X/∂x₀ − M (∂²_pp J)⁺ ∂²_px₀ J,     dx/dw_z = −M (∂²_pp J)⁺ ∂_p m_z;

scores follow by the chain rule, last stage first. Nothing is taken from the engine's formulas: the
two second derivatives are those of J as it stands here. The pseudo-inverse leaves out what does not
move x: B → BM, A → M⁻¹A.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import softplus

from msif.core.pairs import are_pairs
from msif.study.exact.oracle import Network

NULL = 1e-10  # eigenvalues of ∂²_pp J below this share of the largest are those of the gauge


@dataclass(frozen=True)
class Phase:
    """One stage of training.

    data: sequences, or pairs with DPO's b. ranks: {layer name: r} of the adapters, none where all
    weights are trained; scale: s. alpha, decay, pull: α, β and γ. anchor: p₀.
    """

    network: Network
    data: list
    alpha: float = 0.0
    ranks: dict = field(default_factory=dict)
    scale: float = 1.0
    decay: float = 0.0
    pull: float = 0.0
    anchor: object = None
    b: float = 0.1

    def factors(self, p):
        """{layer name: (B (o, r), A (r, i))} of the parameters."""
        found, at = {}, 0
        for layer in self.network.layers:
            if (r := self.ranks.get(layer.name)) is None:
                continue
            o, i = layer.out_features, layer.in_features
            B, A = p[at : at + o * r].view(o, r), p[at + o * r : at + (o + i) * r].view(r, i)
            found[layer.name], at = (B, A), at + (o + i) * r
        return found

    def end(self, p, start):
        """X(p; x₀): (P,)."""
        if not self.ranks:
            return p
        factors, moved = self.factors(p), []
        for layer in self.network.layers:
            D = p.new_zeros(layer.out_features, layer.in_features + layer.bias)
            if layer.name in factors:
                B, A = factors[layer.name]
                D = torch.cat([self.scale * B @ A, D[:, layer.in_features :]], 1)
            moved.append(D.flatten())
        return start + torch.cat(moved)

    def losses(self, x, start):
        """m_z at the weights x: (n,)."""
        if not are_pairs(self.data):
            return self.network.losses(x, self.data)
        return softplus(-self.b * (self.margins(x) - self.margins(start)))

    def margins(self, x):
        """h = log π(chosen) − log π(rejected) of each pair: (n,), nats."""
        chosen, rejected = (
            [getattr(z, side) for z in self.data] for side in ("chosen", "rejected")
        )
        return self.network.losses(x, rejected) - self.network.losses(x, chosen)

    def objective(self, p, start, weights=None):
        """J(p; x₀)."""
        x = self.end(p, start)
        n = len(self.data)
        weights = torch.full((n,), 1 / n, dtype=p.dtype) if weights is None else weights
        J = weights @ self.losses(x, start) + self.alpha / 2 * (x - start).square().sum()
        if self.decay:
            J = J + self.decay / 2 * p.square().sum()
        return J + self.pull / 2 * (p - self.anchor).square().sum() if self.pull else J

    def second(self, p, start, weights=None):
        """∂²_pp J (p, p) and ∂²_px₀ J (p, P)."""
        p, start = p.detach().requires_grad_(), start.detach().requires_grad_()
        return rows(self._gradient(p, start, weights), (p, start))

    def _gradient(self, p, start, weights):
        J = self.objective(p, start, weights)
        return torch.autograd.grad(J, p, create_graph=True)[0]

    def optimum(self, p, start, weights=None, tolerance=1e-12):
        """argmin J from p on, by damped Newton steps in the range of ∂²_pp J; ArithmeticError when
        the gradient does not fall to `tolerance`."""
        for _ in range(200):
            p = p.detach().requires_grad_()
            gradient = self._gradient(p, start, weights)
            if gradient.norm() < tolerance:
                return p.detach()
            size = gradient.detach().norm().item()  # far from the optimum, shorter steps
            step = _inverse(rows(gradient, (p,))[0], damping=size / 10) @ gradient.detach()
            p = p.detach()
            value = self.objective(p, start, weights)
            while step.norm() > 1e-6 and self.objective(p - step, start, weights) > value:
                step = step / 2
            p = p - step
        raise ArithmeticError(
            f"Newton's method stopped at a gradient of {gradient.norm():.1e}; give the stage more "
            f"α or β (they are {self.alpha} and {self.decay}), or another start"
        )


def trained(phases, origin, starts, weights=None):
    """[p_1, …, p_K], every stage at its optimum. origin: x_0 of the first stage. starts: where each
    search begins; weights: [(N_k,) or None for each stage]."""
    found, before = [], origin
    for phase, p, w in zip(phases, starts, weights or [None] * len(phases)):
        found.append(phase.optimum(p, before, w))
        before = phase.end(found[-1], before)
    return found


def ends(phases, origin, ps):
    """[x_0 = origin, x_1, …, x_K]."""
    found = [origin]
    for phase, p in zip(phases, ps):
        found.append(phase.end(p, found[-1]))
    return found


def scores(phases, origin, ps, queries):
    """[(q, n) for the data of each stage], by the formulas above; f = log p of the queries."""
    xs = ends(phases, origin, ps)
    v, found = phases[-1].network.gradients(xs[-1], queries), []
    for phase, p, start in reversed(list(zip(phases, ps, xs))):
        p, start = p.detach().requires_grad_(), start.detach().requires_grad_()
        x = phase.end(p, start)
        M, E = rows(x, (p, start))
        (each,) = rows(phase.losses(x, start.detach()), (p,))
        pp, ps_ = phase.second(p, start)
        solved = v @ M @ _inverse(pp)
        found.insert(0, solved @ each.mT)
        v = v @ E - solved @ ps_
    return found


def reweighted(phases, origin, ps, queries, stage, z, step=2e-5):
    """df/dw_z by retraining all stages with datum z of a stage (0: the first) at 1/N ± step:
    (q,)."""

    def f(change):
        weights = [torch.full((len(x.data),), 1 / len(x.data)).to(ps[0]) for x in phases]
        weights[stage][z] += change
        again = trained(phases, origin, ps, weights)
        return -phases[-1].network.losses(ends(phases, origin, again)[-1], queries)

    return (f(step) - f(-step)) / (2 * step)


def rows(values, inputs):
    """[(m, len(x)) for each x of the inputs], the derivatives of m values."""
    eye = torch.eye(len(values), dtype=values.dtype)
    found = torch.autograd.grad(
        values, inputs, eye, is_grads_batched=True, allow_unused=True, retain_graph=True
    )
    return [
        values.new_zeros(len(values), len(x)) if g is None else g for g, x in zip(found, inputs)
    ]


def _inverse(H, damping=None):
    """H⁺ of a symmetric H; with a damping μ, (|H| + μ)⁻¹ on the range of H."""
    values, vectors = torch.linalg.eigh((H + H.mT) / 2)
    kept = values.abs() > NULL * values.abs().max()
    values = values if damping is None else values.abs() + damping
    return vectors * torch.where(kept, 1 / torch.where(kept, values, 1), 0) @ vectors.mT
