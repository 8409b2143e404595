"""What a stage of adapters solves: (K₊ + α) φ = Pᵀv, with K = Pᵀ(G + d)P + R + βI.

The unknowns φ = (dB, dA) of a layer are r(o + i) numbers, which P takes to a tangent of the weights
that B A can reach. K₊ is K with 0 in place of negative eigenvalues. Letters: `msif.curvature.lora`.

Few unknowns are solved for exactly; more by block conjugate gradients from 0, which never leave
what P can move, preconditioned by the r × r blocks of K without R. Those cannot tell negative
eigenvalues from others, and refuse them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from msif.core.influence import Damping
from msif.core.kronecker import LayerFactors
from msif.core.layers import Vectors
from msif.core.products import WORKSPACE, split
from msif.curvature.conjugate import block_cg

DENSE = 1024  # unknowns, up to which a system is solved exactly
NULL = 1e-10  # eigenvalues of at most this share of the largest are 0
PRECISION, PRODUCTS = 1e-9, 300  # of conjugate gradients: relative residual, and products at most
ENOUGH = 1e-3  # relative residual after all products that is no error


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
        """r(o + i), a row for the bias included."""
        return self.A.numel() + self.B.numel()

    @property
    def idle(self) -> int:
        """Dimension of the unknowns that move no weight: r(o + i) less that of {dB A + B dA}."""
        a, b = (int(torch.linalg.matrix_rank(x)) for x in (self.A, self.B))
        o, free = len(self.B), self.A.shape[1] - (self.fixed is not None)
        return self.unknowns - (o * a + b * free - a * b)

    @property
    def trained(self) -> int:
        """r(o + i) without the bias."""
        return self.unknowns - len(self.A) * (self.fixed is not None)

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

    def trace(self, values: Tensor) -> Tensor:
        """Of PᵀGP, G elementwise: values (o, i)."""
        of_B, of_A = self.A.square() @ values.mT, self.B.square().mT @ values
        of_A = of_A if self.fixed is None else of_A * (1 - self.fixed.square())
        return self.scale**2 * (of_B.sum() + of_A.sum())

    def _unflattened(self, x):
        dB, dA = x.split([self.B.numel(), self.A.numel()], 1)
        return dB.unflatten(1, self.B.shape), self._free(dA.unflatten(1, self.A.shape))

    def _flattened(self, dB, dA):
        return torch.cat([dB.flatten(1), self._free(dA).flatten(1)], 1)

    def _free(self, dA):
        return dA if self.fixed is None else dA - (dA @ self.fixed)[..., None] * self.fixed


class System:
    """K = Pᵀ(G + d)P + R + βI of the adapters of some layers (`parts`), and α.

    curved: {layer: (n, o, i)} -> (G + d) times it, of these layers at least. values: the numbers
    (o, i) that (G + d) is made of, where it is elementwise in one layer; without them the system is
    solved exactly, whatever its size.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        curved: Callable[[Vectors], Vectors],
        decay: float,
        alpha: Damping,
        values: Tensor | None = None,
    ):
        self.parts, self.curved, self.decay, self.values = parts, curved, decay, values
        self.sizes = [x.unknowns for x in parts.values()]
        self.alpha = alpha.of(self._mean_eigenvalue() if alpha.value and alpha.relative else 0.0)

    def solve(self, v: Vectors) -> Vectors:
        """P (K₊ + α)⁺ Pᵀ v; v: {layer: (q, o, i)}, of these layers at least.

        Raises ValueError where K has a negative eigenvalue and there is no α, or too many unknowns,
        and where without α some of it is singular; ArithmeticError where conjugate gradients do not
        arrive.
        """
        b = torch.cat([part.transposed(v[name].double()) for name, part in self.parts.items()], 1)
        self._refuse_singular()
        if not b.any():
            x = b
        elif self.values is None or sum(self.sizes) <= DENSE:
            x = self._exactly(b)
        else:
            x = self._iteratively(b)
        each = zip(self.parts.items(), x.split(self.sizes, 1))
        return {name: part.forward(x) for (name, part), x in each}

    def product(self, x: Tensor) -> Tensor:
        """K x of each row of x (n, unknowns), as many at once as fit in a cache."""
        numbers = sum(x.D.numel() for x in self.parts.values())
        return torch.cat([self._product(few) for few in x.split(max(1, WORKSPACE // numbers))])

    def _product(self, x):
        each = dict(zip(self.parts, x.split(self.sizes, 1)))
        curved = self.curved({name: part.forward(each[name]) for name, part in self.parts.items()})
        found = [
            part.transposed(curved[name]) + part.rest(each[name], self.decay)
            for name, part in self.parts.items()
        ]
        return torch.cat(found, 1)

    def _mean_eigenvalue(self):
        """Of Pᵀ(G + d)P, over all numbers that are trained."""
        parts = self.parts.values()
        if self.values is None:
            K = self.product(torch.eye(sum(self.sizes)).to(next(iter(parts)).A))
            total = K.diagonal().sum() - self.decay * sum(x.trained for x in parts)  # R has none
        else:
            total = sum(x.trace(self.values) for x in parts)
        return total.item() / sum(x.trained for x in parts)

    def _refuse_singular(self):
        """As a plain stage does (`core.stages`), where G + d is elementwise."""
        if self.values is None or self.alpha or self.decay:
            return
        least, most = self.values.min().item(), self.values.max().item()
        if least <= 1e-12 * most:
            raise ValueError(_singular(f"its eigenvalues go from {least:.3g} to {most:.3g}"))

    def _exactly(self, b):
        K = self.product(torch.eye(b.shape[1]).to(b))
        K = (K + K.mT) / 2
        if not self.alpha:
            return self._undamped(K, b)
        values, vectors = torch.linalg.eigh(K)
        return (b @ vectors / (values.clamp(min=0) + self.alpha)) @ vectors.mT

    def _undamped(self, K, b):
        """K⁺ b, but for what moves no weight: in units that give K a diagonal of ones, so that
        what the smaller of B and A moves is not taken for nothing."""
        unit = K.diagonal().clamp(min=0)
        unit = torch.where(unit > 0, unit.rsqrt(), 0)
        values, vectors = torch.linalg.eigh(unit[:, None] * K * unit)
        if values[0] < -1e-7 * values[-1]:
            least, most = torch.linalg.eigvalsh(K)[[0, -1]].tolist()
            raise ValueError(
                f"the adapters are at no minimum: the second derivatives of the loss along them go "
                f"from {least:.1e} to {most:.1e}. Give the stage an alpha > 0, such as "
                f"Damping(0.1), for a training that ended before its optimum"
            )
        none = values <= NULL * values[-1]
        flat = int(none.sum()) - sum(x.idle for x in self.parts.values())
        if flat > 0:
            raise ValueError(_singular(f"{flat} of the directions that they can move have none"))
        return (b * unit @ vectors * torch.where(none, 0, 1 / values)) @ vectors.mT * unit

    def _iteratively(self, b):
        root = self._root()

        def product(y):
            x = root(y)
            Kx = self.product(x)
            curved = torch.linalg.eigvalsh(x @ Kx.mT)
            if curved[0] < -1e-7 * curved[-1]:
                raise ValueError(
                    f"the adapters are at no minimum, and have more than the {DENSE} numbers up to "
                    f"which that can be set right: leave out what bends the loss so "
                    f"(remainder=False)"
                )
            return root(Kx + self.alpha * x)

        for y, residuals in islice(block_cg(product, root(b)), PRODUCTS):
            if residuals.max() < PRECISION:
                return root(y)
        if residuals.max() < ENOUGH:
            return root(y)
        raise ArithmeticError(
            f"{PRODUCTS} products leave a relative residual of {residuals.max():.0e}: give the "
            f"stage of adapters more alpha or damping"
        )

    def _root(self):
        """x -> M^(−1/2) x, M the r × r blocks of Pᵀ(G + d)P + β + α, an output or input each."""
        (part,) = self.parts.values()
        of_B = torch.einsum("ri,oi,si->ors", part.A, self.values, part.A)
        of_A = torch.einsum("or,oi,os->irs", part.B, self.values, part.B)
        of_B, of_A = (self._of_block(part.scale**2 * M) for M in (of_B, of_A))

        def root(x):
            dB, dA = x.split([part.B.numel(), part.A.numel()], 1)
            dB = torch.einsum("qor,ors->qos", dB.unflatten(1, part.B.shape), of_B)
            dA = torch.einsum("qri,irs->qsi", dA.unflatten(1, part.A.shape), of_A)
            return torch.cat([dB.flatten(1), dA.flatten(1)], 1)

        return root

    def _of_block(self, M):
        found, vectors = torch.linalg.eigh(M)
        found = found.clamp(min=0) + self.decay + self.alpha
        inverse = torch.where(found > NULL * found.amax(1, keepdim=True), found.rsqrt(), 0)
        return vectors * inverse[:, None] @ vectors.mT


def _singular(found):
    return (
        f"the curvature of adapters is singular: {found}. Give the stage an alpha > 0, such as "
        f"Damping(0.1), or a damping > 0"
    )
