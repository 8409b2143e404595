"""EK-FAC: the curvature of each tracked layer, diagonal in a Kronecker eigenbasis.

For one block of a layer (the whole layer, or one head's q, k or v rows), the Gauss-Newton matrix is
that of a basis Q_B ⊗ Q_A and eigenvalues Λ (r, i):

    f(G): V ↦ Q_B [f(Λ) ∘ (Q_Bᵀ V Q_A)] Q_Aᵀ.

How the three are fitted: `msif.core.ekfac`. Source: George et al. 2018 (arXiv 1806.03884), Grosse
et al. 2023 (arXiv 2308.03296), section 3. Index letters as in `msif.core.capture`; blocks of a
layer are equally large, r rows each.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from msif.core.layers import Filter, Layer, Vectors
from msif.core.products import sequence_gradient, split


@dataclass(frozen=True)
class LayerFactors:
    """Eigenbases and eigenvalues of one layer.

    All tensors but rows are float32 (float64 for a float64 model).
    rows: (blocks, r) int64 output rows of each block, or None for one block of all rows in order.
    positions: (), how many positions of a sequence the layer sees on average (its tokens, or 1 if
    it sees a pooled vector).
    basis_in: Q_A (i, i). basis_out: Q_B (blocks, r, r). eigenvalues: Λ (blocks, r, i).
    in_values: λ_A (i,). out_values: λ_B (blocks, r).
    """

    rows: Tensor | None
    basis_in: Tensor
    basis_out: Tensor
    eigenvalues: Tensor
    in_values: Tensor
    out_values: Tensor
    positions: Tensor

    def rotate(self, v: Tensor) -> Tensor:
        """Q_Bᵀ V Q_A: (n, o, i) -> (n, blocks, r, i), in the higher of both precisions."""
        v, Q_A, Q_B = self._alike(v)
        if self.rows is None:  # as one product of two matrices a side: no basis is copied n times
            return ((v @ Q_A).mT @ Q_B[0]).mT[:, None]
        return Q_B.mT @ split(v, self.rows, 1) @ Q_A

    def rotated_gradient(self, a: Tensor, g: Tensor, bias: bool) -> Tensor:
        """Q_Bᵀ D Q_A (n, blocks, r, i) of D = Σ_t g_t [a_t, 1]ᵀ; a (n, s, inputs), g (n, s, o).

        a and g are rotated first where that multiplies less. Q_A's last row is the bias's; the 1
        that meets it is 1 where padded too, but g is 0 there.
        """
        s, i = a.shape[1:]
        o, r = g.shape[2], self.basis_out.shape[-1]
        if s * (i * i + r * o) > o * i * (i + r):
            return self.rotate(sequence_gradient(a, g, bias))
        a = a @ self.basis_in[:-1] + self.basis_in[-1] if bias else a @ self.basis_in
        if self.rows is None:  # one product: Q_B is not copied n times
            g = (g @ self.basis_out[0])[:, None]
        else:
            g = split(g, self.rows, 2).transpose(1, 2) @ self.basis_out
        return g.mT @ a[:, None]

    def rotate_back(self, v: Tensor) -> Tensor:
        """Q_B V Q_Aᵀ: (n, blocks, r, i) -> (n, o, i), in the higher of both precisions."""
        v, Q_A, Q_B = self._alike(v)
        if self.rows is None:
            return (v[:, 0].mT @ Q_B[0].mT).mT @ Q_A.mT
        v = (Q_B @ v @ Q_A.mT).flatten(1, 2)
        return torch.empty_like(v).index_copy_(1, self.rows.flatten().to(v.device), v)

    def _alike(self, v):
        """v, Q_A and Q_B in the higher of their precisions: v may come from another stage."""
        dtype = torch.promote_types(v.dtype, self.basis_in.dtype)
        return v.to(dtype), self.basis_in.to(dtype), self.basis_out.to(dtype)

    def to(self, device: torch.device | str) -> "LayerFactors":
        """The same factors on a device."""
        moved: dict[str, Any] = {
            name: x if x is None else x.to(device) for name, x in vars(self).items()
        }
        return LayerFactors(**moved)

    def apply(self, f: Filter, v: Tensor) -> Tensor:
        """f(G) V for f(eigenvalues, their mean over the layer): (n, o, i) -> (n, o, i).

        In float64 where it matters: the filter itself.
        """
        eigenvalues, rotated = self.eigenvalues.double(), self.rotate(v)
        return self.rotate_back(rotated * f(eigenvalues, eigenvalues.mean()).to(rotated))

    def quadratic(self, f: Filter, a: Tensor, g: Tensor, bias: bool) -> Tensor:
        """⟨D, f(G) D⟩ = Σ f(Λ) (Q_Bᵀ D Q_A)², (n,), of D as in `rotated_gradient`."""
        eigenvalues, dtype = self.eigenvalues.double(), self.basis_in.dtype
        both = torch.promote_types(a.dtype, dtype), torch.promote_types(g.dtype, dtype)
        rotated = self.rotated_gradient(a.to(both[0]), g.to(both[1]), bias)
        return (rotated.square() * f(eigenvalues, eigenvalues.mean()).to(rotated)).sum((1, 2, 3))


@dataclass(frozen=True)
class EKFAC:
    """The curvature of one model on one data set.

    factors: {layer name: LayerFactors}. header: where they come from.
    """

    factors: Mapping[str, LayerFactors]
    header: dict[str, Any]

    def apply(
        self, f: Filter, v: Vectors, new: Collection[str] = (), f_new: Filter | None = None
    ) -> Vectors:
        """f(G) v, layer by layer; v: {layer: (n, o, i)}.

        Layers in `new` get f_new (no coupling: blocks are independent). Raises ValueError, naming
        the layer, where the filter refuses its eigenvalues.
        """

        def applied(name, x):
            factors = self.factors[name].to(x.device)
            return _named(name, factors.apply, f_new if name in new else f, x)

        return {name: applied(name, x) for name, x in v.items()}

    def quadratic(self, f: Filter, layer: Layer, a: Tensor, g: Tensor) -> Tensor:
        """`LayerFactors.quadratic` of one layer: (n,). Raises as `apply`."""
        factors = self.factors[layer.name].to(a.device)
        return _named(layer.name, factors.quadratic, f, a, g, layer.bias)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names."""
        return tuple(self.factors)

    def kfac(self) -> "EKFAC":
        """The same eigenbases with K-FAC's eigenvalues λ_B λ_Aᵀ × (positions per sequence)."""
        return self._with_eigenvalues(
            "K-FAC", lambda x: x.positions * x.out_values[..., None] * x.in_values
        )

    def identity(self) -> "EKFAC":
        """The same layers with every eigenvalue 1 in place of Λ.

        It is the ablation H := I (apply with damping 0).
        """
        return self._with_eigenvalues("1", lambda x: torch.ones_like(x.eigenvalues))

    def _with_eigenvalues(self, what: str, of: Callable[[LayerFactors], Tensor]) -> "EKFAC":
        factors = {name: replace(x, eigenvalues=of(x)) for name, x in self.factors.items()}
        return replace(self, factors=factors, header={**self.header, "eigenvalues": what})


def _named(name, call, *arguments):
    """call(*arguments), with the layer's name put before what is wrong with its factors."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def block_shape(layer: Layer) -> tuple[int, int]:
    """(blocks, r) of a layer's output rows."""
    if layer.rows is None:
        return 1, layer.out_features
    blocks, r = layer.rows.shape
    return blocks, r


def factor_bytes(layer: Layer) -> int:
    """Bytes of one layer's factors in float32: Q_A, Q_B and Λ."""
    blocks, r = block_shape(layer)
    return 4 * (layer.inputs**2 + blocks * r**2 + layer.out_features * layer.inputs)
