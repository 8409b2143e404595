"""Bayesian influence: how losses vary together over sampled models, in place of curvature.

    s(z) = −nβ Cov_w(ℓ_z(w), f(w)),   p(w) ∝ exp(−nβ L(w) − γ/2 ‖w − θ‖²)

L = Σ_z v_z ℓ_z is the loss of the n documents, each of weight v_z = 1/n, and θ is where training
ended: s is dE[f]/dv_z. Positive = proponent, in nats per unit of document weight. For quadratic
losses and linear f it is influence with a damping of γ / nβ. Across stages each draw w is
fine-tuned, ℓ_z is at the draw and f at the fine-tuned model: no inverse, no T₂, and neither
training need have ended. Source: arXiv 2509.26544, section 3, for one stage; the second is ours.
"""

import copy
import math

import torch

from msif.core.data import batches, collate
from msif.core.models import logits
from msif.core.objectives import loss


def covariances(losses, f, inverse_temperature=1.0):
    """Scores (q, n), raw and normalised, of m draws' losses (m, n) and measurements f (m, q).

    raw: −nβ Cov. normalised: that, divided by the standard deviation of ℓ_z over the draws. Raises
    ValueError for fewer than two draws, another number of either, and numbers that are not
    finite."""
    if len(losses) != len(f) or len(f) < 2:
        raise ValueError(
            f"{len(losses)} draws of losses and {len(f)} of f: expected as many, two at least"
        )
    if not (losses.isfinite().all() and f.isfinite().all()):
        raise ValueError("a draw's losses or f are not finite: lower the step")
    losses, f = (x.double() - x.double().mean(0) for x in (losses, f))
    raw = -inverse_temperature * (f.T @ losses) / (len(f) - 1)
    spread = losses.square().sum(0).div(len(f) - 1).sqrt()
    return raw.float(), (raw / spread.clamp(min=torch.finfo(torch.float64).tiny)).float()


def draws(
    net,
    sequences,
    count,
    *,
    step,
    inverse_temperature,
    localisation,
    burn_in,
    between,
    batch_size=32,
    seed=0,
):
    """Yield `count` models near `net` by stochastic gradient Langevin dynamics.

        w ← w − ε/2 (nβ g(w) + γ (w − θ)) + N(0, ε),   g(w) = ∇L(θ) + ∇L_batch(w) − ∇L_batch(θ)

    The control variate ∇L_batch(θ) takes off nearly all of the noise that a batch brings, which
    would otherwise be taken for spread in stiff directions (Baker et al. 2019, arXiv 1706.05439).
    step: ε; inverse_temperature: nβ; localisation: γ. burn_in: steps before the first draw;
    between: before each other one; flat directions forget in 2 / (εγ) steps. Every parameter moves.
    What is yielded is one model that goes on moving: copy what is to be kept. Raises
    FloatingPointError where a step is too large for the loss to stay finite."""
    rng, model = torch.Generator().manual_seed(seed), copy.deepcopy(net).train()
    home = copy.deepcopy(net).train()
    moving, fixed = (_trained(x) for x in (model, home))
    whole = [torch.zeros_like(p) for p in fixed]
    for start in range(0, len(sequences), batch_size):
        few = sequences[start : start + batch_size]
        for total, g in zip(whole, _gradients(home, fixed, few)):
            total.add_(g, alpha=len(few) / len(sequences))
    for draw in range(count):
        for _ in range(between if draw else burn_in):
            chosen = torch.randint(len(sequences), (batch_size,), generator=rng).tolist()
            few = [sequences[n] for n in chosen]
            both = zip(_gradients(model, moving, few), _gradients(home, fixed, few))
            drift = [g - at + total for (g, at), total in zip(both, whole)]
            _move(moving, fixed, drift, step, inverse_temperature, localisation, rng)
        yield model


def _trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def _gradients(model, parameters, sequences):
    """Of the mean loss of the sequences."""
    batch = collate(sequences).to(model.device)
    mean = loss(logits(model, batch), batch).mean()
    if not math.isfinite(mean.item()):
        raise FloatingPointError("a draw's loss is not finite: lower the step")
    return torch.autograd.grad(mean, parameters)


@torch.no_grad()
def _move(parameters, home, gradients, step, inverse_temperature, localisation, rng):
    for p, at, g in zip(parameters, home, gradients):
        noise = torch.randn(p.shape, generator=rng, dtype=p.dtype).to(p.device)
        drift = inverse_temperature * g + localisation * (p - at)
        p.sub_(step / 2 * drift).add_(noise, alpha=math.sqrt(step))


@torch.no_grad()
def losses_of(model, sequences, batch_size=64):
    """ℓ_z of every sequence, (n,) float32 on the CPU, in nats."""
    model.eval()
    found = [loss(logits(model, b), b) for b in batches(sequences, batch_size)]
    model.train()
    return torch.cat(found).cpu()
