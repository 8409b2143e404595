"""The oracle: dense curvature, exact scores and retraining to the optimum, in float64, by plain
differentiation.

The tracked weights are one vector x (P,): each layer's (out, in) matrix, with its bias as last
column, flattened, in the order of `layers`. All other parameters are fixed. Stage k of training is,
with weights w_z = 1/N unless said otherwise,

    x_k = argmin J_k,   J_k(x) = Σ_z w_z ℓ_z(x) + α_k/2 ‖x_shared − x_{k−1}‖² + β/2 ‖x_new‖²

x_0 = 0 (α_1 is L2), x_new: weights that earlier stages lack, which come last, with L2 β of their
own. Differentiating the optimality conditions with respect to w_z, f measured at x_2, E the
embedding of the shared weights and P its projector,

    df/dw_z = s(z) = ∇(−f)ᵀ (H₂ + α₂P)⁻¹ E α₂ (H₁ + α₁)⁻¹ ∇ℓ_z,

H the Hessian, or the Gauss-Newton matrix G = E_z[Jᵀ (diag p − ppᵀ) J] in its place.
Positive = proponent; unit: nats per unit of w_z. Nothing here is shared with the methods that are
judged by it.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D

from msif.core.data import NO_LOSS, collate


@dataclass(frozen=True)
class Network:
    """A model as a function of its tracked weights x. `of` makes the float64 copy."""

    model: object
    layers: list

    @classmethod
    def of(cls, model, layers):
        """The float64 copy of a model, without dropout, its weights frozen."""
        return cls(deepcopy(model).double().eval().requires_grad_(False), layers)

    def weights(self):
        """x of the model as it is: (P,)."""
        modules = [self.model.get_submodule(layer.name) for layer in self.layers]
        return torch.cat([_matrix(module).flatten() for module in modules])

    def parameters(self, x):
        """x as the model's own named parameters, differentiable in it."""
        found = {}
        sizes = [layer.out_features * (layer.in_features + layer.bias) for layer in self.layers]
        for layer, part in zip(self.layers, x.split(sizes)):
            rows, module = part.view(layer.out_features, -1), self.model.get_submodule(layer.name)
            weight = rows[:, : layer.in_features]
            found[f"{layer.name}.weight"] = weight.mT if isinstance(module, Conv1D) else weight
            if layer.bias:
                found[f"{layer.name}.bias"] = rows[:, -1]
        return found

    def logits(self, x, sequences):
        """Predictions (n, T, V) and what they predict (n, T), −100 = nothing."""
        batch = collate(sequences)
        read = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        # can be differentiated twice, and stays in float64, as "eager" does not
        with sdpa_kernel(SDPBackend.MATH):
            z = functional_call(self.model, self.parameters(x), (), read).logits
        return z[:, :-1], batch.labels[:, 1:]

    def losses(self, x, sequences):
        """ℓ_z = −Σ_t log p(y_t | x_<t): (n,), nats."""
        z, y = self.logits(x, sequences)
        log_p = z.log_softmax(2).gather(2, y.clamp(min=0)[..., None])[..., 0]
        return -(log_p * (y != NO_LOSS)).sum(1)

    def gradients(self, x, sequences):
        """∇ℓ_z of each sequence, one by one: (n, P)."""
        x = x.detach().requires_grad_()
        return torch.cat(
            [torch.autograd.grad(self.losses(x, [s]).sum(), x)[0][None] for s in sequences]
        )

    def gauss_newton(self, x, sequences):
        """E_z[Jᵀ (diag p − ppᵀ) J] over the label positions, exact over the softmax: (P, P)."""
        total = x.new_zeros(len(x), len(x))
        # several at once: writing (P, P) takes longer than multiplying
        for i in range(0, len(sequences), 8):
            rows = torch.cat([self._root_times_jacobian(x, s) for s in sequences[i : i + 8]])
            total.addmm_(rows.mT, rows)
        return total / len(sequences)

    def _root_times_jacobian(self, x, sequence):
        """RᵀJ (T·V, P) of one sequence, RRᵀ = diag(p) − ppᵀ with R = diag(√p) − p √pᵀ."""
        x = x.detach().requires_grad_()
        z, y = self.logits(x, [sequence])
        z = z[0, y[0] != NO_LOSS]
        p = z.detach().softmax(1)
        # (T, V, V): R at each position
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]
        ups = torch.einsum("ts,tvw->twsv", torch.eye(len(p), dtype=p.dtype), root).flatten(0, 1)
        return torch.autograd.grad(z, x, ups, is_grads_batched=True)[0]

    def hessian(self, x, sequences, weights=None, chunk=256):
        """Σ_z w_z ∇²ℓ_z, by default the mean: (P, P)."""
        x = x.detach().requires_grad_()
        total = self.losses(x, sequences) @ _uniform(sequences, weights)
        (gradient,) = torch.autograd.grad(total, x, create_graph=True)
        rows = [
            torch.autograd.grad(gradient, x, part, retain_graph=True, is_grads_batched=True)[0]
            for part in torch.eye(len(x), dtype=x.dtype).split(chunk)
        ]
        return torch.cat(rows)


