"""A stage that is trained by adapters (LoRA; Hu et al. 2021, arXiv 2106.09685).

It keeps the weights W_start that it begins with, and trains φ = (B, A) of each adapted layer: W =
W_start + s·BA. With D̄ the mean gradient of its loss in W, G the curvature and X the cross term
(`stages.Cross`) of that loss in W, β the weight decay of φ, α a pull of W towards W_start, where
training had one or ended early, and

    P(dB, dA) = s (dB·A + B·dA),   PᵀV = (s V Aᵀ, s Bᵀ V),   R = s ⟨D̄, dB·dA′ + dB′·dA⟩,
    S = P (Pᵀ(G + α)P + R + βI)⁺ Pᵀ,

the stage's inverse is S: rows of the stage score ⟨S ∇(−f), ∇m⟩; and T = 1 − (G − X)ᵀ S. What the
adapters cannot move, and layers without them, pass unchanged, but for what G couples. Where P
reaches all weights and β = 0, S = (G + α)⁻¹, the ordinary stage. Adapters in another gauge, B → BM,
A → M⁻¹A, are the same stage if β = 0. Damping d is added to G inside S alone.

D̄ along B and A is not the measured one, but what it is at an optimum (`at_optimum`), so that
directions that move no weight have no curvature, also where training ended before its optimum.

Layers that the curvature does not couple are solved one by one, all queries together; with EK-FAC
in its basis, where G is elementwise and P keeps its form. Exactly where the unknowns r(o + i) are
few, else by block conjugate gradients from 0, which never leave what P can move, preconditioned by
the r × r blocks of Pᵀ(G + α)P.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad

from msif.core.adapters import Adapter
from msif.core.influence import Stage
from msif.core.kronecker import EKFAC, LayerFactors
from msif.core.layers import Vectors
from msif.core.products import WORKSPACE, split
from msif.curvature.conjugate import block_cg

DENSE = 1024  # unknowns, up to which a system is solved exactly
NULL = 1e-10  # eigenvalues below this share of the largest are 0: directions that move no weight
PRECISION, PRODUCTS = 1e-10, 1000  # of conjugate gradients: relative residual, and at most


@dataclass(frozen=True)
class LoRA(Stage):
    """A stage of adapters; otherwise a `Stage`, with its curvature at the merged weights.

    adapters: {layer: Adapter}. mean: D̄ {layer: (o, i), the bias's column included}, of these layers
    at least (`capture.mean_gradient`). decay: β, of the mean loss. remainder: False leaves out R,
    whose place no damping takes. Raises ValueError for adapters of layers that the curvature lacks,
    for shapes that do not fit, new layers, and a negative β.
    """

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    mean: Mapping[str, Tensor] = field(default_factory=dict)
    decay: float = 0.0
    remainder: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.new:
            raise ValueError(f"new layers {self.new} in a stage of adapters: expected none")
        if not 0 <= self.decay < float("inf"):
            raise ValueError(f"the weight decay is {self.decay!r}: expected a finite number ≥ 0")
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
            return self.curvature.apply(self._shift, zeros | moved)

        parts = {name: self._part(name, v[name]) for name in self.adapters}
        solved = System(parts, curved, self.decay).solve(v)
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
        values = self._shift(eigenvalues, eigenvalues.mean()).flatten(0, 1)
        part = self._part(name, v).rotated(factors)
        system = System({name: part}, lambda moved: {name: values * moved[name]}, self.decay)
        rotated = factors.rotate(v.double()).flatten(1, 2)
        try:
            solved = system.solve({name: rotated}, lambda: _root(part, values, self.decay))[name]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return factors.rotate_back(solved.unflatten(1, eigenvalues.shape[:2])).to(v)

    def _shift(self, values, mean):
        return values + self.alpha.of(mean) + self.damping.of(mean)

    def _part(self, name, v):
        x = self.adapters[name]
        A, B, D = (t.to(v.device, torch.float64) for t in (x.A, x.B, self.mean[name]))
        bias = D.shape[1] - A.shape[1]
        A = pad(A, (0, bias))
        D = at_optimum(D, A, B, x.scale, self.decay) if self.remainder else torch.zeros_like(D)
        return Part(A, B, D, x.scale, torch.eye(len(A.mT)).to(A)[-1] if bias else None)


def at_optimum(D: Tensor, A: Tensor, B: Tensor, scale: float, decay: float) -> Tensor:
    """D̄ (o, i) with the part along B (o, r) and A (r, i) that it has at an optimum.

    There s D̄Aᵀ + βB = 0 and s BᵀD̄ + βA = 0, α's pull included in D̄, so that BᵀB = AAᵀ if β > 0: it
    is −β/s U Vᵀ, BA = U Σ Vᵀ.
    """
    D = D - B @ (torch.linalg.pinv(B) @ D)
    D = D - (D @ torch.linalg.pinv(A)) @ A
    if not decay:
        return D
    (Q_B, R_B), (Q_A, R_A) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
    U, sizes, Vh = torch.linalg.svd(R_B @ R_A.mT)
    kept = (sizes > NULL * sizes[0]).to(D)
    return D - decay / scale * (Q_B @ U * kept) @ (Vh @ Q_A.mT)


@dataclass(frozen=True)
class Part:
    """One layer's adapter, in some basis of its outputs and inputs: float64.

    A (r, i), B (o, r), D: D̄ (o, i), scale: s. fixed: the bias's direction among the inputs (i,),
    which no adapter moves, or None.
    """

    A: Tensor
    B: Tensor
    D: Tensor
    scale: float
    fixed: Tensor | None

    def rotated(self, factors: LayerFactors) -> "Part":
        """The same in the eigenbasis of a layer's factors, all blocks' rows one after the other."""
        Q_A, Q_B = factors.basis_in.double(), factors.basis_out.double()
        B = (Q_B.mT @ split(self.B, factors.rows, 0)).flatten(0, 1)
        D = factors.rotate(self.D[None])[0].flatten(0, 1)
        fixed = None if self.fixed is None else self.fixed @ Q_A
        return Part(self.A @ Q_A, B, D, self.scale, fixed)

    @property
    def unknowns(self) -> int:
        """r(o + i)."""
        return self.A.numel() + self.B.numel()

    def forward(self, x: Tensor) -> Tensor:
        """P x: (n, r(o + i)) -> (n, o, i)."""
        dB, dA = self._unflattened(x)
        return self.scale * (dB @ self.A + self.B @ dA)

    def transposed(self, V: Tensor) -> Tensor:
        """Pᵀ V: (n, o, i) -> (n, r(o + i))."""
        return self._flattened(self.scale * V @ self.A.mT, self.scale * self.B.mT @ V)

    def rest(self, x: Tensor, decay: float) -> Tensor:
        """(R + βI) x: (n, r(o + i))."""
        dB, dA = self._unflattened(x)
        D = self.scale * self.D
        return self._flattened(D @ dA.mT + decay * dB, dB.mT @ D + decay * dA)

    def _unflattened(self, x):
        dB, dA = x.split([self.B.numel(), self.A.numel()], 1)
        return dB.unflatten(1, self.B.shape), self._free(dA.unflatten(1, self.A.shape))

    def _flattened(self, dB, dA):
        return torch.cat([dB.flatten(1), self._free(dA).flatten(1)], 1)

    def _free(self, dA):
        return dA if self.fixed is None else dA - (dA @ self.fixed)[..., None] * self.fixed


class System:
    """K = Pᵀ(G + α + d)P + R + βI, of the adapters of some layers: `parts`.

    curved: {layer: (n, o, i)} -> (G + α + d) times it, of these layers at least.
    """

    def __init__(
        self, parts: Mapping[str, Part], curved: Callable[[Vectors], Vectors], decay: float
    ):
        self.parts, self.curved, self.decay = parts, curved, decay
        self.sizes = [x.unknowns for x in parts.values()]

    def product(self, x: Tensor) -> Tensor:
        """K x of each row of x (n, unknowns), as many at once as fit in a cache."""
        numbers = sum(x.D.numel() for x in self.parts.values())
        return torch.cat([self._product(few) for few in x.split(max(1, WORKSPACE // numbers))])

    def _product(self, x):
        each = dict(zip(self.parts, x.split(self.sizes, 1)))
        curved = self.curved({name: part.forward(each[name]) for name, part in self.parts.items()})
        return torch.cat(
            [
                part.transposed(curved[name]) + part.rest(each[name], self.decay)
                for name, part in self.parts.items()
            ],
            1,
        )

    def solve(
        self, v: Vectors, root: Callable[[], Callable[[Tensor], Tensor]] | None = None
    ) -> Vectors:
        """P K⁺ Pᵀ v; v: {layer: (q, o, i)}, of these layers at least.

        root: makes x -> M^(−1/2) x, M about K, for systems that are too large to be solved exactly.
        Raises ValueError where K has a negative eigenvalue: φ is no minimum then.
        """
        b = torch.cat([part.transposed(v[name].double()) for name, part in self.parts.items()], 1)
        few = root is None or sum(self.sizes) <= DENSE
        x = self._exactly(b) if few else self._iteratively(b, root())
        each = zip(self.parts.items(), x.split(self.sizes, 1))
        return {name: part.forward(x) for (name, part), x in each}

    def _exactly(self, b):
        K = self.product(torch.eye(b.shape[1]).to(b))
        sizes = K.diagonal().abs().sqrt()
        scaled = torch.where(sizes > 0, 1 / sizes, 0)  # B and A can differ by orders of magnitude
        values, vectors = torch.linalg.eigh((K + K.mT) / 2 * scaled * scaled[:, None])
        _positive(values)
        inverse = torch.where(values > NULL * values.max(), 1 / values, 0)
        return (b * scaled @ vectors * inverse) @ vectors.mT * scaled

    def _iteratively(self, b, root):
        def product(x):
            found = root(self.product(root(x)))
            _positive(torch.linalg.eigvalsh(x @ found.mT))
            return found

        for x, residuals in islice(block_cg(product, root(b)), PRODUCTS):
            if residuals.max() < PRECISION:
                return root(x)
        raise ArithmeticError(
            f"{PRODUCTS} products leave a relative residual of {residuals.max():.0e}: give the "
            f"stage of adapters more alpha or damping"
        )


def _positive(values):
    if values.min() < -1e-8 * values.max():
        raise ValueError(
            f"with this curvature the adapters are at no minimum: the second derivatives of the "
            f"loss along them go from {values.min():.1e} to {values.max():.1e} (scaled). Give the "
            f"stage more alpha, or leave out what bends the loss so (remainder=False)"
        )


def _root(part, values, decay):
    """x -> M^(−1/2) x, M the r × r blocks of Pᵀ(G + α + d)P + βI: one an output, one an input."""
    s2, r = part.scale**2, len(part.A)
    of_B = torch.einsum("ri,oi,si->ors", part.A, values, part.A) * s2
    of_A = torch.einsum("or,oi,os->irs", part.B, values, part.B) * s2
    roots = []
    for M in (of_B, of_A):
        found, vectors = torch.linalg.eigh(M + decay * torch.eye(r).to(M))
        kept = found > NULL * found.amax(1, keepdim=True)
        inverse = torch.where(kept, found.clamp(min=0).rsqrt(), 0)
        roots.append(vectors * inverse[:, None] @ vectors.mT)

    def root(x):
        dB, dA = x.split([part.B.numel(), part.A.numel()], 1)
        dB = torch.einsum("qor,ors->qos", dB.unflatten(1, part.B.shape), roots[0])
        dA = torch.einsum("qri,irs->qsi", dA.unflatten(1, part.A.shape), roots[1])
        return torch.cat([dB.flatten(1), dA.flatten(1)], 1)

    return root
