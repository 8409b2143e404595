"""A stage that gradient descent leaves before its optimum.

It takes the place of one that stays near its start by a penalty.

Gradient descent at rates η_t on H for τ = Σ η_t turns a change δ of its start into e^(−τH) δ, and a
constant force of −∇ℓ_z into −∫₀^τ e^(−tH) dt ∇ℓ_z. So, as functions of the eigenvalues λ of H in
the stage's EK-FAC basis,

    proximal   T: α/(λ + α)     own data: 1/(λ + α)
    unrolled   T: e^(−τλ)       own data: (1 − e^(−τλ))/λ,   τ at λ = 0

and pre-training cut at its checkpoints is a chain of such stages, in each of which a document acts
once: with one more stage for fine-tuning this is SOURCE (Bae et al. 2024, arXiv 2405.12186,
equations 14 to 16) across stages.

λ is in the unit of the loss that the optimiser sees, the mean over sequences of their summed token
losses. Under AdamW τ is not Σ η_t: each weight has a rate of its own. `relative` then gives
τ = time / (mean eigenvalue of the layer), of which one scale, `time`, is left to be fitted.
"""

from dataclasses import dataclass

import torch

from msif.core.influence import NONE, Stage


@dataclass(frozen=True)
class Unrolled(Stage):
    """A `Stage` of gradient descent that is cut off.

    time: Σ η_t, or if relative a number without unit, over the layer's mean eigenvalue. Raises
    ValueError unless it is finite and positive, and for α, d or new layers: they must be left out.
    """

    time: float = 1.0
    relative: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.time < float("inf"):
            raise ValueError(
                f"time is {self.time}; expected a finite number > 0: Σ η_t, or without unit if "
                f"relative"
            )
        if self.alpha != NONE or self.damping != NONE or self.new:
            raise ValueError(
                "an unrolled stage has neither α, nor damping, nor new layers: its time alone says "
                "how far it goes"
            )

    @property
    def forgets(self):
        """Never: e^(−τλ) > 0."""
        return False

    def inverse(self, v):
        """(1 − e^(−τH)) H⁻¹ v."""
        return self.curvature.apply(lambda values, mean: _accumulated(values, self._tau(mean)), v)

    def transfer(self, v):
        """e^(−τH) v."""
        return self.curvature.apply(lambda values, mean: torch.exp(-self._tau(mean) * values), v)

    def _tau(self, mean):
        return self.time / mean if self.relative else self.time


def _accumulated(values, tau):
    """(1 − e^(−τλ))/λ, τ at λ = 0."""
    safe = values.clamp(min=torch.finfo(values.dtype).tiny)
    return torch.where(values > 0, -torch.expm1(-tau * safe) / safe, tau * torch.ones_like(values))