@dataclass(frozen=True)
class Training:
    """One stage: its network, its sequences, α, and β for the weights that the earlier stage
    lacks."""

    network: Network
    sequences: list
    alpha: float
    new_l2: float = 0.0

    def objective(self, x, start, weights=None):
        """J(x), with α's pull towards `start`, which may be shorter than x: the rest is new."""
        shared = len(start)
        data = self.network.losses(x, self.sequences) @ _uniform(self.sequences, weights)
        pull = self.alpha / 2 * (x[:shared] - start).square().sum()
        return data + pull + self.new_l2 / 2 * x[shared:].square().sum()

    def curvature(self, x, shared, weights=None, gauss_newton=False):
        """∇²J without α: H, with β on the new weights' diagonal: (P, P)."""
        net = self.network
        if gauss_newton:
            H = net.gauss_newton(x, self.sequences)
        else:
            H = net.hessian(x, self.sequences, weights)
        return H + self.new_l2 * torch.diag((torch.arange(len(x)) >= shared).to(x.dtype))

    def optimum(self, x, start, weights=None, tolerance=1e-11):
        """argmin J from x on, by damped Newton steps; ArithmeticError when the gradient does not
        fall to `tolerance`."""
        for _ in range(100):
            x = x.detach().requires_grad_()
            value = self.objective(x, start, weights)
            (gradient,) = torch.autograd.grad(value, x)
            if gradient.norm() < tolerance:
                return x.detach()
            x = self._step(x.detach(), gradient, value.detach(), start, weights)
        raise ArithmeticError(
            f"Newton's method stopped at a gradient of {gradient.norm():.1e}; give the stage more "
            f"L2 (α is {self.alpha}) or a start nearer to the optimum"
        )

    def _step(self, x, gradient, value, start, weights):
        """One Newton step; eigenvalues below α/10 count as that, and the step is halved until J
        does not rise."""
        P = torch.diag((torch.arange(len(x)) < len(start)).to(x.dtype))
        H = self.curvature(x, len(start), weights) + self.alpha * P
        values, vectors = torch.linalg.eigh(H)
        step = vectors @ (vectors.mT @ gradient / values.clamp(min=self.alpha / 10))
        while step.norm() > 1e-6 and self.objective(x - step, start, weights) > value:
            step = step / 2
        return x - step


def trained(stages, starts, weights=None):
    """[x_1, …, x_K], every stage at its optimum. starts: where each search begins; weights:
    [(N_k,) or None for each stage]."""
    found, before = [], torch.zeros_like(starts[0])
    for stage, start, w in zip(stages, starts, weights or [None] * len(stages)):
        before = stage.optimum(start, before, w)
        found.append(before)
    return found


def scores(stages, xs, queries, coupled=True, gauss_newton=False):
    """[(q, n) for the documents of stage 1 and of stage 2] of one or two stages, by the formula
    above.

    xs: the stages' weights. coupled=False leaves the coupling of the shared with the new weights
    out of H₂.
    """
    w, found = stages[-1].network.gradients(xs[-1], queries), []
    for k in reversed(range(len(stages))):
        shared = len(xs[k - 1]) if k else len(xs[0])
        H = stages[k].curvature(xs[k], shared, gauss_newton=gauss_newton)
        solved = solve(H if coupled else _uncoupled(H, shared), w, stages[k].alpha, shared)
        found.insert(0, solved @ stages[k].network.gradients(xs[k], stages[k].sequences).mT)
        w = stages[k].alpha * solved[:, :shared]
    return found


def solve(H, v, alpha, shared=None):
    """(H + αP)⁻¹ v for each row of v (q, P): P projects on the first `shared` weights, by default
    all."""
    shared = len(H) if shared is None else shared
    damped = H + alpha * torch.diag((torch.arange(len(H)) < shared).to(H.dtype))
    return torch.linalg.solve(damped, v.mT).mT


def solve_eliminated(H, v, alpha, shared):
    """The shared part of `solve` with the new weights φ eliminated: S⁻¹(v_θ − H_θφ H_φφ⁻¹ v_φ),
    S = H_θθ + α − H_θφ H_φφ⁻¹ H_φθ."""
    theta, phi = slice(None, shared), slice(shared, None)
    coupling = torch.linalg.solve(H[phi, phi], H[phi, theta]).mT  # H_θφ H_φφ⁻¹
    schur = H[theta, theta] - coupling @ H[phi, theta]
    return solve(schur, v[:, theta] - v[:, phi] @ coupling.mT, alpha)


def reweighted(stages, xs, queries, stage, z, step=1e-4):
    """df/dw_z by retraining all stages with document z of a stage (0: the first) at 1/N ± step:
    (q,)."""

    def f(change):
        weights = [_uniform(s.sequences, None) for s in stages]
        weights[stage][z] += change
        return -stages[-1].network.losses(trained(stages, xs, weights)[-1], queries)

    return (f(step) - f(-step)) / (2 * step)


def without(stages, xs, queries, removed, steps=4):
    """f after retraining all stages without the `removed` documents of stage 1, minus f with them:
    (q,).

    Their weight falls to 0 in `steps` equal steps, each retraining starting from the one before, so
    that the optimum is followed.
    """
    found = xs
    for kept in torch.linspace(1, 0, steps + 1)[1:]:
        first = _uniform(stages[0].sequences, None)
        first[removed] *= kept
        found = trained(stages, found, [first] + [None] * (len(stages) - 1))
    losses = stages[-1].network.losses
    return losses(xs[-1], queries) - losses(found[-1], queries)


def _matrix(module):
    weight = module.weight.mT if isinstance(module, Conv1D) else module.weight
    return weight if module.bias is None else torch.cat([weight, module.bias[:, None]], 1)


def _uniform(sequences, weights):
    if weights is not None:
        return weights
    return torch.full((len(sequences),), 1 / len(sequences), dtype=torch.float64)


def _uncoupled(H, shared):
    return torch.block_diag(H[:shared, :shared], H[shared:, shared:])
