"""A stage of training as the influence function sees it: its curvature, damping and α, and the
chain that stages make. The formulas: `msif.core.influence`."""

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from msif.core.kronecker import EKFAC
from msif.core.layers import MERGE, Filter, Vectors


class Curvature(Protocol):
    """H of a stage, as far as a `Stage` uses it: `ekfac.EKFAC`, `dense.Dense`, …."""

    @property
    def layers(self) -> Collection[str]:
        """The layers' names."""

    def apply(
        self, f: Filter, v: Vectors, new: Collection[str] = (), f_new: Filter | None = None
    ) -> Vectors:
        """f(H) v, and f_new in place of f on the layers in `new`; v: {layer: (q, o, i)}."""


class Cross(Protocol):
    """X = −∂²J/∂θ∂θ_start of a stage whose loss itself depends on where the stage starts, as that
    of preferences does (`core.preferences`); a proximal term is α, and not in it."""

    def transposed(self, v: Vectors) -> Vectors:
        """Xᵀ v; v: {layer: (q, o, i)}."""


@dataclass(frozen=True)
class Damping:
    """A number added to the eigenvalues.

    `value` × the layer's mean eigenvalue, or `value` itself if not relative. Raises ValueError
    unless it is a finite number, not negative, and `relative` a bool.

    >>> msif.Damping(0.5).of(4.0), msif.Damping(0.5, relative=False).of(4.0)
    (2.0, 0.5)
    """

    value: float
    relative: bool = True

    def __post_init__(self):
        number = isinstance(self.value, Real) and not isinstance(self.value, bool)
        known = isinstance(self.value, int | float)  # not of numpy, nor a fraction
        plain = self.value if known or not number else float(self.value)
        if not number or not 0 <= plain <= sys.float_info.max:
            raise ValueError(f"damping or α of {self.value!r}: expected a finite number ≥ 0")
        if not isinstance(self.relative, bool):
            raise ValueError(f"relative is {self.relative!r}: expected True or False")
        object.__setattr__(self, "value", plain)

    def of(self, mean: Tensor | float) -> Tensor | float:
        """The number itself, given the layer's mean eigenvalue."""
        return self.value * mean if self.relative else self.value


NONE = Damping(0.0)


