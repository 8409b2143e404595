"""A stage that is trained by adapters (LoRA; Hu et al. 2021, arXiv 2106.09685).

It keeps the weights W_start that it begins with, and trains φ = (B, A) of each adapted layer: W =
W_start + s·BA. With D̄ the mean gradient of its loss in W, G the curvature and X the cross term
(`stages.Cross`) of that loss in W, β the weight decay of φ, and

    P(dB, dA) = s (dB·A + B·dA),   PᵀV = (s V Aᵀ, s Bᵀ V),   R = s ⟨D̄, dB·dA′ + dB′·dA⟩,
    K = PᵀGP + R + βI,   S = P K⁺ Pᵀ,

the stage's inverse is S: rows of the stage score ⟨S ∇(−f), ∇m⟩; and T = 1 − (G − X)ᵀ S. What the
adapters cannot move, and layers without them, pass unchanged, but for what G couples. That is exact
for a stage at its optimum, where adapters in another gauge, B → BM, A → M⁻¹A, are the same stage if
β = 0. Damping d is added to G in K alone.

Where training ended before, α stands in: a pull of φ towards where it began, added to K. Then K may
have negative eigenvalues, along which the loss still fell: they count as 0. (Of 11 small models,
trained by gradient descent for a time t, α = 1/t gave the highest agreement with the derivative of
the training itself, with R and so.) Without α, such a stage is refused.

Layers that the curvature does not couple are solved one by one, all queries together; with EK-FAC
in its basis, where G is elementwise and P keeps its form. How: `curvature.tangent`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import pad

from msif.core.adapters import Adapter
from msif.core.influence import Stage
from msif.core.kronecker import EKFAC
from msif.core.layers import Vectors
from msif.curvature.tangent import Part, System


@dataclass(frozen=True)
class LoRA(Stage):
    """A stage of adapters; otherwise a `Stage`, with its curvature at the merged weights.

    adapters: {layer: Adapter}. mean: D̄ {layer: (o, i), the bias's column included}, of all that
    the stage minimises in W, of these layers at least (`capture.mean_gradient`). alpha: the pull of
    φ, relative to the mean eigenvalue of a layer's Pᵀ(G + d)P. decay: β, of the mean loss.
    remainder: False leaves out R. Raises ValueError for adapters of layers that the curvature
    lacks, for shapes that do not fit, new or frozen layers, and a negative β.
    """

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    mean: Mapping[str, Tensor] = field(default_factory=dict)
    decay: float = 0.0
    remainder: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.new or self.frozen:
            raise ValueError(
                f"new layers {self.new} and frozen ones {self.frozen} in a stage of adapters: "
                f"expected none; layers without adapters are left as they were by themselves"
            )
        number = isinstance(self.decay, Real) and not isinstance(self.decay, bool)
        if not number or not 0 <= self.decay < float("inf"):
            raise ValueError(f"the weight decay is {self.decay!r}: expected a finite number ≥ 0")
        object.__setattr__(self, "decay", float(self.decay))  # of numpy, too
        missing = sorted(set(self.adapters) - set(self.curvature.layers))
        if missing or not self.adapters:
            raise ValueError(
                f"adapters of {missing or 'no layer'}; expected those of one or more of the layers "
                f"of the stage's curvature"
            )
        for name, x in self.adapters.items():
            shape, (o, i) = tuple(self.mean[name].shape) if name in self.mean else None, x.shape
            if shape not in ((o, i), (o, i + 1)):
                raise ValueError(
                    f"{name}: its mean gradient has the shape {shape}; its adapter is of {(o, i)}, "
                    f"or {(o, i + 1)} with the bias"
                )

    @property
    def forgets(self) -> bool:
        """Never: what the adapters cannot move stays as it was."""
        return False

    def inverse(self, v: Vectors) -> Vectors:
        """S v; v: {layer: (q, o, i)}. Raises ValueError as `System.solve`."""
        found = {name: torch.zeros_like(x) for name, x in v.items()}
        if isinstance(self.curvature, EKFAC):
            for name in self.adapters:
                found[name] = self._solved(name, v[name])
            return found

        def curved(moved):
            n = len(next(iter(moved.values())))
            zeros = {name: x.new_zeros(n, *x.shape[1:]).double() for name, x in v.items()}
            return self.curvature.apply(self._damped, zeros | moved)

        parts = {name: self._part(name, v[name]) for name in self.adapters}
        solved = System(parts, curved, self.decay, self.alpha).solve(v)
        return found | {name: x.to(v[name]) for name, x in solved.items()}

    def transfer(self, v: Vectors) -> Vectors:
        """T v = v − (G − X)ᵀ S v; v: {layer: (q, o, i)}."""
        moved = self.inverse(v)
        if isinstance(self.curvature, EKFAC):  # without an adapter: 0
            moved = {name: moved[name] for name in self.adapters}
        curved = self.curvature.apply(lambda values, mean: values, moved)
        crossed = {} if self.cross is None else self.cross.transposed(moved)
        return v | {name: v[name] - x + crossed.get(name, 0) for name, x in curved.items()}

    def _solved(self, name, v):
        """S v of one layer, in the eigenbasis of its factors: (q, o, i)."""
        factors = self.curvature.factors[name].to(v.device)
        eigenvalues = factors.eigenvalues.double()
        values = self._damped(eigenvalues, eigenvalues.mean()).flatten(0, 1)
        part = self._part(name, v).rotated(factors)
        system = System(
            {name: part}, lambda moved: {name: values * moved[name]}, self.decay, self.alpha, values
        )
        rotated = factors.rotate(v.double()).flatten(1, 2)
        try:
            solved = system.solve({name: rotated})[name]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return factors.rotate_back(solved.unflatten(1, eigenvalues.shape[:2])).to(v)

    def _damped(self, values, mean):
        return values + self.damping.of(mean)

    def _part(self, name, v):
        x = self.adapters[name]
        A, B, D = (t.to(v.device, torch.float64) for t in (x.A, x.B, self.mean[name]))
        bias = D.shape[1] - A.shape[1]
        A = pad(A, (0, bias))
        D = D if self.remainder else torch.zeros_like(D)
        return Part(A, B, D, x.scale, torch.eye(len(A.mT)).to(A)[-1] if bias else None)
