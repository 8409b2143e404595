"""A dial from EK-FAC to the exact damped Gauss-Newton.

It is block conjugate gradients, preconditioned by EK-FAC and sampled gradients, on

    (G + D) X = V,   D = α_l + d_l on layer l,   all q right-hand sides together.

k iterations find the X nearest to the solution, in the norm of G + D, among all combinations of the
q·k directions that the queries' k products have reached *together*: a query profits from the
products of all others, which plain CG throws away. An iteration is one product with G per query and
keeps four blocks of q vectors, whatever k. The preconditioner is the inverse of

    D + (1 − g) K + g Σ_i u_i u_iᵀ = C⁻¹ (I + Ũᵀ Ũ) C⁻¹,   C = (D + (1 − g) K)^(−1/2),   Ũ = √g U C,

K: EK-FAC; u_i, the rows of U: sampled pseudo-gradients with E[Σ u uᵀ] = G. They carry what EK-FAC
leaves out, such as the coupling of layers, and are shrunk towards EK-FAC because they are few. With
F = C (I + ŨᵀŨ)^(−1/2), CG runs on Fᵀ(G + D)F.

Sources: O'Leary 1980 (block CG), Dubrulle 2001 (BCGrQ: the block of residuals is kept orthonormal,
so that converged queries do no harm), Ledoit and Wolf 2004 (shrinkage).
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from msif.core.capture import gradients
from msif.core.influence import Stage
from msif.core.objectives import gaussian_loss
from msif.core.products import flatten, unflatten
from msif.curvature.conjugate import block_cg


@dataclass(frozen=True)
class Correction:
    """(I + ŨᵀŨ)^(−1/2) = I + Ũᵀ core Ũ.

    rows: Ũ (n, P). core: (n, n), symmetric. share: g, between 0 and 1.
    """

    rows: torch.Tensor
    core: torch.Tensor
    share: float

    def root(self, x):
        """(I + ŨᵀŨ)^(−1/2) x for each row of x (q, P)."""
        rows, core = self.rows.to(x), self.core.to(x)
        return x + x @ rows.mT @ core @ rows


@dataclass(frozen=True)
class Refined(Stage):
    """A `Stage` with its inverse refined by `iterations` products with the Gauss-Newton matrix.

    curvature: an `ekfac.EKFAC`. product: {layer: (q, o, i)} -> G times it, such as
    `GaussNewton.product`. iterations: 0 for the preconditioner alone. correction: from `low_rank`,
    or None for EK-FAC alone. solver: `block_cg` (None), or `cg` for each query by itself. Shared
    and new layers are coupled through G; new ones carry no α. Raises ValueError for
    iterations < 0, or > 0 without a product, and for frozen layers.
    """

    product: object = None
    iterations: int = 0
    correction: Correction | None = None
    solver: object = None

    def __post_init__(self):
        super().__post_init__()
        if self.frozen:
            raise ValueError(f"frozen layers {self.frozen}: expected none, as G couples all layers")
        if self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations}; expected 0 (EK-FAC) or more")
        if self.iterations and self.product is None:
            raise ValueError(
                f"{self.iterations} iterations need a product with the Gauss-Newton matrix: give, "
                f"for instance, product=GaussNewton(tracked, sequences).product"
            )

    def inverse(self, v):
        """(G + αP + d)⁻¹ v, {layer: (q, o, i)}, as nearly as the iterations buy."""
        if not self.iterations:
            return self.start(v)
        solutions = (x for x, _ in self.iterates(v))
        return next(islice(solutions, self.iterations - 1, None))

    def transfer(self, v):
        """T v = α (G + αP + d)⁻¹ v on the layers that earlier stages have."""
        return self.moved(self.inverse(v))

    def moved(self, solved):
        """α times a solution, on the layers that earlier stages have."""
        return {
            name: x * self.alpha.of(self._mean(name))
            for name, x in solved.items()
            if name not in self.new
        }

    def start(self, v):
        """F Fᵀ v, the preconditioner: without a correction exactly EK-FAC's (K + αP + d)⁻¹ v."""
        return super().inverse(v) if self.correction is None else self._forth(self._back(v), v)

    def iterates(self, v):
        """After each product: (approximate (G + αP + d)⁻¹ v, each query's relative residual).

        The residuals (q,) are those of the preconditioned system.
        """

        def product(x):
            return self._back(self.damped(self._forth(x, v)))

        solver = self.solver or block_cg
        for x, residuals in solver(product, self._back(v)):
            yield self._forth(x, v), residuals

    def damped(self, v):
        """(G + αP + d) v."""
        return {name: x + v[name] * self.shift(name) for name, x in self.product(v).items()}

    def _mean(self, name):
        return self.curvature.factors[name].eigenvalues.double().mean()

    def shift(self, name):
        """What is added to the curvature of a layer, d + α, as a number."""
        mean = self._mean(name)
        return self.damping.of(mean) + (0.0 if name in self.new else self.alpha.of(mean))

    def whitened(self, v, share):
        """C v as rows (q, P)."""

        def root(shift):
            return lambda eigenvalues, mean: ((1 - share) * eigenvalues + shift(mean)).rsqrt()

        def shift(mean):
            return self.alpha.of(mean) + self.damping.of(mean)

        return self.curvature.apply(root(shift), v, self.new, root(self.damping.of))

    def _back(self, v):
        """Fᵀ v as rows (q, P)."""
        if self.correction is None:
            return flatten(self.whitened(v, 0.0))
        return self.correction.root(flatten(self.whitened(v, self.correction.share)))

    def _forth(self, x, like):
        """F x of rows (q, P), as layers."""
        if self.correction is None:
            return self.whitened(unflatten(x, like), 0.0)
        return self.whitened(unflatten(self.correction.root(x), like), self.correction.share)


def low_rank(stage, u, share=0.9):
    """The `Correction` of a `Refined` stage's EK-FAC by pseudo-gradients u, E[Σ u uᵀ] = G.

    u: {layer: (n, o, i)}. share: g. It costs n² P once. Raises ValueError unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"share is {share}; expected a number between 0 (EK-FAC alone) and 1 (pseudo-gradients "
            f"alone)"
        )
    rows = share**0.5 * flatten(stage.whitened(u, share))
    values, vectors = torch.linalg.eigh((rows @ rows.mT).double())
    root = (1 + values.clamp(min=0)).sqrt()
    # ((1 + λ)^(−1/2) − 1) / λ without its cancellation:
    core = -vectors / (root * (1 + root)) @ vectors.mT
    return Correction(rows, core.to(rows.dtype), share)


def pseudo_gradients(tracked, sequences, samples=1, seed=0, batch_size=64):
    """u = D / √(samples·N), {layer: (samples·N, o, i)}: E[Σ u uᵀ] = G.

    A forward and a backward pass for each sample.
    """
    losses = [partial(gaussian_loss, seed=seed, draw=draw) for draw in range(samples)]
    drawn = [gradients(tracked, sequences, loss, batch_size) for loss in losses]
    scale = (samples * len(sequences)) ** 0.5
    return {name: torch.cat([d[name] for d in drawn]) / scale for name in drawn[0]}