@dataclass(frozen=True)
class Stage:
    """One stage of training as the influence function sees it.

    curvature: H. damping d: numerical. alpha α: how strongly the stage stays near its start (for
    stage 1: its L2 regularisation). new: layers that earlier stages lack, such as a classification
    head; they carry no α. P below is 1 on all other layers, and 0 on the new ones. cross: X, where
    the loss itself depends on the stage's start. frozen: layers that the stage left as it found
    them: there θ_k = θ_{k−1}, so that T is 1, and no row of the stage has influence. Stages may
    differ in precision: the higher one is kept. Raises ValueError for a damping or alpha that is no
    `Damping`, for `new` or `frozen` as one string, for new layers beside a cross term, and for
    frozen layers of a curvature that may couple them to others.
    """

    curvature: Curvature
    damping: Damping = NONE
    alpha: Damping = NONE
    new: tuple[str, ...] = ()
    cross: Cross | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        for name, x in (("damping", self.damping), ("alpha", self.alpha)):
            if not isinstance(x, Damping):
                raise ValueError(
                    f"{name} is {x!r}: expected a Damping, such as Damping(0.1), × the mean "
                    f"eigenvalue, or Damping(0.1, relative=False)"
                )
        for what, names in (("new", self.new), ("frozen", self.frozen)):
            if isinstance(names, str):
                raise ValueError(f"{what} is {names!r}: expected names of layers, ({names!r},)")
        if self.frozen and not isinstance(self.curvature, EKFAC):
            raise ValueError(
                f"frozen layers {self.frozen} and a {type(self.curvature).__name__}: expected "
                f"EK-FAC, which couples no layer to another"
            )
        if self.new and self.cross is not None:
            raise ValueError(
                f"the new layers {self.new} and a cross term: expected a stage of preferences to "
                f"train the layers of its reference, and no others"
            )

    @property
    def forgets(self) -> bool:
        """Does nothing of where the stage starts reach its end?"""
        return self.alpha.value == 0 and self.cross is None

    def inverse(self, v: Vectors) -> Vectors:
        """(H + αP + d)⁻¹ v; 0 on frozen layers."""
        moved = self._applied(self.inverse_filter, v)
        return {name: moved[name] if name in moved else torch.zeros_like(v[name]) for name in v}

    def transfer(self, v: Vectors) -> Vectors:
        """T v = (X + α)ᵀ (H + αP + d)⁻¹ v on the layers that earlier stages have; v itself on
        frozen ones."""
        moved = v | self._applied(self.transfer_filter, v)
        if self.cross is not None:
            crossed = self.cross.transposed(self.inverse(v))
            return {name: x + crossed[name] for name, x in moved.items()}
        return {name: x for name, x in moved.items() if name not in self.new}

    def _applied(self, f, v):
        """f(H) v on the layers that the stage trained, new ones by their own filter."""
        trained = {name: x for name, x in v.items() if name not in self.frozen}
        return self.curvature.apply(f, trained, self.new, self.inverse_filter_of_new)

    def inverse_filter(self, eigenvalues: Tensor, mean: Tensor) -> Tensor:
        """1 / (λ + α + d) of a layer's eigenvalues λ and their mean.

        Raises ValueError for a singular block, as do the other two.
        """
        return _reciprocal(eigenvalues + self.alpha.of(mean) + self.damping.of(mean))

    def inverse_filter_of_new(self, eigenvalues: Tensor, mean: Tensor) -> Tensor:
        """1 / (λ + d): what a new layer has in place of `inverse_filter`."""
        return _reciprocal(eigenvalues + self.damping.of(mean))

    def transfer_filter(self, eigenvalues: Tensor, mean: Tensor) -> Tensor:
        """α / (λ + α + d)."""
        return self.inverse_filter(eigenvalues, mean) * self.alpha.of(mean)


def _reciprocal(x):
    """1 / x, unless some x is no more than rounding error beside the largest."""
    if not torch.isfinite(x).all():
        raise ValueError(
            "NaN or infinite eigenvalues: these factors are broken, and no damping mends them; fit "
            "them again"
        )
    if not (x > 1e-12 * x.max()).all():
        smallest, largest = x.min().item(), x.max().item()
        raise ValueError(
            f"a singular block: its damped eigenvalues go from {smallest:.3g} to {largest:.3g}. "
            f"Give the stage a damping > 0, for instance Damping(1e-3); where all eigenvalues of a "
            f"layer are 0, an absolute one"
        )
    return 1 / x


def check(stages: Sequence[Stage]) -> None:
    """Raise ValueError unless the stages make a chain.

    Each must track the layers of the one before it plus its own declared new ones, the first must
    declare none, and none after it may forget its start.
    """
    for k, (earlier, later) in enumerate(zip(stages, stages[1:]), start=2):
        before, now = set(earlier.curvature.layers), set(later.curvature.layers) - set(later.new)
        if before != now:
            raise ValueError(
                f"stages {k - 1} and {k} do not share the tracked layers; only in stage {k - 1}: "
                f"{sorted(before - now)}, only in stage {k}: {sorted(now - before)} (a layer that "
                f"stage {k} adds, such as a head, must be named in its `new`){_hint(before ^ now)}"
            )
        if later.forgets:
            raise ValueError(
                f"stage {k} has α = 0: it forgets its start, so no earlier document has influence; "
                f"give it an alpha > 0, for instance Damping(0.1)"
            )
    if not stages:
        raise ValueError(
            "there are no stages: expected at least one, the stage whose documents are scored"
        )
    if stages[0].new:
        raise ValueError(
            f"stage 1 has new layers {stages[0].new}: there is no earlier stage that could lack "
            f"them"
        )


def _hint(names):
    adapters = any(re.search(r"\.(base_layer|lora_[AB])\b", name) for name in names)
    return f". These are adapters: {MERGE}" * adapters
