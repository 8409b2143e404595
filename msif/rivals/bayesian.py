"""Bayesian influence: how losses vary together over sampled models, in place of curvature.

    s(z) = −Cov_w(ℓ_z(w), f(w)),   p(w) ∝ exp(−nβ L(w) − γ/2 ‖w − θ‖²)

L is the mean loss of the documents, θ where training ended. It is the derivative of E[f] by z's
weight under p, times 1 / β: dE[f]/dw_z = −β Cov(ℓ_z, f). Positive = proponent. Across stages each
draw w is fine-tuned, ℓ_z is at the draw and f at the fine-tuned model: no inverse, no T₂, and no
assumption that either training has ended. Source: arXiv 2509.26544, section 3, for one stage; the
second stage is ours.
"""

import copy
import math

import torch

from msif.core.data import batches, collate
from msif.core.models import logits
from msif.core.objectives import loss


def covariances(losses, f):
    """Scores (q, N), raw and normalised, of draws' losses (m, N) and measurements f (m, q).

    raw: −Cov, in nats². normalised: divided by the standard deviation of ℓ_z over the draws, nats.
    Raises ValueError for fewer than two draws, or another number of either."""
    if len(losses) != len(f) or len(f) < 2:
        raise ValueError(
            f"{len(losses)} draws of losses and {len(f)} of f: expected as many, two at least"
        )
    losses, f = (x.double() - x.double().mean(0) for x in (losses, f))
    raw = -(f.T @ losses) / (len(f) - 1)
    spread = losses.square().sum(0).div(len(f) - 1).sqrt()
    return raw.float(), (raw / spread.clamp(min=torch.finfo(torch.float64).tiny)).float()


def draws(
    net,
    sequences,
    count,
    *,
    between,
    step,
    inverse_temperature,
    localisation,
    batch_size=64,
    seed=0,
):
    """Yield `count` models near `net`, each `between` steps of stochastic gradient Langevin
    dynamics after the one before, the first as far from `net`:

        w ← w − ε/2 (nβ ∇L_batch(w) + γ (w − θ)) + N(0, ε)

    step: ε. inverse_temperature: nβ. localisation: γ. Every parameter moves. What is yielded is one
    model that goes on moving: copy what is to be kept. Raises FloatingPointError where a step is
    too large for the loss to stay finite."""
    model, rng = copy.deepcopy(net).train(), torch.Generator().manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    home = [p.detach().clone() for p in parameters]
    for draw in range(1, count + 1):
        for _ in range(between):
            chosen = torch.randint(len(sequences), (batch_size,), generator=rng).tolist()
            batch = collate([sequences[n] for n in chosen]).to(model.device)
            mean = loss(logits(model, batch), batch).mean()
            if not math.isfinite(mean.item()):
                raise FloatingPointError(
                    f"the loss is not finite at draw {draw}: lower the step {step:g}, or raise the "
                    f"localisation {localisation:g}"
                )
            gradients = torch.autograd.grad(mean, parameters)
            _move(parameters, gradients, home, step, inverse_temperature, localisation, rng)
        yield model


@torch.no_grad()
def _move(parameters, gradients, home, step, inverse_temperature, localisation, rng):
    for p, g, at in zip(parameters, gradients, home):
        noise = torch.randn(p.shape, generator=rng, dtype=p.dtype).to(p.device)
        drift = inverse_temperature * g + localisation * (p - at)
        p.sub_(step / 2 * drift).add_(noise, alpha=math.sqrt(step))


@torch.no_grad()
def losses_of(model, sequences, batch_size=64):
    """ℓ_z of every sequence, (N,) float32 on the CPU, in nats."""
    model.eval()
    found = [loss(logits(model, b), b) for b in batches(sequences, batch_size)]
    model.train()
    return torch.cat(found).cpu()
